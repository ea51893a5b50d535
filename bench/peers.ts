/**
 * How fast are others on the same weights? node-llama-cpp (llama.cpp's prebuilt CPU library) and this
 * library take turns in one run, with the same shape, weight type and threads. The peer is no
 * dependency: install it anywhere and name that folder in BAMBA_PEERS, with BAMBA_PEERS_GGUF naming a
 * file of the same shape for it.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import type { BenchOptions } from "../src/cli/bench.ts";
import { root } from "../src/cli/place.ts";
import type { BambaForCausalLM } from "../src/models/bamba.ts";
import { printLine, rounded } from "./lib/line.ts";
import { median, openSubject, promptIds } from "./lib/measure.ts";
import { findShape } from "./lib/shapes.ts";

const prompt_tokens = 512;
const new_tokens = 32;
const rounds = 5;

interface Turn {
  readonly prefill_s: number;
  readonly decode_s: number;
}

/** node-llama-cpp in a process of its own. */
class Peer implements Disposable {
  private readonly lines: AsyncIterator<string>;

  private constructor(private readonly child: ChildProcess) {
    this.lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  }

  static async open(folder: string, gguf: string, threads: number): Promise<Peer> {
    const script = join(root, "bench", "peers", "node_llama.mjs");
    const peer = new Peer(
      spawn("node", [script, folder, gguf, String(threads)], {
        stdio: ["pipe", "pipe", "inherit"],
      }),
    );
    await peer.answer();
    return peer;
  }

  async turn(prompt: readonly number[]): Promise<Turn> {
    this.child.stdin!.write(JSON.stringify({ prompt, new_tokens }) + "\n");
    return JSON.parse(await this.answer());
  }

  private async answer(): Promise<string> {
    const { done, value } = await this.lines.next();
    if (done) throw new Error("Expected an answer of node-llama-cpp but its process ended");
    return value;
  }

  [Symbol.dispose](): void {
    this.child.kill();
  }
}

async function ourTurn(
  model: BambaForCausalLM,
  prompt: readonly number[],
  signal: AbortSignal,
): Promise<Turn> {
  const started = performance.now();
  let first = 0;
  let count = 0;
  const input_ids = [[...prompt]];
  const options = { input_ids, max_new_tokens: new_tokens + 1, eos_token_id: null, signal };
  for await (const _ of model.stream(options)) {
    if (count++ === 0) first = performance.now();
  }
  return { prefill_s: (first - started) / 1e3, decode_s: (performance.now() - first) / 1e3 };
}

function peerPlaces(): [string, string] {
  const { BAMBA_PEERS: folder, BAMBA_PEERS_GGUF: gguf } = process.env;
  if (!folder || !existsSync(join(folder, "node_modules", "node-llama-cpp"))) {
    throw new Error(
      `Expected BAMBA_PEERS to name a folder in which 'npm install node-llama-cpp@3.22.1' was run ` +
        `but found '${folder ?? ""}'.`,
    );
  }
  if (!gguf || !existsSync(gguf)) {
    throw new Error(`Expected BAMBA_PEERS_GGUF to name a GGUF file but found '${gguf ?? ""}'.`);
  }
  return [folder, gguf];
}

/** Measures in turns and prints one JSON line for prefill and one for decode. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal, weights, shape } = options;
  const [folder, gguf] = peerPlaces();
  const prompt = promptIds(prompt_tokens, findShape(shape).vocab_size);
  using subject = await openSubject(options);
  const { model, device } = subject;
  using peer = await Peer.open(folder, gguf, device.threads);
  const ours: Turn[] = [];
  const theirs: Turn[] = [];
  for (let i = 0; i <= rounds; i++) {
    const turns = [await ourTurn(model, prompt, signal), await peer.turn(prompt)];
    if (i === 0) continue; // plans, pages and clocks come up
    ours.push(turns[0]);
    theirs.push(turns[1]);
  }
  for (const what of ["prefill", "decode"] as const) {
    const count = what === "prefill" ? prompt_tokens : new_tokens;
    const seconds = (turn: Turn) => what === "prefill" ? turn.prefill_s : turn.decode_s;
    const rates = (turns: Turn[]) => turns.map((turn) => rounded(count / seconds(turn)));
    const ratios = ours.map((turn, i) => seconds(theirs[i]) / seconds(turn));
    const ratio = median(ratios);
    if (!options.json) console.error(`${what}: ${ratio.toFixed(2)} x node-llama-cpp`);
    await printLine(options, {
      bench: `peers ${what}`,
      peer: "node-llama-cpp",
      shape,
      weights,
      tok_s: median(rates(ours)),
      peer_tok_s: median(rates(theirs)),
      ratio: rounded(ratio),
      ratios: ratios.map((r) => rounded(r)),
      threads: device.threads,
      cpu_level: device.info().cpu_level,
    });
  }
}
