/** Matrix products with weights. */

import { graphOf } from "../graph/graph.ts";
import type { DTypeName, Tensor } from "../graph/tensor.ts";
import { expectColumns, expectSameRows, expectShape } from "./check.ts";

/**
 * y = x Wᵀ + bias + residual, as torch.nn.functional.linear.
 *
 * @param x (rows, in_features)
 * @param weight (out_features, in_features), loaded as panels
 * @param bias (out_features)
 * @param residual (rows, out_features), added last
 * @param dtype of the result, x's where nothing is said
 * @returns (rows, out_features)
 * @throws {RangeError} when shapes do not fit
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  residual?: Tensor,
  dtype: DTypeName = x.dtype,
): Tensor {
  const graph = graphOf("linear", x);
  const [out_features, in_features] = weight.shape;
  expectColumns("linear", "x", x, in_features);
  if (bias) expectShape("linear", "bias", bias, [out_features]);
  if (residual) {
    expectSameRows("linear", x, residual);
    expectColumns("linear", "residual", residual, out_features);
  }
  const out = graph.value(x.rows, out_features, dtype);
  graph.emit("linear", [x, weight, bias, residual], [out]);
  return out;
}
