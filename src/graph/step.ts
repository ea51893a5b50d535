/** The step buffer: everything that changes from run to run, as bytes the library reads. */

import { Sampling, step_magic, StepField, StepHeader } from "../native/bindings.gen.ts";
import { writeStruct } from "../native/struct.ts";

/** How one sequence's next id is chosen: `Sampling` in zig/command.zig. */
export type SamplingFields = Record<keyof typeof Sampling.fields, number>;

/** The arrays of a step buffer; lengths as `StepField` in zig/command.zig says. */
export interface StepArrays {
  readonly ids?: ArrayLike<number>;
  readonly positions: ArrayLike<number>;
  readonly seq_of_token: ArrayLike<number>;
  readonly seq_start: ArrayLike<number>;
  readonly past_len: ArrayLike<number>;
  readonly slots: ArrayLike<number>;
  readonly pages: ArrayLike<number>;
  readonly logit_rows: ArrayLike<number>;
  readonly labels?: ArrayLike<number>;
  readonly sampling?: readonly SamplingFields[];
  readonly history?: ArrayLike<number>;
  readonly history_len?: ArrayLike<number>;
  readonly eos_ids?: ArrayLike<number>;
  readonly bad_ids?: ArrayLike<number>;
}

/** Counts that the arrays' lengths do not tell. */
export interface StepCounts {
  readonly max_pages: number;
  readonly history_capacity?: number;
  /** Fed to sequences that have ended. */
  readonly pad_id?: number;
}

/**
 * The bytes of a step buffer.
 *
 * @param arrays absent ones are absent in the buffer too
 */
export function encodeStep(arrays: StepArrays, counts: StepCounts): Uint8Array {
  const n_seqs = arrays.past_len.length;
  const sections: [keyof typeof StepField, ArrayLike<number>][] = [];
  for (const [name, value] of Object.entries(arrays)) {
    if (value === undefined || name === "sampling") continue;
    sections.push([name as keyof typeof StepField, value as ArrayLike<number>]);
  }
  if (arrays.sampling) sections.push(["sampled", new Int32Array(n_seqs)]);
  const sampling_at = StepHeader.size + sections.reduce((sum, [, a]) => sum + 4 * a.length, 0);
  const bytes = sampling_at + (arrays.sampling?.length ?? 0) * Sampling.size;
  const view = new DataView(new ArrayBuffer(bytes));
  const offsets = new Array<number>(Object.keys(StepField).length).fill(0);

  let at: number = StepHeader.size;
  for (const [name, array] of sections) {
    offsets[StepField[name]] = at;
    new Int32Array(view.buffer, at, array.length).set(array);
    at += 4 * array.length;
  }
  if (arrays.sampling) {
    offsets[StepField.sampling] = sampling_at;
    for (const [i, fields] of arrays.sampling.entries()) {
      writeStruct(view, sampling_at + i * Sampling.size, Sampling, fields);
    }
  }
  writeStruct(view, 0, StepHeader, {
    magic: step_magic,
    bytes,
    n_tokens: arrays.seq_of_token.length,
    n_seqs,
    n_logits: arrays.logit_rows.length,
    max_pages: counts.max_pages,
    history_capacity: counts.history_capacity ?? 0,
    n_eos: arrays.eos_ids?.length ?? 0,
    n_bad_ids: arrays.bad_ids?.length ?? 0,
    pad_id: counts.pad_id ?? 0,
    offsets,
  });
  return new Uint8Array(view.buffer);
}
