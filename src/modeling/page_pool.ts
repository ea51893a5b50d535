/** Pages of keys and values: a pool that rows take from, and share after a common past. */

import type { Buffer, Device } from "../device.ts";
import { page_tokens } from "../native/bindings.gen.ts";

/** Memory grows by doubling from this many pages. */
const pages_min = 4;

interface CopySpan {
  readonly srcOffset: number;
  readonly dstOffset: number;
  readonly bytes: number;
}

/** The pages of a cache's rows. */
export class PagePool {
  #buffer: Buffer | undefined;
  #rows: number[][];
  #free: number[] = [];

  /** @param page_bytes all layers' keys and values of one page; 0 for models without attention */
  constructor(readonly device: Device, readonly page_bytes: number, rows: number) {
    this.#rows = Array.from({ length: rows }, () => []);
  }

  /** Handle of the buffer, 0 before the first page. */
  get handle(): number {
    return this.#buffer?.handle ?? 0;
  }

  get bytes(): number {
    return this.#buffer?.byteLength ?? 0;
  }

  /** Page numbers of a row, in order of position. */
  row(row: number): readonly number[] {
    return this.#rows[row];
  }

  /** Gives each row pages for `lengths[row]` tokens. @throws when memory is too small */
  reserve(lengths: readonly number[]): void {
    if (this.page_bytes === 0) return;
    const missing = lengths.map((n, r) =>
      Math.max(0, Math.ceil(n / page_tokens) - this.#rows[r].length)
    );
    this.#grow(missing.reduce((a, b) => a + b, 0));
    for (const [row, n] of missing.entries()) {
      for (let i = 0; i < n; i++) this.#rows[row].push(this.#free.pop()!);
    }
  }

  /**
   * Row i gets what row `from[i]` had. Full pages are shared from then on; pages that will still be
   * written are copied for every row but one.
   *
   * @param lengths tokens of the rows before
   */
  reorder(from: readonly number[], lengths: readonly number[]): void {
    if (!this.#buffer) return;
    const next = from.map((row) => [...this.#rows[row]]);
    const users = new Map<number, number>();
    for (const page of next.flat()) users.set(page, (users.get(page) ?? 0) + 1);
    for (const page of new Set(this.#rows.flat())) if (!users.has(page)) this.#free.push(page);
    const written = from.map((row) => Math.floor(lengths[row] / page_tokens));
    const contested = next.flatMap((pages, i) => pages.slice(written[i]))
      .filter((page) => users.get(page)! > 1);
    this.#grow(contested.length);
    const spans: CopySpan[] = [];
    for (const [i, pages] of next.entries()) {
      for (let p = written[i]; p < pages.length; p++) {
        const count = users.get(pages[p])!;
        if (count === 1) continue;
        users.set(pages[p], count - 1);
        const copy = this.#free.pop()!;
        spans.push(this.#span(pages[p], copy));
        pages[p] = copy;
      }
    }
    this.#rows = next;
    if (spans.length > 0) this.device.native.copyBuffer(this.handle, this.handle, spans);
  }

  /** Fills this pool's row i, which has pages for it, with row `rows[i]` of another pool. */
  copyFrom(other: PagePool, rows: readonly number[]): void {
    const spans = rows.flatMap((row, i) =>
      this.#rows[i].map((page, p) => this.#span(other.#rows[row][p], page))
    );
    if (spans.length > 0) this.device.native.copyBuffer(other.handle, this.handle, spans);
  }

  /** Reads part of the page that holds a row's position. */
  read(row: number, position: number, offset: number, out: Uint8Array): void {
    const page = this.#rows[row][Math.floor(position / page_tokens)];
    this.#buffer!.read(page * this.page_bytes + offset, out);
  }

  dispose(): void {
    this.#buffer?.dispose();
  }

  #span(from: number, to: number): CopySpan {
    const bytes = this.page_bytes;
    return { srcOffset: from * bytes, dstOffset: to * bytes, bytes };
  }

  /** Makes sure that so many pages are free. */
  #grow(wanted: number): void {
    if (wanted <= this.#free.length) return;
    const before = Math.floor(this.bytes / this.page_bytes);
    const after = Math.max(pages_min, before + wanted - this.#free.length, before * 2);
    const grown = this.device.createBuffer(after * this.page_bytes, { hugePages: true });
    if (this.#buffer) {
      const span = { srcOffset: 0, dstOffset: 0, bytes: before * this.page_bytes };
      this.device.native.copyBuffer(this.handle, grown.handle, [span]);
      this.#buffer.dispose();
    }
    this.#buffer = grown;
    for (let page = after - 1; page >= before; page--) this.#free.push(page);
  }
}
