/**
 * How fast are others on the same weights? node-llama-cpp (llama.cpp's prebuilt CPU library, on the
 * same GGUF file) and HF transformers on the CPU (on the same folder) each take turns with this
 * library, in one run, with as many threads: a prompt of 512, 32 tokens behind it, and starts from
 * the page cache to the first token of a prompt of 8. `ratio` is how many times faster this is.
 * Whatever is installed in the folder that BAMBA_PEERS names is measured.
 */

import type { BenchOptions } from "../src/cli/bench.ts";
import { Device } from "../src/device.ts";
import { BambaForCausalLM } from "../src/models/bamba.ts";
import { printLine, rounded } from "./lib/line.ts";
import { matrixBytes, median, promptIds } from "./lib/measure.ts";
import { findPeers, Peer, type PeerProgram, type Turn } from "./lib/peers.ts";
import { randomGguf } from "./lib/random_gguf.ts";
import { decodeBytes, findShape } from "./lib/shapes.ts";
import { startElsewhere, startPeer } from "./lib/starts.ts";

const prompt_tokens = 512;
const new_tokens = 32;

async function ourTurn(
  model: BambaForCausalLM,
  prompt: readonly number[],
  signal: AbortSignal,
): Promise<Turn> {
  const started = performance.now();
  let first = 0;
  const tokens: number[] = [];
  const input_ids = [[...prompt]];
  const options = { input_ids, max_new_tokens: new_tokens + 1, eos_token_id: null, signal };
  for await (const [id] of model.stream(options)) {
    if (tokens.push(id) === 1) first = performance.now();
  }
  const [prefill_s, decode_s] = [(first - started) / 1e3, (performance.now() - first) / 1e3];
  return { prefill_s, decode_s, tokens };
}

/** Turns of both, and what memory gave beside each of them, in bytes a second. */
interface Turns {
  readonly peer: string;
  readonly ours: Turn[];
  readonly theirs: Turn[];
  readonly reads: number[];
}

async function takeTurns(
  model: BambaForCausalLM,
  program: PeerProgram,
  options: BenchOptions,
): Promise<Turns> {
  const { shape, signal } = options;
  const { device } = model;
  const prompt = promptIds(prompt_tokens, findShape(shape).vocab_size);
  using peer = await Peer.open(program);
  const turns: Turns = { peer: peer.name, ours: [], theirs: [], reads: [] };
  for (let i = 0; i <= program.rounds; i++) {
    signal.throwIfAborted();
    const ours = await ourTurn(model, prompt, signal);
    const { read_bytes_s } = await device.measure(signal);
    const theirs = await peer.turn(prompt, new_tokens);
    if (i === 0) continue; // plans, pages and clocks come up
    turns.ours.push(ours);
    turns.theirs.push(theirs);
    turns.reads.push(read_bytes_s);
  }
  return turns;
}

async function reportTurns(
  options: BenchOptions,
  device: Device,
  { peer, ours, theirs, reads }: Turns,
  bytes_per_token: number,
): Promise<void> {
  const { shape, weights } = options;
  for (const what of ["prefill", "decode"] as const) {
    const count = what === "prefill" ? prompt_tokens : new_tokens;
    const seconds = (turn: Turn) => what === "prefill" ? turn.prefill_s : turn.decode_s;
    const rate = (turns: Turn[]) => median(turns.map((turn) => count / seconds(turn)));
    const ratios = ours.map((turn, i) => seconds(theirs[i]) / seconds(turn));
    const share = (turns: Turn[]) =>
      what === "decode" ? rounded(rate(turns) * bytes_per_token / median(reads), 3) : undefined;
    await printLine(options, {
      bench: `peers ${what}`,
      peer,
      shape,
      weights,
      ratio: rounded(median(ratios)),
      tok_s: rounded(rate(ours)),
      peer_tok_s: rounded(rate(theirs)),
      share_of_read: share(ours),
      peer_share_of_read: share(theirs),
      ratios: ratios.map((r) => rounded(r)),
      threads: device.threads,
      cpu_level: device.info().cpu_level,
    });
  }
}

async function reportStarts(
  options: BenchOptions,
  path: string,
  programs: readonly { readonly peer: string; readonly program: PeerProgram }[],
): Promise<void> {
  const { shape, weights, threads } = options;
  for (const { peer, program } of programs) {
    const ours: number[] = [];
    const theirs: number[] = [];
    for (let i = 0; i < program.rounds; i++) {
      ours.push(startElsewhere(path, options).first_s);
      theirs.push(await startPeer(program, shape));
    }
    const ratios = ours.map((first_s, i) => theirs[i] / first_s);
    await printLine(options, {
      bench: "peers start",
      peer,
      shape,
      weights,
      ratio: rounded(median(ratios)),
      first_s: rounded(median(ours)),
      peer_first_s: rounded(median(theirs)),
      ratios: ratios.map((r) => rounded(r)),
      threads,
    });
  }
}

/** Measures in turns and prints prefill, decode and start against each peer. */
export async function run(options: BenchOptions): Promise<void> {
  const { signal, shape, weights, threads } = options;
  using device = await Device.open("cpu", { threads });
  const programs = await findPeers(options, device.threads);
  if (programs.length === 0) return;
  const path = await randomGguf(shape, weights, signal);
  const measured: { peer: string; program: PeerProgram }[] = [];
  {
    using model = await BambaForCausalLM.from_pretrained(path, { device: "cpu", threads, signal });
    const bytes = decodeBytes(
      findShape(shape),
      matrixBytes(model),
      prompt_tokens + new_tokens / 2,
    );
    for (const program of programs) {
      const turns = await takeTurns(model, program, options);
      await reportTurns(options, model.device, turns, bytes);
      measured.push({ peer: turns.peer, program });
    }
  }
  await reportStarts(options, path, measured);
}
