/** Depthwise causal convolution over each sequence (HF: causal_conv1d_fn, causal_conv1d_update). */

import { graphOf } from "../graph/graph.ts";
import { Tensor } from "../graph/tensor.ts";
import { expectShape } from "./check.ts";

/**
 * y[t, c] = act(bias[c] + sum over w of weight[c, w] * x[t - W + 1 + w, c]), never across the edge
 * of a sequence. Continues from `conv_state` where a sequence has a past, and leaves the last W
 * inputs in it.
 *
 * @param x (tokens, channels)
 * @param weight (channels, 1, W)
 * @param bias (channels)
 * @param conv_state (W, channels) in each sequence's slot
 * @param activation "silu" or none
 * @returns (tokens, channels)
 */
export function causalConv1d(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  conv_state: Tensor,
  activation?: "silu",
): Tensor {
  const graph = graphOf("causal_conv1d", x);
  const channels = x.shape[1];
  const width = weight.shape[weight.shape.length - 1];
  expectShape("causal_conv1d", "weight", weight, [channels, 1, width]);
  if (bias) expectShape("causal_conv1d", "bias", bias, [channels]);
  expectShape("causal_conv1d", "conv_state", conv_state, [width, channels]);
  const taps = new Tensor([channels, width], weight.dtype, weight.storage);
  const out = graph.value(x.rows, channels, x.dtype);
  const op = graph.decode ? "causal_conv1d_update" : "causal_conv1d";
  graph.emit(op, [x, taps, bias, conv_state], [out], [activation === "silu" ? 1 : 0]);
  return out;
}
