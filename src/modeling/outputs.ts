/** HF's output objects. */

import type { Tensor } from "../graph/tensor.ts";
import type { HybridMambaAttentionDynamicCache } from "./cache.ts";

/** What {@link ModelOutput} is made of. */
export interface OutputFields {
  loss?: Tensor;
  logits?: Tensor;
  last_hidden_state?: Tensor;
  past_key_values?: HybridMambaAttentionDynamicCache;
  hidden_states?: Tensor[];
  attentions?: Tensor[];
  taps?: Record<string, Tensor>;
}

/**
 * HF's CausalLMOutputWithPast (with a head) and BaseModelOutputWithPast (without). Fields that were
 * not asked for are undefined.
 */
export class ModelOutput implements OutputFields {
  /** () mean cross entropy, when labels were given */
  readonly loss?: Tensor;
  /** (batch, positions, vocab_size) */
  readonly logits?: Tensor;
  /** (batch, positions, hidden_size) */
  readonly last_hidden_state?: Tensor;
  readonly past_key_values?: HybridMambaAttentionDynamicCache;
  /** (batch, positions, hidden_size) each: embedding, layers but the last, final norm */
  readonly hidden_states?: Tensor[];
  /** (batch, heads, positions, keys) for each attention layer */
  readonly attentions?: Tensor[];
  /** Named activations, when tests asked for them. */
  readonly taps?: Record<string, Tensor>;

  constructor(fields: OutputFields) {
    Object.assign(this, fields);
  }

  /** Frees every tensor and, unless it was handed in, the cache. */
  dispose(): void {
    const tensors = [this.loss, this.logits, this.last_hidden_state];
    const lists = [this.hidden_states, this.attentions, Object.values(this.taps ?? {})];
    for (const tensor of [...tensors, ...lists.flat()]) tensor?.dispose();
    this.past_key_values?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
