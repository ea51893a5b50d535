/**
 * Beam search with HF's scoring: running beams beside the best finished ones. With `do_sample`
 * continuations are drawn by their scores instead of taken from the best.
 */

import { applyProcessors, type Recorded } from "./decode.ts";
import type { ResolvedOptions } from "./options.ts";
import { gumbelNoise, type Noise } from "./random.ts";
import type { Scores, Session } from "./session.ts";
import { stoppingCriteria } from "./stopping.ts";
import type { TailOp } from "../modeling/plans.ts";

/** Added to scores of what must not be chosen; as in HF, so that ties fall the same way. */
const never = -1e9;

/** A hypothesis: running or finished. */
interface Beam {
  readonly ids: number[];
  readonly score: number;
  readonly finished: boolean;
  /** Row of the session it came from in each step. */
  readonly trail: readonly number[];
}

/** What beam search returns for one prompt, best first. */
export interface BeamResult {
  readonly ids: number[];
  readonly score: number;
  readonly trail: readonly number[];
}

/** Float32 arithmetic, as HF adds scores. */
const f32 = Math.fround;

/**
 * Searches with `num_beams` rows for each prompt: row p * num_beams + b is beam b of prompt p.
 *
 * @returns for each prompt `num_return_sequences` hypotheses, best first
 */
export async function beamSearch(
  session: Session,
  max_new_tokens: number,
  recorded: Recorded,
): Promise<BeamResult[][]> {
  const { options } = session;
  const { num_beams, num_return_sequences } = options;
  const { signal } = options.inputs;
  const stops = stoppingCriteria(options);
  const prompts = session.rows.length / num_beams;
  const searches = Array.from(
    { length: prompts },
    (_, p) =>
      new BeamSearch(options, session.rows[p * num_beams].ids, p * num_beams, max_new_tokens),
  );

  let logits = (await session.prefill(signal)).scores;
  for (let step = 0; step < max_new_tokens; step++) {
    if (options.output_logits) recorded.logits.push(logits.map((row) => row.slice()));
    const scores = await beamScores(session, logits);
    if (options.output_scores) recorded.scores.push(scores);
    const last = step === max_new_tokens - 1;
    const blocked = searches.map((search, p) => {
      const noise = options.do_sample ? gumbelNoise([...options.seed_words, step, p]) : undefined;
      return search.advance(scores.slice(p * num_beams, (p + 1) * num_beams), stops, last, noise);
    });
    const going = searches.some((search) => search.improvable) && !blocked.every(Boolean) &&
      !(options.early_stopping === true && searches.every((search) => search.full));
    if (!going) break;
    const parents = searches.flatMap((search) => search.parents());
    session.cache.reorder_cache(parents);
    for (const [r, beam] of searches.flatMap((search) => search.running).entries()) {
      session.rows[r].ids.splice(0, Infinity, ...beam.ids);
    }
    logits = await session.step([], signal);
  }
  return searches.map((search) => search.best(num_return_sequences));
}

/** Log probabilities through penalties, custom processors and warpers. */
async function beamScores(session: Session, logits: Scores): Promise<Scores> {
  const { options } = session;
  const { signal } = options.inputs;
  let tail: TailOp[] = ["log_softmax"];
  if (session.processes) tail.push("logits_process");
  let scores = logits;
  if (options.processors.length > 0) {
    scores = (await session.transform(scores, tail, signal)).scores;
    scores = applyProcessors(options, session.input_ids, scores);
    tail = [];
  }
  if (tail.length > 0) scores = (await session.transform(scores, tail, signal)).scores;
  return session.warps ? await warp(session, scores) : scores;
}

/** Sampling's rules, which leave every beam `min_tokens_to_keep` ids. */
async function warp(session: Session, scores: Scores): Promise<Scores> {
  const { min_tokens_to_keep, inputs: { signal } } = session.options;
  const warped = (await session.transform(scores, ["logits_warp"], signal)).scores;
  const lacks = (row: Float32Array) => row.filter((x) => x > -Infinity).length < min_tokens_to_keep;
  if (!warped.some(lacks)) return warped;
  const least = { top_k: min_tokens_to_keep, top_p: 1, min_p: 0, typical_p: 1 };
  const best = (await session.transform(scores, ["logits_warp"], signal, least)).scores;
  return warped.map((row, r) => lacks(row) ? best[r] : row);
}

/** The state of one prompt's search. */
class BeamSearch {
  running: Beam[];
  finished: Beam[];
  /** Whether a running beam may still beat a finished one. */
  improvable = true;
  readonly #prompt: number;

  constructor(
    readonly options: ResolvedOptions,
    ids: readonly number[],
    readonly first_row: number,
    readonly max_new_tokens: number,
  ) {
    this.#prompt = ids.length;
    const beam = (score: number): Beam => ({ ids: [...ids], score, finished: false, trail: [] });
    // Beams start alike: all but the first begin so low that the first step takes only from it.
    this.running = Array.from({ length: options.num_beams }, (_, b) => beam(b === 0 ? 0 : never));
    this.finished = Array.from({ length: options.num_beams }, () => beam(never));
  }

  /** Every place among the finished is taken. */
  get full(): boolean {
    return this.finished.every((beam) => beam.finished);
  }

  /** Session rows that the running beams continue. */
  parents(): number[] {
    return this.running.map((beam) => beam.trail[beam.trail.length - 1]);
  }

  /**
   * Takes one step's scores of the running beams.
   *
   * @param noise draws continuations; without it the best are taken
   * @returns whether every candidate ended, so that nothing is left to continue
   * @throws {RangeError} where no score is above -inf
   */
  advance(
    scores: Scores,
    stops: ((input_ids: number[][]) => boolean[]) | undefined,
    last: boolean,
    noise?: Noise,
  ): boolean {
    const { num_beams, eos_ids, length_penalty, early_stopping } = this.options;
    const wanted = Math.max(2, 1 + eos_ids.length) * num_beams;
    const top = topContinuations(scores, this.running, wanted, noise);
    if (top[0].score === -Infinity) {
      throw new RangeError(
        "Expected a score to choose by but found only NaN or -inf in the beams of prompt " +
          this.first_row / num_beams,
      );
    }
    const candidates = top.map((c): Beam => {
      const from = this.running[c.beam];
      return {
        ids: [...from.ids, c.id],
        score: c.score,
        finished: last || eos_ids.includes(c.id),
        trail: [...from.trail, this.first_row + c.beam],
      };
    });
    if (stops) {
      const ended = stops(candidates.map((c) => [...c.ids]));
      for (const [i, c] of candidates.entries()) {
        candidates[i] = { ...c, finished: c.finished || ended[i] };
      }
    }
    const length = candidates[0].ids.length - this.#prompt;
    const closed = (early_stopping === true && this.full) || !this.improvable;
    const ending = candidates.map((c, i): Beam => {
      let score = f32(c.score / length ** length_penalty);
      const finished = c.finished && i < num_beams;
      if (closed) score = f32(score + never);
      if (!finished) score = f32(score + never);
      return { ...c, score, finished };
    });
    this.finished = best([...this.finished, ...ending], num_beams);
    const continuing = candidates.map((c) =>
      c.finished ? { ...c, score: f32(c.score + never) } : c
    );
    this.running = best(continuing, num_beams);
    this.#checkImprovable(length);
    return candidates.every((c) => c.finished);
  }

  /** The best hypotheses. */
  best(count: number): BeamResult[] {
    return this.finished.slice(0, count);
  }

  #checkImprovable(length: number): void {
    const { early_stopping, length_penalty } = this.options;
    const hopeful = early_stopping === "never" && length_penalty > 0 ? this.max_new_tokens : length;
    const reachable = f32(this.running[0].score / hopeful ** length_penalty);
    const worst = Math.min(...this.finished.map((beam) => beam.score));
    const beats = this.finished.some((beam) => reachable > (beam.finished ? worst : never));
    this.improvable &&= beats;
  }
}

/** The highest scores first; the earlier one on a tie. */
function best(beams: readonly Beam[], count: number): Beam[] {
  return beams.map((beam, i) => [beam, i] as const)
    .sort((a, b) => b[0].score - a[0].score || a[1] - b[1])
    .slice(0, count).map(([beam]) => beam);
}

interface Continuation {
  readonly beam: number;
  readonly id: number;
  readonly score: number;
  /** What decides between continuations: the score, with the noise of a draw. */
  readonly rank: number;
}

/**
 * The `count` best (beam, id) pairs by running score plus the id's score, best first; with `noise`
 * as many draws without replacement from softmax of these sums.
 */
function topContinuations(
  scores: Scores,
  running: readonly Beam[],
  count: number,
  noise?: Noise,
): Continuation[] {
  const top: Continuation[] = [];
  for (const [beam, row] of scores.entries()) {
    const base = running[beam].score;
    for (let id = 0; id < row.length; id++) {
      const sum = f32(row[id] + base);
      const score = sum > -Infinity ? sum : -Infinity; // what NaN counts as
      const rank = noise && sum > -Infinity ? score + noise() : score;
      if (top.length === count && !(rank > top[count - 1].rank)) continue;
      let at = top.length;
      while (at > 0 && rank > top[at - 1].rank) at--;
      top.splice(at, 0, { beam, id, score, rank });
      if (top.length > count) top.pop();
    }
  }
  return top;
}
