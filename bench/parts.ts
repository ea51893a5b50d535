/**
 * Where does the time go? Milliseconds that each operation took of a prompt of 512 and of a decoded
 * token, and the share of all that is no matrix product: scan, convolution, norms and what works
 * element by element.
 */

import type { BenchOptions } from "../src/cli/bench.ts";
import { loadNative } from "../src/native/ffi.ts";
import { printLine, rounded } from "./lib/line.ts";
import { openSubject, promptIds } from "./lib/measure.ts";
import { findShape } from "./lib/shapes.ts";

const tokens = 512;
const new_tokens = 33;
const rounds = 3;

/** Operations that multiply by weights or by keys and values. */
const products: readonly string[] = ["linear", "attention"];

/** Measures and prints one JSON line for a prompt and one for decoding. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal, shape, weights } = options;
  using subject = await openSubject(options);
  const { model, device } = subject;
  const native = await loadNative();
  const input_ids = [promptIds(tokens, findShape(shape).vocab_size)];
  const passes = {
    prefill: async () => {
      const output = await model.call({ input_ids, logits_to_keep: 1, use_cache: false, signal });
      output.dispose();
    },
    decode: async () => {
      const short = [input_ids[0].slice(0, 8)];
      await model.generate({ input_ids: short, max_new_tokens: new_tokens, signal });
    },
  };
  for (const [what, pass] of Object.entries(passes)) {
    await pass(); // plans, pages and clocks come up
    const before = native.info().op_s;
    for (let i = 0; i < rounds; i++) await pass();
    const spent = Object.entries(native.info().op_s)
      .map(([name, s]) => [name, s - (before[name] ?? 0)] as const)
      .filter(([, s]) => s > 0)
      .sort(([, a], [, b]) => b - a);
    const all = spent.reduce((sum, [, s]) => sum + s, 0);
    // A prompt is one run; the short one in front of decoding counts as a token.
    const runs = rounds * (what === "decode" ? new_tokens : 1);
    const other = spent.reduce((sum, [name, s]) => sum + (products.includes(name) ? 0 : s), 0);
    await printLine(options, {
      bench: `parts ${what}`,
      shape,
      weights,
      other_share: rounded(other / all),
      ms: Object.fromEntries(spent.map(([name, s]) => [name, rounded(1e3 * s / runs, 3)])),
      shares: Object.fromEntries(spent.map(([name, s]) => [name, rounded(s / all, 3)])),
      threads: device.threads,
      cpu_level: device.info().cpu_level,
    });
  }
}
