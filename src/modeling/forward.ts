/** What a model's `forward` is given while it is recorded, and what it gives back. */

import type { Tensor } from "../graph/tensor.ts";
import type { CacheLayout } from "./cache_layout.ts";

/** Inputs of a recording; HF's names, without batch dimension and padding. */
export interface ForwardInputs {
  /** (tokens) of int32, or absent with inputs_embeds */
  readonly input_ids?: Tensor;
  /** (tokens, hidden_size) */
  readonly inputs_embeds?: Tensor;
  /** (tokens) of int32, for the rotary embedding */
  readonly position_ids: Tensor;
  readonly past_key_values: CacheLayout;
  readonly output_hidden_states?: boolean;
  /** Keep softmax weights over this many keys (`output_attentions`). */
  readonly attention_keys?: number;
  /**
   * Nobody reads other rows of the decoder's result than the step buffer's `logit_rows`: it gives
   * back those alone, and what only others need is left out.
   */
  readonly logit_rows_only?: boolean;
}

/** Results of a recording. */
export interface ForwardOutputs {
  /** (tokens, hidden_size); with `logit_rows_only` (logits, hidden_size) */
  readonly last_hidden_state: Tensor;
  /** (logits, vocab_size) of a model with a head */
  readonly logits?: Tensor;
  /** The embedding, every layer but the last, and the final norm: HF's order. */
  readonly hidden_states: readonly Tensor[];
}
