/** Files and goldens for the tests of weights, configs and the native library. */

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** Folder of the default model. */
export const model_folder = join(root, "models", "bamba-wordnet-8m");

/** A folder of the goldens, or undefined, with one printed line, where the goldens are absent. */
export function goldenFolder(name: string): string | undefined {
  const folder = join(process.env.BAMBA_GOLDENS ?? join(root, "..", "shared", "goldens"), name);
  if (existsSync(folder)) return folder;
  console.log(`skipped: there are no goldens at ${folder}`);
  return undefined;
}

/** The golden models, each with every dtype it stores. */
export const golden_names = [
  "tiny-a-fp32",
  "tiny-b-groups2",
  "tiny-c-sharded-bf16",
  "tiny-d-odd",
] as const;

/** Runs `body` with a new folder that is removed afterwards. */
export async function withFolder<T>(body: (folder: string) => T | Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "bamba-test-"));
  try {
    return await body(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Whole numbers below a bound, the same on every run (mulberry32). */
export function randomIntegers(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** A safetensors file's bytes out of a header (an object, or its text) and as many data bytes. */
export function safetensorsBytes(header: unknown, data_bytes: number): Uint8Array {
  const text = new TextEncoder().encode(
    typeof header === "string" ? header : JSON.stringify(header),
  );
  const bytes = new Uint8Array(8 + text.length + data_bytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}
