/** Checks a call's arguments and finds out what they say: sentences for all that cannot be. */

import { readBatch } from "./batch.ts";
import { HybridMambaAttentionDynamicCache } from "./cache.ts";
import { call_names, type CallInputs, type CheckedCall } from "./call_inputs.ts";
import { describe, type Matrix, readIntegers, readList, readShaped } from "./inputs.ts";
import { checkFlags, checkOptions } from "./options.ts";
import type { ModelRuntime } from "./runtime.ts";

const flags = ["use_cache", "output_hidden_states", "output_attentions"];
/** What only a model with a head has a use for. */
const head_names = ["labels", "num_items_in_batch", "logits_to_keep"] as const;

/** @throws {TypeError | RangeError} in sentences that name the argument and the value found */
export async function checkCall(runtime: ModelRuntime, inputs: CallInputs): Promise<CheckedCall> {
  checkNames(runtime, inputs);
  const { config } = runtime.model;
  const ids = inputs.input_ids === undefined
    ? undefined
    : checkIds("input_ids", await readIntegers("input_ids", inputs.input_ids), config.vocab_size);
  const embeds = inputs.inputs_embeds === undefined
    ? undefined
    : await readEmbeds(inputs.inputs_embeds, config.hidden_size);
  const { rows, columns } = (ids ?? embeds)!;
  const given = inputs.past_key_values;
  if (given && given.batch_size !== rows) {
    throw new RangeError(
      `Expected past_key_values for ${rows} rows but found one for ${given.batch_size}`,
    );
  }
  given?.checkFits(runtime.layout);
  const batch = await readBatch(rows, columns, inputs, given?.lengths);
  const labels = inputs.labels === undefined
    ? undefined
    : checkLabels(await readIntegers("labels", inputs.labels), rows, columns, config.vocab_size);
  const kept_columns = await keptColumns(inputs.logits_to_keep ?? 0, columns);
  if (labels && kept_columns.length !== columns) {
    throw new RangeError("Expected logits_to_keep to be 0 with labels: the loss needs all logits");
  }
  inputs.signal?.throwIfAborted(); // before there is a cache to give back
  const { device, layout } = runtime;
  const cache = given ??
    new HybridMambaAttentionDynamicCache(device, layout, batch.sequences.length);
  const past = batch.packed ? batch.sequences.map(() => 0) : [...cache.lengths];
  return { inputs, ids, embeds: embeds?.data, labels, batch, cache, past, kept_columns };
}

function checkNames(runtime: ModelRuntime, inputs: CallInputs): void {
  checkOptions("call", inputs, call_names);
  checkFlags(inputs, flags);
  if ((inputs.input_ids === undefined) === (inputs.inputs_embeds === undefined)) {
    throw new TypeError("Expected exactly one of input_ids and inputs_embeds");
  }
  for (const name of runtime.has_head ? [] : head_names) {
    if (inputs[name] === undefined) continue;
    throw new TypeError(
      `Expected no ${name} in a call of a model without a head: it has no logits`,
    );
  }
  const { num_items_in_batch: items, past_key_values, taps } = inputs;
  if (items !== undefined && !(typeof items === "number" && items > 0)) {
    throw new RangeError(`Expected num_items_in_batch above 0 but found ${describe(items)}`);
  }
  if (past_key_values !== undefined) HybridMambaAttentionDynamicCache.check(past_key_values);
  if (taps !== undefined && !Array.isArray(taps)) {
    throw new TypeError(`Expected taps to be a list of names but found ${describe(taps)}`);
  }
}

/** @throws {RangeError} naming the first id outside the vocabulary */
export function checkIds(name: string, ids: Matrix, vocab_size: number): Matrix {
  for (let at = 0; at < ids.data.length; at++) {
    if (ids.data[at] >= 0 && ids.data[at] < vocab_size) continue;
    throw new RangeError(
      `Expected ${name} from 0 to ${vocab_size - 1} but found ${ids.data[at]} in row ` +
        `${Math.floor(at / ids.columns)}, column ${at % ids.columns}`,
    );
  }
  return ids;
}

function checkLabels(labels: Matrix, rows: number, columns: number, vocab_size: number): Matrix {
  if (labels.rows !== rows || labels.columns !== columns) {
    throw new RangeError(
      `Expected labels of shape [${rows},${columns}] but found [${labels.rows},${labels.columns}]`,
    );
  }
  const bad = labels.data.find((x) => x !== -100 && (x < 0 || x >= vocab_size));
  if (bad !== undefined) {
    throw new RangeError(`Expected labels of -100 or 0 to ${vocab_size - 1} but found ${bad}`);
  }
  return labels;
}

interface Embeddings {
  readonly data: Float32Array;
  readonly rows: number;
  readonly columns: number;
}

async function readEmbeds(
  input: CallInputs["inputs_embeds"],
  hidden_size: number,
): Promise<Embeddings> {
  const { data, shape } = await readShaped("inputs_embeds", input);
  const [rows, columns, width] = shape;
  if (shape.length !== 3 || width !== hidden_size || !(rows > 0) || !(columns > 0)) {
    throw new RangeError(
      `Expected inputs_embeds of shape [batch,positions,${hidden_size}] but found [${shape}]`,
    );
  }
  return { data: Float32Array.from(data, Number), rows, columns };
}

async function keptColumns(
  keep: NonNullable<CallInputs["logits_to_keep"]>,
  columns: number,
): Promise<number[]> {
  if (typeof keep === "object") {
    const list = await readList("logits_to_keep", keep);
    const at = list.map((c) => c < 0 ? c + columns : c);
    const bad = at.findIndex((c) => c < 0 || c >= columns);
    if (bad >= 0) {
      throw new RangeError(
        `Expected logits_to_keep to name positions below ${columns} but found ${list[bad]}`,
      );
    }
    return at;
  }
  if (!Number.isInteger(keep) || keep < 0) {
    throw new RangeError(`Expected logits_to_keep of 0 or more but found ${describe(keep)}`);
  }
  const first = keep === 0 ? 0 : Math.max(0, columns - keep);
  return Array.from({ length: columns - first }, (_, i) => first + i);
}
