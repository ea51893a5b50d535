/**
 * How fast is a prompt? One call over 512 ids that gives the last token's logits, as a share of the
 * fastest multiply-adds (f32, pairs of bf16 where the CPU does more of them, or int8 where weights
 * are quantized): matrix products, scan and attention count, nothing else.
 */

import type { BenchOptions } from "../src/cli/bench.ts";
import {
  hashOf,
  measureRounds,
  multiplyPeak,
  openSubject,
  promptIds,
  report,
  type Round,
} from "./lib/measure.ts";
import { findShape, prefillFlops } from "./lib/shapes.ts";

const tokens = 512;
const rounds = 3;

/** Measures and prints one JSON line. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal } = options;
  const shape = findShape(options.shape);
  using subject = await openSubject(options);
  const { model, device } = subject;
  const input_ids = [promptIds(tokens, shape.vocab_size)];
  const round = async (): Promise<Round> => {
    const start_ms = performance.now();
    const output = await model.call({ input_ids, logits_to_keep: 1, use_cache: false, signal });
    const tok_s = tokens / (performance.now() - start_ms) * 1e3;
    try {
      return { tok_s, hash: hashOf(await output.logits!.data()) };
    } finally {
      output.dispose();
    }
  };
  const flops = prefillFlops(shape, tokens) / tokens;
  const peak = multiplyPeak(options.weights);
  const result = await measureRounds(device, rounds, flops, peak.of, round, signal);
  await report(options, {
    bench: "prefill",
    ...result,
    unit: peak.unit,
    cpu_level: device.info().cpu_level,
    threads: device.threads,
    tokens,
    flops_per_token: flops,
  });
}
