/**
 * What does a long context cost? A prompt of 32,768 against one of 512, and decoding behind 32,768
 * tokens against behind none. Runs of 512 are timed at three places of the long prompt, in turns with the
 * one at its start; keys between them are zeros, which cost what others cost.
 */

import type { BenchOptions } from "../src/cli/bench.ts";
import type { HybridMambaAttentionDynamicCache } from "../src/modeling/cache.ts";
import { printLine, rounded } from "./lib/line.ts";
import { median, openSubject, promptIds, type Subject } from "./lib/measure.ts";
import { findShape } from "./lib/shapes.ts";

const context = 32768;
const run_tokens = 512;
const places = [0, 0.5, 1].map((part) => part * (context - run_tokens));
const new_tokens = 17;
const rounds = 2;

/** A cache of one row that holds `length` tokens. */
async function cacheOf(
  { model }: Subject,
  length: number,
): Promise<HybridMambaAttentionDynamicCache> {
  const output = await model.call({ input_ids: [[5]], logits_to_keep: 1, use_cache: true });
  const cache = output.past_key_values!;
  output.logits?.dispose();
  cache.reserve([context + run_tokens]);
  cache.lengths[0] = length;
  return cache;
}

async function runSeconds(subject: Subject, ids: number[], past: number): Promise<number> {
  const cache = await cacheOf(subject, past);
  const began = performance.now();
  const output = await subject.model.call({
    input_ids: [ids],
    past_key_values: cache,
    logits_to_keep: 1,
  });
  const seconds = (performance.now() - began) / 1e3;
  output.logits?.dispose();
  cache.dispose();
  return seconds;
}

async function stepSeconds(subject: Subject, ids: number[], past: number): Promise<number> {
  const cache = await cacheOf(subject, past);
  const input_ids = [[...new Array(past).fill(5), ids[0]]];
  let count = 0;
  let began = 0;
  const { model } = subject;
  const options = { input_ids, past_key_values: cache, max_new_tokens: new_tokens };
  for await (const _ of model.stream({ ...options, eos_token_id: null })) {
    if (++count === 1) began = performance.now();
  }
  cache.dispose();
  return (performance.now() - began) / 1e3 / (count - 1);
}

/** The mean over the prompt of times that change evenly between neighbouring places. */
function meanOf(times: readonly number[]): number {
  const last = times.length - 1;
  return times.reduce((sum, t, i) => sum + t * (i === 0 || i === last ? 0.5 : 1), 0) / last;
}

/** Measures and prints one JSON line for prompts and one for decoding. */
export async function run(options: BenchOptions): Promise<void> {
  const { shape, weights } = options;
  using subject = await openSubject(options);
  const { device } = subject;
  const ids = promptIds(run_tokens, findShape(shape).vocab_size);
  const results = { prefill: [] as number[], decode: [] as number[] };
  for (let r = 0; r <= rounds; r++) {
    const times: number[] = [];
    for (const past of places) times.push(await runSeconds(subject, ids, past));
    const near = await stepSeconds(subject, ids, 8);
    const far = await stepSeconds(subject, ids, context);
    if (r === 0) continue; // plans, pages and clocks come up
    results.prefill.push(times[0] / meanOf(times));
    results.decode.push(near / far);
  }
  for (const [what, ratios] of Object.entries(results)) {
    const ratio = median(ratios);
    await printLine(options, {
      bench: `context ${what}`,
      shape,
      weights,
      context,
      ratio: rounded(ratio),
      ratios: ratios.map((x) => rounded(x)),
      threads: device.threads,
      cpu_level: device.info().cpu_level,
    });
  }
}
