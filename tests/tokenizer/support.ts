/**
 * Where the tests of this folder find their model and goldens.
 *
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { AutoTokenizer, type PreTrainedTokenizer } from "../../src/tokenizer/mod.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** Folder of the default model. */
export const MODEL = join(root, "models", "bamba-wordnet-8m");

let loaded: Promise<PreTrainedTokenizer> | undefined;

/** The tokenizer of the default model, loaded once; do not change it. */
export function defaultTokenizer(): Promise<PreTrainedTokenizer> {
  return loaded ??= AutoTokenizer.from_pretrained(MODEL);
}

/** A tokenizer of the default model for a test that changes it. */
export function ownTokenizer(
  options?: Parameters<typeof AutoTokenizer.from_pretrained>[1],
): Promise<PreTrainedTokenizer> {
  return AutoTokenizer.from_pretrained(MODEL, options);
}

function goldensFolder(): string {
  try {
    return process.env.BAMBA_GOLDENS ?? join(root, "..", "shared", "goldens");
  } catch { // a runtime that may not read the environment
    return join(root, "..", "shared", "goldens");
  }
}

/**
 * goldens.json of a model, or undefined, with one printed line, where the goldens are not there.
 */
// deno-lint-ignore no-explicit-any
export function goldens(name: string): any {
  const path = join(goldensFolder(), name, "goldens.json");
  if (existsSync(path)) return JSON.parse(readFileSync(path, "utf8"));
  console.log(`skipped: there are no goldens at ${path}`);
  return undefined;
}

/** Numbers in [0, 1) that are the same on every run. */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
