/**
 * Starts of processes that load a model, run a prompt of 8 and end. Each is started twice and counts
 * once: the host of a virtual machine takes memory back seconds after it was freed, and a start that
 * has to wait for it again (on one such host 2 s instead of 0.5 s for 2.4 GB) measures the host.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { BenchOptions } from "../../src/cli/bench.ts";
import { root } from "../../src/cli/place.ts";
import { BambaForCausalLM } from "../../src/models/bamba.ts";
import { promptIds } from "./measure.ts";
import { Peer, type PeerProgram } from "./peers.ts";
import { findShape } from "./shapes.ts";

const prompt_tokens = 8;
/** Names the model to load in the process that is measured. */
const variable = "BAMBA_BENCH_START";

/** What a start took: seconds of loading and until the first token, and bytes. */
export interface Start {
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

/** In the process that is measured: loads, runs the prompt, and prints what it took. */
export async function startHere(options: BenchOptions): Promise<boolean> {
  const path = process.env[variable];
  if (!path) return false;
  const ids = promptIds(prompt_tokens, findShape(options.shape).vocab_size);
  const resident_before = status("VmRSS");
  const began = performance.now();
  const { device, threads } = options;
  const model = await BambaForCausalLM.from_pretrained(path, { device, threads });
  const loaded = performance.now();
  await model.generate({ input_ids: [ids], max_new_tokens: 1 });
  const ended = performance.now();
  const resident = status("VmHWM");
  model.dispose();
  const [load_s, first_s] = [(loaded - began) / 1e3, (ended - began) / 1e3];
  console.log(JSON.stringify({ load_s, first_s, resident, resident_before } satisfies Start));
  return true;
}

/** Starts a process of this runtime for a model's folder or file, twice. @returns the second's */
export function startElsewhere(path: string, options: BenchOptions): Start {
  startOnce(path, options);
  return startOnce(path, options);
}

function startOnce(path: string, options: BenchOptions): Start {
  const { shape, device, threads } = options;
  const runtime = process.versions.bun ? "bun" : "deno";
  const args = ["bench", "start", "--shape", shape, "--device", device, "--runtime", runtime];
  if (threads !== undefined) args.push("--threads", String(threads));
  const { stdout, status, stderr } = spawnSync(join(root, "dev"), args, {
    env: { ...process.env, [variable]: path },
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`Expected a start of ${path} but found: ${stderr}`);
  return JSON.parse(stdout.trim().split("\n").at(-1)!);
}

/** The same of a peer: seconds until its first token. */
export async function startPeer(program: PeerProgram, shape: string): Promise<number> {
  const prompt = promptIds(prompt_tokens, findShape(shape).vocab_size);
  const seconds = async () => {
    using peer = await Peer.open(program);
    return peer.load_s + (await peer.turn(prompt, 0)).prefill_s;
  };
  await seconds();
  return await seconds();
}
