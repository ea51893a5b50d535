/** Rotary position embedding (Su et al. 2021), rotate-half convention. */

import { f32Bits, graphOf } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";
import { expectSameRows } from "./check.ts";

/**
 * cos and sin of position * inv_freq (HF: BambaRotaryEmbedding).
 *
 * @param positions (tokens) of int32
 * @param inv_freq (rotary_dim / 2)
 * @param scaling factor on both results
 * @returns [cos, sin], each (tokens, rotary_dim / 2)
 */
export function rotaryEmbedding(
  positions: Tensor,
  inv_freq: Tensor,
  scaling = 1,
): [Tensor, Tensor] {
  const graph = graphOf("rotary_embedding", positions);
  const cos = graph.value(positions.rows, inv_freq.shape[0], "float32");
  const sin = graph.value(positions.rows, inv_freq.shape[0], "float32");
  graph.emit("rotary_embedding", [positions, inv_freq], [cos, sin], [f32Bits(scaling)]);
  return [cos, sin];
}

/**
 * Rotates the first channels of each head and copies the rest (HF: apply_rotary_pos_emb).
 *
 * @param x (tokens, heads * head_dim)
 * @param cos (tokens, rotary_dim / 2)
 * @param sin (tokens, rotary_dim / 2)
 * @returns (tokens, heads * head_dim)
 * @throws {RangeError} when more channels would rotate than a head has
 */
export function rope(x: Tensor, cos: Tensor, sin: Tensor, heads: number): Tensor {
  const graph = graphOf("rope", x);
  const head_dim = x.shape[1] / heads;
  if (!Number.isInteger(head_dim) || 2 * cos.shape[1] > head_dim) {
    throw new RangeError(
      `Expected rope to rotate at most ${head_dim} channels of a head but found ${
        2 * cos.shape[1]
      }`,
    );
  }
  expectSameRows("rope", x, cos);
  expectSameRows("rope", x, sin);
  const out = graph.value(x.rows, x.shape[1], x.dtype);
  graph.emit("rope", [x, cos, sin], [out], [heads, head_dim]);
  return out;
}
