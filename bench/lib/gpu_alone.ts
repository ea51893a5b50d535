/**
 * One kernel over and over, as benchmarks of single kernels have it: in a model it runs between matrix
 * products, which take the card's power and with it a tenth of its clock.
 */

import { HybridMambaAttentionDynamicCache } from "../../src/modeling/cache.ts";
import type { ForwardInputs, ForwardOutputs } from "../../src/modeling/forward.ts";
import { PlanCache } from "../../src/modeling/plans.ts";
import { rising, startRun } from "../../src/modeling/run.ts";
import type { BambaForCausalLM } from "../../src/models/bamba.ts";
import type { Tensor } from "../../src/graph/tensor.ts";
import * as ops from "../../src/ops/mod.ts";
import { entriesOf } from "./gpu_profile.ts";
import { median, promptIds } from "./measure.ts";

const launches = 64;

/** Operations that can be asked for, each with the tensors of a model's first layer that has it. */
const repeated = { attention: repeatAttention, causal_conv1d: repeatConv };

/** Microseconds of one launch over `tokens` of one sequence, the middle of the later half. */
export async function aloneUs(
  model: BambaForCausalLM,
  op: keyof typeof repeated,
  tokens: number,
  signal: AbortSignal,
): Promise<number> {
  const { config, runtime } = model;
  const { device, layout } = runtime;
  const forward = (inputs: ForwardInputs) => repeated[op](model, inputs);
  const plans = new PlanCache(device, { config, layout, forward });
  const cache = new HybridMambaAttentionDynamicCache(device, layout, 1);
  try {
    cache.reserve([tokens]);
    const plan = plans.get({ capacity: { tokens, seqs: 1, logits: 1 } });
    const ids = promptIds(tokens, config.vocab_size);
    const sequences = [{ row: 0, past: 0, ids, positions: rising(0, tokens), logit_rows: [] }];
    const run = startRun(runtime, { plan, cache, sequences, kind: "profile" });
    const entries = await entriesOf(run, signal);
    const times = entries.filter((_, i) => i % 3 === 2).slice(-launches / 2);
    return median(times) / 1e3;
  } finally {
    plans.dispose();
    cache.dispose();
  }
}

function repeatAttention({ model }: BambaForCausalLM, inputs: ForwardInputs): ForwardOutputs {
  const layer = model.layers.find(({ self_attn }) => self_attn)!;
  const attention = layer.self_attn!;
  const { num_heads: heads, num_key_value_heads: kv_heads, head_dim, scaling: scale } = attention;
  const shape = { heads, kv_heads, head_dim, scale };
  const pages = inputs.past_key_values.attention(layer.layer_idx);
  const hidden = model.embed_tokens.forward(inputs.input_ids!);
  const query = attention.q_proj.forward(hidden);
  ops.kvAppend(attention.k_proj.forward(hidden), attention.v_proj.forward(hidden), pages, shape);
  return last(() => ops.attention(query, pages, shape));
}

function repeatConv({ model }: BambaForCausalLM, inputs: ForwardInputs): ForwardOutputs {
  const layer = model.layers.find(({ mamba }) => mamba)!;
  const { in_proj, conv1d, intermediate_size, conv_dim, num_heads } = layer.mamba!;
  const { conv_state } = inputs.past_key_values.mamba(layer.layer_idx);
  const projected = in_proj.forward(model.embed_tokens.forward(inputs.input_ids!));
  const [, xBC] = ops.split(projected, [intermediate_size, conv_dim, num_heads]);
  return last(() => conv1d.forward(xBC, conv_state, "silu"));
}

function last(one: () => Tensor): ForwardOutputs {
  let last_hidden_state = one();
  for (let i = 1; i < launches; i++) last_hidden_state = one();
  return { last_hidden_state, hidden_states: [] };
}
