/**
 * How fast is the library on one GPU? Whole tokens decoded and prompts read through the public calls,
 * each beside the machine's peaks of the same run; then where the time goes, launch by launch. Its
 * parts for `--only`: plain, batch_invariant, f8_e4m3, state_dtype, q8_0, q4_k_m, cuBLAS.
 */

import type { BenchOptions, BenchWeights } from "../src/cli/bench.ts";
import { Device, type Measured } from "../src/device.ts";
import { HybridMambaAttentionDynamicCache } from "../src/modeling/cache.ts";
import type { BambaForCausalLM } from "../src/models/bamba.ts";
import { aloneUs } from "./lib/gpu_alone.ts";
import { decodeAttentionUs, stepsInTurns } from "./lib/gpu_long.ts";
import { gemmPeers } from "./lib/gpu_peers.ts";
import { launchUs, profileFields, profileRun } from "./lib/gpu_profile.ts";
import { hashOf, matrixBytes, median, openSubject, promptIds } from "./lib/measure.ts";
import { printLine, rounded } from "./lib/line.ts";
import { randomModel } from "./lib/random_model.ts";
import { findShape, type Shape, sizesOf, tokenBytes } from "./lib/shapes.ts";

const batches = [1, 16, 64, 256];
const prompts = [512, 2048, 8192];
const prompt_tokens = 16;
const rounds = 3;
const long_context = 32768;

/** What all parts of the benchmark need. */
interface Setting {
  readonly model: BambaForCausalLM;
  readonly shape: Shape;
  readonly peaks: Measured;
  readonly signal: AbortSignal;
  readonly line: (fields: Record<string, unknown>) => Promise<void>;
  /** Of a number of an SSM state, 4 by default. */
  readonly state_bytes?: number;
}

/** Measures and prints one JSON line for each result, on the first GPU where none is named. */
export async function run(chosen: BenchOptions): Promise<void> {
  const device = chosen.device === "cpu" ? "cuda" : chosen.device;
  const options: BenchOptions = { ...chosen, device };
  const { signal, shape: shape_name, weights } = options;
  const shape = findShape(shape_name);
  using context = await Device.open(options.device); // neither this nor writing a model is loading it
  await randomModel(shape_name, signal);
  const { cpu_name: gpu } = context.info();
  const began = performance.now();
  const marks: number[] = [];
  const progress_callback = () => marks.push(performance.now());
  using subject = await openSubject({ ...options, progress_callback });
  const all_s = (performance.now() - began) / 1e3;
  const load_s = (marks[marks.length - 1] - marks[0]) / 1e3;
  const { model } = subject;
  const line = (fields: Record<string, unknown>) =>
    printLine(options, { bench: "gpu", shape: shape_name, weights, gpu, ...fields });
  const peaks = await context.measure(signal);
  await line({ what: "peaks", ...tera(peaks) });
  const bytes = model.get_memory_footprint();
  await line({
    what: "load",
    load_s: rounded(load_s),
    all_s: rounded(all_s),
    bytes,
    gb_s: rounded(bytes / load_s / 1e9),
    share_link: rounded(bytes / load_s / peaks.link_bytes_s),
  });
  const setting: Setting = { model, shape, peaks, signal, line };
  const wants = (part: string) => part.includes(options.only ?? "");
  if (wants("plain")) await measureAll(setting);
  subject[Symbol.dispose]();
  if (wants("batch_invariant")) await invariantLines(options, setting);
  if (wants("f8_e4m3")) await eightLines(options, setting);
  if (wants("state_dtype")) await stateLines(options, setting);
  for (const type of ["q8_0", "q4_k_m"] as const) {
    if (wants(type)) await blockLine(options, setting, type);
  }
  await line({ what: "peaks", when: "at the end", ...tera(await context.measure(signal)) });
  for (const found of wants("cuBLAS") ? gemmPeers() : []) await line(found);
  await line({ what: "took", s: rounded((performance.now() - began) / 1e3) });
}

async function measureAll(setting: Setting): Promise<void> {
  for (const batch of batches) await decodeLine(setting, batch);
  for (const tokens of prompts) await prefillLine(setting, tokens);
  await profileLines(setting);
  await longLines(setting);
}

/** What it costs that no row's bits depend on the batch. */
async function invariantLines(options: BenchOptions, setting: Setting): Promise<void> {
  using subject = await openSubject({ ...options, batch_invariant: true });
  const line = ({ what, ...rest }: Record<string, unknown>) =>
    setting.line({ what: `${what}, batch_invariant`, ...rest });
  const invariant = { ...setting, model: subject.model, line };
  for (const batch of batches) await decodeLine(invariant, batch);
  for (const tokens of prompts) await prefillLine(invariant, tokens);
}

/** Weights of 8-bit floats, as FP8 checkpoints hold them: decoded with, and prompts in e4m3. */
async function eightLines(options: BenchOptions, setting: Setting): Promise<void> {
  using subject = await openSubject({ ...options, weights: "f8_e4m3" });
  const line = ({ what, ...rest }: Record<string, unknown>) =>
    setting.line({ what: `${what}, f8_e4m3`, ...rest });
  const eights = { ...setting, model: subject.model, line };
  for (const batch of batches) await decodeLine(eights, batch);
  for (const tokens of prompts) await prefillLine(eights, tokens);
  await profileDecode(eights, 1);
  await profilePrefill(eights, 8192);
}

/** SSM states in half the bits, where states are most of what a step moves. */
async function stateLines(options: BenchOptions, setting: Setting): Promise<void> {
  using subject = await openSubject({ ...options, state_dtype: "bfloat16" });
  const line = ({ what, ...rest }: Record<string, unknown>) =>
    setting.line({ what: `${what}, state_dtype bfloat16`, ...rest });
  const state_bytes = 2;
  for (const batch of [64, 256]) {
    await decodeLine({ ...setting, model: subject.model, line, state_bytes }, batch);
  }
}

/** Weights in blocks, quantized while they load, as the same GGUF files hold them. */
async function blockLine(
  options: BenchOptions,
  setting: Setting,
  weights: BenchWeights,
): Promise<void> {
  const began = performance.now();
  using subject = await openSubject({ ...options, weights });
  const load_s = rounded((performance.now() - began) / 1e3);
  const line = ({ what, ...rest }: Record<string, unknown>) =>
    setting.line({ what: `${what}, ${weights}`, load_s, ...rest });
  const blocks = { ...setting, model: subject.model, line };
  await decodeLine(blocks, 1);
  for (const tokens of prompts) await prefillLine(blocks, tokens);
}

function tera(peaks: Measured): Record<string, number> {
  return {
    read_tb_s: rounded(peaks.read_bytes_s / 1e12),
    copy_tb_s: rounded(peaks.copy_bytes_s / 1e12),
    bf16_tflop_s: rounded(peaks.bf16_dot_op_s / 1e12),
    link_gb_s: rounded(peaks.link_bytes_s / 1e9),
  };
}

/** Steps of `batch` sequences behind a short prompt each. */
async function decodeLine(setting: Setting, batch: number): Promise<void> {
  const { model, shape, signal } = setting;
  const max_new_tokens = batch === 1 ? 129 : 65;
  const ids = promptIds(prompt_tokens, shape.vocab_size);
  const input_ids = new Array<number[]>(batch).fill(ids);
  const steps: number[] = [];
  const closings: number[] = [];
  let hash = "";
  for (let r = 0; r <= rounds; r++) {
    const seen: number[] = [];
    let start = 0;
    let end = 0;
    let count = 0;
    for await (const step of model.stream({ input_ids, max_new_tokens, signal })) {
      seen.push(...step);
      end = performance.now();
      // the first step loads kernels, the second makes the graph
      if (++count === 4) start = end;
    }
    if (r > 0) {
      steps.push((end - start) / (count - 4));
      closings.push(performance.now() - end); // the cache goes back: no step has it
    }
    const found = hashOf(Int32Array.from(seen));
    if (r > 0 && found !== hash) throw new Error(`Expected ids of hash ${hash}, found ${found}`);
    hash = found;
  }
  const context = prompt_tokens + max_new_tokens / 2;
  const closing_ms = rounded(median(closings));
  await stepsLine(setting, { batch, context, steps, closing_ms, hash });
}

/** What steps of `batch` sequences took, in milliseconds each, beside the bytes that they move. */
async function stepsLine(
  setting: Setting,
  { batch, context, steps, ...rest }: {
    batch: number;
    context: number;
    steps: readonly number[];
    hash: string;
    closing_ms?: number;
  },
): Promise<void> {
  const { model, shape, peaks, line } = setting;
  const step_ms = median(steps);
  const { states, keys } = tokenBytes(shape, context, setting.state_bytes);
  const matrices = matrixBytes(model);
  const floor_s = (matrices + batch * keys) / peaks.read_bytes_s +
    batch * states / peaks.copy_bytes_s;
  const bytes = matrices + batch * (states + keys);
  await line({
    what: "decode",
    batch,
    context,
    step_ms: rounded(step_ms),
    tok_s: rounded(batch / step_ms * 1e3),
    share_read: rounded(bytes / step_ms * 1e3 / peaks.read_bytes_s),
    over_floor: rounded(step_ms / 1e3 / floor_s),
    rounds: steps.map((ms) => rounded(ms)),
    ...rest,
  });
}

async function prefillLine({ model, shape, signal, line }: Setting, tokens: number) {
  const input_ids = [promptIds(tokens, shape.vocab_size)];
  const times: number[] = [];
  for (let r = 0; r <= rounds + 2; r++) {
    const start = performance.now();
    await model.generate({ input_ids, max_new_tokens: 1, prefill_chunk_size: tokens, signal });
    if (r > 0) times.push(performance.now() - start);
  }
  const ms = median(times);
  await line({
    what: "prefill",
    tokens,
    ms: rounded(ms),
    tok_s: rounded(tokens / ms * 1e3),
    rounds: times.map((time) => rounded(time)),
  });
}

async function profileLines(setting: Setting): Promise<void> {
  for (const batch of batches) await profileDecode(setting, batch);
  for (const tokens of prompts) await profilePrefill(setting, tokens);
  await aloneLines(setting);
}

async function profileDecode({ model, shape, peaks, signal, line }: Setting, batch: number) {
  const { device, layout } = model.runtime;
  const cache = new HybridMambaAttentionDynamicCache(device, layout, batch);
  try {
    const profile = await profileRun(model, { cache, past: 1023, tokens: 1 }, signal);
    await line({ what: `profile decode ${batch}`, ...profileFields(profile) });
    if (batch !== 64) return;
    const us = launchUs(profile, "ssm_update");
    const { mamba_layers } = sizesOf(shape);
    const bytes = batch * tokenBytes(shape, 0).states / mamba_layers;
    const share = bytes / us / 1e-6 / peaks.copy_bytes_s;
    await line({
      what: "conv and state update",
      batch,
      us: rounded(us),
      share_copy: rounded(share),
    });
  } finally {
    cache.dispose();
  }
}

async function profilePrefill(setting: Setting, tokens: number) {
  const { model, signal, line } = setting;
  const { device, layout } = model.runtime;
  const cache = new HybridMambaAttentionDynamicCache(device, layout, 1);
  try {
    const profile = await profileRun(model, { cache, past: 0, tokens }, signal);
    await line({ what: `profile prefill ${tokens}`, ...profileFields(profile) });
    for (const [family, { flop, us, launches }] of profile.families) {
      if (flop === 0 || family.includes("lm_head")) continue;
      const tflop_s = rounded(flop / us / 1e6);
      await line({ what: "gemm", family, tokens, us: rounded(us / launches), tflop_s });
    }
    const scan_us = launchUs(profile, "ssm_scan");
    await line({ what: "ssm_scan", tokens, us: rounded(scan_us) });
    await convLine(setting, "conv1d", tokens, launchUs(profile, "causal_conv1d"));
    await attentionLine(setting, "attention", tokens, launchUs(profile, "attention"));
  } finally {
    cache.dispose();
  }
}

async function convLine({ shape, peaks, line }: Setting, what: string, tokens: number, us: number) {
  const bytes = 2 * 2 * tokens * sizesOf(shape).conv_dim;
  const share_copy = rounded(bytes / us / 1e-6 / peaks.copy_bytes_s);
  await line({ what, tokens, us: rounded(us), share_copy });
}

async function attentionLine({ shape, line }: Setting, what: string, tokens: number, us: number) {
  const tflop_s = rounded(2 * tokens * tokens * shape.hidden_size / us / 1e6);
  await line({ what, tokens, us: rounded(us), tflop_s });
}

/** Two kernels of a prompt with nothing between their launches. */
async function aloneLines(setting: Setting): Promise<void> {
  const { model, signal } = setting;
  for (const tokens of [2048, 8192]) {
    const conv_us = await aloneUs(model, "causal_conv1d", tokens, signal);
    await convLine(setting, "conv1d, by itself", tokens, conv_us);
    const attention_us = await aloneUs(model, "attention", tokens, signal);
    await attentionLine(setting, "attention, by itself", tokens, attention_us);
  }
}

/**
 * Decoding behind a long prompt, and what of it is attention: what the context adds to whole tokens,
 * attention by itself, and launch by launch.
 */
async function longLines(setting: Setting): Promise<void> {
  const { model, shape, peaks, signal, line } = setting;
  using near = await readPrompt(setting, prompt_tokens);
  const began = performance.now();
  using far = await readPrompt(setting, long_context);
  const prefill_ms = rounded(performance.now() - began);
  const { attention_layers } = sizesOf(shape);
  const attention = async (what: string, keys: number, rounds: number[], rest = {}) => {
    const us = median(rounds);
    const bytes = tokenBytes(shape, keys).keys / attention_layers;
    const share_read = rounded(bytes / us / 1e-6 / peaks.read_bytes_s);
    const all = rounds.map((round) => rounded(round));
    await line({ what, context: keys, us: rounded(us), share_read, rounds: all, ...rest });
  };
  const cache = far.past_key_values!;
  const pairs = await stepsInTurns(model, { short: near.past_key_values!, long: cache }, signal);
  const [{ hash, new_tokens }] = pairs;
  const steps = pairs.map(({ long_ms }) => long_ms);
  await stepsLine(setting, { batch: 1, context: long_context + new_tokens / 2, steps, hash });
  const added = pairs.map(({ long_ms, short_ms }) => (long_ms - short_ms) * 1e3 / attention_layers);
  const name = "decode attention";
  await attention(`${name}, added to a token`, long_context - prompt_tokens, added);
  const alone = await decodeAttentionUs(model, cache, signal);
  await attention(`${name}, by itself`, long_context, alone);
  const profile = await profileRun(model, { cache, past: long_context, tokens: 1 }, signal);
  await attention(name, long_context, [launchUs(profile, "attention")], { prefill_ms });
}

/** A prompt's output, whose cache can be gone on from. */
async function readPrompt({ model, shape, signal }: Setting, tokens: number) {
  const output = await model.call({
    input_ids: [promptIds(tokens, shape.vocab_size)],
    logits_to_keep: 1,
    use_cache: true,
    prefill_chunk_size: 8192,
    signal,
  });
  await output.logits!.data();
  return output;
}
