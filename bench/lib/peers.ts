/**
 * Others on the same weights, each in a process of its own that answers by lines. They are no
 * dependencies: BAMBA_PEERS names any folder in which they were installed.
 */

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import type { BenchOptions, BenchWeights } from "../../src/cli/bench.ts";
import { root } from "../../src/cli/place.ts";
import { randomGguf } from "./random_gguf.ts";
import { randomModel } from "./random_model.ts";

/** Seconds from the prompt to the first new token, and those of the tokens behind it. */
export interface Turn {
  readonly prefill_s: number;
  readonly decode_s: number;
  readonly tokens: readonly number[];
}

/** A program that takes turns with us, and what it is started with. */
export interface PeerProgram {
  readonly command: string;
  readonly args: readonly string[];
  /** HF's decode is too slow for as many rounds. */
  readonly rounds: number;
}

/** A peer that is loaded. */
export class Peer implements Disposable {
  /** Its name and version, and how long it loaded. */
  name = "";
  load_s = 0;
  private readonly lines: AsyncIterator<string>;

  private constructor(private readonly child: ChildProcess) {
    this.lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  }

  /** Starts the program and waits until it has loaded. @throws {Error} when it ends instead */
  static async open({ command, args }: PeerProgram): Promise<Peer> {
    const peer = new Peer(spawn(command, [...args], { stdio: ["pipe", "pipe", "inherit"] }));
    const { peer: name, load_s } = JSON.parse(await peer.answer());
    return Object.assign(peer, { name, load_s });
  }

  async turn(prompt: readonly number[], new_tokens: number): Promise<Turn> {
    this.child.stdin!.write(JSON.stringify({ prompt, new_tokens }) + "\n");
    return JSON.parse(await this.answer());
  }

  private async answer(): Promise<string> {
    const { done, value } = await this.lines.next();
    if (done) throw new Error("Expected an answer of a peer but its process ended");
    return value;
  }

  [Symbol.dispose](): void {
    this.child.kill();
  }
}

/** What torch calls the dtypes that HF runs; it has no blocks of Bamba's. */
const hf_dtypes: Partial<Record<BenchWeights, string>> = {
  f32: "float32",
  bf16: "bfloat16",
  f16: "float16",
};

/** Says what is left out, and how it would be brought in. */
function leftOut(what: string, how: string): undefined {
  console.error(`${what} is left out: ${how}`);
}

/** The folder with peers that the user named; empty where none is. */
const folder = process.env.BAMBA_PEERS ?? "";

/** What runs a GGUF file in llama.cpp; undefined, and a sentence, where that is not installed. */
export function findNodeLlama(): ((gguf: string, threads: number) => PeerProgram) | undefined {
  if (folder === "" || !existsSync(join(folder, "node_modules", "node-llama-cpp"))) {
    const how = "run 'npm install node-llama-cpp@3.22.1' in a folder and name it in BAMBA_PEERS";
    return leftOut("node-llama-cpp", how);
  }
  const script = join(root, "bench", "peers", "node_llama.mjs");
  return (gguf, threads) => ({
    command: "node",
    args: [script, folder, gguf, String(threads)],
    rounds: 5,
  });
}

/** Python with modules; undefined, and a sentence, where the peers' venv lacks one of them. */
export function findPython(what: string, modules: readonly string[]): string | undefined {
  const python = join(folder, "venv", "bin", "python");
  const look = "import importlib.util, sys\n" +
    "sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))";
  const is_there = folder !== "" && existsSync(python) &&
    spawnSync(python, ["-c", look, ...modules]).status === 0;
  if (is_there) return python;
  return leftOut(
    what,
    `make a venv with ${modules.join(" and ")} in the folder that BAMBA_PEERS names, named 'venv'`,
  );
}

/**
 * The peers that are installed and run these weights; one sentence for each that is not.
 *
 * @param threads of each
 */
export async function findPeers(options: BenchOptions, threads: number): Promise<PeerProgram[]> {
  const { shape, weights, signal } = options;
  const found: PeerProgram[] = [];
  const llama = findNodeLlama();
  if (llama) found.push(llama(await randomGguf(shape, weights, signal), threads));
  const dtype = hf_dtypes[weights];
  if (dtype === undefined) {
    leftOut("HF", `it runs no Bamba in ${weights}`);
    return found;
  }
  const python = findPython("HF", ["torch", "transformers"]);
  if (python) {
    const script = join(root, "bench", "peers", "hf_cpu.py");
    const model = await randomModel(shape, signal);
    found.push({ command: python, args: [script, model, String(threads), dtype], rounds: 1 });
  }
  return found;
}
