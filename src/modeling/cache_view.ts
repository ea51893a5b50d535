/** Reads what kernels keep in a cache as plain numbers, in HF's orders. */

import type { DTypeName } from "../graph/tensor.ts";
import { page_tokens, panel } from "../native/bindings.gen.ts";
import type { DeviceKindName } from "../native/native.ts";
import { halfToFloat, widen } from "./rows.ts";

/** Channels that share a scale in "q8_0", and bytes of such a block. */
const group = 32;
const block_bytes = group + 2;

/** How one layer's keys or values lie in a page. */
export interface PageOfLayer {
  readonly kind: "keys" | "values";
  readonly kv_heads: number;
  readonly head_dim: number;
  readonly dtype: DTypeName;
  readonly device: DeviceKindName;
}

/**
 * One page as f32: (kv_heads, page_tokens, head_dim).
 *
 * @param raw its bytes, at offset 0 of their buffer
 */
export function pageValues(raw: Uint8Array, page: PageOfLayer): Float32Array {
  const { kind, kv_heads, head_dim, dtype, device } = page;
  if (dtype === "q8_0") return blockValues(raw, page);
  const stored = widen(raw, dtype);
  if (kind === "values" || device === "cuda") return stored;
  const out = new Float32Array(stored.length);
  for (let head = 0; head < kv_heads; head++) {
    for (let at = 0; at < page_tokens; at++) {
      const block = (head * page_tokens + at - at % panel) * head_dim + at % panel;
      const row = (head * page_tokens + at) * head_dim;
      for (let d = 0; d < head_dim; d++) out[row + d] = stored[block + d * panel];
    }
  }
  return out;
}

/** 8-bit blocks as zig/cpu/attention/q8.zig lays them out: a head's scales, then its numbers. */
function blockValues(raw: Uint8Array, { kind, kv_heads, head_dim }: PageOfLayer): Float32Array {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const out = new Float32Array(kv_heads * page_tokens * head_dim);
  const groups = head_dim / group;
  for (let i = 0; i < out.length; i++) {
    const [d, row] = [i % head_dim, Math.floor(i / head_dim)];
    const [at, head] = [row % page_tokens, Math.floor(row / page_tokens)];
    const start = head * page_tokens * groups * block_bytes;
    const scale = start + (Math.floor(d / group) * page_tokens + at) * 2;
    const place = kind === "keys" ? keyIndex(head_dim, at, d) : valueIndex(at, d);
    const number = start + groups * page_tokens * 2 + place;
    out[i] = halfToFloat(view.getUint16(scale, true)) * view.getInt8(number);
  }
  return out;
}

/** Four channels of a key together, 16 keys across. */
function keyIndex(head_dim: number, key: number, d: number): number {
  const fours = Math.floor(key / panel) * (head_dim / 4) + Math.floor(d / 4);
  return (fours * panel + key % panel) * 4 + d % 4;
}

/** Two positions together, which are 16 apart, then 32 channels. */
function valueIndex(at: number, d: number): number {
  const pairs = Math.floor(d / group) * 2 + Math.floor(at / (2 * panel));
  return ((pairs * panel + at % panel) * group + d % group) * 2 + Math.floor(at / panel) % 2;
}
