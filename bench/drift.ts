/**
 * How far do caches of fewer bits drift? wordnet-8m writes 4,096 tokens with caches of f32; each
 * other kind of cache is fed the same tokens one by one, and its predictions are compared.
 */

import { fileURLToPath } from "node:url";
import type { BenchOptions } from "../src/cli/bench.ts";
import type { PretrainedOptions } from "../src/modeling/pretrained.ts";
import { BambaForCausalLM } from "../src/models/bamba.ts";
import { printLine, rounded } from "./lib/line.ts";

const folder = fileURLToPath(new URL("../models/bamba-wordnet-8m", import.meta.url));
const prompt = [1, 67, 707, 1208, 268];
const tokens = 4096;
/** Differences are averaged over so many tokens: does the last part lie further off? */
const part = 1024;

type Kind = Pick<PretrainedOptions, "cache_dtype" | "state_dtype" | "quantization_config">;
const kinds: readonly Kind[] = [
  { cache_dtype: "bfloat16" },
  { cache_dtype: "float16" },
  { cache_dtype: "q8_0" },
  { state_dtype: "float16" },
  { state_dtype: "bfloat16" },
  { cache_dtype: "q8_0", state_dtype: "float16" },
  // What a cache of 8 bits adds to weights of as many and of fewer.
  { quantization_config: { type: "q8_0" } },
  { quantization_config: { type: "q8_0" }, cache_dtype: "q8_0" },
  { quantization_config: { type: "q4_k_m" } },
  { quantization_config: { type: "q4_k_m" }, cache_dtype: "q8_0" },
];

/** What one token's prediction is compared by. */
interface Step {
  readonly loss: number;
  readonly probabilities: Float64Array;
  readonly best: number;
}

/** @param next the token that really follows */
function stepOf(logits: Float32Array, next: number): Step {
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const probabilities = Float64Array.from(logits, (x) => Math.exp(x - max));
  const sum = probabilities.reduce((a, b) => a + b, 0);
  for (let i = 0; i < probabilities.length; i++) probabilities[i] /= sum;
  return { loss: -Math.log(probabilities[next]), probabilities, best: logits.indexOf(max) };
}

/** Sum of p ln(p / q), in nats. */
function divergence(p: Float64Array, q: Float64Array): number {
  return p.reduce((sum, x, i) => x > 0 ? sum + x * Math.log(x / Math.max(q[i], 1e-300)) : sum, 0);
}

/** The predictions for every token of a text, each fed by itself. */
async function* decode(
  model: BambaForCausalLM,
  text: readonly number[],
  signal: AbortSignal,
): AsyncGenerator<Step> {
  const start = await model.call({ input_ids: [text.slice(0, prompt.length)] });
  start.logits!.dispose();
  using past_key_values = start.past_key_values!;
  for (let i = prompt.length; i + 1 < text.length; i++) {
    signal.throwIfAborted();
    const output = await model.call({ input_ids: [[text[i]]], past_key_values });
    yield stepOf(await output.logits!.data() as Float32Array, text[i + 1]);
    output.logits!.dispose();
  }
}

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;

/** Measures and prints one JSON line for each kind of cache. */
export async function run(options: BenchOptions): Promise<void> {
  const { threads, signal } = options;
  const load = (kind: Kind) =>
    BambaForCausalLM.from_pretrained(folder, { ...kind, threads, device: "cpu", signal });
  using exact = await load({});
  const [text] = await exact.generate({
    input_ids: [prompt],
    min_new_tokens: tokens + 1,
    max_new_tokens: tokens + 1,
    do_sample: true,
    seed: 7,
    signal,
  }) as number[][];
  const truth = await Array.fromAsync(decode(exact, text, signal));
  for (const kind of kinds) {
    using model = await load(kind);
    const losses: number[] = [];
    const far: number[] = [];
    let agreed = 0;
    for await (const step of decode(model, text, signal)) {
      const { loss, probabilities, best } = truth[losses.length];
      losses.push(step.loss - loss);
      far.push(divergence(probabilities, step.probabilities));
      agreed += Number(step.best === best);
    }
    const parts = Array.from(
      { length: Math.ceil(far.length / part) },
      (_, i) => rounded(mean(far.slice(i * part, (i + 1) * part)), 3),
    );
    const result = {
      ...kind,
      tokens: far.length,
      divergence: rounded(mean(far), 3),
      worst: rounded(Math.max(...far), 3),
      parts,
      loss: rounded(mean(losses), 3),
      agreed: rounded(agreed / far.length),
    };
    await printLine(options, {
      bench: "drift",
      cache_dtype: "float32",
      state_dtype: "float32",
      ...result,
    });
  }
}
