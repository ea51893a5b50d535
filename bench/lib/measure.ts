/** What all benchmarks of whole models share: the model, rounds beside peaks, one JSON line. */

import { createHash } from "node:crypto";
import type { BenchOptions, BenchWeights } from "../../src/cli/bench.ts";
import { Device, type Measured } from "../../src/device.ts";
import { BambaForCausalLM } from "../../src/models/bamba.ts";
import { rowsBytes, type WeightDType } from "../../src/weights/layout.ts";
import { printLine, rounded } from "./line.ts";
import { randomModel } from "./random_model.ts";

const dtypes = { f32: "float32", bf16: "bfloat16", f16: "float16" } as const;
const isFloat = (weights: BenchWeights): weights is keyof typeof dtypes =>
  Object.hasOwn(dtypes, weights);

/** Bytes of the matrices that every token meets: all but an embedding table that is no head. */
export function matrixBytes(model: BambaForCausalLM): number {
  const met = [...model.namedParameters()].filter(([name, { shape }]) =>
    shape.length === 2 && name !== "model.embed_tokens.weight"
  );
  return met.reduce(
    (sum, [, { shape, dtype }]) => sum + rowsBytes(shape[0], shape[1], dtype as WeightDType),
    0,
  );
}

/** The fastest multiplications that weights of a type can use, and what they are called. */
export function multiplyPeak(
  weights: BenchWeights,
): { unit: string; of: (measured: Measured) => number } {
  if (!isFloat(weights)) return { unit: "int8 op/s", of: (found) => found.int8_dot_op_s };
  if (weights !== "bf16") return { unit: "f32 flop/s", of: (found) => found.f32_flop_s };
  return {
    unit: "flop/s for bf16",
    of: (found) => Math.max(found.bf16_dot_op_s, found.f32_flop_s),
  };
}

/** The middle value. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Hash of a result, so that a fast wrong answer shows. */
export function hashOf(data: ArrayBufferView): string {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return createHash("sha256").update(bytes).digest("hex").slice(0, 16);
}

/** Prompt ids that differ from one another. */
export function promptIds(count: number, vocab_size: number): number[] {
  return Array.from({ length: count }, (_, i) => 3 + (i * 7919) % (vocab_size - 3));
}

/** A model and the device it runs on; dispose of both. */
export interface Subject extends Disposable {
  readonly model: BambaForCausalLM;
  readonly device: Device;
}

/** Loads the random model of a shape. */
export async function openSubject(
  options: BenchOptions & {
    readonly progress_callback?: () => void;
    readonly batch_invariant?: boolean;
    readonly state_dtype?: "bfloat16";
  },
): Promise<Subject> {
  const { shape, weights, threads, device: name, signal } = options;
  const { progress_callback, batch_invariant, state_dtype } = options;
  const folder = await randomModel(shape, signal);
  const device = await Device.open(name, { threads });
  try {
    const model = await BambaForCausalLM.from_pretrained(folder, {
      ...(isFloat(weights)
        ? { dtype: dtypes[weights] }
        : { quantization_config: { type: weights } }),
      device: name,
      threads,
      progress_callback,
      batch_invariant,
      state_dtype,
      signal,
    });
    return {
      model,
      device,
      [Symbol.dispose]: () => {
        model.dispose();
        device.dispose();
      },
    };
  } catch (error) {
    device.dispose();
    throw error;
  }
}

/** One round: how many tokens a second, and how much of the peak's unit each took. */
export interface Round {
  readonly tok_s: number;
  readonly hash: string;
}

/** Rounds of a measurement, each between two measurements of the peak. */
export interface Rounds {
  readonly tok_s: number;
  /** Of the peak. */
  readonly share: number;
  readonly peak: number;
  /** Of what the machine keeps up beside the rounds, where that was asked for. */
  readonly share_sustained?: number;
  readonly rounds: number[];
  readonly hash: string;
}

/**
 * Runs rounds with the peak measured before and after each: machines that are shared change by the
 * minute. A round's peak is the larger of its two neighbours.
 *
 * @param cost bytes or operations of one token
 * @param peakOf picks the peak's rate
 * @param sustainedOf picks the rate that is kept up: a round's is the mean of its two neighbours
 */
export async function measureRounds(
  device: Device,
  count: number,
  cost: number,
  peakOf: (measured: Measured) => number,
  round: () => Promise<Round>,
  signal: AbortSignal,
  sustainedOf?: (measured: Measured) => number,
): Promise<Rounds> {
  await round(); // plans, pages and clocks come up
  let before = await device.measure(signal);
  const rates: number[] = [];
  const peaks: number[] = [];
  const sustained: number[] = [];
  let hash = "";
  for (let i = 0; i < count; i++) {
    const result = await round();
    const after = await device.measure(signal);
    if (hash !== "" && hash !== result.hash) {
      throw new Error(`Expected every round to give ${hash} but found ${result.hash}`);
    }
    hash = result.hash;
    rates.push(result.tok_s);
    peaks.push(Math.max(peakOf(before), peakOf(after)));
    if (sustainedOf) sustained.push((sustainedOf(before) + sustainedOf(after)) / 2);
    before = after;
  }
  const shareOf = (of: readonly number[]) => median(rates.map((rate, i) => rate * cost / of[i]));
  return {
    tok_s: median(rates),
    share: shareOf(peaks),
    peak: median(peaks),
    share_sustained: sustainedOf && shareOf(sustained),
    rounds: rates,
    hash,
  };
}

/** Prints the result of some rounds. */
export async function report(
  options: BenchOptions,
  { bench, unit, ...rest }: Rounds & {
    bench: string;
    /** What the peak is a rate of. */
    unit: string;
    [extra: string]: unknown;
  },
): Promise<void> {
  const { tok_s, share, share_sustained, peak, rounds, hash, ...extra } = rest;
  const { shape, weights } = options;
  await printLine(options, {
    bench,
    shape,
    weights,
    tok_s: rounded(tok_s),
    share: rounded(share),
    share_sustained: share_sustained && rounded(share_sustained),
    peak: rounded(peak),
    peak_of: unit,
    ...extra,
    rounds: rounds.map((rate) => rounded(rate)),
    hash,
  });
}
