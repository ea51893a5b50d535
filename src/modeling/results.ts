/** What a call gives back: the outputs of its runs, gathered into the caller's frame. */

import type { Tensor } from "../graph/tensor.ts";
import type { Piece } from "./batch.ts";
import type { CheckedCall } from "./call_inputs.ts";
import { crossEntropyLoss, type LossRows } from "./loss.ts";
import type { OutputFields } from "./outputs.ts";
import type { Kept, PlanRequest } from "./plans.ts";
import { readRows, resultTensor, type Segment, type SharedBuffer } from "./rows.ts";
import { rising, type RunSequence } from "./run.ts";
import type { ModelRuntime } from "./runtime.ts";

/** Gathers the outputs of a call's runs. */
export class Results {
  /** Whether a run has touched the cache. */
  started = false;
  readonly request: Omit<PlanRequest, "capacity">;
  readonly #segments = new Map<string, Segment[]>();
  readonly #buffers: SharedBuffer[] = [];
  readonly #targets: number[][] = [];
  /** Columns of attention weights: the longest past and this call's frame. */
  readonly #keys: number;

  constructor(readonly runtime: ModelRuntime, readonly call: CheckedCall) {
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
      row: piece.sequence,
      past: start,
      ids: ids?.data.subarray(at, at + piece.count),
      positions: batch.position_ids
        ? batch.position_ids.data.subarray(at, at + piece.count)
        : rising(start, piece.count),
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
