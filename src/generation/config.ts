/** GenerationConfig: how to generate, with HF's field names and defaults. */

import { existsSync, readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { checkFlags, checkOptions } from "../modeling/options.ts";
import type { ModelConfig } from "../modeling/pretrained.ts";

/** The fields that steer generation. */
export interface GenerationFields {
  /**
   * Tokens in a whole row, prompt included; `max_new_tokens` goes before it. Where neither is
   * given, 20 new tokens, as in HF.
   */
  max_length: number;
  max_new_tokens: number | null;
  min_length: number;
  min_new_tokens: number | null;
  do_sample: boolean;
  temperature: number;
  /** 0 = off */
  top_k: number;
  top_p: number;
  min_p: number | null;
  typical_p: number;
  repetition_penalty: number;
  no_repeat_ngram_size: number;
  bad_words_ids: number[][] | null;
  num_beams: number;
  length_penalty: number;
  early_stopping: boolean | "never";
  num_return_sequences: number;
  bos_token_id: number | null;
  eos_token_id: number | number[] | null;
  pad_token_id: number | null;
  stop_strings: string | string[] | null;
  use_cache: boolean;
  return_dict_in_generate: boolean;
  output_scores: boolean;
  output_logits: boolean;
}

/** HF's defaults. */
export const generation_defaults: Readonly<GenerationFields> = {
  max_length: 20,
  max_new_tokens: null,
  min_length: 0,
  min_new_tokens: null,
  do_sample: false,
  temperature: 1,
  top_k: 50,
  top_p: 1,
  min_p: null,
  typical_p: 1,
  repetition_penalty: 1,
  no_repeat_ngram_size: 0,
  bad_words_ids: null,
  num_beams: 1,
  length_penalty: 1,
  early_stopping: false,
  num_return_sequences: 1,
  bos_token_id: null,
  eos_token_id: null,
  pad_token_id: null,
  stop_strings: null,
  use_cache: true,
  return_dict_in_generate: false,
  output_scores: false,
  output_logits: false,
};

/** Names of the fields above. */
export const generation_names = Object.keys(generation_defaults);

const file_name = "generation_config.json";

/** Defaults of a model's `generate`, read from generation_config.json. */
export class GenerationConfig {
  /** Fields that are set; others have HF's defaults. */
  readonly fields: Partial<GenerationFields>;
  /** Fields of the file that steer nothing here, kept for saving. */
  readonly others: Record<string, unknown>;

  /** @throws {TypeError} for an unknown field, {RangeError} for a value outside its range */
  constructor(fields: Partial<GenerationFields> = {}, others: Record<string, unknown> = {}) {
    checkOptions("GenerationConfig", fields, generation_names);
    checkGeneration(fields);
    this.fields = { ...fields };
    this.others = others;
  }

  /** HF's from_model_config: the special tokens of a model's config, for want of a file. */
  static from_model_config(config: ModelConfig): GenerationConfig {
    const { bos_token_id, eos_token_id, pad_token_id } = config;
    const given = Object.entries({ bos_token_id, eos_token_id, pad_token_id })
      .filter(([, id]) => id !== undefined && id !== null);
    return new GenerationConfig(Object.fromEntries(given));
  }

  /** Reads the folder's generation_config.json; defaults where there is none. */
  static async from_pretrained(dir: string): Promise<GenerationConfig> {
    return await Promise.resolve(dir).then(GenerationConfig.#read);
  }

  static #read(dir: string): GenerationConfig {
    const path = join(dir, file_name);
    if (!existsSync(path)) return new GenerationConfig();
    let parsed: unknown;
    try {
      parsed = JSON.parse(readFileSync(path, "utf8"));
    } catch (error) {
      throw new TypeError(`Cannot read ${path}: ${(error as Error).message}`);
    }
    if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
      throw new TypeError(`Expected ${path} to hold one JSON object`);
    }
    const fields: Record<string, unknown> = {};
    const others: Record<string, unknown> = {};
    for (const [name, value] of Object.entries(parsed)) {
      const steers = generation_names.includes(name);
      if (
        steers && value === null && generation_defaults[name as keyof GenerationFields] !== null
      ) {
        continue;
      }
      (steers ? fields : others)[name] = value;
    }
    return new GenerationConfig(fields, others);
  }

  /** Writes generation_config.json into a folder. */
  async save_pretrained(dir: string): Promise<void> {
    await mkdir(dir, { recursive: true });
    await writeFile(join(dir, file_name), JSON.stringify(this, null, 2) + "\n");
  }

  toJSON(): Record<string, unknown> {
    return { ...this.others, ...this.fields };
  }

  /**
   * These fields with `changes` on top and HF's defaults below. A default `max_length` counts new
   * tokens.
   */
  resolve(changes: Partial<GenerationFields>): GenerationFields {
    checkGeneration(changes);
    const given = Object.fromEntries(Object.entries(changes).filter(([, v]) => v !== undefined));
    const merged = { ...generation_defaults, ...this.fields, ...given };
    if (given.max_length !== undefined && given.max_new_tokens === undefined) {
      merged.max_new_tokens = null;
    }
    if (given.min_length !== undefined && given.min_new_tokens === undefined) {
      merged.min_new_tokens = null;
    }
    const { max_length } = { ...this.fields, ...given };
    if (max_length === undefined || max_length === null) {
      merged.max_new_tokens ??= generation_defaults.max_length;
    }
    return merged;
  }
}

type Check = readonly [holds: (x: number) => boolean, meaning: string];

const whole = (low: number): Check => [
  (x) => Number.isInteger(x) && x >= low && x <= 0x7fffffff,
  `a whole number of ${low} or more`,
];
const share: Check = [(x) => x > 0 && x <= 1, "a number above 0 and up to 1"];
const positive: Check = [(x) => x > 0 && Number.isFinite(x), "a number above 0"];

const checks: Partial<Record<keyof GenerationFields, Check>> = {
  max_length: whole(1),
  max_new_tokens: whole(1),
  min_length: whole(0),
  min_new_tokens: whole(0),
  temperature: positive,
  top_k: whole(0),
  top_p: [(x) => x >= 0 && x <= 1, "a number from 0 to 1"],
  min_p: [(x) => x >= 0 && x <= 1, "a number from 0 to 1"],
  typical_p: share,
  repetition_penalty: positive,
  no_repeat_ngram_size: whole(0),
  num_beams: whole(1),
  length_penalty: [Number.isFinite, "a number"],
  num_return_sequences: whole(1),
  bos_token_id: whole(0),
  pad_token_id: whole(0),
};

const flags = [
  "do_sample",
  "use_cache",
  "return_dict_in_generate",
  "output_scores",
  "output_logits",
] as const;

/** @throws {TypeError | RangeError} naming the first field with an impossible value */
export function checkGeneration(fields: Partial<GenerationFields>): void {
  for (const [name, check] of Object.entries(checks)) {
    const value = fields[name as keyof GenerationFields];
    if (value === undefined || value === null) continue;
    if (typeof value !== "number" || !check[0](value)) {
      throw new RangeError(`Expected ${name} to be ${check[1]} but found ${JSON.stringify(value)}`);
    }
  }
  checkFlags(fields, flags);
  const { early_stopping, bad_words_ids, eos_token_id } = fields;
  if (early_stopping !== undefined && ![true, false, "never"].includes(early_stopping)) {
    throw new RangeError(
      `Expected early_stopping to be true, false or "never" but found ${early_stopping}`,
    );
  }
  const id = whole(0);
  if (bad_words_ids !== undefined && bad_words_ids !== null) {
    const fits = Array.isArray(bad_words_ids) &&
      bad_words_ids.every((word) => Array.isArray(word) && word.length > 0 && word.every(id[0]));
    if (!fits) {
      throw new TypeError(
        `Expected bad_words_ids to be lists of ids, none empty, but found ` +
          JSON.stringify(bad_words_ids).slice(0, 80),
      );
    }
  }
  if (eos_token_id !== undefined && eos_token_id !== null) {
    const ids = Array.isArray(eos_token_id) ? eos_token_id : [eos_token_id];
    if (!ids.every((x) => typeof x === "number" && id[0](x))) {
      throw new RangeError(
        `Expected eos_token_id to be an id or a list of ids but found ${JSON.stringify(ids)}`,
      );
    }
  }
}
