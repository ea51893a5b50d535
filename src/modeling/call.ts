/** `model.call({...})`: HF's `model(**inputs)` over recorded plans. */

import type { Tensor } from "../graph/tensor.ts";
import { scan_chunk } from "../native/bindings.gen.ts";
import type { DeviceKindName } from "../native/native.ts";
import { cutIntoRuns, type Piece, readBatch } from "./batch.ts";
import { HybridMambaAttentionDynamicCache } from "./cache.ts";
import { type Matrix, readIntegers } from "./inputs.ts";
import { call_names, type CallInputs, type CheckedCall } from "./call_inputs.ts";
import { checkOptions } from "./options.ts";
import { ModelOutput } from "./outputs.ts";
import { type PlanRequest, runCapacity } from "./plans.ts";
import { Results } from "./results.ts";
import { narrow, type SharedBuffer } from "./rows.ts";
import { startRun } from "./run.ts";
import type { ModelRuntime } from "./runtime.ts";

/** A GPU is busy enough only with more tokens at a time. */
const chunk_defaults: Record<DeviceKindName, number> = { cpu: 512, cuda: 2048 };

/** Tokens run at once: `size` rounded up to whole scan chunks. @throws {RangeError} below 1 */
export function prefillChunk(
  size: number | undefined,
  { kind }: { readonly kind: DeviceKindName },
): number {
  size ??= chunk_defaults[kind];
  if (!Number.isInteger(size) || size < 1) {
    throw new RangeError(`Expected prefill_chunk_size of 1 or more but found ${size}`);
  }
  return Math.ceil(size / scan_chunk) * scan_chunk;
}

/**
 * Runs a forward pass.
 *
 * @throws {TypeError | RangeError} in sentences that name the argument and the value found
 */
export async function callModel(runtime: ModelRuntime, inputs: CallInputs): Promise<ModelOutput> {
  checkOptions("call", inputs, call_names);
  inputs.signal?.throwIfAborted();
  const call = await checkCall(runtime, inputs);
  const { cache, batch } = call;
  const given = inputs.past_key_values !== undefined;
  const results = new Results(runtime, call);
  cache.acquire();
  try {
    const counts = batch.sequences.map((s) => s.count);
    cache.reserve(counts.map((n, s) => call.past[s] + n));
    const chunk = prefillChunk(inputs.prefill_chunk_size, runtime.device);
    for (const pieces of cutIntoRuns(counts, call.past, chunk, scan_chunk)) {
      await runPieces(runtime, call, pieces, results);
    }
  } catch (error) {
    results.discard();
    if (!given || results.started) cache.dispose();
    throw error;
  } finally {
    cache.release();
  }
  for (const [s, { count }] of batch.sequences.entries()) cache.lengths[s] += count;
  const use_cache = inputs.use_cache ?? runtime.model.config.use_cache ?? true;
  const fields = await results.fields();
  if (given || (use_cache && !batch.packed)) fields.past_key_values = cache;
  else cache.dispose();
  return new ModelOutput(fields);
}

async function checkCall(runtime: ModelRuntime, inputs: CallInputs): Promise<CheckedCall> {
  const { config } = runtime.model;
  if ((inputs.input_ids === undefined) === (inputs.inputs_embeds === undefined)) {
    throw new TypeError("Expected exactly one of input_ids and inputs_embeds");
  }
  const ids = inputs.input_ids === undefined
    ? undefined
    : checkIds("input_ids", await readIntegers("input_ids", inputs.input_ids), config.vocab_size);
  const [rows, columns] = ids
    ? [ids.rows, ids.columns]
    : embedsFrame(inputs.inputs_embeds!, config.hidden_size);
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
  const embeds = inputs.inputs_embeds
    ? Float32Array.from(await inputs.inputs_embeds.data())
    : undefined;
  const kept_columns = keptColumns(inputs.logits_to_keep ?? 0, columns);
  if (labels && kept_columns.length !== columns) {
    throw new RangeError("Expected logits_to_keep to be 0 with labels: the loss needs all logits");
  }
  const { device, layout } = runtime;
  const cache = given ??
    new HybridMambaAttentionDynamicCache(device, layout, batch.sequences.length);
  const past = batch.packed ? batch.sequences.map(() => 0) : [...cache.lengths];
  return { inputs, ids, embeds, labels, batch, cache, past, kept_columns };
}

/** @throws {RangeError} naming the first id outside the vocabulary */
export function checkIds(name: string, ids: Matrix, vocab_size: number): Matrix {
  const at = ids.data.findIndex((id) => id < 0 || id >= vocab_size);
  if (at >= 0) {
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

function embedsFrame(embeds: Tensor, hidden_size: number): [number, number] {
  const [rows, columns, width] = embeds.shape;
  if (embeds.shape.length !== 3 || width !== hidden_size || !(rows > 0) || !(columns > 0)) {
    throw new RangeError(
      `Expected inputs_embeds of shape [batch,positions,${hidden_size}] but found ` +
        `[${embeds.shape}]`,
    );
  }
  return [rows, columns];
}

function keptColumns(keep: number | readonly number[], columns: number): number[] {
  if (typeof keep !== "number") {
    const at = keep.map((c) => c < 0 ? c + columns : c);
    const bad = at.findIndex((c) => !Number.isInteger(c) || c < 0 || c >= columns);
    if (bad >= 0 || keep.length === 0) {
      throw new RangeError(
        `Expected logits_to_keep to name positions below ${columns} but found ${keep[bad]}`,
      );
    }
    return at;
  }
  if (!Number.isInteger(keep) || keep < 0) {
    throw new RangeError(`Expected logits_to_keep of 0 or more but found ${keep}`);
  }
  const first = keep === 0 ? 0 : Math.max(0, columns - keep);
  return Array.from({ length: columns - first }, (_, i) => first + i);
}

async function runPieces(
  runtime: ModelRuntime,
  call: CheckedCall,
  pieces: readonly Piece[],
  results: Results,
): Promise<void> {
  const { inputs, cache } = call;
  const sequences = pieces.map((piece) => results.sequence(piece));
  const logits = sequences.reduce((sum, s) => sum + s.logit_rows.length, 0);
  const sizes = runCapacity(pieces, logits, runtime.batch_invariant);
  const request: PlanRequest = { ...results.request, ...sizes };
  const plan = runtime.plans.get(request);
  const fill = call.embeds
    ? (shared: SharedBuffer) => {
      const place = plan.inputs.get("inputs_embeds")!;
      shared.buffer.write(place.offset, narrow(results.embedRows(pieces), place.dtype));
    }
    : undefined;
  const { job, shared } = startRun(runtime, { plan, cache, sequences, fill });
  results.started = true;
  try {
    await job.finished(inputs.signal);
  } catch (error) {
    shared?.settle();
    throw error;
  } finally {
    job[Symbol.dispose]();
  }
  if (shared) results.add(shared, plan.outputs, pieces, sequences);
}
