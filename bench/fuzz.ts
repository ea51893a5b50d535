/**
 * Does anything that lies bring the library down? Plans, commands, step buffers, handles and weight
 * spans are changed at random ten million times; a crash is the finding, and ends this with the
 * fuzzer's own words. `BAMBA_FUZZ_ROUNDS` and `BAMBA_FUZZ_SEED` choose how many and which.
 */

import { spawn } from "node:child_process";
import process from "node:process";
import type { BenchOptions } from "../src/cli/bench.ts";
import { root, toolPath } from "../src/cli/place.ts";
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
  const start_ms = performance.now();
  const line = await fuzz([String(rounds), String(seed)], options);
  const seconds = (performance.now() - start_ms) / 1000;
  const counts: Counts = JSON.parse(line);
  await printLine(options, { bench: "fuzz", ...counts, seconds: rounded(seconds), crashes: 0 });
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
