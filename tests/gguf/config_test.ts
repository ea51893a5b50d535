import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { addConfig, configFields } from "../../src/gguf/config.ts";
import type { GgufTensor } from "../../src/gguf/reader.ts";
import { MetadataBuilder } from "../../src/gguf/values.ts";
import { BambaConfig } from "../../src/models/bamba_config.ts";

const bamba_9b = {
  model_type: "bamba",
  vocab_size: 128256,
  hidden_size: 4096,
  intermediate_size: 14336,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  attn_layer_indices: [9, 18, 27],
  mamba_n_heads: 128,
  mamba_d_head: 64,
  mamba_d_state: 128,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 262144,
  time_step_limit: [0, Infinity],
  tie_word_embeddings: false,
};

/** Names of tensors of a file, as far as a config depends on them. */
const tensors = (names: string[]) => {
  const one: GgufTensor = { type: "F32", shape: [128256, 4096], offset: 0, bytes: 4 };
  return new Map(names.map((name) => [name, one]));
};

function header(builder: MetadataBuilder, names = ["token_embd.weight", "output.weight"]) {
  const places = { alignment: 32, dataOffset: 0, fileBytes: 0 };
  return { version: 3, metadata: builder.metadata, tensors: tensors(names), ...places };
}

function written(config: BambaConfig): MetadataBuilder {
  const builder = new MetadataBuilder().add("general.architecture", "string", "granitehybrid");
  addConfig(builder, config);
  return builder;
}

describe("a config in GGUF's metadata", () => {
  it("comes back as it was", () => {
    const config = new BambaConfig(bamba_9b);
    const names = ["token_embd.weight", "output.weight", "blk.0.ssm_conv1d.bias"];
    const back = new BambaConfig(configFields(header(written(config), names)));
    for (const name of Object.keys(bamba_9b) as (keyof BambaConfig)[]) {
      assertEquals(back[name], config[name], String(name));
    }
    assertEquals(back.rope_parameters, config.rope_parameters);
    assertEquals([back.rotary_dim, back.head_dim, back.conv_dim], [64, 128, config.conv_dim]);
    assertEquals([back.mamba_conv_bias, back.attention_bias, back.mlp_bias], [true, false, false]);
  });

  it("says by its tensors what is tied and what has biases", () => {
    const builder = written(new BambaConfig({ ...bamba_9b, tie_word_embeddings: true }));
    const names = ["token_embd.weight", "blk.9.attn_q.bias", "blk.3.ffn_gate.bias"];
    const back = new BambaConfig(configFields(header(builder, names)));
    assertEquals([back.tie_word_embeddings, back.attention_bias, back.mlp_bias], [
      true,
      true,
      true,
    ]);
    assertEquals(back.mamba_conv_bias, false);
  });

  it("is not written when the format has no place for it", () => {
    for (
      const [fields, words] of [
        [
          { time_step_limit: [0.001, 0.1] },
          /time_step_limit to be \[0, Infinity\].*\[0.001, 0.1\]/,
        ],
        [{ mamba_proj_bias: true }, /mamba_proj_bias to be false/],
      ] as const
    ) {
      const config = new BambaConfig({ ...bamba_9b, ...fields });
      assertMatch(assertThrows(() => written(config), RangeError).message, words);
    }
  });

  const key = (name: string) => `granitehybrid.${name}`;
  const wrong: [string, (b: MetadataBuilder) => void, RegExp][] = [
    [
      "another architecture",
      (b) => b.add("general.architecture", "string", "llama"),
      /general.architecture to be "granitehybrid" but found "llama"/,
    ],
    ["experts", (b) => b.add(key("expert_count"), "u32", 64), /expert_count to be 0 but found 64/],
    ["a multiplier", (b) => b.add(key("residual_scale"), "f32", 0.25), /0 or 1 but found 0.25/],
    [
      "no rotation",
      (b) => b.add(key("rope.scaling.finetuned"), "bool", false),
      /finetuned to be true but found false/,
    ],
    ["scaled positions", (b) => b.add(key("rope.scaling.type"), "string", "yarn"), /"yarn"/],
    ["another scale", (b) => b.add(key("attention.scale"), "f32", 1), /1 \/ sqrt\(128\)/],
    ["too many layers", (b) => b.add(key("block_count"), "u32", 2 ** 31), /1 to 4096/],
    [
      "other heads in some layers",
      (b) =>
        b.addArray(
          key("attention.head_count_kv"),
          "i32",
          new Array(32).fill(0).with(3, 2).with(4, 8),
        ),
      /one number but found 2,8/,
    ],
    [
      "too few layers' heads",
      (b) => b.addArray(key("attention.head_count_kv"), "i32", [0, 8]),
      /each of 32 layers but found 2/,
    ],
    ["odd heads", (b) => b.add(key("attention.head_count"), "u32", 33), /divide embedding_length/],
    [
      "no state",
      (b) => b.metadata.delete(key("ssm.state_size")),
      /ssm.state_size but found nothing/,
    ],
    [
      "a text for a number",
      (b) => b.add(key("block_count"), "string", "x"),
      /a number but found "x"/,
    ],
  ];
  for (const [what, change, words] of wrong) {
    it(`of ${what} is refused in words`, () => {
      const builder = written(new BambaConfig(bamba_9b));
      change(builder);
      const error = assertThrows(() => configFields(header(builder)), Error);
      assertMatch(error.message, words);
    });
  }
});
