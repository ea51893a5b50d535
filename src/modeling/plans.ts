/** Which plans a model has: recorded from its `forward` when first needed, then kept. */

import type { Device } from "../device.ts";
import { type Capacity, Graph } from "../graph/graph.ts";
import { Plan } from "../graph/plan.ts";
import type { Tensor } from "../graph/tensor.ts";
import * as ops from "../ops/mod.ts";
import type { CacheLayout } from "./cache_layout.ts";
import type { ForwardInputs, ForwardOutputs } from "./forward.ts";

/** What follows the logits, in order. */
export type TailOp = "log_softmax" | "logits_process" | "logits_warp" | "sample" | "cross_entropy";

/** Results that JavaScript wants to read. */
export type Kept = "last_hidden_state" | "logits" | "scores" | "loss";

/** Everything that distinguishes one plan of a model from another. */
export interface PlanRequest {
  readonly capacity: Capacity;
  /** Every sequence has exactly one token. */
  readonly decode?: boolean;
  /** Where a run starts: ids, embeddings, or scores that JavaScript has changed. */
  readonly source?: "input_ids" | "inputs_embeds" | "scores";
  readonly tail?: readonly TailOp[];
  readonly keep?: readonly Kept[];
  readonly output_hidden_states?: boolean;
  /** Keep attention weights over this many keys. */
  readonly attention_keys?: number;
  /** Named activations for tests, such as "layer0.in_proj". */
  readonly taps?: readonly string[];
}

/** What {@link PlanCache} records. */
export interface Recordable {
  readonly config: { readonly vocab_size: number; readonly hidden_size: number };
  readonly layout: CacheLayout;
  forward(inputs: ForwardInputs): ForwardOutputs;
}

/** Plans kept at most; the one used longest ago goes first. */
const plans_max = 32;

/** The smallest power of two that is at least n: capacities come in these buckets. */
export function bucket(n: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, n)));
}

/**
 * The capacity of a run over a prompt's pieces, and whether it may take the forms for one token a
 * sequence. Where bits may not depend on what else is in the run, a piece of one token is taken as
 * a longer one is.
 */
export function runCapacity(
  pieces: readonly { readonly count: number }[],
  logits: number,
  batch_invariant: boolean,
): { capacity: Capacity; decode: boolean } {
  const tokens = bucket(pieces.reduce((sum, { count }) => sum + count, 0));
  const decode = !batch_invariant && pieces.every(({ count }) => count === 1);
  const seqs = bucket(pieces.length);
  // Room for more tokens than sequences tells the kernels that this is no decoding.
  const capacity = {
    tokens: batch_invariant ? Math.max(tokens, 2 * seqs) : tokens,
    seqs,
    logits: bucket(logits),
  };
  return { capacity, decode };
}

/** Plans of one model on one device. */
export class PlanCache {
  readonly #plans = new Map<string, Plan>();

  constructor(readonly device: Device, readonly model: Recordable) {}

  /** The plan for a request, recorded now if it is new. */
  get(request: PlanRequest): Plan {
    const key = JSON.stringify([
      request.capacity,
      request.decode ?? false,
      request.source,
      request.tail,
      request.keep,
      request.output_hidden_states,
      request.attention_keys,
      request.taps,
    ]);
    let plan = this.#plans.get(key);
    if (plan) this.#plans.delete(key);
    else plan = this.#create(request);
    this.#plans.set(key, plan);
    if (this.#plans.size > plans_max) {
      const [oldest, unused] = this.#plans.entries().next().value!;
      this.#plans.delete(oldest);
      unused.dispose();
    }
    return plan;
  }

  /** Native bytes of all plans. */
  get bytes(): number {
    return [...this.#plans.values()].reduce((sum, plan) => sum + plan.bytes, 0);
  }

  dispose(): void {
    for (const plan of this.#plans.values()) plan.dispose();
    this.#plans.clear();
  }

  #create(request: PlanRequest): Plan {
    const { slot_bytes, page_bytes } = this.model.layout;
    const { vocab_size } = this.model.config;
    return Plan.create(this.device, record(this.model, request), {
      slot_bytes,
      page_bytes,
      vocab_size,
    });
  }
}

/** Records one forward pass and its tail. */
export function record(model: Recordable, request: PlanRequest): Graph {
  const { capacity, decode, source = "input_ids", tail = [], keep = [] } = request;
  const { activations } = model.layout;
  const graph = new Graph({ capacity, decode, activations }, new Set(request.taps));
  if (source === "scores") {
    const scores = graph.input("scores", "logits", model.config.vocab_size, "float32");
    recordTail(graph, scores, tail, keep);
    return graph;
  }
  const outputs = model.forward({
    input_ids: source === "input_ids" ? graph.step("ids", "tokens") : undefined,
    inputs_embeds: source === "inputs_embeds"
      ? graph.input("inputs_embeds", "tokens", model.config.hidden_size)
      : undefined,
    position_ids: graph.step("positions", "tokens"),
    past_key_values: model.layout,
    output_hidden_states: request.output_hidden_states,
    attention_keys: request.attention_keys,
    logit_rows_only: logitRowsOnly(request),
  });
  const tap = request.taps?.find((name) => !graph.outputs.has(name));
  if (tap !== undefined) throw new RangeError(`Expected taps of the model but found "${tap}"`);
  for (const [i, tensor] of outputs.hidden_states.entries()) {
    graph.output(`hidden_states.${i}`, tensor);
  }
  if (keep.includes("last_hidden_state")) {
    graph.output("last_hidden_state", outputs.last_hidden_state);
  }
  if (outputs.logits) recordTail(graph, outputs.logits, tail, keep);
  return graph;
}

/**
 * Whether the last layer may leave out the rows without logits, which leaves little more of it than
 * its states. Where many rows have logits, bringing them together would cost more.
 */
function logitRowsOnly(request: PlanRequest): boolean {
  const { tokens, logits } = request.capacity;
  const reads = request.output_hidden_states || request.taps?.length ||
    request.keep?.includes("last_hidden_state");
  return !reads && !request.decode && 4 * logits <= tokens;
}

function recordTail(
  graph: Graph,
  logits: Tensor,
  tail: readonly TailOp[],
  keep: readonly Kept[],
): void {
  if (keep.includes("logits")) graph.output("logits", logits);
  let scores = logits;
  for (const op of tail) {
    if (op === "log_softmax") scores = ops.logSoftmax(scores);
    else if (op === "logits_process") scores = ops.logitsProcess(scores);
    else if (op === "logits_warp") scores = ops.logitsWarp(scores);
    else if (op === "sample") ops.sample(scores);
    else graph.output("loss", ops.crossEntropy(logits));
  }
  if (keep.includes("scores")) graph.output("scores", scores);
}
