/** Prompts of a generation: each row's real ids, whatever the padding. */

import { checkIds } from "../modeling/call_arguments.ts";
import { readBatch } from "../modeling/batch.ts";
import { type Matrix, readIntegers } from "../modeling/inputs.ts";
import type { ResolvedOptions } from "./options.ts";

/** The rows of a generation before anything is generated. */
export interface Prompt {
  /** The caller's rows, padding included: what results start with. */
  readonly frame: readonly number[][];
  readonly columns: number;
  /** Each row's ids without padding. */
  readonly rows: readonly number[][];
}

/**
 * Reads input_ids and attention_mask. Without a mask, pad ids at either end of a row are padding,
 * as HF infers it.
 *
 * @throws {TypeError | RangeError} as `call` does
 */
export async function readPrompt(options: ResolvedOptions, vocab_size: number): Promise<Prompt> {
  const { inputs } = options;
  if (inputs.input_ids === undefined && options.bos_token_id === null) {
    throw new TypeError("Expected input_ids, or a bos_token_id to start from");
  }
  const ids = checkIds(
    "input_ids",
    await readIntegers("input_ids", inputs.input_ids ?? [options.bos_token_id!]),
    vocab_size,
  );
  const attention_mask = inputs.attention_mask ?? inferMask(ids, options);
  const past = inputs.past_key_values && ids.data.length > 0
    ? new Array<number>(ids.rows).fill(0)
    : undefined;
  const batch = await readBatch(ids.rows, ids.columns, { attention_mask }, past);
  const line = (r: number, begin: number, count: number): number[] => {
    const first = r * ids.columns + begin;
    const list = new Array<number>(count);
    for (let i = 0; i < count; i++) list[i] = ids.data[first + i];
    return list;
  };
  return {
    frame: Array.from({ length: ids.rows }, (_, r) => line(r, 0, ids.columns)),
    columns: ids.columns,
    rows: batch.sequences.map((s) => line(s.row, s.begin, s.count)),
  };
}

function inferMask(ids: Matrix, options: ResolvedOptions): number[][] | undefined {
  const pad = options.pad_token_id;
  if (pad === null || options.eos_ids.includes(pad) || !ids.data.includes(pad)) return undefined;
  return Array.from({ length: ids.rows }, (_, r) => {
    const line = [...ids.data.subarray(r * ids.columns, (r + 1) * ids.columns)];
    const begin = line.findIndex((id) => id !== pad);
    const end = line.findLastIndex((id) => id !== pad) + 1;
    if (begin < 0) return line.map(() => 1);
    return line.map((_, c) => Number(c >= begin && c < end));
  });
}
