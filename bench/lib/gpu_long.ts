/**
 * What attention takes while ids are decoded behind a long prompt. In whole tokens: long and short
 * contexts in turns, since a card's pace changes by more than the difference from second to second.
 * And by itself: launches of nothing else, whose keys and values no cache of the card's holds.
 */

import type { HybridMambaAttentionDynamicCache } from "../../src/modeling/cache.ts";
import type { ForwardInputs, ForwardOutputs } from "../../src/modeling/forward.ts";
import { PlanCache, type PlanRequest } from "../../src/modeling/plans.ts";
import { type RunOptions, startRun } from "../../src/modeling/run.ts";
import type { BambaForCausalLM } from "../../src/models/bamba.ts";
import * as ops from "../../src/ops/mod.ts";
import { greedy } from "./gpu_profile.ts";
import { hashOf, promptIds } from "./measure.ts";

type Cache = HybridMambaAttentionDynamicCache;

const pairs = 7;
/** Ids of a round, and those before the first that counts: it loads kernels and makes a graph. */
const new_tokens = 160;
const uncounted = 4;
/** Launches of attention a step, a short and a long chain, and steps a round. */
const chains = [6, 54];
const chain_rounds = 5;
const chain_steps = 256;
const capacity = { tokens: 1, seqs: 1, logits: 1 };

/** Milliseconds a step of one sequence behind either cache. */
export interface Pair {
  readonly short_ms: number;
  readonly long_ms: number;
  /** Of the ids behind the long context, and how many. */
  readonly hash: string;
  readonly new_tokens: number;
}

/** Steps behind two caches in turns; both stay as they are. */
export async function stepsInTurns(
  model: BambaForCausalLM,
  { short, long }: { short: Cache; long: Cache },
  signal: AbortSignal,
): Promise<Pair[]> {
  const found: Pair[] = [];
  for (let i = -1; i < pairs; i++) {
    const later = i % 2 !== 0 && await stepsOf(model, short, signal);
    const { ms: long_ms, hash } = await stepsOf(model, long, signal);
    const { ms: short_ms } = later || await stepsOf(model, short, signal);
    if (i >= 0) found.push({ short_ms, long_ms, hash, new_tokens });
  }
  const hashes = new Set(found.map(({ hash }) => hash));
  if (hashes.size > 1) throw new Error(`Expected the same ids but found ${[...hashes]}`);
  return found;
}

async function stepsOf(model: BambaForCausalLM, past: Cache, signal: AbortSignal) {
  using cache = past.fork();
  const request: PlanRequest = { capacity, decode: true, tail: ["sample"] };
  const plan = model.runtime.plans.get(request);
  const options = { plan, ...oneToken(model, cache, new_tokens), n_steps: new_tokens };
  const { job } = startRun(model.runtime, { ...options, sample: true });
  const ids: number[] = [];
  const came: number[] = [];
  try {
    for (;;) {
      const { state, values } = await job.next(signal);
      const now = performance.now();
      for (const id of values) {
        ids.push(id);
        came.push(now);
      }
      if (state !== "running") break;
    }
  } finally {
    await job.close();
  }
  return { ms: slope(came.slice(uncounted)), hash: hashOf(Int32Array.from(ids)) };
}

/** What one more rises by: a runtime sees an id up to a millisecond late, which a line fits. */
function slope(values: readonly number[]): number {
  const middle = (values.length - 1) / 2;
  let [up, over] = [0, 0];
  for (const [i, value] of values.entries()) {
    up += (i - middle) * value;
    over += (i - middle) ** 2;
  }
  return up / over;
}

function oneToken(
  model: BambaForCausalLM,
  cache: Cache,
  more: number,
): Pick<RunOptions, "cache" | "sequences"> {
  const past = cache.get_seq_length();
  cache.reserve([past + more]);
  const ids = promptIds(1, model.config.vocab_size);
  const sampling = greedy;
  return {
    cache,
    sequences: [{ row: 0, past, ids, positions: [past], logit_rows: [0], sampling }],
  };
}

/** Microseconds of each round of attention over what the cache has, and nothing else. */
export async function decodeAttentionUs(
  model: BambaForCausalLM,
  cache: Cache,
  signal: AbortSignal,
): Promise<number[]> {
  const { device, layout } = model.runtime;
  const times: number[] = [];
  const both = chains.map((launches) =>
    new PlanCache(device, {
      config: model.config,
      layout,
      forward: (inputs) => attentions(model, inputs, launches),
    })
  );
  try {
    for (let i = -1; i < chain_rounds; i++) {
      const ms: number[] = [];
      for (const plans of both) {
        const plan = plans.get({ capacity, decode: true });
        const options = { plan, ...oneToken(model, cache, 1), n_steps: chain_steps };
        const began = performance.now();
        const { job } = startRun(model.runtime, options);
        try {
          await job.finished(signal);
        } finally {
          await job.close();
        }
        ms.push(performance.now() - began);
      }
      const launches = (chains[1] - chains[0]) * chain_steps;
      if (i >= 0) times.push((ms[1] - ms[0]) / launches * 1e3);
    }
    return times;
  } finally {
    for (const plans of both) plans.dispose();
  }
}

/** Attention over the layers' pages in turns, each with what the one before found as its query. */
function attentions(
  { model }: BambaForCausalLM,
  inputs: ForwardInputs,
  launches: number,
): ForwardOutputs {
  const layers = model.layers.filter(({ self_attn }) => self_attn);
  const { q_proj, num_heads: heads, num_key_value_heads: kv_heads, head_dim, scaling: scale } =
    layers[0].self_attn!;
  const shape = { heads, kv_heads, head_dim, scale };
  let last_hidden_state = q_proj.forward(model.embed_tokens.forward(inputs.input_ids!));
  for (let i = 0; i < launches; i++) {
    const pages = inputs.past_key_values.attention(layers[i % layers.length].layer_idx);
    last_hidden_state = ops.attention(last_hidden_state, pages, shape);
  }
  return { last_hidden_state, hidden_states: [] };
}
