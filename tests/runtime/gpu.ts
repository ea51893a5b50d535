/** Tests that need a GPU: elsewhere each of them is reported as skipped, by both runtimes. */

import { it } from "node:test";
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
