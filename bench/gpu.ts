/**
 * How fast is the library on one GPU? Decoding of 1 to 256 sequences through the public `stream`, and
 * the time to a long prompt's first id.
 */

import type { BenchOptions } from "../src/cli/bench.ts";
import { hashOf, median, openSubject, promptIds } from "./lib/measure.ts";
import { printLine, rounded } from "./lib/line.ts";
import { findShape } from "./lib/shapes.ts";

const batches = [1, 16, 64, 256];
const prompts = [512, 2048, 8192];
const prompt_tokens = 16;
const new_tokens = 65;
const rounds = 3;

/** Measures and prints one JSON line for each batch and each prompt. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal, shape: shape_name, weights } = options;
  const shape = findShape(shape_name);
  const began = performance.now();
  using subject = await openSubject(options);
  const { model, device } = subject;
  const { cpu_name: gpu } = device.info();
  const load_s = rounded((performance.now() - began) / 1e3);
  const line = (result: Record<string, unknown>) =>
    printLine(options, { bench: "gpu", shape: shape_name, weights, gpu, ...result });
  await line({ what: "load", load_s, bytes: model.get_memory_footprint() });

  for (const batch of batches) {
    const input_ids = Array.from(
      { length: batch },
      () => promptIds(prompt_tokens, shape.vocab_size),
    );
    const steps: number[] = [];
    let hash = "";
    for (let r = 0; r <= rounds; r++) {
      const ids: number[] = [];
      let start = 0;
      let count = 0;
      for await (const step of model.stream({ input_ids, max_new_tokens: new_tokens, signal })) {
        ids.push(...step);
        if (++count === 2) start = performance.now();
      }
      if (r > 0) steps.push((performance.now() - start) / (count - 2));
      hash = hashOf(Int32Array.from(ids));
    }
    const step_ms = median(steps);
    await line({
      what: "decode",
      batch,
      step_ms: rounded(step_ms),
      tok_s: rounded(batch / step_ms * 1e3),
      rounds: steps.map((ms) => rounded(ms)),
      hash,
    });
  }
  for (const tokens of prompts) {
    const input_ids = [promptIds(tokens, shape.vocab_size)];
    const times: number[] = [];
    for (let r = 0; r <= rounds; r++) {
      const start = performance.now();
      await model.generate({ input_ids, max_new_tokens: 1, prefill_chunk_size: tokens, signal });
      if (r > 0) times.push(performance.now() - start);
    }
    const ms = median(times);
    await line({ what: "prefill", tokens, ms: rounded(ms), tok_s: rounded(tokens / ms * 1e3) });
  }
}
