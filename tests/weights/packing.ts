/** Weights packed in JavaScript, number by number: what the library's loader is compared with. */

import type { WeightDType, WeightLayout } from "../../src/weights/load.ts";

const words = new Uint32Array(1);
const floats = new Float32Array(words.buffer);

/** Widens stored bytes to f32. @param stored F32, BF16 or F16 */
export function widen(stored: string, bytes: Uint8Array): Float32Array {
  const copy = new Uint8Array(bytes).buffer; // Buffer's own slice() would share its memory
  if (stored === "F32") return new Float32Array(copy);
  if (stored === "F16") return Float32Array.from(new Uint16Array(copy), halfToFloat);
  const out = new Float32Array(bytes.length / 2);
  const bits = new Uint32Array(out.buffer);
  for (const [i, half] of new Uint16Array(copy).entries()) bits[i] = half << 16;
  return out;
}

function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Rounds to the nearest, a tie to even, by the definition: not by bit tricks. */
function floatToHalf(x: number): number {
  const sign = Object.is(x, -0) || x < 0 ? 0x8000 : 0;
  const a = Math.abs(x);
  if (Number.isNaN(x)) return 0x7e00;
  if (a >= 65520) return sign | 0x7c00;
  const exponent = Math.max(Math.floor(Math.log2(a || 2 ** -30)), -14);
  const exact = [exponent - 1, exponent, exponent + 1].map((e) => Math.max(e, -14)).find((e) =>
    a < 2 ** (e + 1)
  )!;
  const steps = roundEven(a / 2 ** (exact - 10)); // of the spacing at this exponent
  const bits = steps + ((exact + 14) << 10);
  return sign | (steps < 1024 && exact === -14 ? steps : bits);
}

function roundEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  return rest < 0.5 || rest === 0.5 && low % 2 === 0 ? low : low + 1;
}

function floatToBrain(x: number): number {
  floats[0] = x;
  const bits = words[0];
  if (Number.isNaN(x)) return (bits >>> 16) | 0x40;
  const low = bits & 0xffff;
  const up = low > 0x8000 || low === 0x8000 && (bits >>> 16) % 2 === 1;
  return (bits >>> 16) + (up ? 1 : 0);
}

/** Narrows f32 to the bits of a dtype, as u32 or u16. */
export function narrow(values: Float32Array, dtype: WeightDType): Uint32Array | Uint16Array {
  if (dtype === "float32") return new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Uint16Array.from(values, dtype === "bfloat16" ? floatToBrain : floatToHalf);
}

/** Puts a matrix into a layout; see `Layout` in zig/command.zig. */
export function pack(
  bits: Uint32Array | Uint16Array,
  rows: number,
  cols: number,
  dtype: WeightDType,
  layout: WeightLayout,
): Uint32Array | Uint16Array {
  if (layout === "row_major") return bits;
  const pairs = dtype === "bfloat16" ? 2 : 1;
  const padded_cols = Math.ceil(cols / pairs) * pairs;
  const Bits = bits.constructor as Uint32ArrayConstructor;
  const out = new Bits(Math.ceil(rows / 16) * 16 * padded_cols);
  for (let n = 0; n < rows; n++) {
    for (let k = 0; k < cols; k++) {
      const block = Math.floor(n / 16) * (padded_cols / pairs) + Math.floor(k / pairs);
      out[(block * 16 + n % 16) * pairs + k % pairs] = bits[n * cols + k];
    }
  }
  return out;
}

/** Bytes of any view. */
export function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
