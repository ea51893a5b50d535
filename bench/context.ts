/**
 * What does a long context cost? A prompt of 32,768 against one of 512, and decoding behind 32,768
 * tokens against behind none. Runs of 512 are timed at three places of the long prompt, in turns with the
 * one at its start; all pages of keys and values have memory and numbers of their own.
 */

import type { BenchOptions } from "../src/cli/bench.ts";
import type { HybridMambaAttentionDynamicCache } from "../src/modeling/cache.ts";
import { page_tokens } from "../src/native/bindings.gen.ts";
import { printLine, rounded } from "./lib/line.ts";
import { median, openSubject, promptIds, type Subject } from "./lib/measure.ts";
import { findShape } from "./lib/shapes.ts";

const context = 32768;
const run_tokens = 512;
const places = [0, 0.5, 1].map((part) => part * (context - run_tokens));
const new_tokens = 17;
const rounds = 3;

/** A cache of one row, whose pages all hold what the first has. */
async function fullCache({ model }: Subject): Promise<HybridMambaAttentionDynamicCache> {
  const ids = promptIds(page_tokens, model.config.vocab_size);
  const output = await model.call({ input_ids: [ids], logits_to_keep: 1, use_cache: true });
  const cache = output.past_key_values!;
  output.logits?.dispose();
  cache.reserve([context + run_tokens]);
  const { page_bytes } = cache.layout;
  const [first, ...others] = cache.pages(0).map((page) => page * page_bytes);
  const { kv } = cache.handles;
  const spans = others.map((dstOffset) => ({ srcOffset: first, dstOffset, bytes: page_bytes }));
  cache.device.native.copyBuffer(kv, kv, spans);
  return cache;
}

/** Seconds of a run behind `past` tokens. */
async function runSeconds(
  { model }: Subject,
  past_key_values: HybridMambaAttentionDynamicCache,
  ids: number[],
  past: number,
): Promise<number> {
  past_key_values.lengths[0] = past;
  const began = performance.now();
  const output = await model.call({ input_ids: [ids], past_key_values, logits_to_keep: 1 });
  const seconds = (performance.now() - began) / 1e3;
  output.logits?.dispose();
  return seconds;
}

/** Seconds of a decoded token behind `past` tokens. */
async function stepSeconds(
  { model }: Subject,
  past_key_values: HybridMambaAttentionDynamicCache,
  ids: number[],
  past: number,
): Promise<number> {
  past_key_values.lengths[0] = past;
  const input_ids = [[...new Array(past).fill(5), ids[0]]];
  let count = 0;
  let began = 0;
  const options = { input_ids, past_key_values, max_new_tokens: new_tokens };
  for await (const _ of model.stream({ ...options, eos_token_id: null })) {
    if (++count === 1) began = performance.now();
  }
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
  using cache = await fullCache(subject);
  const results = { prefill: [] as [number, number][], decode: [] as [number, number][] };
  for (let r = 0; r <= rounds; r++) {
    const times: number[] = [];
    for (const past of places) times.push(await runSeconds(subject, cache, ids, past));
    const near = await stepSeconds(subject, cache, ids, 8);
    const far = await stepSeconds(subject, cache, ids, context);
    if (r === 0) continue; // plans, pages and clocks come up
    results.prefill.push([times[0] / run_tokens, meanOf(times) / run_tokens]);
    results.decode.push([near, far]);
  }
  for (const [what, seconds] of Object.entries(results)) {
    const ratios = seconds.map(([near, far]) => near / far);
    const rate = (i: number) => rounded(1 / median(seconds.map((pair) => pair[i])));
    await printLine(options, {
      bench: `context ${what}`,
      shape,
      weights,
      context,
      ratio: rounded(median(ratios)),
      ratios: ratios.map((x) => rounded(x)),
      tok_s: rate(1),
      tok_s_short: rate(0),
      threads: device.threads,
      cpu_level: device.info().cpu_level,
    });
  }
}
