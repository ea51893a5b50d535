/** What `generate` accepts, and what it makes of it. */

import { HybridMambaAttentionDynamicCache } from "../modeling/cache.ts";
import { describe, type MatrixInput } from "../modeling/inputs.ts";
import { checkOptions } from "../modeling/options.ts";
import { generation_names, GenerationConfig, type GenerationFields } from "./config.ts";

/**
 * Changes scores before an id is chosen, after HF's built-in penalties and before temperature and
 * top-k: gets each row's ids so far and its scores (vocab_size), gives new scores or changes them
 * in place.
 */
export type LogitsProcessor = (
  input_ids: number[][],
  scores: Float32Array[],
) => Float32Array[] | void;

/** Says whether to stop, for all rows or for each, after an id was chosen for every row. */
export type StoppingCriterion = (input_ids: number[][]) => boolean | boolean[];

/** Receives ids as they come: the prompt first, then each new id. HF's BaseStreamer. */
export interface Streamer {
  put(ids: number[] | number[][]): void;
  end(): void;
}

/** The part of a tokenizer that generation uses. */
export interface TextTokenizer {
  decode(ids: number[], options?: { skip_special_tokens?: boolean }): string;
}

/** Arguments of `generate` and `stream`: a batch, and HF's options. */
export interface GenerateInputs extends Partial<GenerationFields> {
  /** (batch, positions); the bos token alone when left out */
  input_ids?: MatrixInput;
  attention_mask?: MatrixInput;
  generation_config?: GenerationConfig;
  /** Same seed, same ids, on every runtime and any number of threads. Random when left out. */
  seed?: number | bigint;
  logits_processor?: LogitsProcessor | LogitsProcessor[];
  stopping_criteria?: StoppingCriterion | StoppingCriterion[];
  streamer?: Streamer;
  /** Needed for stop_strings, and for text from `stream`. */
  tokenizer?: TextTokenizer;
  signal?: AbortSignal;
  /** A cache whose rows hold a prefix of input_ids; it is continued in place. */
  past_key_values?: HybridMambaAttentionDynamicCache;
  prefill_chunk_size?: number;
  /** `stream` only: leave special tokens out of the text; true by default. */
  skip_special_tokens?: boolean;
  /** What tokenizers also return; not used. */
  token_type_ids?: MatrixInput;
}

const known = [
  ...generation_names,
  "input_ids",
  "attention_mask",
  "generation_config",
  "seed",
  "logits_processor",
  "stopping_criteria",
  "streamer",
  "tokenizer",
  "signal",
  "past_key_values",
  "prefill_chunk_size",
  "skip_special_tokens",
  "token_type_ids",
];

/** Options with defaults filled in. */
export interface ResolvedOptions extends GenerationFields {
  readonly eos_ids: readonly number[];
  /** Pads rows that end early: pad_token_id, else the first eos id, else 0. */
  readonly pad_id: number;
  readonly processors: readonly LogitsProcessor[];
  readonly criteria: readonly StoppingCriterion[];
  /**
   * Ids that sampling leaves in each row: a beam needs one to go on with beside each eos id, as in
   * HF's `min_tokens_to_keep`.
   */
  readonly min_tokens_to_keep: number;
  readonly stops: readonly string[];
  readonly seed_words: readonly [low: number, high: number];
  readonly inputs: GenerateInputs;
}

const list = <T>(x: T | T[] | null | undefined): T[] =>
  x === undefined || x === null ? [] : Array.isArray(x) ? x : [x];

/**
 * Checks names and values and fills in defaults: the call's options, then its generation_config or
 * the model's, then HF's.
 *
 * @throws {TypeError | RangeError} naming the option and the value found
 */
export function resolveOptions(
  where: string,
  inputs: GenerateInputs,
  model_config: GenerationConfig,
): ResolvedOptions {
  checkOptions(where, inputs, known);
  const changes = Object.fromEntries(
    Object.entries(inputs).filter(([name]) => generation_names.includes(name)),
  ) as Partial<GenerationFields>;
  const { generation_config } = inputs;
  if (generation_config !== undefined && !(generation_config instanceof GenerationConfig)) {
    throw new TypeError("Expected generation_config to be a GenerationConfig");
  }
  const fields = (generation_config ?? model_config).resolve(changes);
  const eos_ids = list(fields.eos_token_id);
  const stops = list(fields.stop_strings);
  if (stops.some((s) => typeof s !== "string" || s === "")) {
    throw new TypeError(`Expected stop_strings to be texts but found ${JSON.stringify(stops)}`);
  }
  if (stops.length > 0 && !inputs.tokenizer) {
    throw new TypeError("Expected a tokenizer with stop_strings: pass { tokenizer } to generate");
  }
  checkObjects(inputs);
  const { num_beams, num_return_sequences, do_sample } = fields;
  if (num_beams > 1 && inputs.streamer) {
    throw new TypeError("Expected no streamer with num_beams above 1: beams change their past");
  }
  if (num_return_sequences > num_beams && (num_beams > 1 || !do_sample)) {
    throw new RangeError(
      `Expected num_return_sequences of at most num_beams (${num_beams}) in a search but found ` +
        `${num_return_sequences}`,
    );
  }
  return {
    ...fields,
    bad_words_ids:
      fields.bad_words_ids?.filter((word) => word.length > 1 || !eos_ids.includes(word[0])) ?? null,
    eos_ids,
    pad_id: fields.pad_token_id ?? eos_ids[0] ?? 0,
    processors: list(inputs.logits_processor),
    criteria: list(inputs.stopping_criteria),
    min_tokens_to_keep: num_beams > 1 ? Math.max(2, 1 + eos_ids.length) : 1,
    stops,
    seed_words: seedWords(inputs.seed),
    inputs,
  };
}

/** @throws {TypeError} naming the first option that has not the functions it is called by */
function checkObjects(inputs: GenerateInputs): void {
  const functions = ["logits_processor", "stopping_criteria"] as const;
  for (const name of functions) {
    const odd = list<unknown>(inputs[name]).find((f) => typeof f !== "function");
    if (odd === undefined) continue;
    throw new TypeError(`Expected ${name} to be a function or a list but found ${describe(odd)}`);
  }
  const methods = { streamer: ["put", "end"], tokenizer: ["decode"] } as const;
  for (const [name, wanted] of Object.entries(methods)) {
    const value = inputs[name as keyof typeof methods] as Record<string, unknown> | undefined;
    if (value === undefined || wanted.every((method) => typeof value?.[method] === "function")) {
      continue;
    }
    throw new TypeError(`Expected ${name} to have ${wanted.join("() and ")}()`);
  }
  const { past_key_values } = inputs;
  if (past_key_values !== undefined) HybridMambaAttentionDynamicCache.check(past_key_values);
}

function seedWords(seed: number | bigint | undefined): [number, number] {
  if (seed === undefined) {
    const random = crypto.getRandomValues(new Uint32Array(2));
    return [random[0], random[1]];
  }
  if (typeof seed !== "bigint" && (!Number.isSafeInteger(seed) || seed < 0)) {
    throw new RangeError(
      `Expected seed to be a whole number of 0 or more but found ${describe(seed)}`,
    );
  }
  const bits = BigInt.asUintN(64, BigInt(seed));
  return [Number(bits & 0xffffffffn), Number(bits >> 32n)];
}
