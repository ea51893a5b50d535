/**
 * Is the event loop free while a model generates? A timer of 10 ms runs beside one long generation;
 * the answer is how late it fired at most, and what share of a core the waiting itself took.
 */

import process from "node:process";
import type { BenchOptions } from "../src/cli/bench.ts";
import { AutoModelForCausalLM } from "../mod.ts";
import { default_model, modelFolder } from "../src/cli/place.ts";
import { printLine } from "./lib/line.ts";
import { median } from "./lib/measure.ts";

const interval_ms = 10;
const new_tokens = 1500;

/** Runs the generation and prints one JSON line. */
export async function run(options: BenchOptions): Promise<void> {
  const { threads, signal } = options;
  using model = await AutoModelForCausalLM.from_pretrained(modelFolder(default_model), { threads });
  const inputs = { input_ids: [[1, 67, 707]], eos_token_id: null, signal };
  await model.generate({ ...inputs, max_new_tokens: 8 });

  const late_ms: number[] = [];
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    late_ms.push(now - last - interval_ms);
    last = now;
  }, interval_ms);
  const started = performance.now();
  await model.generate({ ...inputs, max_new_tokens: new_tokens });
  const elapsed_s = (performance.now() - started) / 1e3;
  clearInterval(timer);

  const result = {
    bench: "event_loop",
    runtime: process.versions.bun ? "bun" : "deno",
    tok_s: Math.round(new_tokens / elapsed_s),
    ticks: late_ms.length,
    late_ms_max: Number(Math.max(...late_ms).toFixed(2)),
    late_ms_median: Number(median(late_ms).toFixed(2)),
    threads: model.device.threads,
  };
  await printLine(options, result);
}
