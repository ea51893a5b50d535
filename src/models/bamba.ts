/**
 * Bamba: layers of Mamba2 (Dao and Gu 2024) or grouped-query attention, each followed by a SwiGLU
 * MLP. Class and field names, and so the checkpoint's keys, are those of HF's modeling_bamba.
 *
 * `forward` records what happens to the tokens of a batch that lie one after another: there is no
 * batch dimension and no padding. See docs/design.md, "Recorded once".
 *
 * @module
 */

import { parameter, type Tensor } from "../graph/tensor.ts";
import { GenerationMixin } from "../generation/mixin.ts";
import type { LayerCacheSpec } from "../modeling/cache_dtypes.ts";
import type { AttentionState, CacheLayout, MambaState } from "../modeling/cache_layout.ts";
import { linearParts } from "../modeling/parameters.ts";
import { PreTrainedModel } from "../modeling/pretrained.ts";
import type { ForwardInputs, ForwardOutputs } from "../modeling/forward.ts";
import { Conv1d, Embedding, Linear, RMSNorm, RotaryEmbedding } from "../nn/layers.ts";
import { Module } from "../nn/module.ts";
import * as ops from "../ops/mod.ts";
import { BambaConfig } from "./bamba_config.ts";

/** cos and sin for every token, each (tokens, rotary_dim / 2). */
type PositionEmbeddings = readonly [cos: Tensor, sin: Tensor];

/** Which rows go on behind a mixer's state: all, or in the last layer those that are wanted. */
type KeptRows = (x: Tensor) => Tensor;
const allRows: KeptRows = (x) => x;

/** The norm of the Mamba mixer: gate first, one mean for each group of channels. */
export class BambaRMSNormGated extends Module {
  weight: Tensor; // (intermediate_size)

  constructor(hidden_size: number, readonly n_groups: number, readonly variance_epsilon: number) {
    super();
    this.weight = parameter([hidden_size]);
  }

  /** @param hidden_states (tokens, intermediate_size) @param gate the same shape */
  forward(hidden_states: Tensor, gate: Tensor): Tensor {
    return ops.rmsNormGated(
      hidden_states,
      gate,
      this.weight,
      this.variance_epsilon,
      this.n_groups,
    );
  }
}

/** Mamba2: gated projection, causal convolution, state space scan, gated norm, projection. */
export class BambaMixer extends Module {
  readonly num_heads: number;
  readonly head_dim: number;
  readonly n_groups: number;
  readonly ssm_state_size: number;
  readonly conv_kernel_size: number;
  readonly intermediate_size: number;
  readonly conv_dim: number;
  readonly time_step_limit: readonly [number, number];

  in_proj: Linear;
  conv1d: Conv1d;
  dt_bias: Tensor; // (num_heads)
  A_log: Tensor; // (num_heads)
  D: Tensor; // (num_heads)
  norm: BambaRMSNormGated;
  out_proj: Linear;

  constructor(config: BambaConfig) {
    super();
    this.num_heads = config.mamba_n_heads;
    this.head_dim = config.mamba_d_head;
    this.n_groups = config.mamba_n_groups;
    this.ssm_state_size = config.mamba_d_state;
    this.conv_kernel_size = config.mamba_d_conv;
    this.intermediate_size = config.mamba_expand * config.hidden_size;
    this.conv_dim = this.intermediate_size + 2 * this.n_groups * this.ssm_state_size;
    this.time_step_limit = config.time_step_limit;

    const projection_size = this.intermediate_size + this.conv_dim + this.num_heads;
    const bias = config.mamba_proj_bias;
    this.in_proj = new Linear(config.hidden_size, projection_size, { bias });
    this.conv1d = new Conv1d(this.conv_dim, this.conv_kernel_size, {
      bias: config.mamba_conv_bias,
    });
    this.dt_bias = parameter([this.num_heads]);
    this.A_log = parameter([this.num_heads]);
    this.D = parameter([this.num_heads]);
    this.norm = new BambaRMSNormGated(this.intermediate_size, this.n_groups, config.rms_norm_eps);
    this.out_proj = new Linear(this.intermediate_size, config.hidden_size, { bias });
  }

  /** What the cache keeps for this layer. */
  cacheSpec(): LayerCacheSpec {
    return {
      type: "mamba",
      conv_state: [this.conv_kernel_size, this.conv_dim],
      ssm_state: [this.num_heads, this.ssm_state_size, this.head_dim],
    };
  }

  /**
   * @param hidden_states (tokens, hidden_size)
   * @param cache_params this layer's states, continued and updated in place
   * @param residual added to the result: one row for each that `kept` leaves
   * @param kept leaves those rows that are wanted
   */
  forward(
    hidden_states: Tensor,
    cache_params: MambaState,
    residual: Tensor,
    kept: KeptRows,
  ): Tensor {
    const graph = hidden_states.graph!;
    const groups_state = this.n_groups * this.ssm_state_size;

    // 1. Gated MLP's linear projection
    const [gateOfKept, xBC, dt] = this.project(hidden_states, kept);

    // 2. Convolution sequence transformation
    const convolved = graph.tap("conv", this.conv1d.forward(xBC, cache_params.conv_state, "silu"));
    const [x, B, C] = ops.split(convolved, [this.intermediate_size, groups_state, groups_state]);

    // 3. SSM transformation
    const { A_log, D, dt_bias, n_groups: groups, time_step_limit } = this;
    const operands = { x, dt, B, C, A_log, D, dt_bias, groups, time_step_limit };
    const y = graph.tap("ssd", ops.ssmScan(operands, cache_params.ssm_state));

    // 4. Gated norm and final linear projection
    const normed = graph.tap("gated_norm", this.norm.forward(kept(y), gateOfKept()));
    return this.out_proj.forward(normed, residual);
  }

  /** Records the gate of the rows that are kept when asked for it, the scan's inputs of all now. */
  private project(
    hidden_states: Tensor,
    kept: KeptRows,
  ): [gateOfKept: () => Tensor, xBC: Tensor, dt: Tensor] {
    const { intermediate_size, conv_dim, num_heads, in_proj } = this;
    const parts = kept === allRows
      ? undefined
      : linearParts(in_proj, [intermediate_size, conv_dim + num_heads]);
    if (parts) {
      const [gate_proj, input_proj] = parts;
      const [xBC, dt] = ops.split(input_proj.forward(hidden_states), [conv_dim, num_heads]);
      return [() => gate_proj.forward(kept(hidden_states)), xBC, dt];
    }
    const projected = hidden_states.graph!.tap("in_proj", in_proj.forward(hidden_states));
    const [gate, xBC, dt] = ops.split(projected, [intermediate_size, conv_dim, num_heads]);
    return [() => kept(gate), xBC, dt];
  }
}

/** Causal grouped-query attention; the first part of each head's channels rotates. */
export class BambaAttention extends Module {
  readonly num_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly scaling: number;

  q_proj: Linear;
  k_proj: Linear;
  v_proj: Linear;
  o_proj: Linear;

  constructor(config: BambaConfig) {
    super();
    this.num_heads = config.num_attention_heads;
    this.num_key_value_heads = config.num_key_value_heads;
    this.head_dim = config.head_dim;
    this.scaling = this.head_dim ** -0.5;

    const bias = config.attention_bias;
    const query_size = this.num_heads * this.head_dim;
    const key_value_size = this.num_key_value_heads * this.head_dim;
    this.q_proj = new Linear(config.hidden_size, query_size, { bias });
    this.k_proj = new Linear(config.hidden_size, key_value_size, { bias });
    this.v_proj = new Linear(config.hidden_size, key_value_size, { bias });
    this.o_proj = new Linear(query_size, config.hidden_size, { bias });
  }

  /** What the cache keeps for this layer. */
  cacheSpec(): LayerCacheSpec {
    return { type: "attention", kv_heads: this.num_key_value_heads, head_dim: this.head_dim };
  }

  /**
   * @param hidden_states (tokens, hidden_size)
   * @param past_key_value this layer's pages, appended to
   * @param residual added to the result: one row for each that `kept` leaves
   * @param kept leaves those rows that are wanted
   * @param probs_keys keep the softmax weights over this many keys for `output_attentions`
   */
  forward(
    hidden_states: Tensor,
    position_embeddings: PositionEmbeddings,
    past_key_value: AttentionState,
    residual: Tensor,
    kept: KeptRows,
    probs_keys?: number,
  ): Tensor {
    const graph = hidden_states.graph!;
    const { num_heads: heads, num_key_value_heads: kv_heads, head_dim, scaling: scale } = this;
    const shape = { heads, kv_heads, head_dim, scale };
    const [cos, sin] = position_embeddings;

    const query = ops.rope(this.q_proj.forward(hidden_states), cos, sin, heads);
    const key = ops.rope(this.k_proj.forward(hidden_states), cos, sin, kv_heads);
    const value = this.v_proj.forward(hidden_states);
    graph.tap("q", query);
    graph.tap("k", key);
    graph.tap("v", value);

    ops.kvAppend(key, value, past_key_value, shape);
    if (probs_keys !== undefined) {
      const probs = ops.attentionProbs(query, past_key_value, shape, probs_keys);
      graph.output(graph.path("attentions"), probs);
    }
    const attn_output = ops.attention(query, past_key_value, shape);
    return this.o_proj.forward(kept(graph.tap("attn", attn_output)), residual);
  }
}

/** SwiGLU: down(silu(gate(x)) * up(x)). */
export class BambaMLP extends Module {
  gate_proj: Linear;
  up_proj: Linear;
  down_proj: Linear;

  constructor(config: BambaConfig) {
    super();
    const { hidden_size, intermediate_size, mlp_bias: bias } = config;
    this.gate_proj = new Linear(hidden_size, intermediate_size, { bias });
    this.up_proj = new Linear(hidden_size, intermediate_size, { bias });
    this.down_proj = new Linear(intermediate_size, hidden_size, { bias });
  }

  /** @param x (tokens, hidden_size) @param residual the same shape, added to the result */
  forward(x: Tensor, residual: Tensor): Tensor {
    const activated = ops.swiglu(this.gate_proj.forward(x), this.up_proj.forward(x));
    return this.down_proj.forward(activated, residual);
  }
}

/** Norm, mixer, residual; norm, MLP, residual. */
export class BambaDecoderLayer extends Module {
  input_layernorm: RMSNorm;
  pre_ff_layernorm: RMSNorm;
  feed_forward: BambaMLP;
  mamba?: BambaMixer;
  self_attn?: BambaAttention;

  constructor(config: BambaConfig, readonly layer_idx: number) {
    super();
    if (config.layers_block_type[layer_idx] === "mamba") this.mamba = new BambaMixer(config);
    else this.self_attn = new BambaAttention(config);
    this.feed_forward = new BambaMLP(config);
    this.input_layernorm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
    this.pre_ff_layernorm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
  }

  /** What the cache keeps for this layer. */
  cacheSpec(): LayerCacheSpec {
    return (this.mamba ?? this.self_attn!).cacheSpec();
  }

  /** @param hidden_states (tokens, hidden_size) @returns the rows of it that `kept` leaves */
  forward(
    hidden_states: Tensor,
    past_key_values: CacheLayout,
    position_embeddings: PositionEmbeddings,
    kept: KeptRows,
    probs_keys?: number,
  ): Tensor {
    const graph = hidden_states.graph!;
    const residual = kept(hidden_states);
    const normed = graph.tap("mixer_in", this.input_layernorm.forward(hidden_states));
    hidden_states = this.mamba
      ? this.mamba.forward(normed, past_key_values.mamba(this.layer_idx), residual, kept)
      : this.self_attn!.forward(
        normed,
        position_embeddings,
        past_key_values.attention(this.layer_idx),
        residual,
        kept,
        probs_keys,
      );
    graph.tap("mixer_out", hidden_states);
    const mlp_in = graph.tap("mlp_in", this.pre_ff_layernorm.forward(hidden_states));
    return graph.tap("out", this.feed_forward.forward(mlp_in, hidden_states));
  }
}

/** The decoder: embedding, layers, final norm. */
export class BambaModel extends PreTrainedModel {
  static readonly config_class = BambaConfig;
  static readonly base_model_prefix = "model";
  embed_tokens: Embedding;
  layers: BambaDecoderLayer[];
  final_layernorm: RMSNorm;
  rotary_emb: RotaryEmbedding;

  constructor(override readonly config: BambaConfig) {
    super();
    this.embed_tokens = new Embedding(config.vocab_size, config.hidden_size);
    this.layers = config.layers_block_type.map((_, i) => new BambaDecoderLayer(config, i));
    this.final_layernorm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
    this.rotary_emb = new RotaryEmbedding(config.rotary_dim, config.rope_theta);
  }

  /** One entry a layer. */
  override cacheSpecs(): LayerCacheSpec[] {
    return this.layers.map((layer) => layer.cacheSpec());
  }

  /**
   * @param inputs.input_ids (tokens), or inputs_embeds (tokens, hidden_size)
   * @param inputs.position_ids (tokens)
   * @returns last_hidden_state (tokens, hidden_size), or of `logit_rows_only` (logits, hidden_size)
   */
  override forward(inputs: ForwardInputs): ForwardOutputs {
    const { input_ids, inputs_embeds, position_ids, past_key_values } = inputs;
    let hidden_states = inputs_embeds ?? this.embed_tokens.forward(input_ids!);
    const graph = hidden_states.graph!;
    const position_embeddings = this.rotary_emb.forward(position_ids);
    const all_hidden_states: Tensor[] = [];

    for (const [i, decoder_layer] of this.layers.entries()) {
      if (inputs.output_hidden_states) all_hidden_states.push(hidden_states);
      const last = i + 1 === this.layers.length;
      const kept = last && inputs.logit_rows_only ? ops.gatherRows : allRows;
      hidden_states = graph.scope(`layer${i}`, () =>
        decoder_layer.forward(
          hidden_states,
          past_key_values,
          position_embeddings,
          kept,
          inputs.attention_keys,
        ));
    }

    hidden_states = this.final_layernorm.forward(hidden_states);
    if (inputs.output_hidden_states) all_hidden_states.push(hidden_states);
    return { last_hidden_state: hidden_states, hidden_states: all_hidden_states };
  }
}

/** The decoder with a language modelling head. */
export class BambaForCausalLM extends GenerationMixin {
  static readonly config_class = BambaConfig;
  static readonly _tied_weights_keys = { "lm_head.weight": "model.embed_tokens.weight" };
  model: BambaModel;
  lm_head: Linear;

  constructor(override readonly config: BambaConfig) {
    super();
    this.z_loss_coefficient = config.z_loss_coefficient ?? 0;
    this.model = new BambaModel(config);
    this.lm_head = new Linear(config.hidden_size, config.vocab_size);
  }

  override cacheSpecs(): LayerCacheSpec[] {
    return this.model.cacheSpecs();
  }

  /**
   * @param inputs as {@link BambaModel.forward}; the step buffer's `logit_rows` say whose logits
   * @returns the decoder's outputs and logits (logits, vocab_size)
   */
  override forward(inputs: ForwardInputs): ForwardOutputs {
    const outputs = this.model.forward(inputs);
    const { last_hidden_state } = outputs;
    const kept = inputs.logit_rows_only ? last_hidden_state : ops.gatherRows(last_hidden_state);
    // Scores are not rounded: sampling and losses take float32.
    return { ...outputs, logits: this.lm_head.forward(kept, undefined, "float32") };
  }
}
