/** What do eight sequences cost that are decoded together? Their rate against that of one, in turns. */

import type { BenchOptions } from "../src/cli/bench.ts";
import { printLine, rounded } from "./lib/line.ts";
import { median, openSubject, promptIds } from "./lib/measure.ts";
import { findShape } from "./lib/shapes.ts";

const batch = 8;
const prompt_tokens = 16;
const new_tokens = 17;
const rounds = 7;

/** Measures and prints one JSON line. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal, shape, weights } = options;
  using subject = await openSubject(options);
  const { model, device } = subject;
  const ids = promptIds(prompt_tokens, findShape(shape).vocab_size);
  /** Tokens a second of all sequences. */
  const rate = async (rows: number): Promise<number> => {
    const input_ids = Array.from({ length: rows }, () => ids);
    let count = 0;
    let began = 0;
    const wanted = { input_ids, max_new_tokens: new_tokens, eos_token_id: null, signal };
    for await (const _ of model.stream(wanted)) {
      if (++count === 1) began = performance.now();
    }
    return rows * (count - 1) / (performance.now() - began) * 1e3;
  };
  const ratios: number[] = [];
  const rates: number[] = [];
  await rate(1);
  await rate(batch); // plans, pages and clocks come up
  let before = await rate(1);
  for (let r = 0; r < rounds; r++) {
    const together = await rate(batch);
    const after = await rate(1);
    rates.push(together);
    ratios.push(together / ((before + after) / 2));
    before = after;
  }
  const ratio = median(ratios);
  await printLine(options, {
    bench: "batch",
    shape,
    weights,
    batch,
    tok_s: rounded(median(rates)),
    ratio: rounded(ratio),
    ratios: ratios.map((x) => rounded(x)),
    threads: device.threads,
    cpu_level: device.info().cpu_level,
  });
}
