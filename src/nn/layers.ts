/** The layers Bamba is built from, with torch's names and fields. */

import { constant, type DTypeName, parameter, type Tensor } from "../graph/tensor.ts";
import * as ops from "../ops/mod.ts";
import { Module } from "./module.ts";

/** torch.nn.Linear: y = x Wᵀ + b. */
export class Linear extends Module {
  weight: Tensor; // (out_features, in_features)
  bias?: Tensor; // (out_features)

  constructor(in_features: number, out_features: number, o: { bias?: boolean } = {}) {
    super();
    this.weight = parameter([out_features, in_features], { layout: "panel" });
    if (o.bias) this.bias = parameter([out_features]);
  }

  /**
   * @param x (rows, in_features)
   * @param residual (rows, out_features), added last
   * @param dtype of the result, x's where nothing is said
   */
  forward(x: Tensor, residual?: Tensor, dtype?: DTypeName): Tensor {
    return ops.linear(x, this.weight, this.bias, residual, dtype);
  }
}

/** torch.nn.Embedding: rows of a table. */
export class Embedding extends Module {
  weight: Tensor; // (num_embeddings, embedding_dim)

  constructor(num_embeddings: number, embedding_dim: number) {
    super();
    this.weight = parameter([num_embeddings, embedding_dim], { keep_f32: false });
  }

  /** @param ids (tokens) @returns (tokens, embedding_dim) */
  forward(ids: Tensor): Tensor {
    return ops.embedding(ids, this.weight);
  }
}

/** HF's BambaRMSNorm: root-mean-square norm over the last dimension. */
export class RMSNorm extends Module {
  weight: Tensor; // (hidden_size)

  constructor(hidden_size: number, readonly variance_epsilon: number) {
    super();
    this.weight = parameter([hidden_size]);
  }

  /** @param hidden_states (rows, hidden_size) */
  forward(hidden_states: Tensor): Tensor {
    return ops.rmsNorm(hidden_states, this.weight, this.variance_epsilon);
  }
}

/** torch.nn.Conv1d with groups = channels; holds the weights of a causal convolution. */
export class Conv1d extends Module {
  weight: Tensor; // (channels, 1, kernel_size)
  bias?: Tensor; // (channels)

  constructor(channels: number, kernel_size: number, o: { bias: boolean }) {
    super();
    this.weight = parameter([channels, 1, kernel_size]);
    if (o.bias) this.bias = parameter([channels]);
  }

  /** @param x (tokens, channels) @param conv_state (kernel_size, channels) of each slot */
  forward(x: Tensor, conv_state: Tensor, activation?: "silu"): Tensor {
    return ops.causalConv1d(x, this.weight, this.bias, conv_state, activation);
  }
}

/** The frequencies of a rotary embedding over the first `dim` channels of each head. */
export class RotaryEmbedding extends Module {
  inv_freq: Tensor; // (dim / 2)

  constructor(dim: number, base: number, readonly attention_scaling = 1) {
    super();
    const frequencies = Float32Array.from({ length: dim / 2 }, (_, i) => base ** (-2 * i / dim));
    this.inv_freq = constant(frequencies);
  }

  /** @param position_ids (tokens) @returns [cos, sin], each (tokens, dim / 2) */
  forward(position_ids: Tensor): [Tensor, Tensor] {
    return ops.rotaryEmbedding(position_ids, this.inv_freq, this.attention_scaling);
  }
}
