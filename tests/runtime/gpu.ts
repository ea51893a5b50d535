/** What tests of a GPU share: elsewhere each of them is reported as skipped, by both runtimes. */

import { it } from "node:test";
import type { BambaForCausalLM } from "../../mod.ts";
import { loadNative } from "../../src/native/ffi.ts";

const is_usable = (await loadNative()).info().cuda_status === 0;

interface Options {
  readonly timeout?: number;
  readonly skip?: false | string;
}

/** `it` where a GPU is. A `describe` that is skipped would not count its tests under Bun. */
export function onGpu(
  name: string,
  test: () => void | Promise<void>,
  options: Options = {},
): void {
  it(
    name,
    { timeout: 120_000, ...options, skip: is_usable ? options.skip ?? false : "no GPU" },
    test,
  );
}

/** A row of made-up ids that any model here knows. */
export const idsOf = (count: number, seed: number) =>
  Array.from({ length: count }, (_, i) => 3 + (i * 7919 + seed * 104729) % 1000);

/** Logits of whole rows, without a cache. */
export async function logitsOf(
  model: BambaForCausalLM,
  input_ids: number[][],
): Promise<Float32Array> {
  using output = await model.call({ input_ids, use_cache: false });
  return await output.logits!.data() as Float32Array;
}
