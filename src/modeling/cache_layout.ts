/** How one sequence's states and one page's keys and values are laid out in memory. */

import type { DeviceKindName } from "../native/native.ts";
import { type DTypeName, Tensor } from "../graph/tensor.ts";
import { page_tokens, panel } from "../native/bindings.gen.ts";
import {
  cacheBytes,
  type CacheDTypes,
  type LayerCacheSpec,
  resolveCacheDTypes,
} from "./cache_dtypes.ts";

/** A Mamba layer's states as operands: they mean the running sequence's slot. */
export interface MambaState {
  readonly type: "mamba";
  readonly conv_state: Tensor; // (kernel_size, channels)
  readonly ssm_state: Tensor; // (heads, state_size, head_dim); cuda: (heads, head_dim, state_size)
}

/** An attention layer's pages as operands. */
export interface AttentionState {
  readonly type: "attention";
  readonly keys: Tensor; // (kv_heads, page_tokens / 16, head_dim, 16); cuda: as values, and 1
  readonly values: Tensor; // (kv_heads, page_tokens, head_dim)
}

const align = (n: number) => Math.ceil(n / 64) * 64;

/** Offsets of every layer's part within a slot and within a page. */
export class CacheLayout {
  readonly layers: readonly (MambaState | AttentionState)[];
  /** Bytes of one sequence's convolution and SSM states. */
  readonly slot_bytes: number;
  /** Bytes of the keys and values of {@link page_tokens} positions. */
  readonly page_bytes: number;
  /** The same for layouts that lie alike. */
  readonly key: string;

  /**
   * @param device its kernels want states and keys in orders of their own: docs/contract.md
   * @param activations dtype of what runs between the layers
   * @param dtypes what keys and values, and SSM states, are kept as
   * @throws as {@link resolveCacheDTypes}
   */
  constructor(
    readonly specs: readonly LayerCacheSpec[],
    readonly device: DeviceKindName = "cpu",
    readonly activations: DTypeName = "float32",
    dtypes: CacheDTypes = {},
  ) {
    const { cache_dtype, state_dtype } = resolveCacheDTypes(dtypes, specs, device, activations);
    this.key = JSON.stringify([specs, device, cache_dtype, state_dtype]);
    let slot_bytes = 0;
    let page_bytes = 0;
    const region = (
      space: "state" | "kv",
      shape: readonly number[],
      dtype: DTypeName = cache_dtype,
    ) => {
      const bytes = align(cacheBytes(shape.reduce((a, b) => a * b, 1), dtype));
      const offset = space === "state" ? slot_bytes : page_bytes;
      if (space === "state") slot_bytes += bytes;
      else page_bytes += bytes;
      return new Tensor(shape, dtype, { space, offset });
    };
    this.layers = specs.map((spec) => {
      if (spec.type === "mamba") {
        const conv_state = region("state", spec.conv_state, "float32");
        const [heads, state_size, head_dim] = spec.ssm_state;
        const shape = device === "cuda" ? [heads, head_dim, state_size] : spec.ssm_state;
        return { type: spec.type, conv_state, ssm_state: region("state", shape, state_dtype) };
      }
      const { kv_heads, head_dim } = spec;
      const shape = device === "cuda"
        ? [kv_heads, page_tokens, head_dim, 1]
        : [kv_heads, page_tokens / panel, head_dim, panel];
      const keys = region("kv", shape);
      return { type: spec.type, keys, values: region("kv", [kv_heads, page_tokens, head_dim]) };
    });
    this.slot_bytes = slot_bytes;
    this.page_bytes = page_bytes;
  }

  /** Layer i's states. @throws {TypeError} when it is a layer of the other kind */
  mamba(i: number): MambaState {
    const layer = this.layers[i];
    if (layer.type !== "mamba") throw new TypeError(`Layer ${i} keeps no Mamba state`);
    return layer;
  }

  attention(i: number): AttentionState {
    const layer = this.layers[i];
    if (layer.type !== "attention") throw new TypeError(`Layer ${i} keeps no keys and values`);
    return layer;
  }
}
