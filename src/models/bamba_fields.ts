/** BambaConfig's fields: their rules, defaults and older spellings. */

import { isJsonObject } from "../weights/json.ts";
import { checkField, type FieldSpec, show } from "./config_fields.ts";

type Fields = Readonly<Record<string, unknown>>;

const size_max = 2 ** 24;
/** A rule for a size of at least 1. */
export const count = (value: number, max = size_max): FieldSpec => ({
  kind: "count",
  min: 1,
  max,
  default: value,
});
const flag = (value: boolean): FieldSpec => ({ kind: "boolean", default: value });

/** Every field with a rule of its own; the rest is parsed by hand below. */
export const specs = {
  vocab_size: count(128000),
  tie_word_embeddings: flag(false),
  hidden_size: count(4096),
  intermediate_size: count(14336),
  num_hidden_layers: count(32, 4096),
  num_attention_heads: count(32),
  hidden_act: { kind: "choice", choices: ["silu"], default: "silu" },
  initializer_range: { kind: "number", min: 0, max: 100, default: 0.02 },
  rms_norm_eps: { kind: "number", min: 0, max: 1, default: 1e-5 },
  use_cache: flag(true),
  num_logits_to_keep: { kind: "count", min: 0, max: 2 ** 31 - 1, default: 1, nullable: true },
  pad_token_id: { kind: "token", default: 0, nullable: true },
  bos_token_id: { kind: "token", default: 1, nullable: true },
  eos_token_id: { kind: "tokens", default: 2, nullable: true },
  max_position_embeddings: count(262144, 2 ** 31 - 1),
  attention_dropout: { kind: "number", min: 0, max: 1, default: 0, nullable: true },
  mamba_n_heads: count(128),
  mamba_n_groups: count(1),
  mamba_d_state: count(256),
  mamba_d_conv: count(4, 64),
  mamba_expand: count(2, 1024),
  mamba_chunk_size: count(256),
  mamba_conv_bias: flag(true),
  mamba_proj_bias: flag(false),
  z_loss_coefficient: { kind: "number", min: 0, max: 1e6, default: 0, nullable: true },
  attention_bias: flag(false),
  mlp_bias: flag(false),
} as const satisfies Record<string, FieldSpec>;

/** Fields that need more than one rule, and older spellings of some. */
export const by_hand: ReadonlySet<string> = new Set([
  "model_type",
  "num_key_value_heads",
  "mamba_d_head",
  "attn_layer_indices",
  "layer_types",
  "layers_block_type",
  "time_step_limit",
  "rope_parameters",
  "rope_scaling",
  "rope_theta",
  "partial_rotary_factor",
  "dtype",
  "torch_dtype",
]);

/** How the rotary embedding turns; HF's `rope_parameters`. */
export interface RopeParameters {
  rope_type: string;
  rope_theta: number;
  partial_rotary_factor: number;
  [key: string]: unknown;
}

/** A dtype that weights may be stored in. */
export type ConfigDType = "float32" | "bfloat16" | "float16";

const dtypes: readonly ConfigDType[] = ["float32", "bfloat16", "float16"];
const default_theta = 10000;
export const default_partial_rotary_factor = 0.5;

/** @throws {TypeError} naming the other architecture */
export function checkModelType(found: unknown): void {
  if (found === "bamba") return;
  throw new TypeError(
    `Expected model_type of the config to be "bamba" but found ${show(found)}` +
      `${typeof found === "string" ? ": only Bamba models can be run" : ""}`,
  );
}

/** The head size of the Mamba layers. @throws {RangeError} unless heads fill the channels */
export function headSize(
  found: unknown,
  { mamba_n_heads, mamba_intermediate }: { mamba_n_heads: number; mamba_intermediate: number },
): number {
  if (mamba_intermediate % mamba_n_heads !== 0) {
    throw new RangeError(
      "Expected mamba_n_heads of the config to divide mamba_expand * hidden_size = " +
        `${mamba_intermediate} but found ${mamba_n_heads}`,
    );
  }
  const size = mamba_intermediate / mamba_n_heads;
  if (found === undefined || found === "auto" || found === null || found === size) return size;
  const text = `Expected mamba_d_head of the config to be "auto" or mamba_expand * hidden_size / ` +
    `mamba_n_heads = ${size} but found ${show(found)}`;
  throw typeof found === "number" ? new RangeError(text) : new TypeError(text);
}

const layer_words: Readonly<Record<string, boolean>> = {
  attention: true,
  full_attention: true,
  mamba: false,
  linear_attention: false,
};

/** Layers with attention, from whichever spelling the config has. */
export function attentionLayers(
  fields: Fields,
  num_hidden_layers: number,
): number[] | null {
  const indices = fields.attn_layer_indices ?? null;
  if (indices !== null) {
    const fits = (i: unknown) => Number.isInteger(i) && i as number >= 0;
    if (!Array.isArray(indices) || !indices.every(fits)) {
      throw new TypeError(
        `Expected attn_layer_indices of the config to be a list of layers but found ${
          show(indices)
        }`,
      );
    }
    const outside = indices.find((i) => i >= num_hidden_layers);
    if (outside !== undefined || new Set(indices).size !== indices.length) {
      throw new RangeError(
        `Expected attn_layer_indices of the config to name layers 0 to ${num_hidden_layers - 1} ` +
          `once each but found ${show(indices)}`,
      );
    }
  }
  for (const name of ["layer_types", "layers_block_type"]) {
    const types = fields[name] ?? null;
    if (types === null) continue;
    const isWord = (word: unknown) => typeof word === "string" && Object.hasOwn(layer_words, word);
    if (!Array.isArray(types) || types.length !== num_hidden_layers || !types.every(isWord)) {
      throw new RangeError(
        `Expected ${name} of the config to hold ${num_hidden_layers} of ` +
          `${Object.keys(layer_words).join(", ")} but found ${show(types)}`,
      );
    }
    const named = [...types.keys()].filter((i) => layer_words[types[i]]);
    if (indices === null) return named;
    const same = named.length === indices.length && named.every((i) => indices.includes(i));
    if (!same) {
      throw new RangeError(
        `Expected ${name} and attn_layer_indices of the config to agree ` +
          `but found attention in layers [${named}] and [${indices}]`,
      );
    }
  }
  return indices;
}

/** HF's rope_parameters out of today's or older fields. */
export function ropeParameters(fields: Fields): RopeParameters {
  const name = fields.rope_scaling ? "rope_scaling" : "rope_parameters";
  const given = fields[name] ?? {};
  if (!isJsonObject(given)) {
    throw new TypeError(`Expected ${name} of the config to be an object but found ${show(given)}`);
  }
  const rope_type = given.rope_type ?? given.type ?? "default";
  if (rope_type !== "default") {
    throw new RangeError(
      `Expected rope_type of the config to be "default" but found ${show(rope_type)}: ` +
        "scaled rotary embeddings are not supported",
    );
  }
  const theta: FieldSpec = { kind: "number", min: 1e-3, max: 1e12, default: default_theta };
  const factor: FieldSpec = {
    kind: "number",
    min: 0,
    max: 1,
    default: default_partial_rotary_factor,
  };
  const rope_theta = given.rope_theta ?? fields.rope_theta ?? undefined;
  return {
    ...given,
    rope_type,
    rope_theta: checkField("rope_theta", theta, rope_theta) as number,
    partial_rotary_factor: checkField(
      "partial_rotary_factor",
      factor,
      given.partial_rotary_factor ?? undefined,
    ) as number,
  };
}

/** The dtype of the stored weights by either name. @throws {RangeError} for an unknown one */
export function checkDtype(fields: Fields): ConfigDType | null {
  const found = fields.dtype ?? fields.torch_dtype ?? null;
  if (found === null || dtypes.includes(found as ConfigDType)) return found as ConfigDType | null;
  throw new RangeError(
    `Expected dtype of the config to be one of ${dtypes.join(", ")} but found ${show(found)}`,
  );
}

/**
 * The pair of bounds for dt, with null and a missing pair as [0, Infinity].
 *
 * @throws {TypeError | RangeError} unless it is two numbers with 0 <= min <= max
 */
export function checkTimeStepLimit(value: unknown): [number, number] {
  if (value === undefined || value === null) return [0, Infinity];
  const pair = value as unknown[];
  if (!Array.isArray(value) || pair.length !== 2 || !pair.every((n) => typeof n === "number")) {
    throw new TypeError(
      `Expected time_step_limit of the config to be two numbers but found ${show(value)}`,
    );
  }
  const [low, high] = pair as number[];
  if (!(low >= 0 && low <= high && low < Infinity)) {
    throw new RangeError(
      "Expected time_step_limit of the config to be [min, max] with 0 <= min <= max " +
        `but found [${low}, ${high}]`,
    );
  }
  return [low, high];
}
