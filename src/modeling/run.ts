/** One run of a plan: pieces of sequences in, a finished job out. */

import type { Plan } from "../graph/plan.ts";
import { encodeStep, type SamplingFields } from "../graph/step.ts";
import type { NativeJob } from "../native/job.ts";
import type { HybridMambaAttentionDynamicCache } from "./cache.ts";
import { SharedBuffer } from "./rows.ts";
import type { ModelRuntime } from "./runtime.ts";

/** A piece of one sequence's tokens, ready to run. */
export interface RunSequence {
  /** Row of the cache. */
  readonly row: number;
  /** Tokens of the sequence before the piece. */
  readonly past: number;
  /** Absent when embeddings are given. */
  readonly ids?: ArrayLike<number>;
  /** For the rotary embedding, one a token. */
  readonly positions: ArrayLike<number>;
  /** Tokens of the piece whose logits are wanted, rising. */
  readonly logit_rows: readonly number[];
  /** One a logit row, -100 where there is none. */
  readonly labels?: readonly number[];
  readonly sampling?: SamplingFields;
  /** Every id of the sequence so far, for penalties. */
  readonly history?: readonly number[];
}

/** What a run shares among its sequences. */
export interface RunOptions {
  readonly plan: Plan;
  readonly cache: HybridMambaAttentionDynamicCache;
  readonly sequences: readonly RunSequence[];
  /** Steps of a decode job; 1 otherwise. */
  readonly n_steps?: number;
  /** Steps the job may be ahead of the reader; 0 = all. */
  readonly ring_steps?: number;
  readonly eos_ids?: readonly number[];
  readonly bad_words_ids?: readonly (readonly number[])[];
  readonly pad_id?: number;
  /** Whether ids are sampled and reported. */
  readonly sample?: boolean;
  /** "profile" times every launch instead of giving results; on a GPU only. */
  readonly kind?: "run" | "profile";
  /** Fills input regions of the input/output buffer before the run. */
  readonly fill?: (shared: SharedBuffer) => void;
}

/** A started run. */
export interface StartedRun {
  readonly job: NativeJob;
  /** Present when the plan keeps outputs or takes inputs; settle or hand it on. */
  readonly shared: SharedBuffer | undefined;
}

/** Starts a job over the sequences; the cache must have pages for all its steps. */
export function startRun(runtime: ModelRuntime, options: RunOptions): StartedRun {
  const { device, batch_invariant } = runtime;
  const { plan, cache, n_steps = 1 } = options;
  const step = stepBytes(options, n_steps);
  const shared = plan.external_bytes > 0
    ? new SharedBuffer(device.createBuffer(plan.external_bytes))
    : undefined;
  try {
    if (shared) options.fill?.(shared);
    const { state, kv } = cache.handles;
    const job = device.native.startJob({
      kind: options.kind ?? "run",
      device: device.handle,
      plan: plan.handle,
      state,
      kv,
      output: shared?.buffer.handle ?? 0,
      n_steps,
      ring_steps: options.ring_steps ?? 0,
      decode: options.sample ?? false,
      batch_invariant,
    }, step);
    return { job, shared };
  } catch (error) {
    shared?.settle();
    throw error;
  }
}

function stepBytes(options: RunOptions, n_steps: number): Uint8Array {
  const { sequences, cache } = options;
  const tokens = sequences.reduce((sum, { positions }) => sum + positions.length, 0);
  const seq_of_token = new Int32Array(tokens);
  const seq_start = [0];
  const ids = sequences.some((s) => s.ids) ? new Int32Array(tokens) : undefined;
  const positions = new Int32Array(tokens);
  const logit_rows: number[] = [];
  let begin = 0;
  for (const [s, sequence] of sequences.entries()) {
    const end = begin + sequence.positions.length;
    seq_of_token.fill(s, begin, end);
    positions.set(sequence.positions, begin);
    if (sequence.ids) ids!.set(sequence.ids, begin);
    for (const row of sequence.logit_rows) logit_rows.push(begin + row);
    seq_start.push(end);
    begin = end;
  }
  const max_pages = Math.max(...sequences.map((s) => cache.pages(s.row).length));
  const pages = sequences.flatMap((s) => {
    const own = cache.pages(s.row);
    return Array.from({ length: max_pages }, (_, p) => own[p] ?? own[0] ?? 0);
  });
  const histories = sequences.every((s) => s.history);
  const longest = histories ? Math.max(...sequences.map((s) => s.history!.length)) : 0;
  const history_capacity = histories ? longest + n_steps : 0;
  return encodeStep({
    ids,
    positions,
    seq_of_token,
    seq_start,
    past_len: sequences.map((s) => s.past),
    slots: sequences.map((s) => cache.slot(s.row)),
    pages,
    logit_rows,
    labels: sequences[0].labels ? sequences.flatMap((s) => s.labels!) : undefined,
    sampling: options.sample || sequences[0].sampling
      ? sequences.map((s) => s.sampling!)
      : undefined,
    history: histories
      ? sequences.flatMap((s) => {
        const padding = new Array<number>(history_capacity - s.history!.length).fill(0);
        return [...s.history!, ...padding];
      })
      : undefined,
    history_len: histories ? sequences.map((s) => s.history!.length) : undefined,
    eos_ids: options.eos_ids,
    bad_ids: options.bad_words_ids?.flatMap((word) => [...word, -1]),
  }, { max_pages, history_capacity, pad_id: options.pad_id });
}

/** `count` positions from `start` on. */
export function rising(start: number, count: number): Int32Array {
  const list = new Int32Array(count);
  for (let i = 0; i < count; i++) list[i] = start + i;
  return list;
}
