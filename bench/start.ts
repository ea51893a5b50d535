/**
 * How soon is the first token there, and how much memory does it take? A process of its own loads
 * the model (bf16: the folder; other weights: a GGUF file) from the page cache, runs a prompt of 8
 * and ends.
 */

import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { BenchOptions } from "../src/cli/bench.ts";
import { printLine, rounded } from "./lib/line.ts";
import { median } from "./lib/measure.ts";
import { randomGguf } from "./lib/random_gguf.ts";
import { randomModel } from "./lib/random_model.ts";
import { type Start, startElsewhere, startHere } from "./lib/starts.ts";

const rounds = 5;

function bytesOf(path: string): number {
  if (statSync(path).isFile()) return statSync(path).size;
  return readdirSync(path).reduce((sum, name) => sum + statSync(join(path, name)).size, 0);
}

/** Measures and prints one result. */
export async function run(options: BenchOptions): Promise<void> {
  if (await startHere(options)) return;
  const { shape, weights, signal } = options;
  const path = weights === "bf16"
    ? await randomModel(shape, signal)
    : await randomGguf(shape, weights, signal);
  const starts = Array.from({ length: rounds }, () => startElsewhere(path, options));
  const of = (what: keyof Start) => median(starts.map((start) => start[what]));
  const file_bytes = bytesOf(path);
  const grown = of("resident") - of("resident_before");
  await printLine(options, {
    bench: "start",
    runtime: process.versions.bun ? "bun" : "deno",
    shape,
    weights,
    first_s: rounded(of("first_s")),
    load_s: rounded(of("load_s")),
    file_bytes,
    resident_bytes: grown,
    resident_share: rounded(grown / file_bytes),
    firsts: starts.map(({ first_s }) => rounded(first_s, 3)),
    threads: options.threads,
  });
}
