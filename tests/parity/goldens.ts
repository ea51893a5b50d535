/** The reference results, and the models they belong to. */

import { closeSync, existsSync, openSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { assert } from "@std/assert";
import { readSafetensorsHeader } from "../../src/weights/safetensors.ts";
import { relativeError } from "../tolerance.ts";

const checkout = fileURLToPath(new URL("../../", import.meta.url));
const folder = process.env.BAMBA_GOLDENS ?? join(checkout, "../shared/goldens");

/** Whether the reference results are there; tests that need them are skipped otherwise. */
export const have_goldens = existsSync(folder);
if (!have_goldens) console.log(`No goldens at ${folder}: set BAMBA_GOLDENS to run these tests`);

/** The models with random weights. */
export const tiny_models = have_goldens
  ? ["tiny-a-fp32", "tiny-b-groups2", "tiny-c-sharded-bf16", "tiny-d-odd"] as const
  : [];

/** The default model. */
export const wordnet = join(checkout, "models/bamba-wordnet-8m");

/** Folder of a tiny model. */
export const modelFolder = (name: string) => join(folder, name);

// deno-lint-ignore no-explicit-any -- the goldens' JSON is as varied as what it describes
export type Json = any;

/** One model's reference results. */
export class Goldens {
  readonly json: Json;
  readonly #path: string;
  readonly #header: ReturnType<typeof readSafetensorsHeader>;

  constructor(name: string) {
    this.json = JSON.parse(readFileSync(join(folder, name, "goldens.json"), "utf8"));
    this.#path = join(folder, name, "goldens.safetensors");
    this.#header = readSafetensorsHeader(this.#path);
  }

  has(name: string): boolean {
    return this.#header.tensors.has(name);
  }

  names(prefix: string): string[] {
    return [...this.#header.tensors.keys()].filter((n) => n.startsWith(prefix));
  }

  shape(name: string): readonly number[] {
    return this.#header.tensors.get(name)!.shape;
  }

  /** A reference tensor's numbers. */
  tensor(name: string): Float32Array {
    const entry = this.#header.tensors.get(name);
    if (!entry) throw new RangeError(`The goldens have no ${name}`);
    const out = new Uint8Array(entry.end - entry.begin);
    const file = openSync(this.#path, "r");
    try {
      readSync(file, out, 0, out.length, this.#header.dataOffset + entry.begin);
    } finally {
      closeSync(file);
    }
    return new Float32Array(out.buffer);
  }
}

/** One weight of a checkpoint, widened. */
export function readWeight(folder: string, name: string): Float32Array {
  const index = join(folder, "model.safetensors.index.json");
  const file = existsSync(index)
    ? JSON.parse(readFileSync(index, "utf8")).weight_map[name]
    : "model.safetensors";
  const path = join(folder, file);
  const header = readSafetensorsHeader(path);
  const { begin, end, dtype } = header.tensors.get(name)!;
  const bytes = new Uint8Array(readFileSync(path)).slice(
    header.dataOffset + begin,
    header.dataOffset + end,
  );
  if (dtype === "F32") return new Float32Array(bytes.buffer);
  const halves = new Uint16Array(bytes.buffer);
  const words = Uint32Array.from(halves, (h) => h << 16);
  return new Float32Array(words.buffer);
}

/** @throws {AssertionError} saying how far off, when it is more than `tolerance` */
export function assertClose(
  what: string,
  actual: ArrayLike<number>,
  truth: ArrayLike<number>,
  tolerance: number,
): void {
  const error = relativeError(actual, truth);
  assert(error <= tolerance, `${what}: off by ${error} of the largest value, above ${tolerance}`);
}
