/** The cache: every sequence's states and key/value pages, as a value that can be continued or forked. */

import type { Buffer, Device } from "../device.ts";
import { type DataSource, Tensor } from "../graph/tensor.ts";
import { page_tokens, panel } from "../native/bindings.gen.ts";
import type { CacheLayout } from "./cache_layout.ts";

/** Memory grows by doubling from this many pages. */
const pages_min = 4;

/**
 * HF's hybrid cache: convolution and SSM states for the Mamba layers, keys and values for the
 * attention layers. Row r of a batch owns slot r; its pages come from a shared pool.
 */
export class HybridMambaAttentionDynamicCache {
  /** Tokens that each row has in the cache. */
  readonly lengths: number[];
  #state: Buffer;
  #kv: Buffer | undefined;
  #pages: number[][];
  #free: number[] = [];
  #in_use = false;
  #disposed = false;

  /** @param batch_size rows; each takes `layout.slot_bytes` at once, pages as it grows */
  constructor(readonly device: Device, readonly layout: CacheLayout, readonly batch_size: number) {
    if (!Number.isInteger(batch_size) || batch_size < 1) {
      throw new RangeError(`Expected a batch_size of 1 or more but found ${batch_size}`);
    }
    this.#state = device.createBuffer(Math.max(64, layout.slot_bytes * batch_size));
    this.lengths = new Array(batch_size).fill(0);
    this.#pages = Array.from({ length: batch_size }, () => []);
  }

  /** HF's get_seq_length: tokens in the cache, the longest row's unless a row is named. */
  get_seq_length(row?: number): number {
    return row === undefined ? Math.max(...this.lengths) : this.lengths[row];
  }

  /** Native bytes held. */
  get bytes(): number {
    return this.#state.byteLength + (this.#kv?.byteLength ?? 0);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Handles for a job. */
  get handles(): { state: number; kv: number } {
    this.#check();
    return { state: this.#state.handle, kv: this.#kv?.handle ?? 0 };
  }

  /**
   * Makes sure that each row has pages for `lengths[row]` tokens.
   *
   * @throws {RangeError} with the number when memory is too small
   */
  reserve(lengths: readonly number[]): void {
    this.#check();
    if (this.layout.page_bytes === 0) return;
    const missing = lengths.map((n, r) => Math.ceil(n / page_tokens) - this.#pages[r].length);
    this.#growPool(missing.reduce((sum, n) => sum + Math.max(0, n), 0));
    for (const [row, n] of missing.entries()) {
      for (let i = 0; i < n; i++) this.#pages[row].push(this.#free.pop()!);
    }
  }

  /** Page numbers of a row, in order. */
  pages(row: number): readonly number[] {
    return this.#pages[row];
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
   * A new cache whose row i is this one's row `rows[i]`, like HF's batch_select_indices; rows may repeat.
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

  /** HF's reorder_cache: row i becomes what row `beam_idx[i]` was. */
  reorder_cache(beam_idx: readonly number[]): void {
    if (beam_idx.every((row, i) => row === i)) return;
    const next = this.select(beam_idx);
    const longest = this.#pages.map((pages) => pages.length * page_tokens);
    [this.#state, next.#state] = [next.#state, this.#state];
    [this.#kv, next.#kv] = [next.#kv, this.#kv];
    this.#pages = next.#pages;
    this.#free = next.#free;
    next.lengths.forEach((n, i) => this.lengths[i] = n);
    next.dispose();
    this.reserve(longest);
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
      const [heads, state, head_dim] = layer.ssm_state.shape;
      return {
        conv_states: this.#lazy([channels, width], () => {
          const raw = this.#slot(layer.conv_state, row);
          return permute(
            raw,
            channels * width,
            (i) => (i % width) * channels + Math.floor(i / width),
          );
        }),
        recurrent_states: this.#lazy([heads, head_dim, state], () => {
          const raw = this.#slot(layer.ssm_state, row);
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
    return {
      keys: this.#lazy(
        shape,
        () =>
          this.#positions(
            layer.keys,
            row,
            kv_heads,
            head_dim,
            (head, at, d) =>
              ((head * (page_tokens / panel) + Math.floor(at / panel)) * head_dim + d) * panel +
              at % panel,
          ),
      ),
      values: this.#lazy(
        shape,
        () =>
          this.#positions(
            layer.values,
            row,
            kv_heads,
            head_dim,
            (head, at, d) => (head * page_tokens + at) * head_dim + d,
          ),
      ),
    };
  }

  /** Gives the memory back; the cache cannot be used afterwards. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#state.dispose();
    this.#kv?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #check(): void {
    if (this.#disposed) throw new TypeError("Cannot use past_key_values: it has been disposed of");
  }

  #growPool(wanted: number): void {
    if (wanted <= this.#free.length) return;
    const { page_bytes } = this.layout;
    const before = this.#kv ? Math.floor(this.#kv.byteLength / page_bytes) : 0;
    const after = Math.max(pages_min, before + wanted - this.#free.length, before * 2);
    const grown = this.device.createBuffer(after * page_bytes);
    if (this.#kv) {
      const span = { srcOffset: 0, dstOffset: 0, bytes: before * page_bytes };
      this.device.native.copyBuffer(this.#kv.handle, grown.handle, [span]);
      this.#kv.dispose();
    }
    this.#kv = grown;
    for (let page = after - 1; page >= before; page--) this.#free.push(page);
  }

  #copyRows(from: HybridMambaAttentionDynamicCache, rows: readonly number[]): void {
    const { slot_bytes, page_bytes } = this.layout;
    const native = this.device.native;
    if (slot_bytes > 0) {
      const spans = rows.map((row, i) => ({
        srcOffset: row * slot_bytes,
        dstOffset: i * slot_bytes,
        bytes: slot_bytes,
      }));
      native.copyBuffer(from.#state.handle, this.#state.handle, spans);
    }
    const spans = rows.flatMap((row, i) =>
      this.#pages[i].map((page, p) => ({
        srcOffset: from.#pages[row][p] * page_bytes,
        dstOffset: page * page_bytes,
        bytes: page_bytes,
      }))
    );
    if (spans.length > 0) native.copyBuffer(from.#kv!.handle, this.#kv!.handle, spans);
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
    const out = new Float32Array(tensor.size);
    const storage = tensor.storage as { offset: number };
    this.#state.read(row * this.layout.slot_bytes + storage.offset, new Uint8Array(out.buffer));
    return out;
  }

  #positions(
    tensor: Tensor,
    row: number,
    kv_heads: number,
    head_dim: number,
    place: (head: number, at: number, d: number) => number,
  ): Float32Array {
    this.#check();
    const length = this.lengths[row];
    const out = new Float32Array(kv_heads * length * head_dim);
    const page = new Float32Array(tensor.size);
    const storage = tensor.storage as { offset: number };
    for (let t = 0; t < length; t++) {
      const at = t % page_tokens;
      if (at === 0) {
        const number = this.#pages[row][t / page_tokens];
        const offset = number * this.layout.page_bytes + storage.offset;
        this.#kv!.read(offset, new Uint8Array(page.buffer));
      }
      for (let head = 0; head < kv_heads; head++) {
        for (let d = 0; d < head_dim; d++) {
          out[(head * length + t) * head_dim + d] = page[place(head, at, d)];
        }
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
