/** Shapes of models with random weights, and what one token of each costs. */

import { scan_chunk } from "../../src/native/bindings.gen.ts";

/** HF's config fields that decide the size of a Bamba. */
export interface Shape {
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly attn_layer_indices: readonly number[];
  readonly mamba_n_heads: number;
  readonly mamba_d_state: number;
  readonly tie_word_embeddings: boolean;
}

/** Shapes by the name that `--shape` takes. */
export const shapes: Readonly<Record<string, Shape>> = {
  "wordnet-8m": {
    vocab_size: 4096,
    hidden_size: 256,
    intermediate_size: 768,
    num_hidden_layers: 7,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    attn_layer_indices: [3],
    mamba_n_heads: 8,
    mamba_d_state: 128,
    tie_word_embeddings: true,
  },
  /** The 9B's heads and states in a small model: what its fast kernels can be tested with. */
  "9b-thin": {
    vocab_size: 1024,
    hidden_size: 1024,
    intermediate_size: 2048,
    num_hidden_layers: 3,
    num_attention_heads: 8,
    num_key_value_heads: 2,
    attn_layer_indices: [1],
    mamba_n_heads: 32,
    mamba_d_state: 128,
    tie_word_embeddings: false,
  },
  "1.2b": {
    vocab_size: 32000,
    hidden_size: 2048,
    intermediate_size: 7168,
    num_hidden_layers: 16,
    num_attention_heads: 16,
    num_key_value_heads: 4,
    attn_layer_indices: [5, 11],
    mamba_n_heads: 64,
    mamba_d_state: 128,
    tie_word_embeddings: false,
  },
  "9b": {
    vocab_size: 128256,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    attn_layer_indices: [9, 18, 27],
    mamba_n_heads: 128,
    mamba_d_state: 128,
    tie_word_embeddings: false,
  },
};

/** @throws {RangeError} naming the shapes there are */
export function findShape(name: string): Shape {
  if (Object.hasOwn(shapes, name)) return shapes[name];
  throw new RangeError(
    `Expected --shape to be one of ${Object.keys(shapes).join(", ")} but found "${name}"`,
  );
}

const conv_kernel = 4;
const f32_bytes = 4;

/** Sizes of the layers' parts. */
export function sizesOf(s: Shape) {
  const inner = 2 * s.hidden_size;
  const head_dim = s.hidden_size / s.num_attention_heads;
  return {
    inner,
    conv_dim: inner + 2 * s.mamba_d_state,
    projection: 2 * inner + 2 * s.mamba_d_state + s.mamba_n_heads,
    head_dim,
    kv: s.num_key_value_heads * head_dim,
    attention_layers: s.attn_layer_indices.length,
    mamba_layers: s.num_hidden_layers - s.attn_layer_indices.length,
  };
}

/** Parameters of the matrices that every token meets, without and with the output head. */
export function matrixParameters(s: Shape): { layers: number; head: number } {
  const { hidden_size: h } = s;
  const { inner, projection, kv, attention_layers, mamba_layers } = sizesOf(s);
  return {
    layers: mamba_layers * (projection * h + inner * h) +
      attention_layers * (2 * h * h + 2 * kv * h) +
      s.num_hidden_layers * 3 * h * s.intermediate_size,
    head: s.vocab_size * h,
  };
}

/** Bytes that decoding one token must move: every matrix (`matrix_bytes`) read, states read and written, KV read. */
export function decodeBytes(s: Shape, matrix_bytes: number, context: number): number {
  const { inner, conv_dim, kv, attention_layers, mamba_layers } = sizesOf(s);
  const state = inner * s.mamba_d_state + conv_kernel * conv_dim;
  return matrix_bytes + mamba_layers * 2 * state * f32_bytes +
    attention_layers * 2 * kv * context * f32_bytes;
}

/**
 * Operations of a prompt of `tokens` whose last one has logits: matrix products (for one row the
 * head, and in the last layer the gate and what stands behind the mixer), the scan in chunks (its
 * causal half) and attention (its causal half).
 */
export function prefillFlops(s: Shape, tokens: number): number {
  const { hidden_size: h } = s;
  const { inner, attention_layers, mamba_layers } = sizesOf(s);
  const { layers, head } = matrixParameters(s);
  const scan = mamba_layers *
    (inner * (4 * s.mamba_d_state + scan_chunk) + s.mamba_d_state * scan_chunk);
  const attention = attention_layers * 2 * h * tokens;
  const attends_last = s.attn_layer_indices.includes(s.num_hidden_layers - 1);
  const once = (attends_last ? h : 2 * inner) * h + 3 * h * s.intermediate_size;
  return tokens * (2 * (layers - once) + scan + attention) + 2 * (once + head);
}

/** On a GPU: bytes of states that one sequence's token reads and writes, and of keys and values it reads. */
export function tokenBytes(
  shape: Shape,
  context: number,
  state_bytes = 4,
): { states: number; keys: number } {
  const { inner, conv_dim, kv, attention_layers, mamba_layers } = sizesOf(shape);
  return {
    states: mamba_layers * 2 *
      (state_bytes * inner * shape.mamba_d_state + 4 * conv_kernel * conv_dim),
    keys: attention_layers * 2 * kv * context * 2,
  };
}
