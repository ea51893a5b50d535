/** The arguments of a call, as given and as checked. */

import type { Batch, BatchArguments } from "./batch.ts";
import type { HybridMambaAttentionDynamicCache } from "./cache.ts";
import type { Matrix, MatrixInput, ShapedInput } from "./inputs.ts";

/** Arguments of `call`; HF's names. */
export interface CallInputs extends BatchArguments {
  /** (batch, positions) */
  input_ids?: MatrixInput;
  /** (batch, positions, hidden_size) instead of input_ids */
  inputs_embeds?: ShapedInput;
  past_key_values?: HybridMambaAttentionDynamicCache;
  /** (batch, positions); -100 counts nothing. Shifted inside, as in HF. */
  labels?: MatrixInput;
  /** Divides the summed loss instead of the number of labels. */
  num_items_in_batch?: number;
  /** Return the cache; the config's `use_cache` by default. */
  use_cache?: boolean;
  output_hidden_states?: boolean;
  output_attentions?: boolean;
  /** 0 keeps all positions, a number the last ones, a list these. */
  logits_to_keep?: number | MatrixInput;
  /** Tokens run at once, rounded up to a multiple of the scan's chunk of 64; 512 by default. */
  prefill_chunk_size?: number;
  signal?: AbortSignal;
  /** Named activations to return, for tests: "layer0.in_proj". */
  taps?: readonly string[];
}

/** Names of the arguments. */
export const call_names = [
  "input_ids",
  "inputs_embeds",
  "attention_mask",
  "position_ids",
  "past_key_values",
  "labels",
  "num_items_in_batch",
  "use_cache",
  "output_hidden_states",
  "output_attentions",
  "logits_to_keep",
  "seq_idx",
  "cu_seq_lens_q",
  "cu_seq_lens_k",
  "max_length_q",
  "max_length_k",
  "prefill_chunk_size",
  "signal",
  "taps",
] as const;

/** A call whose arguments are checked. */
export interface CheckedCall {
  readonly inputs: CallInputs;
  readonly ids: Matrix | undefined;
  readonly embeds: Float32Array | undefined;
  readonly labels: Matrix | undefined;
  readonly batch: Batch;
  readonly cache: HybridMambaAttentionDynamicCache;
  /** Tokens in the cache before this call, for each sequence. */
  readonly past: readonly number[];
  /** Frame columns whose logits are kept, rising. */
  readonly kept_columns: readonly number[];
}
