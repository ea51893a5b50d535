/** Greedy decoding and sampling: one id a row and step. */

import type { ResolvedOptions } from "./options.ts";
import type { Scores, Session } from "./session.ts";
import { stoppingCriteria } from "./stopping.ts";

/** Steps of one native job: pages are reserved for so many at a time. */
const job_steps_max = 256;

/** Scores that were asked for, one entry a step. */
export interface Recorded {
  readonly scores: Scores[];
  readonly logits: Scores[];
}

/** How {@link decodeSteps} runs. */
export interface DecodeOptions {
  readonly max_new_tokens: number;
  /** Steps the native job may be ahead of the reader. */
  readonly ring_steps: number;
  /** Never ahead of the reader, because the cache belongs to the caller. */
  readonly exact: boolean;
  readonly recorded: Recorded;
}

/**
 * Generates until every row has ended or `max_new_tokens` is reached.
 *
 * @returns each step's ids, one a row; `pad_id` for rows that have ended
 */
export async function* decodeSteps(
  session: Session,
  run: DecodeOptions,
): AsyncGenerator<number[], void, void> {
  const { options } = session;
  const { signal } = options.inputs;
  const stops = stoppingCriteria(options);
  const by_step = stops !== undefined || run.exact || options.processors.length > 0 ||
    options.output_scores || options.output_logits;
  let left = run.max_new_tokens;

  const wants_scores = options.processors.length > 0 || options.output_scores ||
    options.output_logits;
  let { scores, ids } = await session.prefill(signal, !wants_scores);
  for (;;) {
    yield append(session, ids ?? await choose(session, scores, run.recorded));
    ids = undefined;
    left--;
    if (stops) endRows(session, stops(session.input_ids));
    if (left === 0 || session.rows.every((row) => row.finished)) return;
    if (!by_step) break;
    signal?.throwIfAborted();
    scores = await session.step([], signal);
  }
  while (left > 0 && session.rows.some((row) => !row.finished)) {
    const steps = Math.min(left, job_steps_max);
    yield* nativeSteps(session, steps, run.ring_steps);
    left -= steps;
  }
}

/** Steps that follow each other natively. */
async function* nativeSteps(
  session: Session,
  n_steps: number,
  ring_steps: number,
): AsyncGenerator<number[], void, void> {
  const { signal } = session.options.inputs;
  const { job, shared } = session.decode(n_steps, ring_steps);
  const width = session.rows.length;
  try {
    for (;;) {
      const { state, values } = await job.next(signal);
      for (let at = 0; at < values.length; at += width) {
        yield append(session, [...values.subarray(at, at + width)]);
      }
      if (state === "cancelled") signal?.throwIfAborted();
      if (state === "running") continue;
      // All ids but the last have been fed; a row that ended was held where it was.
      for (const [r, row] of session.rows.entries()) session.cache.lengths[r] = row.ids.length - 1;
      return;
    }
  } finally {
    shared?.settle();
    await job.close();
  }
}

/** Adds a step's ids to the rows. @returns what the step shows: `pad_id` for ended rows */
function append(session: Session, ids: readonly number[]): number[] {
  const { eos_ids, pad_id } = session.options;
  return session.rows.map((row, r) => {
    if (row.finished) return pad_id;
    row.ids.push(ids[r]);
    if (eos_ids.includes(ids[r])) row.finished = true;
    return ids[r];
  });
}

function endRows(session: Session, ended: readonly boolean[]): void {
  for (const [r, row] of session.rows.entries()) row.finished ||= ended[r];
}

/** From logits to each row's next id, through HF's penalties, custom processors and warpers. */
async function choose(session: Session, logits: Scores, recorded: Recorded): Promise<number[]> {
  const { options } = session;
  const { signal } = options.inputs;
  if (options.output_logits) recorded.logits.push(logits.map((row) => row.slice()));
  let scores = logits;
  let tail = session.choosingTail();
  if (options.processors.length > 0) {
    if (session.processes) {
      scores = (await session.transform(scores, ["logits_process"], signal)).scores;
      tail = tail.filter((op) => op !== "logits_process");
    }
    scores = applyProcessors(options, session.input_ids, scores);
  }
  const chosen = await session.transform(scores, tail, signal);
  if (options.output_scores) recorded.scores.push(chosen.scores);
  return chosen.ids;
}

/** Runs custom processors in order. @throws {TypeError} when one gives rows of another shape */
export function applyProcessors(
  options: ResolvedOptions,
  input_ids: number[][],
  scores: Scores,
): Scores {
  for (const [i, processor] of options.processors.entries()) {
    const next = processor(input_ids, scores) ?? scores;
    const fits = next.length === scores.length &&
      next.every((row, r) => row instanceof Float32Array && row.length === scores[r].length);
    if (!fits) {
      throw new TypeError(
        `Expected logits_processor ${i} to give ${scores.length} Float32Arrays of ` +
          `${scores[0].length} scores`,
      );
    }
    scores = next;
  }
  return scores;
}
