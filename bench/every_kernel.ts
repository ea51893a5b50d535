/**
 * Do a GPU's kernels keep to their memory, and to their turn? Runs them through whole models of every
 * kind at sizes that end in the middle of tiles, for a checker to watch (racecheck takes minutes for
 * each kind: `--only q8_0`, `--quick`):
 *
 *     compute-sanitizer --tool memcheck bun src/cli/main.ts bench every_kernel --device cuda --json
 *     compute-sanitizer --tool racecheck bun src/cli/main.ts bench every_kernel --device cuda --json
 *
 * With CUDA_FORCE_PTX_JIT=1 the kernels are those of cards other than Hopper. `off_by` is how far logits
 * are from those of the same weights on the CPU, of the largest.
 */

import { AutoModelForCausalLM, type BambaForCausalLM } from "../mod.ts";
import type { BenchOptions } from "../src/cli/bench.ts";
import type { PretrainedOptions } from "../src/modeling/pretrained.ts";
import { printLine, rounded } from "./lib/line.ts";
import { hashOf } from "./lib/measure.ts";
import { randomModel } from "./lib/random_model.ts";

/** What a model is loaded with: each takes other kernels. */
const kinds: Readonly<Record<string, PretrainedOptions>> = {
  bf16: { dtype: "bfloat16" },
  "bf16, batch_invariant": { dtype: "bfloat16", batch_invariant: true },
  f32: { dtype: "float32" },
  f16: { dtype: "float16" },
  f8_e4m3: { quantization_config: { type: "f8_e4m3" } },
  "f8_e4m3, batch_invariant": { quantization_config: { type: "f8_e4m3" }, batch_invariant: true },
  "f8_e4m3, other matrices f32": { quantization_config: { type: "f8_e4m3" }, dtype: "float32" },
  q8_0: { quantization_config: { type: "q8_0" } },
  q4_0: { quantization_config: { type: "q4_0" } },
  q4_k_m: { quantization_config: { type: "q4_k_m" } },
  q5_k_m: { quantization_config: { type: "q5_k_m" } },
  "bf16, caches of bf16": { dtype: "bfloat16", state_dtype: "bfloat16" },
  "bf16, caches of f16": { dtype: "bfloat16", cache_dtype: "float16", state_dtype: "float16" },
  "f32, caches of bf16": { dtype: "float32", cache_dtype: "bfloat16", state_dtype: "bfloat16" },
  "f32, caches of f16": { dtype: "float32", cache_dtype: "float16", state_dtype: "float16" },
};

const lengths = [1, 2, 5, 9, 63, 130, 300];
/** Enough rows for the widest tiles. */
const long = 1025;
const batches = [2, 5, 20, 70, 130];
const quick_lengths = [1, 70, long];
const quick_batches = [2, 20, 130];
const sampling = {
  do_sample: true,
  seed: 3,
  temperature: 0.8,
  top_k: 50,
  top_p: 0.9,
  min_p: 0.01,
  typical_p: 0.9,
};
const penalties = {
  repetition_penalty: 1.2,
  no_repeat_ngram_size: 2,
  bad_words_ids: [[5], [6, 7]],
  min_new_tokens: 3,
  eos_token_id: 9,
  pad_token_id: 0,
};

const idsOf = (count: number, seed: number) =>
  Array.from({ length: count }, (_, i) => 3 + (i * 7919 + seed * 104729) % 1000);

/** Runs all kinds of models; prints one line for each kind of model. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal, device, only = "" } = options;
  const quick = options.quick ?? false;
  const dir = await randomModel("9b-thin", signal);
  for (const [kind, load] of Object.entries(kinds)) {
    if (only in kinds ? kind !== only : !kind.includes(only)) continue;
    using model = await AutoModelForCausalLM.from_pretrained(dir, { ...load, device, signal });
    const hash = hashOf(Int32Array.from(await runAll(model, quick, signal)));
    using twin = await AutoModelForCausalLM.from_pretrained(dir, {
      ...load,
      device: "cpu",
      signal,
    });
    const off_by = rounded(differ(await logitsOf(model, signal), await logitsOf(twin, signal)), 2);
    await printLine(options, { bench: "every_kernel", kind, off_by, hash });
    const limit = kind.startsWith("f8") ? 0.15 : load.dtype === "float32" ? 2e-3 : 0.05;
    if (!(off_by <= limit)) {
      throw new Error(`Expected logits within ${limit} of the CPU's but found ${off_by} (${kind})`);
    }
  }
}

/** Logits of prompts of several lengths, and of a token behind each. */
async function logitsOf(model: BambaForCausalLM, signal: AbortSignal): Promise<number[]> {
  const found: number[] = [];
  for (const length of [5, 130, 300]) {
    using prompt = await model.call({
      input_ids: [idsOf(length, length)],
      use_cache: true,
      logits_to_keep: 3,
      signal,
    });
    const past_key_values = prompt.past_key_values!;
    using next = await model.call({ input_ids: [[11]], past_key_values, signal });
    for (const { logits } of [prompt, next]) found.push(...await logits!.data());
  }
  return found;
}

/** The largest difference, of the largest value. */
function differ(found: readonly number[], expected: readonly number[]): number {
  if (found.length !== expected.length) throw new Error("Expected logits of the same shape");
  let most = 0;
  let largest = 0;
  for (const [i, value] of expected.entries()) {
    if (!Number.isFinite(found[i])) return Infinity;
    most = Math.max(most, Math.abs(found[i] - value));
    largest = Math.max(largest, Math.abs(value));
  }
  return most / largest;
}

async function runAll(
  model: BambaForCausalLM,
  quick: boolean,
  signal: AbortSignal,
): Promise<number[]> {
  for (const length of quick ? quick_lengths : [...lengths, long]) {
    const ids = [idsOf(length, length)];
    using output = await model.call({
      input_ids: ids,
      labels: ids,
      output_attentions: length < long,
      signal,
    });
    await output.loss!.item();
  }
  const made: number[] = [];
  for (const rows of quick ? quick_batches : batches) {
    const input_ids = Array.from({ length: rows }, (_, r) => idsOf(7, r));
    const common = { input_ids, max_new_tokens: quick ? 2 : 4, pad_token_id: 0, signal };
    const greedy = { eos_token_id: null };
    for (const how of quick && rows > 2 ? [greedy] : [greedy, sampling, penalties]) {
      made.push(...(await model.generate({ ...common, ...how })).flat());
    }
  }
  return made;
}
