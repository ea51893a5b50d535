/** Grouped-query causal attention over the paged cache. */

import { f32Bits, graphOf } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";
import { expectColumns } from "./check.ts";

/** Keys and values of one layer in every page of the cache. */
export interface KeyValuePages {
  /** (kv_heads, page_tokens / 16, head_dim, 16) */
  readonly keys: Tensor;
  /** (kv_heads, page_tokens, head_dim) */
  readonly values: Tensor;
}

/** Head counts and scale of {@link attention}. */
export interface AttentionShape {
  readonly heads: number;
  readonly kv_heads: number;
  readonly head_dim: number;
  /** Factor on the scores, usually head_dim ** -0.5. */
  readonly scale: number;
}

/**
 * Stores the tokens' keys and values at the end of their sequences.
 *
 * @param k (tokens, kv_heads * head_dim), already rotated
 * @param v (tokens, kv_heads * head_dim)
 */
export function kvAppend(k: Tensor, v: Tensor, pages: KeyValuePages, shape: AttentionShape): void {
  const graph = graphOf("kv_append", k);
  const columns = shape.kv_heads * shape.head_dim;
  expectColumns("kv_append", "k", k, columns);
  expectColumns("kv_append", "v", v, columns);
  graph.emit("kv_append", [k, v], [pages.keys, pages.values], [shape.kv_heads, shape.head_dim]);
}

/**
 * softmax(scale * q Kᵀ) V for each head, each token over its own sequence up to itself.
 *
 * @param q (tokens, heads * head_dim), already rotated
 * @returns (tokens, heads * head_dim)
 */
export function attention(q: Tensor, pages: KeyValuePages, shape: AttentionShape): Tensor {
  const graph = graphOf("attention", q);
  const { heads, kv_heads, head_dim, scale } = shape;
  expectColumns("attention", "q", q, heads * head_dim);
  if (heads % kv_heads !== 0) {
    throw new RangeError(`Expected kv_heads to divide ${heads} heads but found ${kv_heads}`);
  }
  const out = graph.value(q.rows, heads * head_dim, q.dtype);
  const attrs = [heads, kv_heads, head_dim, f32Bits(scale)];
  graph.emit("attention", [q, pages.keys, pages.values], [out], attrs);
  return out;
}

/**
 * The softmax weights themselves, for `output_attentions`.
 *
 * @param q (tokens, heads * head_dim)
 * @param max_keys columns kept for each head; zeros beyond a token's own position
 * @returns (tokens, heads * max_keys)
 */
export function attentionProbs(
  q: Tensor,
  pages: KeyValuePages,
  shape: AttentionShape,
  max_keys: number,
): Tensor {
  const graph = graphOf("attention_probs", q);
  const { heads, kv_heads, head_dim, scale } = shape;
  expectColumns("attention_probs", "q", q, heads * head_dim);
  const out = graph.value(q.rows, heads * max_keys, "float32");
  const attrs = [heads, kv_heads, head_dim, f32Bits(scale), max_keys];
  graph.emit("attention_probs", [q, pages.keys], [out], attrs);
  return out;
}
