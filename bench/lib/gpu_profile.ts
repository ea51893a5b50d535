/** Where the time of a model's run goes on a GPU: every launch timed by itself, summed by kind. */

import type { HybridMambaAttentionDynamicCache } from "../../src/modeling/cache.ts";
import { bucket, type PlanRequest, record } from "../../src/modeling/plans.ts";
import { type RunSequence, type StartedRun, startRun } from "../../src/modeling/run.ts";
import type { BambaForCausalLM } from "../../src/models/bamba.ts";
import { rounded } from "./line.ts";
import { promptIds } from "./measure.ts";

/** What the launches of one kind took, of one run. */
export interface Family {
  launches: number;
  us: number;
  /** Operations of the matrix products among them that all rows go through. */
  flop: number;
}

/** A profile: families by what their launches do, such as "rms_norm+in_proj". */
export interface Profile {
  readonly families: Map<string, Family>;
  readonly launches: number;
  readonly us: number;
}

/** A run to be profiled: tokens of each sequence behind what the cache has. */
export interface ProfiledRun {
  readonly cache: HybridMambaAttentionDynamicCache;
  /** Tokens of each sequence before this run. */
  readonly past: number;
  /** Tokens of each sequence in this run. */
  readonly tokens: number;
}

/** The likeliest id of every row. */
export const greedy = {
  do_sample: 0,
  top_k: 0,
  temperature: 1,
  top_p: 1,
  min_p: 0,
  typical_p: 1,
  repetition_penalty: 1,
  no_repeat_ngram_size: 0,
  min_new_tokens: 0,
  generated: 0,
  seed_lo: 0,
  seed_hi: 0,
  stream: 0,
  finished: 0,
};

/** Profiles one run; the cache's states move on, its lengths do not. */
export async function profileRun(
  model: BambaForCausalLM,
  { cache, past, tokens }: ProfiledRun,
  signal: AbortSignal,
): Promise<Profile> {
  const { runtime } = model;
  const rows = cache.batch_size;
  cache.reserve(new Array<number>(rows).fill(past + tokens));
  const ids = promptIds(tokens, model.config.vocab_size);
  const sequences = Array.from({ length: rows }, (_, row): RunSequence => ({
    row,
    past,
    ids,
    positions: Array.from({ length: tokens }, (_, t) => past + t),
    logit_rows: [tokens - 1],
    sampling: greedy,
  }));
  const request: PlanRequest = {
    capacity: { tokens: bucket(rows * tokens), seqs: bucket(rows), logits: bucket(rows) },
    decode: tokens === 1,
    tail: ["sample"],
  };
  const plan = runtime.plans.get(request);
  const run = startRun(runtime, { plan, cache, sequences, sample: true, kind: "profile" });
  return summed(model, request, await entriesOf(run, signal), rows * tokens);
}

/** First command, commands and nanoseconds of every launch, behind each other. */
export async function entriesOf(run: StartedRun, signal: AbortSignal): Promise<number[]> {
  const entries: number[] = [];
  try {
    for (;;) {
      const { state, values } = await run.job.next(signal);
      entries.push(...values);
      if (state !== "running") return entries;
    }
  } finally {
    run.shared?.settle();
    await run.job.close();
  }
}

function summed(
  model: BambaForCausalLM,
  request: PlanRequest,
  entries: readonly number[],
  rows: number,
): Profile {
  const { runtime } = model;
  const graph = record({
    config: model.config,
    layout: runtime.layout,
    forward: (inputs) => model.forward(inputs),
  }, request);
  const names = new Map<unknown, string>();
  for (const [name, tensor] of model.namedParameters()) {
    names.set(tensor, name.split(".").at(-2)!.replace(/_proj$/, ""));
  }
  const families = new Map<string, Family>();
  for (let at = 0; at < entries.length; at += 3) {
    const [first, count, ns] = entries.slice(at, at + 3);
    let flop = 0;
    const parts = graph.commands.slice(first, first + count).map(({ op, operands }) => {
      if (op !== "linear") return op;
      const [x, weight] = operands;
      if (x!.shape[0] === request.capacity.tokens) flop += 2 * rows * weight!.size;
      return names.get(weight) ?? op;
    });
    const name = joined(parts);
    const family = families.get(name) ?? { launches: 0, us: 0, flop: 0 };
    families.set(name, family);
    family.launches++;
    family.us += ns / 1e3;
    family.flop += flop;
  }
  const us = [...families.values()].reduce((sum, family) => sum + family.us, 0);
  return { families, launches: entries.length / 3, us };
}

/** Names of a launch's commands, what comes again and again once: "a+2 x (b+c)". */
export function joined(parts: readonly string[]): string {
  const said: string[] = [];
  for (let at = 0; at < parts.length;) {
    let [length, times] = [1, 1];
    for (let size = 2; at + 2 * size <= parts.length; size++) {
      let count = 1;
      while (again(parts, at, at + count * size, size)) count++;
      if (count > 1 && count * size > length * times) [length, times] = [size, count];
    }
    const once = parts.slice(at, at + length).join("+");
    said.push(times > 1 ? `${times} x (${once})` : once);
    at += length * times;
  }
  return said.join("+");
}

/** Whether `size` names from `later` on are those from `first` on. */
function again(parts: readonly string[], first: number, later: number, size: number): boolean {
  if (later + size > parts.length) return false;
  for (let i = 0; i < size; i++) if (parts[first + i] !== parts[later + i]) return false;
  return true;
}

/** A profile as a JSON line shows it: microseconds by family, the largest first. */
export function profileFields({ families, launches, us }: Profile): Record<string, unknown> {
  const sorted = [...families].sort(([, a], [, b]) => b.us - a.us);
  return {
    launches,
    sum_us: rounded(us),
    families: Object.fromEntries(
      sorted.map(([name, f]) => [name, { launches: f.launches, us: rounded(f.us) }]),
    ),
  };
}

/** Microseconds of one launch of the family whose name ends so. */
export function launchUs({ families }: Profile, ending: string): number {
  const found = [...families].filter(([name]) => name.endsWith(ending));
  const launches = found.reduce((sum, [, f]) => sum + f.launches, 0);
  return found.reduce((sum, [, f]) => sum + f.us, 0) / launches;
}
