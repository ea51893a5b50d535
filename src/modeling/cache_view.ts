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

/** 8-bit blocks as zig/cpu/attention_q8.zig lays them out. */
function blockValues(raw: Uint8Array, { kind, kv_heads, head_dim }: PageOfLayer): Float32Array {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const out = new Float32Array(kv_heads * page_tokens * head_dim);
  const groups = head_dim / group;
  for (let i = 0; i < out.length; i++) {
    const [d, row] = [i % head_dim, Math.floor(i / head_dim)];
    const [g, channel] = [Math.floor(d / group), d % group];
    let [scale, number] = [(row * groups + g) * block_bytes, 0];
    if (kind === "values") number = scale + 2 + channel;
    else {
      const key = row % panel;
      const start = ((row - key) / panel * groups + g) * panel * block_bytes;
      scale = start + 2 * key;
      number = start + 2 * panel + channel * panel + key;
    }
    out[i] = halfToFloat(view.getUint16(scale, true)) * view.getInt8(number);
  }
  return out;
}
