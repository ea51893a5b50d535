/** What layers keep from token to token, and as what: dtypes chosen by the caller. */

import type { DTypeName } from "../graph/tensor.ts";
import type { DeviceKindName } from "../native/native.ts";
import { bf16_channels } from "../native/bindings.gen.ts";
import { rowsBytes, type WeightDType } from "../weights/layout.ts";

/** What one layer keeps from token to token. */
export type LayerCacheSpec =
  | {
    readonly type: "mamba";
    /** (kernel_size, channels) */
    readonly conv_state: readonly [number, number];
    /** (heads, state_size, head_dim) */
    readonly ssm_state: readonly [number, number, number];
  }
  | { readonly type: "attention"; readonly kv_heads: number; readonly head_dim: number };

/** What keys and values can be kept as. */
export type CacheDType = "float32" | "bfloat16" | "float16" | "q8_0";

/** What SSM states can be kept as. */
export type StateDType = "float32" | "bfloat16" | "float16";

/** Options that say so. */
export interface CacheDTypes {
  /**
   * Of keys and values; {@link defaultCacheDType} says what by default. "q8_0": 8 bits a number,
   * and a scale for each 32 channels. docs/design.md says how far each drifts.
   */
  readonly cache_dtype?: CacheDType;
  /** Of SSM states, "float32" by default. */
  readonly state_dtype?: StateDType;
}

/** Channels that share a scale in "q8_0". */
const group = 32;

const cache_dtypes: readonly string[] = ["float32", "bfloat16", "float16", "q8_0"];
const state_dtypes: readonly string[] = ["float32", "bfloat16", "float16"];

/** Bytes of n numbers of a cache, whole blocks of them. */
export function cacheBytes(n: number, dtype: DTypeName): number {
  if (dtype === "int32") throw new TypeError("Expected floats in a cache but found int32");
  return rowsBytes(1, n, dtype satisfies WeightDType);
}

/**
 * Checks the options by themselves.
 *
 * @throws {RangeError} naming what there is
 */
export function checkCacheDTypes({ cache_dtype, state_dtype }: CacheDTypes): void {
  const check = (name: string, found: string | undefined, known: readonly string[]) => {
    if (found === undefined || known.includes(found)) return;
    throw new RangeError(`Expected ${name} to be one of ${known.join(", ")} but found ${found}`);
  };
  check("cache_dtype", cache_dtype, cache_dtypes);
  check("state_dtype", state_dtype, state_dtypes);
}

/**
 * What keys and values are kept as where nothing was said: what the layers compute in. A CPU
 * computes in float32, but keeps fewer bits where a model has few and large heads. Beside weights
 * in blocks keys and values are in blocks, too: what that adds to the weights' own rounding is hard
 * to find (docs/design.md), and a long context costs half the memory and the time. Else they are
 * bfloat16, as HF keeps the model's dtype. Small models would gain nothing by either.
 *
 * @param half whether all matrices are bfloat16, in blocks or 8-bit floats
 * @param blocks whether those of the layers are in blocks
 * @param products whether the CPU has instructions for products of bytes
 */
export function defaultCacheDType(
  specs: readonly LayerCacheSpec[],
  device: DeviceKindName,
  { half, blocks, products }: { half: boolean; blocks: boolean; products: boolean },
): "float32" | "bfloat16" | "q8_0" {
  if (device === "cuda") return half ? "bfloat16" : "float32";
  const heads = specs.filter((spec) => spec.type === "attention");
  if (!half || heads.some((spec) => spec.kv_heads * spec.head_dim < bf16_channels)) {
    return "float32";
  }
  const whole = heads.every((spec) => spec.head_dim % group === 0);
  return blocks && products && whole ? "q8_0" : "bfloat16";
}

/**
 * Fills in what is left out, for a model on a device.
 *
 * @param activations what the device computes in
 * @throws {TypeError} naming what the device has no kernels for
 * @throws {RangeError} when heads have no whole blocks
 */
export function resolveCacheDTypes(
  { cache_dtype, state_dtype }: CacheDTypes,
  specs: readonly LayerCacheSpec[],
  device: DeviceKindName,
  activations: DTypeName,
): { cache_dtype: DTypeName; state_dtype: DTypeName } {
  const found = { cache_dtype: cache_dtype ?? activations, state_dtype: state_dtype ?? "float32" };
  if (device === "cuda" && found.cache_dtype === "q8_0") {
    throw new TypeError(
      'Cannot keep a cache_dtype of q8_0 on cuda, whose kernels take floats: give "bfloat16" or ' +
        '"float16", or leave cache_dtype out',
    );
  }
  for (const spec of specs) {
    if (found.cache_dtype !== "q8_0" || spec.type !== "attention") continue;
    if (spec.head_dim % group === 0) continue;
    throw new RangeError(
      `Expected a head_dim that is a multiple of ${group} for a cache_dtype of q8_0 ` +
        `but found ${spec.head_dim}`,
    );
  }
  return found;
}
