/**
 * How soon is the first token there, and how much memory does it take? A process of its own loads the
 * model (quantized: the GGUF file that BAMBA_PEERS_GGUF names) from the page cache, runs a prompt of 8
 * and ends.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { BenchOptions } from "../src/cli/bench.ts";
import { BambaForCausalLM } from "../src/models/bamba.ts";
import { printLine, rounded } from "./lib/line.ts";
import { median, promptIds } from "./lib/measure.ts";
import { randomModel } from "./lib/random_model.ts";
import { findShape } from "./lib/shapes.ts";

const prompt_tokens = 8;
const rounds = 5;
/** Names the model to load in the process that is measured. */
const variable = "BAMBA_BENCH_START";

interface Start {
  readonly load_s: number;
  readonly first_s: number;
  /** The process's largest resident size, and what it held before it loaded. */
  readonly resident: number;
  readonly resident_before: number;
}

/** A field of this process's status in bytes; 0 where the system has none. */
function status(name: string): number {
  const path = "/proc/self/status";
  if (!existsSync(path)) return 0;
  const found = readFileSync(path, "utf8").match(new RegExp(`^${name}:\\s+(\\d+) kB`, "m"));
  return found ? Number(found[1]) * 1024 : 0;
}

/** Loads, runs the prompt, and prints what it took. */
async function startHere(path: string, options: BenchOptions): Promise<void> {
  const ids = promptIds(prompt_tokens, findShape(options.shape).vocab_size);
  const resident_before = status("VmRSS");
  const began = performance.now();
  const model = await BambaForCausalLM.from_pretrained(path, {
    device: options.device,
    threads: options.threads,
  });
  const loaded = performance.now();
  await model.generate({ input_ids: [ids], max_new_tokens: 1 });
  const ended = performance.now();
  const resident = status("VmHWM");
  model.dispose();
  const start: Start = {
    load_s: (loaded - began) / 1e3,
    first_s: (ended - began) / 1e3,
    resident,
    resident_before,
  };
  console.log(JSON.stringify(start));
}

function startElsewhere(path: string): Start {
  const { stdout, status, stderr } = spawnSync(process.execPath, process.argv.slice(1), {
    env: { ...process.env, [variable]: path },
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`Expected a start of ${path} but found: ${stderr}`);
  return JSON.parse(stdout.trim().split("\n").at(-1)!);
}

/** The model's folder, or the GGUF file that BAMBA_PEERS_GGUF names. */
async function place({ shape, weights, signal }: BenchOptions): Promise<string> {
  if (weights === "bf16") return await randomModel(shape, signal);
  const { BAMBA_PEERS_GGUF: gguf } = process.env;
  if (gguf && existsSync(gguf)) return gguf;
  throw new Error(
    `Expected BAMBA_PEERS_GGUF to name a GGUF file of ${shape} in ${weights} but found ` +
      `'${gguf ?? ""}'.`,
  );
}

function bytesOf(path: string): number {
  if (statSync(path).isFile()) return statSync(path).size;
  return readdirSync(path).reduce((sum, name) => sum + statSync(join(path, name)).size, 0);
}

/** Measures and prints one JSON line. */
export async function run(options: BenchOptions): Promise<void> {
  const given = process.env[variable];
  if (given) return await startHere(given, options);
  const path = await place(options);
  const starts = Array.from({ length: rounds + 1 }, () => startElsewhere(path)).slice(1);
  const of = (what: keyof Start) => median(starts.map((start) => start[what]));
  const file_bytes = bytesOf(path);
  const grown = of("resident") - of("resident_before");
  const { shape, weights } = options;
  if (!options.json) {
    console.error(
      `${weights}: first token after ${of("first_s").toFixed(2)} s, of which loading took ` +
        `${of("load_s").toFixed(2)}; ${(grown / file_bytes).toFixed(2)} x the file resident`,
    );
  }
  await printLine(options, {
    bench: "start",
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
