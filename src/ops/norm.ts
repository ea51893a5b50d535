/** Root-mean-square normalizations; statistics in f32. */

import { f32Bits, graphOf } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";
import { expectColumns, expectSameRows, expectShape } from "./check.ts";

/**
 * x * rsqrt(mean(x²) + eps) * weight over each row (HF: BambaRMSNorm).
 *
 * @param x (rows, hidden)
 * @param weight (hidden)
 * @returns (rows, hidden)
 */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  const graph = graphOf("rms_norm", x);
  expectShape("rms_norm", "weight", weight, [x.shape[1]]);
  const out = graph.value(x.rows, x.shape[1], x.dtype);
  graph.emit("rms_norm", [x, weight], [out], [f32Bits(eps)]);
  return out;
}

/**
 * The gate first, then the norm: rmsNorm(x * silu(gate)), one mean over the channels of each group
 * (HF: BambaRMSNormGated).
 *
 * @param x (rows, channels)
 * @param gate (rows, channels)
 * @param weight (channels)
 * @returns (rows, channels)
 * @throws {RangeError} when `groups` does not divide the channels
 */
export function rmsNormGated(
  x: Tensor,
  gate: Tensor,
  weight: Tensor,
  eps: number,
  groups = 1,
): Tensor {
  const graph = graphOf("rms_norm_gated", x);
  const channels = x.shape[1];
  expectSameRows("rms_norm_gated", x, gate);
  expectColumns("rms_norm_gated", "gate", gate, channels);
  expectShape("rms_norm_gated", "weight", weight, [channels]);
  if (channels % groups !== 0) {
    throw new RangeError(`Expected groups to divide ${channels} channels but found ${groups}`);
  }
  const out = graph.value(x.rows, channels, x.dtype);
  graph.emit("rms_norm_gated", [x, gate, weight], [out], [f32Bits(eps), groups]);
  return out;
}
