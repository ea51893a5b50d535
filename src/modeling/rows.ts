/** Results of runs, scattered back into the caller's frame of rows and columns. */

import type { Buffer } from "../device.ts";
import type { ExternalPlace } from "../graph/plan.ts";
import { type DataSource, type DTypeName, elementBytes, Tensor } from "../graph/tensor.ts";

/** An input/output buffer that several result tensors share. */
export class SharedBuffer {
  #users = 0;

  constructor(readonly buffer: Buffer) {}

  retain(): void {
    this.#users++;
  }

  release(): void {
    if (--this.#users === 0) this.buffer.dispose();
  }

  /** Frees the buffer when no result took it. */
  settle(): void {
    if (this.#users === 0) this.buffer.dispose();
  }
}

/** Rows of one run's output and where each belongs in the frame. */
export interface Segment {
  readonly shared: SharedBuffer;
  readonly place: ExternalPlace;
  /** For each row in use, its row of the result. */
  readonly targets: readonly number[];
}

/** Reads all rows of a segment, widened to f32: (targets.length, columns). */
export function readRows({ shared, place, targets }: Segment): Float32Array {
  const { columns, row_bytes, offset, dtype } = place;
  const width = columns * elementBytes(dtype);
  const raw = new Uint8Array(targets.length * width);
  if (row_bytes === width) {
    shared.buffer.read(offset, raw);
  } else {
    for (let r = 0; r < targets.length; r++) {
      shared.buffer.read(offset + r * row_bytes, raw.subarray(r * width, (r + 1) * width));
    }
  }
  return widen(raw, dtype);
}

/** Native numbers as f32. @param raw at offset 0 of its buffer */
export function widen(raw: Uint8Array, dtype: DTypeName): Float32Array {
  if (dtype !== "bfloat16" && dtype !== "float16") return new Float32Array(raw.buffer);
  const halves = new Uint16Array(raw.buffer);
  if (dtype === "float16") return Float32Array.from(halves, halfToFloat);
  return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
}

/** An IEEE half's bits as a number. */
export function halfToFloat(bits: number): number {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, bits >> 10 & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** f32 numbers as native ones, rounded to nearest even. */
export function narrow(values: Float32Array, dtype: DTypeName): Uint8Array {
  if (dtype !== "bfloat16") {
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  }
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const rounded = (x: number) => x + 0x7fff + (x >>> 16 & 1);
  const halves = Uint16Array.from(
    bits,
    // a NaN stays one, whatever its low bits
    (x) => (x & 0x7fffffff) > 0x7f800000 ? x >>> 16 | 0x40 : rounded(x) >>> 16,
  );
  return new Uint8Array(halves.buffer);
}

/**
 * A result tensor over segments; numbers are fetched and scattered when asked for. Rows that no
 * segment names (padding) are zeros.
 *
 * @param shape its last dimension is the rows' width unless `scatter` says otherwise
 * @param scatter writes one row into the result; by default whole rows by their target
 */
export function resultTensor(
  shape: readonly number[],
  segments: readonly Segment[],
  scatter?: (out: Float32Array, row: Float32Array, target: number) => void,
): Tensor {
  for (const { shared } of segments) shared.retain();
  let disposed = false;
  const source: DataSource = {
    read() {
      if (disposed) {
        return Promise.reject(
          new TypeError(`Cannot read a tensor of shape [${shape}]: it has been disposed of`),
        );
      }
      const out = new Float32Array(shape.reduce((a, b) => a * b, 1));
      for (const segment of segments) {
        const { columns } = segment.place;
        const rows = readRows(segment);
        for (const [r, target] of segment.targets.entries()) {
          const row = rows.subarray(r * columns, (r + 1) * columns);
          if (scatter) scatter(out, row, target);
          else out.set(row, target * columns);
        }
      }
      return Promise.resolve(out);
    },
    dispose() {
      if (disposed) return;
      disposed = true;
      for (const { shared } of segments) shared.release();
    },
  };
  return new Tensor(shape, "float32", { space: "data", source });
}
