/** BambaConfig: HF's fields and defaults, parsed and checked. */

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { explain } from "../weights/explain.ts";
import type { JsonObject } from "../weights/json.ts";
import {
  attentionLayers,
  by_hand,
  checkDtype,
  checkModelType,
  checkTimeStepLimit,
  type ConfigDType,
  count,
  default_partial_rotary_factor,
  headSize,
  type RopeParameters,
  ropeParameters,
  specs,
} from "./bamba_fields.ts";
import { checkField } from "./config_fields.ts";
import {
  configPath,
  encodeFloats,
  formatConfig,
  parseFields,
  readConfigFile,
} from "./config_file.ts";

export type { ConfigDType, RopeParameters };

/** The shape of a Bamba model. */
export class BambaConfig {
  static readonly model_type = "bamba";
  readonly model_type = "bamba";

  vocab_size!: number;
  tie_word_embeddings!: boolean;
  hidden_size!: number;
  intermediate_size!: number;
  num_hidden_layers!: number;
  num_attention_heads!: number;
  /** Fewer than attention heads: groups of heads share keys and values. */
  num_key_value_heads: number;
  hidden_act!: "silu";
  initializer_range!: number;
  rms_norm_eps!: number;
  use_cache!: boolean;
  num_logits_to_keep!: number | null;
  pad_token_id!: number | null;
  bos_token_id!: number | null;
  eos_token_id!: number | number[] | null;
  max_position_embeddings!: number;
  attention_dropout!: number | null;
  /** Layers with attention; all others are Mamba layers. */
  attn_layer_indices: number[] | null;
  mamba_n_heads!: number;
  mamba_d_head: number;
  mamba_n_groups!: number;
  mamba_d_state!: number;
  mamba_d_conv!: number;
  mamba_expand!: number;
  mamba_chunk_size!: number;
  mamba_conv_bias!: boolean;
  mamba_proj_bias!: boolean;
  /** Bounds for dt after softplus. */
  time_step_limit: [number, number];
  z_loss_coefficient!: number | null;
  rope_parameters: RopeParameters;
  attention_bias!: boolean;
  mlp_bias!: boolean;
  /** Of the stored weights; null when the config does not say. */
  dtype: ConfigDType | null;

  /** Fields that mean nothing here, kept for a round trip. */
  private readonly others: Record<string, unknown>;

  /**
   * @param fields any of HF's fields, in today's or older spellings; what is missing gets HF's
   *   default
   * @throws {TypeError | RangeError} naming the field that is wrong and what it holds
   */
  constructor(fields: Readonly<Record<string, unknown>> = {}) {
    if (fields.model_type !== undefined) checkModelType(fields.model_type);
    const values: Record<string, unknown> = {};
    for (const [name, spec] of Object.entries(specs)) {
      values[name] = checkField(name, spec, fields[name]);
    }
    Object.assign(this, values);
    this.num_key_value_heads = checkField(
      "num_key_value_heads",
      { ...count(8), nullable: true },
      fields.num_key_value_heads,
    ) as number | null ?? this.num_attention_heads;
    this.mamba_d_head = headSize(fields.mamba_d_head, this);
    this.attn_layer_indices = attentionLayers(fields, this.num_hidden_layers);
    this.time_step_limit = checkTimeStepLimit(fields.time_step_limit);
    this.rope_parameters = ropeParameters(fields);
    this.dtype = checkDtype(fields);
    this.others = Object.fromEntries(
      Object.entries(fields).filter(([name]) => !(name in specs) && !by_hand.has(name)),
    );
    // HF's own value for this older field, whatever the file says.
    if (fields.partial_rotary_factor !== undefined) {
      this.others.partial_rotary_factor = default_partial_rotary_factor;
    }
    checkArchitecture(this);
  }

  /**
   * Reads config.json of a folder.
   *
   * @param dir the folder, or the file itself
   * @param overrides fields that replace those of the file
   * @throws {Error} when the file cannot be read
   * @throws {SyntaxError | TypeError | RangeError} naming what is wrong in it
   */
  // deno-lint-ignore require-await -- HF's other from_pretrained wait; a missing file rejects
  static async from_pretrained(
    dir: string,
    overrides: Readonly<Record<string, unknown>> = {},
  ): Promise<BambaConfig> {
    const path = configPath(dir);
    const fields = readConfigFile(path);
    return explain(`Cannot read "${path}"`, () => {
      checkModelType(fields.model_type);
      return new BambaConfig({ ...fields, ...overrides });
    });
  }

  /**
   * Parses the text of a config.json; bare Infinity and NaN are taken as Python writes them.
   *
   * @throws {SyntaxError | TypeError | RangeError} naming what is wrong
   */
  static fromJson(text: string): BambaConfig {
    return new BambaConfig(parseFields(text));
  }

  /** Writes config.json into a folder, which is made when missing. */
  async save_pretrained(dir: string): Promise<void> {
    await mkdir(dir, { recursive: true });
    await writeFile(join(dir, "config.json"), `${formatConfig(this.toJSON())}\n`);
  }

  /** All fields as HF's to_dict() has them, without those that derive from others. */
  toJSON(): JsonObject {
    const { others, ...own } = this;
    return encodeFloats({ ...others, ...own }) as JsonObject;
  }

  /** One entry a layer, in the words of HF's layers_block_type. */
  get layers_block_type(): ("attention" | "mamba")[] {
    const attention = new Set(this.attn_layer_indices);
    return Array.from(
      { length: this.num_hidden_layers },
      (_, i) => attention.has(i) ? "attention" : "mamba",
    );
  }

  /** The same in the words of HF's layer_types. */
  get layer_types(): ("full_attention" | "linear_attention")[] {
    return this.layers_block_type.map((type) =>
      type === "attention" ? "full_attention" : "linear_attention"
    );
  }

  /** Channels of one attention head. */
  get head_dim(): number {
    return this.others.head_dim as number | undefined ??
      this.hidden_size / this.num_attention_heads;
  }

  /** Channels of a head that the rotary embedding turns: the first ones. */
  get rotary_dim(): number {
    return Math.trunc(this.head_dim * this.rope_parameters.partial_rotary_factor);
  }

  get rope_theta(): number {
    return this.rope_parameters.rope_theta;
  }

  /** Channels inside a Mamba layer. */
  get mamba_intermediate(): number {
    return this.mamba_expand * this.hidden_size;
  }

  /** Channels that go through a Mamba layer's convolution: x, B and C. */
  get conv_dim(): number {
    return this.mamba_intermediate + 2 * this.mamba_n_groups * this.mamba_d_state;
  }
}

/** Checks fields against one another. @throws {RangeError} with both values */
function checkArchitecture(config: BambaConfig): void {
  const divides = (part: keyof BambaConfig, whole: keyof BambaConfig) => {
    const [a, b] = [config[part], config[whole]] as number[];
    if (b % a !== 0) {
      throw new RangeError(
        `Expected ${part} of the config to divide ${whole} = ${b} but found ${a}`,
      );
    }
  };
  divides("num_key_value_heads", "num_attention_heads");
  divides("mamba_n_groups", "mamba_n_heads");
  const given = config.toJSON().head_dim;
  if (given === undefined) divides("num_attention_heads", "hidden_size");
  else checkField("head_dim", count(0), given);
  const { rotary_dim, head_dim } = config;
  if (config.attn_layer_indices?.length && (rotary_dim < 2 || rotary_dim % 2 !== 0)) {
    throw new RangeError(
      "Expected partial_rotary_factor of the config to give an even number of rotated channels " +
        `but found ${rotary_dim} of ${head_dim}`,
    );
  }
  const tokens = { pad: config.pad_token_id, bos: config.bos_token_id, eos: config.eos_token_id };
  for (const [name, ids] of Object.entries(tokens)) {
    const outside = [ids ?? []].flat().find((id) => id >= config.vocab_size);
    if (outside !== undefined) {
      throw new RangeError(
        `Expected ${name}_token_id of the config to be below vocab_size = ${config.vocab_size} ` +
          `but found ${outside}`,
      );
    }
  }
}
