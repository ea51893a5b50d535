/** `./dev bench NAME...`: each file of bench/ answers one question. */
import { type Command, Option } from "commander";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { DeviceName } from "../device.ts";
import { UsageError } from "./errors.ts";
import { addRuntime, deviceName, wholeNumber } from "./options.ts";
import { root } from "./place.ts";

/** What the weights are: a dtype, or a type to quantize them to. */
export const bench_weights = [
  "f32",
  "bf16",
  "f16",
  "q8_0",
  "q4_0",
  "q4_k_m",
  "q5_k_m",
  "q6_k",
  "f8_e4m3",
] as const;
export type BenchWeights = typeof bench_weights[number];

/** What a file of bench/ is started with. */
export interface BenchOptions {
  /** Name of a model shape, such as "1.2b". */
  shape: string;
  weights: BenchWeights;
  threads?: number;
  device: DeviceName;
  /** JSON lines only on stdout. */
  json: boolean;
  /** File to which each result is appended, with what it was taken on. */
  record?: string;
  /** Of a benchmark in parts, those whose name holds this. */
  only?: string;
  /** Fewer sizes: for a checker of memory, or for a glance. */
  quick?: boolean;
  /** Stops the measurement. */
  signal: AbortSignal;
}

/** The benchmarks there are. */
export function benchNames(): string[] {
  const folder = join(root, "bench");
  if (!existsSync(folder)) return [];
  return readdirSync(folder).filter((name) => name.endsWith(".ts") && !name.startsWith("_"))
    .map((name) => name.slice(0, -3)).sort();
}

async function bench(names: string[], flags: BenchOptions, signal: AbortSignal): Promise<void> {
  const known = benchNames();
  for (const name of names) {
    if (!known.includes(name)) {
      throw new UsageError(`There is no benchmark '${name}'; there are: ${known.join(", ")}.`);
    }
  }
  for (const name of names) {
    const file = pathToFileURL(join(root, "bench", `${name}.ts`)).href;
    const module = await import(file);
    if (typeof module.run !== "function") {
      throw new TypeError(`Expected bench/${name}.ts to export a function run.`);
    }
    await module.run({ ...flags, signal });
  }
}

/** Adds `bench` to the program. */
export function addBench(program: Command, signal: AbortSignal): void {
  const command = program.command("bench")
    .description(
      "Measure: a table, or JSON lines, each result with its share of this machine's peak",
    )
    .argument("<name...>", `what to measure: ${benchNames().join(", ")}`)
    .option("--shape <name>", "shape of the model with random weights", "1.2b")
    .addOption(
      new Option("--weights <type>", "dtype of the weights, or a type to quantize them to")
        .choices(bench_weights).default("bf16"),
    )
    .option("--threads <n>", "threads on the CPU (default: one a physical core)", wholeNumber(1))
    .option("--device <name>", "auto, cpu, cuda or cuda:N", deviceName, "cpu")
    .option("--only <text>", "parts whose name holds this, of every_kernel, gpu and fuzz")
    .option("--quick", "fewer sizes, of every_kernel")
    .option("--json", "print nothing but JSON lines on stdout", false)
    .option("--record <file>", "append each result there, with machine, commit and command");
  addRuntime(command).addHelpText(
    "after",
    `
Examples:
  ./dev bench decode prefill --shape 1.2b --weights bf16 --threads 2 --json`,
  ).action((names: string[], flags: BenchOptions) => bench(names, flags, signal));
}
