/** `model.call({...})`: HF's `model(**inputs)` over recorded plans. */

import { Tensor } from "../graph/tensor.ts";
import { scan_chunk } from "../native/bindings.gen.ts";
import { type Batch, type BatchArguments, cutIntoRuns, type Piece, readBatch } from "./batch.ts";
import { HybridMambaAttentionDynamicCache } from "./cache.ts";
import { crossEntropyLoss, type LossRows } from "./loss.ts";
import { type Matrix, type MatrixInput, readIntegers } from "./inputs.ts";
import { checkOptions } from "./options.ts";
import { ModelOutput, type OutputFields } from "./outputs.ts";
import { bucket, type Kept, type PlanRequest } from "./plans.ts";
import { readRows, resultTensor, type Segment, SharedBuffer } from "./rows.ts";
import { type RunSequence, startRun } from "./run.ts";
import type { ModelRuntime } from "./runtime.ts";

/** Arguments of `call`; HF's names. */
export interface CallInputs extends BatchArguments {
  /** (batch, positions) */
  input_ids?: MatrixInput;
  /** (batch, positions, hidden_size) instead of input_ids */
  inputs_embeds?: Tensor;
  past_key_values?: HybridMambaAttentionDynamicCache;
  /** (batch, positions); -100 counts nothing. Shifted inside, as in HF. */
  labels?: MatrixInput;
  /** Divides the summed loss instead of the number of labels. */
  num_items_in_batch?: number;
  /** Return the cache; the config's `use_cache` by default. */
  use_cache?: boolean;
  output_hidden_states?: boolean;
  output_attentions?: boolean;
  /** 0 keeps all positions, a number the last ones, a list these. */
  logits_to_keep?: number | readonly number[];
  /** Tokens run at once, rounded up to a multiple of the scan's chunk of 64; 512 by default. */
  prefill_chunk_size?: number;
  signal?: AbortSignal;
  /** Named activations to return, for tests: "layer0.in_proj". */
  taps?: readonly string[];
}

const known = [
  "input_ids",
  "inputs_embeds",
  "attention_mask",
  "position_ids",
  "past_key_values",
  "labels",
  "num_items_in_batch",
  "use_cache",
  "output_hidden_states",
  "output_attentions",
  "logits_to_keep",
  "seq_idx",
  "cu_seq_lens_q",
  "cu_seq_lens_k",
  "max_length_q",
  "max_length_k",
  "prefill_chunk_size",
  "signal",
  "taps",
] as const;

const chunk_default = 512;

/** Tokens run at once: `size` rounded up to whole scan chunks. @throws {RangeError} below 1 */
export function prefillChunk(size: number = chunk_default): number {
  if (!Number.isInteger(size) || size < 1) {
    throw new RangeError(`Expected prefill_chunk_size of 1 or more but found ${size}`);
  }
  return Math.ceil(size / scan_chunk) * scan_chunk;
}

/** A checked call. */
interface Call {
  readonly inputs: CallInputs;
  readonly ids: Matrix | undefined;
  readonly embeds: Float32Array | undefined;
  readonly labels: Matrix | undefined;
  readonly batch: Batch;
  readonly cache: HybridMambaAttentionDynamicCache;
  /** Tokens in the cache before this call, for each sequence. */
  readonly past: readonly number[];
  /** Frame columns whose logits are kept, rising. */
  readonly kept_columns: readonly number[];
}

/**
 * Runs a forward pass.
 *
 * @throws {TypeError | RangeError} in sentences that name the argument and the value found
 */
export async function callModel(runtime: ModelRuntime, inputs: CallInputs): Promise<ModelOutput> {
  checkOptions("call", inputs, known);
  inputs.signal?.throwIfAborted();
  const call = await checkCall(runtime, inputs);
  const { cache, batch } = call;
  const given = inputs.past_key_values !== undefined;
  const results = new Results(runtime, call);
  cache.acquire();
  try {
    const counts = batch.sequences.map((s) => s.count);
    cache.reserve(counts.map((n, s) => call.past[s] + n));
    const chunk = prefillChunk(inputs.prefill_chunk_size);
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

async function checkCall(runtime: ModelRuntime, inputs: CallInputs): Promise<Call> {
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
  call: Call,
  pieces: readonly Piece[],
  results: Results,
): Promise<void> {
  const { inputs, cache } = call;
  const sequences = pieces.map((piece) => results.sequence(piece));
  const tokens = pieces.reduce((sum, p) => sum + p.count, 0);
  const logits = sequences.reduce((sum, s) => sum + s.logit_rows.length, 0);
  const decode = tokens === pieces.length;
  const capacity = {
    tokens: bucket(tokens),
    seqs: decode ? bucket(tokens) : bucket(pieces.length),
    logits: bucket(logits),
  };
  const request: PlanRequest = { ...results.request, capacity, decode };
  const plan = runtime.plans.get(request);
  const fill = call.embeds
    ? (shared: SharedBuffer) => {
      const place = plan.inputs.get("inputs_embeds")!;
      shared.buffer.write(place.offset, new Uint8Array(results.embedRows(pieces).buffer));
    }
    : undefined;
  const { job, shared } = startRun(runtime.device, { plan, cache, sequences, fill });
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

/** Gathers the outputs of a call's runs. */
class Results {
  /** Whether a run has touched the cache. */
  started = false;
  readonly request: Omit<PlanRequest, "capacity">;
  readonly #segments = new Map<string, Segment[]>();
  readonly #buffers: SharedBuffer[] = [];
  readonly #targets: number[][] = [];
  /** Columns of attention weights: the longest past and this call's frame. */
  readonly #keys: number;

  constructor(readonly runtime: ModelRuntime, readonly call: Call) {
    const { inputs, batch, past } = call;
    this.#keys = Math.max(...past) + batch.columns;
    const head = runtime.has_head;
    const keep: Kept[] = head ? ["logits"] : ["last_hidden_state"];
    this.request = {
      source: call.embeds ? "inputs_embeds" : "input_ids",
      keep,
      tail: call.labels ? ["cross_entropy"] : [],
      output_hidden_states: inputs.output_hidden_states,
      attention_keys: inputs.output_attentions ? Math.ceil(this.#keys / 64) * 64 : undefined,
      taps: inputs.taps,
    };
  }

  /** The run's view of a piece. */
  sequence(piece: Piece): RunSequence {
    const { batch, ids, past, labels, kept_columns } = this.call;
    const { row, begin } = batch.sequences[piece.sequence];
    const from = begin + piece.begin;
    const at = row * batch.columns + from;
    const start = past[piece.sequence] + piece.begin;
    const kept = kept_columns.map((c) => c - from).filter((c) => c >= 0 && c < piece.count);
    const logit_rows = [...new Set(kept)].sort((a, b) => a - b);
    return {
      slot: piece.sequence,
      past: start,
      ids: ids?.data.subarray(at, at + piece.count),
      positions: batch.position_ids
        ? batch.position_ids.data.subarray(at, at + piece.count)
        : Array.from({ length: piece.count }, (_, i) => start + i),
      logit_rows,
      labels: labels &&
        logit_rows.map((i) => from + i + 1 < batch.columns ? labels.data[at + i + 1] : -100),
    };
  }

  /** The embeddings of a run's tokens, one after another. */
  embedRows(pieces: readonly Piece[]): Float32Array {
    const { batch, embeds } = this.call;
    const width = this.runtime.model.config.hidden_size;
    const total = pieces.reduce((sum, p) => sum + p.count, 0);
    const out = new Float32Array(total * width);
    let done = 0;
    for (const piece of pieces) {
      const { row, begin } = batch.sequences[piece.sequence];
      const at = (row * batch.columns + begin + piece.begin) * width;
      out.set(embeds!.subarray(at, at + piece.count * width), done);
      done += piece.count * width;
    }
    return out;
  }

  /** Takes a finished run's outputs. */
  add(
    shared: SharedBuffer,
    places: ReadonlyMap<string, Segment["place"]>,
    pieces: readonly Piece[],
    sequences: readonly RunSequence[],
  ): void {
    const { batch } = this.call;
    const tokens: number[] = [];
    const logits: number[] = [];
    for (const [i, piece] of pieces.entries()) {
      const { row, begin } = batch.sequences[piece.sequence];
      const at = row * batch.columns + begin + piece.begin;
      for (let t = 0; t < piece.count; t++) tokens.push(at + t);
      for (const t of sequences[i].logit_rows) logits.push(at + t);
    }
    this.#buffers.push(shared);
    this.#targets.push(tokens);
    for (const [name, place] of places) {
      const targets = place.rows === "logits" ? logits : tokens;
      const list = this.#segments.get(name) ?? [];
      list.push({ shared, place, targets });
      this.#segments.set(name, list);
    }
  }

  /** Frees everything after an error. */
  discard(): void {
    for (const shared of this.#buffers) shared.settle();
  }

  /** The output object's fields. */
  async fields(): Promise<OutputFields> {
    const { batch, kept_columns, inputs, labels } = this.call;
    const { rows, columns } = batch;
    const fields: OutputFields = {};
    const frame = (name: string) => {
      const segments = this.#segments.get(name)!;
      return resultTensor([rows, columns, segments[0].place.columns], segments);
    };
    if (this.runtime.has_head) fields.logits = this.#logits(kept_columns);
    else fields.last_hidden_state = frame("last_hidden_state");
    if (inputs.output_hidden_states) {
      const names = [...this.#segments.keys()].filter((n) => n.startsWith("hidden_states."));
      fields.hidden_states = names.map(frame);
    }
    if (inputs.output_attentions) {
      const names = [...this.#segments.keys()].filter((n) => n.endsWith(".attentions"));
      fields.attentions = names.map((name) => this.#attention(name));
    }
    if (inputs.taps) fields.taps = Object.fromEntries(inputs.taps.map((n) => [n, frame(n)]));
    if (labels) {
      const parts = this.#segments.get("loss")!.map(readRows) as LossRows[];
      const z_loss = this.runtime.model.z_loss_coefficient;
      fields.loss = crossEntropyLoss(parts, this.#labelCount(), z_loss, inputs.num_items_in_batch);
    }
    for (const shared of this.#buffers) shared.settle();
    return await Promise.resolve(fields);
  }

  #labelCount(): number {
    const { batch, labels } = this.call;
    let count = 0;
    for (const targets of this.#targets) {
      for (const at of targets) {
        const last = at % batch.columns === batch.columns - 1;
        if (!last && labels!.data[at + 1] !== -100) count++;
      }
    }
    return count;
  }

  #logits(kept_columns: readonly number[]): Tensor {
    const { rows, columns } = this.call.batch;
    const segments = this.#segments.get("logits")!;
    const width = segments[0].place.columns;
    const places = new Map<number, number[]>();
    for (const [i, c] of kept_columns.entries()) places.set(c, [...(places.get(c) ?? []), i]);
    const shape = [rows, kept_columns.length, width];
    return resultTensor(shape, segments, (out, row, target) => {
      const r = Math.floor(target / columns);
      for (const i of places.get(target % columns) ?? []) {
        out.set(row, (r * kept_columns.length + i) * width);
      }
    });
  }

  /** Weights of one layer as (batch, heads, positions, keys); keys in the caller's frame. */
  #attention(name: string): Tensor {
    const { batch, past } = this.call;
    const { rows, columns } = batch;
    const segments = this.#segments.get(name)!;
    const width = this.request.attention_keys!;
    const heads = segments[0].place.columns / width;
    const keys = this.#keys;
    const past_max = keys - columns;
    return resultTensor([rows, heads, columns, keys], segments, (out, line, target) => {
      const row = Math.floor(target / columns);
      const column = target % columns;
      const s = batch.sequences.findIndex((q) =>
        q.row === row && column >= q.begin && column < q.begin + q.count
      );
      const seen = past[s] + column - batch.sequences[s].begin + 1;
      for (let h = 0; h < heads; h++) {
        const to = ((row * heads + h) * columns + column) * keys;
        for (let k = 0; k < seen; k++) {
          const key = k < past[s]
            ? past_max - past[s] + k
            : past_max + batch.sequences[s].begin + k - past[s];
          out[to + key] = line[h * width + k];
        }
      }
    });
  }
}
