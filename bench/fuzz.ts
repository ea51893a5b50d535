/**
 * Does anything that lies bring the library down? Plans, commands, step buffers, handles and weight
 * spans are changed at random ten million times; a crash is the finding, and ends this with the
 * fuzzer's own words. Then GGUF files, as often: each is refused with a sentence, or what it says is
 * possible. `BAMBA_FUZZ_ROUNDS` and `BAMBA_FUZZ_SEED` choose how many and which, `--only library` or
 * `--only gguf` one of the two (of ten million, the files take minutes and the library hours).
 */

import { spawn } from "node:child_process";
import process from "node:process";
import type { BenchOptions } from "../src/cli/bench.ts";
import { root, toolPath } from "../src/cli/place.ts";
import { honestGguf, mutateGguf, survives } from "./lib/gguf_mutate.ts";
import { printLine, rounded } from "./lib/line.ts";

const rounds_default = 10_000_000;

/** What `zig/fuzz.zig` prints at its end. */
interface Counts {
  readonly rounds: number;
  readonly seed: number;
  readonly plans: number;
  readonly steps: number;
  readonly runs: number;
  readonly calls: number;
}

/** Fuzzes and prints one JSON line. @throws {Error} when the fuzzer crashed */
export async function run(options: BenchOptions): Promise<void> {
  const rounds = fromEnvironment("BAMBA_FUZZ_ROUNDS", rounds_default);
  const seed = fromEnvironment("BAMBA_FUZZ_SEED", Math.floor(Date.now() / 1000) % 2 ** 20);
  const wants = (part: string) => part.includes(options.only ?? "");
  if (wants("library")) {
    const start_ms = performance.now();
    const counts: Counts = JSON.parse(await fuzz([String(rounds), String(seed)], options));
    const seconds = rounded((performance.now() - start_ms) / 1000);
    await printLine(options, { bench: "fuzz", ...counts, seconds, crashes: 0 });
  }
  if (wants("gguf")) await printLine(options, await fuzzGguf(rounds, seed, options.signal));
}

/** Mutations between two chances to be interrupted. */
const gguf_at_once = 20_000;

/** Reads mutated GGUF files. @throws {Error} with seed and round of one that was not told */
async function fuzzGguf(rounds: number, seed: number, signal: AbortSignal) {
  const start_ms = performance.now();
  const original = honestGguf();
  const random = randomNumbers(seed);
  let refused = 0;
  for (let round = 0; round < rounds; round++) {
    if (round % gguf_at_once === 0) {
      await new Promise((resolve) => setTimeout(resolve, 0));
      signal.throwIfAborted();
    }
    try {
      if (survives(mutateGguf(original, random))) refused++;
    } catch (error) {
      throw new Error(`GGUF round ${round} of seed ${seed}: ${error}`, { cause: error });
    }
  }
  const seconds = rounded((performance.now() - start_ms) / 1000);
  return { bench: "fuzz gguf", rounds, seed, refused, true_ones: rounds - refused, seconds };
}

/** Whole numbers below a bound, the same for a seed (xorshift32). */
function randomNumbers(seed: number): (below: number) => number {
  let state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** @throws {RangeError} unless the variable is a whole number, or not set */
function fromEnvironment(name: string, otherwise: number): number {
  const text = process.env[name];
  if (!text) return otherwise;
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new RangeError(`Expected ${name} to be a whole number but found '${text}'`);
}

/** Builds the fuzzer with safety on and runs it. @returns its JSON line */
function fuzz(args: string[], options: BenchOptions): Promise<string> {
  const build = ["build", "--build-file", "zig/build.zig", "-Doptimize=ReleaseSafe", "fuzz", "--"];
  return new Promise((resolve, reject) => {
    const child = spawn(toolPath("zig"), [...build, ...args], {
      cwd: root,
      stdio: ["ignore", "pipe", options.json ? "pipe" : "inherit"],
    });
    let printed = "";
    let words = "";
    child.stdout!.setEncoding("utf8").on("data", (piece: string) => printed += piece);
    child.stderr?.setEncoding("utf8").on("data", (piece: string) => words += piece);
    const stop = () => child.kill();
    options.signal.addEventListener("abort", stop, { once: true });
    child.on("error", reject);
    child.on("close", (code: number | null) => {
      options.signal.removeEventListener("abort", stop);
      if (options.signal.aborted) reject(options.signal.reason);
      else if (code === 0) resolve(printed.trim());
      else reject(new Error(`The fuzzer ended with ${code ?? "a signal"}.\n${words.trimEnd()}`));
    });
  });
}
