/** The cache: every sequence's states and key/value pages, a value to continue or to fork. */

import type { Buffer, Device } from "../device.ts";
import { type DataSource, Tensor } from "../graph/tensor.ts";
import { page_tokens } from "../native/bindings.gen.ts";
import { cacheBytes } from "./cache_dtypes.ts";
import type { CacheLayout } from "./cache_layout.ts";
import { type PageOfLayer, pageValues } from "./cache_view.ts";
import { describe } from "./inputs.ts";
import { PagePool } from "./page_pool.ts";
import { widen } from "./rows.ts";

/**
 * HF's hybrid cache: convolution and SSM states for the Mamba layers, keys and values for the
 * attention layers. Each row of a batch has a slot for its states and pages from a pool; after
 * `reorder_cache` rows share the full pages of a common past, which nobody writes any more.
 */
export class HybridMambaAttentionDynamicCache {
  /** Tokens that each row has in the cache. */
  readonly lengths: number[];
  #state: Buffer;
  /** Slot of each row, and slots that no row has. */
  #slots: number[];
  #free_slots: number[] = [];
  #pages: PagePool;
  #in_use = false;
  #disposed = false;

  /** @param batch_size rows; each takes `layout.slot_bytes` at once, pages as it grows */
  constructor(readonly device: Device, readonly layout: CacheLayout, readonly batch_size: number) {
    if (!Number.isInteger(batch_size) || batch_size < 1) {
      throw new RangeError(`Expected a batch_size of 1 or more but found ${batch_size}`);
    }
    const bytes = Math.max(64, layout.slot_bytes * batch_size);
    this.#state = device.createBuffer(bytes, { hugePages: true });
    this.lengths = new Array(batch_size).fill(0);
    this.#slots = Array.from({ length: batch_size }, (_, row) => row);
    this.#pages = new PagePool(device, layout.page_bytes, batch_size);
  }

  /** HF's get_seq_length: tokens in the cache, the longest row's unless a row is named. */
  get_seq_length(row?: number): number {
    return row === undefined ? Math.max(...this.lengths) : this.lengths[row];
  }

  /** Native bytes held. */
  get bytes(): number {
    return this.#state.byteLength + this.#pages.bytes;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Handles for a job. */
  get handles(): { state: number; kv: number } {
    this.#check();
    return { state: this.#state.handle, kv: this.#pages.handle };
  }

  /**
   * Makes sure that each row has pages for `lengths[row]` tokens.
   *
   * @throws {RangeError} with the number when memory is too small
   */
  reserve(lengths: readonly number[]): void {
    this.#check();
    this.#pages.reserve(lengths);
  }

  /** Slot of a row's states. */
  slot(row: number): number {
    return this.#slots[row];
  }

  /** Page numbers of a row, in order. */
  pages(row: number): readonly number[] {
    return this.#pages.row(row);
  }

  /** Marks the cache as taken by a running call. @throws {TypeError} when it is taken already */
  acquire(): void {
    this.#check();
    if (this.#in_use) {
      throw new TypeError("past_key_values is in use by another call that has not finished");
    }
    this.#in_use = true;
  }

  release(): void {
    this.#in_use = false;
  }

  /** A copy that can be continued by itself. */
  fork(): HybridMambaAttentionDynamicCache {
    return this.select(Array.from({ length: this.batch_size }, (_, row) => row));
  }

  /**
   * A new cache whose row i is this one's row `rows[i]`, like HF's batch_select_indices; rows may
   * repeat.
   *
   * @throws {RangeError} for a row that is not there
   */
  select(rows: readonly number[]): HybridMambaAttentionDynamicCache {
    this.#check();
    for (const row of rows) {
      if (!(row in this.lengths)) {
        throw new RangeError(`Expected rows below ${this.batch_size} but found ${row}`);
      }
    }
    const copy = new HybridMambaAttentionDynamicCache(this.device, this.layout, rows.length);
    copy.reserve(rows.map((row) => this.lengths[row]));
    for (const [i, row] of rows.entries()) copy.lengths[i] = this.lengths[row];
    copy.#copyRows(this, rows);
    return copy;
  }

  /**
   * HF's reorder_cache: row i becomes what row `beam_idx[i]` was. A parent's slot goes to its first
   * child, only further children copy it; full pages are shared, only pages still to be written are
   * copied.
   *
   * @throws {RangeError} for a row that is not there
   */
  reorder_cache(beam_idx: readonly number[]): void {
    this.#check();
    if (beam_idx.length !== this.batch_size || beam_idx.some((row) => !(row in this.lengths))) {
      throw new RangeError(
        `Expected ${this.batch_size} rows below ${this.batch_size} but found [${beam_idx}]`,
      );
    }
    if (beam_idx.every((row, i) => row === i)) return;
    this.#reorderSlots(beam_idx);
    this.#pages.reorder(beam_idx, this.lengths);
    const lengths = [...this.lengths];
    for (const [i, row] of beam_idx.entries()) this.lengths[i] = lengths[row];
  }

  /** One layer's states of one row in HF's shapes, read when asked for. */
  layer(index: number, row = 0): Record<string, Tensor> {
    this.#check();
    const layer = this.layout.layers[index];
    if (layer === undefined) {
      throw new RangeError(
        `Expected a layer below ${this.layout.layers.length} but found ${index}`,
      );
    }
    if (layer.type === "mamba") {
      const [width, channels] = layer.conv_state.shape;
      const cuda = this.layout.device === "cuda";
      const [heads, a, b] = layer.ssm_state.shape;
      const [state, head_dim] = cuda ? [b, a] : [a, b];
      // A GPU keeps the input of position p in entry p mod width, a CPU the oldest first.
      const entry = (i: number) => cuda ? (this.lengths[row] + i) % width : i;
      return {
        conv_states: this.#lazy([channels, width], () => {
          const raw = this.#slot(layer.conv_state, row);
          return permute(
            raw,
            channels * width,
            (i) => entry(i % width) * channels + Math.floor(i / width),
          );
        }),
        recurrent_states: this.#lazy([heads, head_dim, state], () => {
          const raw = this.#slot(layer.ssm_state, row);
          if (cuda) return raw;
          return permute(raw, raw.length, (i) => {
            const n = i % state;
            const p = Math.floor(i / state) % head_dim;
            return (Math.floor(i / (state * head_dim)) * state + n) * head_dim + p;
          });
        }),
      };
    }
    const [kv_heads, , head_dim] = layer.values.shape;
    const shape = [kv_heads, this.lengths[row], head_dim];
    const page = { kv_heads, head_dim, dtype: layer.keys.dtype, device: this.layout.device };
    const read = (kind: "keys" | "values") =>
      this.#lazy(shape, () => this.#positions(layer[kind], row, { ...page, kind }));
    return { keys: read("keys"), values: read("values") };
  }

  /** @throws {TypeError} when an argument `past_key_values` is something else */
  static check(given: unknown): asserts given is HybridMambaAttentionDynamicCache {
    if (given instanceof HybridMambaAttentionDynamicCache) return;
    throw new TypeError(
      `Expected past_key_values that a call returned but found ${describe(given)}`,
    );
  }

  /** @throws {TypeError} when a model with this layout cannot go on with the cache */
  checkFits(layout: CacheLayout): void {
    if (layout === this.layout || layout.key === this.layout.key) return;
    throw new TypeError(
      "Expected past_key_values of this model, with its cache_dtype and state_dtype, " +
        "but found those of another",
    );
  }

  /** Gives the memory back; the cache cannot be used afterwards. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#state.dispose();
    this.#pages.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #check(): void {
    if (this.#disposed) throw new TypeError("Cannot use past_key_values: it has been disposed of");
  }

  #reorderSlots(beam_idx: readonly number[]): void {
    const { slot_bytes } = this.layout;
    if (slot_bytes === 0) return;
    const before = this.#slots;
    const kept = new Set(beam_idx.map((row) => before[row]));
    this.#free_slots.push(...before.filter((slot) => !kept.has(slot)));
    const copies = beam_idx.length - kept.size;
    if (copies > this.#free_slots.length) this.#growSlots();
    const taken = new Set<number>();
    const spans: { srcOffset: number; dstOffset: number; bytes: number }[] = [];
    this.#slots = beam_idx.map((row) => {
      const slot = before[row];
      if (!taken.has(slot)) {
        taken.add(slot);
        return slot;
      }
      const copy = this.#free_slots.pop()!;
      const [srcOffset, dstOffset] = [slot * slot_bytes, copy * slot_bytes];
      spans.push({ srcOffset, dstOffset, bytes: slot_bytes });
      return copy;
    });
    const { handle } = this.#state;
    if (spans.length > 0) this.device.native.copyBuffer(handle, handle, spans);
  }

  /** Room for one more slot a row. */
  #growSlots(): void {
    const { slot_bytes } = this.layout;
    const count = Math.floor(this.#state.byteLength / slot_bytes);
    const bytes = (count + this.batch_size) * slot_bytes;
    const grown = this.device.createBuffer(bytes, { hugePages: true });
    const span = { srcOffset: 0, dstOffset: 0, bytes: count * slot_bytes };
    this.device.native.copyBuffer(this.#state.handle, grown.handle, [span]);
    this.#state.dispose();
    this.#state = grown;
    for (let i = 0; i < this.batch_size; i++) this.#free_slots.push(count + i);
  }

  #copyRows(from: HybridMambaAttentionDynamicCache, rows: readonly number[]): void {
    const { slot_bytes } = this.layout;
    const native = this.device.native;
    if (slot_bytes > 0) {
      const spans = rows.map((row, i) => ({
        srcOffset: from.#slots[row] * slot_bytes,
        dstOffset: this.#slots[i] * slot_bytes,
        bytes: slot_bytes,
      }));
      native.copyBuffer(from.#state.handle, this.#state.handle, spans);
    }
    this.#pages.copyFrom(from.#pages, rows);
  }

  #lazy(shape: readonly number[], read: () => Float32Array): Tensor {
    const source: DataSource = {
      read: () => Promise.resolve().then(read),
      dispose() {},
    };
    return new Tensor(shape, "float32", { space: "data", source });
  }

  #slot(tensor: Tensor, row: number): Float32Array {
    this.#check();
    const raw = new Uint8Array(cacheBytes(tensor.size, tensor.dtype));
    const storage = tensor.storage as { offset: number };
    this.#state.read(this.#slots[row] * this.layout.slot_bytes + storage.offset, raw);
    return widen(raw, tensor.dtype);
  }

  /** All positions of a row: (kv_heads, length, head_dim). */
  #positions(tensor: Tensor, row: number, page: PageOfLayer): Float32Array {
    this.#check();
    const { kv_heads, head_dim } = page;
    const length = this.lengths[row];
    const out = new Float32Array(kv_heads * length * head_dim);
    const raw = new Uint8Array(cacheBytes(tensor.size, tensor.dtype));
    const storage = tensor.storage as { offset: number };
    for (let t = 0; t < length; t += page_tokens) {
      this.#pages.read(row, t, storage.offset, raw);
      const values = pageValues(raw, page);
      const n = Math.min(page_tokens, length - t) * head_dim;
      for (let head = 0; head < kv_heads; head++) {
        const from = head * page_tokens * head_dim;
        out.set(values.subarray(from, from + n), (head * length + t) * head_dim);
      }
    }
    return out;
  }
}

function permute(raw: Float32Array, size: number, from: (i: number) => number): Float32Array {
  const out = new Float32Array(size);
  for (let i = 0; i < size; i++) out[i] = raw[from(i)];
  return out;
}
