/**
 * How fast are single tokens? Greedy decoding of one sequence through the public `stream`, as a share
 * of the memory's read rate: a token has to read every matrix once.
 */

import type { BenchOptions } from "../src/cli/bench.ts";
import {
  hashOf,
  matrixBytes,
  measureRounds,
  openSubject,
  promptIds,
  report,
  type Round,
} from "./lib/measure.ts";
import { decodeBytes, findShape } from "./lib/shapes.ts";

const prompt_tokens = 16;
/** Short rounds: memory of a shared machine changes from second to second. */
const new_tokens = 17;
const rounds = 11;

/** Measures and prints one JSON line. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal } = options;
  const shape = findShape(options.shape);
  using subject = await openSubject(options);
  const { model, device } = subject;
  const input_ids = [promptIds(prompt_tokens, shape.vocab_size)];
  const round = async (): Promise<Round> => {
    const ids: number[] = [];
    let start_ms = 0;
    for await (const [id] of model.stream({ input_ids, max_new_tokens: new_tokens, signal })) {
      ids.push(id);
      if (ids.length === 1) start_ms = performance.now();
    }
    // The first id belongs to the prompt's run.
    const tok_s = (ids.length - 1) / (performance.now() - start_ms) * 1e3;
    return { tok_s, hash: hashOf(Int32Array.from(ids)) };
  };
  const bytes = decodeBytes(shape, matrixBytes(model), prompt_tokens + new_tokens / 2);
  const result = await measureRounds(
    device,
    rounds,
    bytes,
    (measured) => measured.read_bytes_s,
    round,
    signal,
    (measured) => measured.read_median_bytes_s,
  );
  await report(options, {
    bench: "decode",
    ...result,
    unit: "byte/s read",
    cpu_level: device.info().cpu_level,
    threads: device.threads,
    bytes_per_token: bytes,
  });
}
