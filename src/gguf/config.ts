/** BambaConfig out of a GGUF file's metadata, and back. */

import { quote } from "./format.ts";
import type { GgufHeader } from "./reader.ts";
import { MetadataBuilder, Values } from "./values.ts";

/** What is written of a config: fields of BambaConfig. */
export interface ConfigToWrite {
  readonly vocab_size: number;
  readonly tie_word_embeddings: boolean;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly rotary_dim: number;
  readonly rope_theta: number;
  readonly rms_norm_eps: number;
  readonly max_position_embeddings: number;
  readonly attn_layer_indices: readonly number[] | null;
  readonly mamba_n_heads: number;
  readonly mamba_n_groups: number;
  readonly mamba_d_state: number;
  readonly mamba_d_conv: number;
  readonly mamba_intermediate: number;
  readonly mamba_proj_bias: boolean;
  readonly time_step_limit: readonly [number, number];
}

/** What llama.cpp calls Bamba: one of its hybrids of Mamba2 and attention. */
export const architecture = "granitehybrid";

const key = (name: string) => `${architecture}.${name}`;

/** Multipliers of Granite, which Bamba lacks, with the values that mean nothing. */
const neutral: Readonly<Record<string, readonly number[]>> = {
  logit_scale: [0, 1],
  residual_scale: [0, 1],
  embedding_scale: [0, 1],
  expert_count: [0],
  "rope.scaling.factor": [0, 1],
};

/** @throws {TypeError} naming the other architecture */
export function checkArchitecture(values: Values): void {
  const found = values.text("general.architecture");
  if (found !== architecture) {
    throw new TypeError(
      `Expected general.architecture to be "${architecture}" but found ${quote(found)}: ` +
        "only Bamba models can be run",
    );
  }
}

/** @throws {RangeError} for a part of Granite's models that Bamba's do not have */
function checkBamba(values: Values, head_dim: number): void {
  for (const [name, allowed] of Object.entries(neutral)) {
    const found = values.numberOr(key(name));
    if (found !== undefined && !allowed.includes(found)) {
      throw new RangeError(
        `Expected ${key(name)} to be ${allowed.join(" or ")} but found ${found}: ` +
          "this is no Bamba but one of Granite's models, which cannot be run",
      );
    }
  }
  const scale = values.numberOr(key("attention.scale")) ?? 0;
  if (scale !== 0 && Math.abs(scale * Math.sqrt(head_dim) - 1) > 1e-5) {
    throw new RangeError(
      `Expected ${key("attention.scale")} to be 1 / sqrt(${head_dim}) but found ${scale}`,
    );
  }
  const scaling = values.textOr(key("rope.scaling.type"));
  if (scaling !== undefined && scaling !== "none" && scaling !== "linear") {
    throw new RangeError(
      `Expected ${key("rope.scaling.type")} to be "none" but found ${quote(scaling)}: ` +
        "scaled rotary embeddings are not supported",
    );
  }
  if (values.flagOr(key("rope.scaling.finetuned")) === false) {
    throw new RangeError(
      `Expected ${key("rope.scaling.finetuned")} to be true but found false: ` +
        "a model without rotary embeddings is no Bamba",
    );
  }
}

/** Layers with attention, and their number of heads for keys and values. */
function attention(values: Values, layers: number): { indices: number[]; kv_heads: number } {
  const name = key("attention.head_count_kv");
  const found = typeof values.get(name) === "number"
    ? new Array<number>(layers).fill(values.number(name))
    : values.numbersOr(name) ?? [];
  if (found.length !== layers) {
    throw new RangeError(
      `Expected ${name} to have one number for each of ${layers} layers but found ${found.length}`,
    );
  }
  const indices = [...found.keys()].filter((i) => found[i] !== 0);
  const counts = new Set(indices.map((i) => found[i]));
  if (counts.size > 1) {
    throw new RangeError(`Expected ${name} to be 0 or one number but found ${[...counts]}`);
  }
  return { indices, kv_heads: found[indices[0]] ?? values.number(key("attention.head_count")) };
}

/** Channels of an attention head, and how many of them rotate. */
export function rotaryShape(values: Values): { head_dim: number; rotary_dim: number } {
  const hidden: [string, number] = ["embedding_length", values.number(key("embedding_length"))];
  const head_dim = values.numberOr(key("attention.key_length")) ??
    times(hidden, [key("attention.head_count"), values.number(key("attention.head_count"))]);
  return { head_dim, rotary_dim: values.numberOr(key("rope.dimension_count")) ?? head_dim };
}

/** Whole number of times that `part` goes into `whole`. @throws {RangeError} otherwise */
function times(whole: [string, number], part: [string, number]): number {
  if (part[1] > 0 && whole[1] % part[1] === 0) return whole[1] / part[1];
  throw new RangeError(
    `Expected ${part[0]} to divide ${whole[0]} = ${whole[1]} but found ${part[1]}`,
  );
}

/**
 * HF's fields of the model in a file.
 *
 * @throws {TypeError | RangeError} naming what is missing or does not fit Bamba
 */
export function configFields(header: GgufHeader): Record<string, unknown> {
  const values = new Values(header.metadata);
  checkArchitecture(values);
  const layers = values.number(key("block_count"));
  // Checked here already: the next lines make lists of this length.
  if (!Number.isInteger(layers) || layers < 1 || layers > 4096) {
    throw new RangeError(`Expected ${key("block_count")} to be 1 to 4096 but found ${layers}`);
  }
  const hidden: [string, number] = ["embedding_length", values.number(key("embedding_length"))];
  const heads = values.number(key("attention.head_count"));
  const { head_dim, rotary_dim } = rotaryShape(values);
  checkBamba(values, head_dim);
  const { indices, kv_heads } = attention(values, layers);
  const inner: [string, number] = ["ssm.inner_size", values.number(key("ssm.inner_size"))];
  const mamba_heads = values.number(key("ssm.time_step_rank"));
  const has = (name: string) => header.tensors.has(name);
  const some = (part: string) =>
    Array.from({ length: layers }, (_, i) => `blk.${i}.${part}`).some(has);
  return {
    model_type: "bamba",
    architectures: ["BambaForCausalLM"],
    vocab_size: header.tensors.get("token_embd.weight")?.shape[0] ??
      values.number(key("vocab_size")),
    tie_word_embeddings: !has("output.weight"),
    hidden_size: hidden[1],
    intermediate_size: values.number(key("feed_forward_length")),
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kv_heads,
    ...(head_dim * heads === hidden[1] ? {} : { head_dim }),
    attn_layer_indices: indices,
    rms_norm_eps: rounded(values.number(key("attention.layer_norm_rms_epsilon"))),
    max_position_embeddings: values.number(key("context_length")),
    rope_parameters: {
      rope_type: "default",
      rope_theta: rounded(values.numberOr(key("rope.freq_base")) ?? 10000),
      partial_rotary_factor: rotary_dim / head_dim,
    },
    mamba_n_heads: mamba_heads,
    mamba_d_head: times(inner, [key("ssm.time_step_rank"), mamba_heads]),
    mamba_n_groups: values.number(key("ssm.group_count")),
    mamba_d_state: values.number(key("ssm.state_size")),
    mamba_d_conv: values.number(key("ssm.conv_kernel")),
    mamba_expand: times(inner, [key("embedding_length"), hidden[1]]),
    mamba_conv_bias: some("ssm_conv1d.bias"),
    mamba_proj_bias: some("ssm_in.bias"),
    attention_bias: some("attn_q.bias"),
    mlp_bias: some("ffn_gate.bias"),
    time_step_limit: [0, Infinity],
    // An id that is not there is not HF's default either.
    bos_token_id: values.numberOr("tokenizer.ggml.bos_token_id") ?? null,
    eos_token_id: values.numberOr("tokenizer.ggml.eos_token_id") ?? null,
    pad_token_id: values.numberOr("tokenizer.ggml.padding_token_id") ?? null,
  };
}

/** The shortest decimal that has the same f32: 1e-5 instead of 0.000009999999747378752. */
function rounded(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return short;
  }
  return value;
}

/**
 * A config as metadata.
 *
 * @throws {RangeError} for what the architecture has no place for
 */
export function addConfig(builder: MetadataBuilder, config: ConfigToWrite): void {
  checkExpressible(config);
  const attention = new Set(config.attn_layer_indices);
  builder
    .add(key("vocab_size"), "u32", config.vocab_size)
    .add(key("block_count"), "u32", config.num_hidden_layers)
    .add(key("context_length"), "u32", config.max_position_embeddings)
    .add(key("embedding_length"), "u32", config.hidden_size)
    .add(key("feed_forward_length"), "u32", config.intermediate_size)
    .add(key("attention.head_count"), "u32", config.num_attention_heads)
    .addArray(
      key("attention.head_count_kv"),
      "i32",
      Array.from(
        { length: config.num_hidden_layers },
        (_, i) => attention.has(i) ? config.num_key_value_heads : 0,
      ),
    )
    .add(key("attention.layer_norm_rms_epsilon"), "f32", config.rms_norm_eps)
    .add(key("rope.dimension_count"), "u32", config.rotary_dim)
    .add(key("rope.freq_base"), "f32", config.rope_theta)
    .add(key("rope.scaling.finetuned"), "bool", true)
    .add(key("ssm.conv_kernel"), "u32", config.mamba_d_conv)
    .add(key("ssm.state_size"), "u32", config.mamba_d_state)
    .add(key("ssm.group_count"), "u32", config.mamba_n_groups)
    .add(key("ssm.inner_size"), "u32", config.mamba_intermediate)
    .add(key("ssm.time_step_rank"), "u32", config.mamba_n_heads);
  if (config.head_dim * config.num_attention_heads !== config.hidden_size) {
    builder
      .add(key("attention.key_length"), "u32", config.head_dim)
      .add(key("attention.value_length"), "u32", config.head_dim);
  }
}

function checkExpressible(config: ConfigToWrite): void {
  const [low, high] = config.time_step_limit;
  if (low !== 0 || high !== Infinity) {
    throw new RangeError(
      "Expected time_step_limit to be [0, Infinity], as GGUF has no place for another, " +
        `but found [${low}, ${high}]`,
    );
  }
  if (config.mamba_proj_bias) {
    throw new RangeError(
      "Expected mamba_proj_bias to be false, as GGUF has no place for such biases, but found true",
    );
  }
}
