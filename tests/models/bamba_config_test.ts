import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { AutoConfig } from "../../src/models/auto_config.ts";
import { BambaConfig } from "../../src/models/bamba_config.ts";
import { golden_names, goldenFolder, model_folder, withFolder } from "../weights/support.ts";

/** A small config that is right. */
const small = {
  model_type: "bamba",
  vocab_size: 200,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  mamba_n_heads: 8,
  mamba_d_state: 16,
  attn_layer_indices: [1],
};

/** A field, a wrong value, and words of the sentence it must get. */
const wrong: [Record<string, unknown>, string][] = [
  [{ vocab_size: 0 }, "vocab_size of the config to be an integer from 1 to 16777216 but found 0"],
  [{ vocab_size: 1e12 }, "but found 1000000000000"],
  [{ vocab_size: "200" }, 'but found "200"'],
  [{ hidden_size: null }, "hidden_size of the config to be an integer"],
  [{ hidden_size: 64.5 }, "but found 64.5"],
  [{ hidden_size: -64 }, "but found -64"],
  [{ hidden_size: 66 }, "mamba_n_heads of the config to divide mamba_expand * hidden_size = 132"],
  [{ intermediate_size: NaN }, "but found NaN"],
  [{ num_hidden_layers: 1e9 }, "from 1 to 4096 but found 1000000000"],
  [
    { num_attention_heads: 5 },
    "num_key_value_heads of the config to divide num_attention_heads = 5",
  ],
  [{ num_attention_heads: 6 }, "num_attention_heads of the config to divide hidden_size = 64"],
  [{ num_key_value_heads: 3 }, "to divide num_attention_heads = 4 but found 3"],
  [{ num_key_value_heads: "2" }, "or null but found"],
  [{ hidden_act: "gelu" }, '"silu" but found "gelu"'],
  [{ hidden_act: null }, "but found null"],
  [{ rms_norm_eps: -1 }, "rms_norm_eps"],
  [{ rms_norm_eps: "small" }, "rms_norm_eps"],
  [{ rms_norm_eps: Infinity }, "but found Infinity"],
  [{ tie_word_embeddings: 1 }, "true or false but found 1"],
  [{ mamba_conv_bias: "yes" }, "mamba_conv_bias"],
  [{ mamba_d_conv: 1000 }, "from 1 to 64 but found 1000"],
  [{ mamba_d_head: 15 }, '"auto" or mamba_expand * hidden_size / mamba_n_heads = 16 but found 15'],
  [{ mamba_d_head: "wide" }, 'but found "wide"'],
  [{ mamba_n_heads: 7 }, "mamba_n_heads"],
  [{ mamba_n_groups: 3 }, "mamba_n_groups of the config to divide mamba_n_heads = 8 but found 3"],
  [{ attn_layer_indices: [3] }, "layers 0 to 2 once each but found [3]"],
  [{ attn_layer_indices: [1, 1] }, "once each but found [1,1]"],
  [{ attn_layer_indices: [-1] }, "a list of layers but found [-1]"],
  [{ attn_layer_indices: 1 }, "a list of layers but found 1"],
  [{ attn_layer_indices: ["1"] }, "a list of layers"],
  [{ layer_types: ["mamba", "attention"] }, "layer_types of the config to hold 3 of"],
  [{ layer_types: ["mamba", "attention", "mlp"] }, "mlp"],
  [{ layers_block_type: ["mamba", "mamba", "attention"] }, "attention in layers [2] and [1]"],
  [{ time_step_limit: [0.5, 0.1] }, "0 <= min <= max but found [0.5, 0.1]"],
  [{ time_step_limit: [-1, 1] }, "but found [-1, 1]"],
  [{ time_step_limit: [0, NaN] }, "but found [0, NaN]"],
  [{ time_step_limit: [0] }, "two numbers but found [0]"],
  [{ time_step_limit: ["0", "Infinity"] }, "two numbers"],
  [{ time_step_limit: 3 }, "two numbers but found 3"],
  [{ rope_theta: 0 }, "rope_theta of the config to be a number from 0.001"],
  [{ rope_theta: "big" }, 'but found "big"'],
  [{ rope_parameters: [] }, "rope_parameters of the config to be an object but found []"],
  [{ rope_scaling: { type: "linear", factor: 2 } }, 'but found "linear"'],
  [{ rope_parameters: { rope_type: "yarn" } }, "scaled rotary embeddings are not supported"],
  [{ rope_parameters: { partial_rotary_factor: 2 } }, "from 0 to 1 but found 2"],
  [
    { rope_parameters: { partial_rotary_factor: 0.2 } },
    "even number of rotated channels but found 3",
  ],
  [{ dtype: "int8" }, 'float32, bfloat16, float16 but found "int8"'],
  [{ torch_dtype: "float64" }, 'but found "float64"'],
  [{ pad_token_id: -1 }, "a token id or null but found -1"],
  [{ bos_token_id: 200 }, "bos_token_id of the config to be below vocab_size = 200 but found 200"],
  [{ eos_token_id: [2, 999] }, "below vocab_size = 200 but found 999"],
  [{ eos_token_id: ["2"] }, "eos_token_id"],
  [{ head_dim: 0 }, "head_dim"],
  [{ model_type: "llama" }, 'to be "bamba" but found "llama"'],
  [{ model_type: 3 }, "but found 3"],
];

describe("BambaConfig", () => {
  it("resolves the goldens' config texts as HF does", () => {
    const folder = goldenFolder("tiny-a-fp32");
    if (folder === undefined) return;
    const { config_cases } = JSON.parse(readFileSync(join(folder, "goldens.json"), "utf8"));
    assert(config_cases.length >= 9);
    for (const { name, config_json, resolved } of config_cases) {
      const config = BambaConfig.fromJson(config_json);
      for (const [field, expected] of Object.entries(resolved)) {
        let found: unknown = config[field as keyof BambaConfig];
        if (field === "time_step_limit") {
          found = config.time_step_limit.map((n) => n === Infinity ? "Infinity" : n);
        }
        assertEquals(found, expected, `${name}: ${field} is ${JSON.stringify(found)}`);
      }
      assertEquals(BambaConfig.fromJson(JSON.stringify(config)), config, name);
    }
  });

  it("gives HF's config.json files back, word for word but for 1e-05", async () => {
    const folders = golden_names.map(goldenFolder).filter((folder) => folder !== undefined);
    for (const folder of [...folders, model_folder]) {
      const config = await BambaConfig.from_pretrained(folder);
      await withFolder(async (copy) => {
        await config.save_pretrained(join(copy, "new"));
        const written = readFileSync(join(copy, "new", "config.json"), "utf8");
        const original = readFileSync(join(folder, "config.json"), "utf8");
        const numbers = (text: string) =>
          text.replace(/1e-0(\d)/g, (e) => String(Number(e))).trimEnd();
        assertEquals(numbers(written.replaceAll("1e-6", "0.000001")), numbers(original));
        assertEquals(await BambaConfig.from_pretrained(join(copy, "new")), config);
      });
    }
  });

  it("has HF's defaults", () => {
    const config = new BambaConfig();
    const { vocab_size, hidden_size, intermediate_size, num_hidden_layers } = config;
    assertEquals([vocab_size, hidden_size, intermediate_size, num_hidden_layers], [
      128000,
      4096,
      14336,
      32,
    ]);
    assertEquals([config.num_attention_heads, config.num_key_value_heads], [32, 8]);
    assertEquals([config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state], [128, 64, 256]);
    assertEquals([config.pad_token_id, config.bos_token_id, config.eos_token_id], [0, 1, 2]);
    assertEquals([config.rms_norm_eps, config.rope_theta, config.rotary_dim], [1e-5, 10000, 64]);
    assertEquals(config.max_position_embeddings, 262144);
    assertEquals(config.attn_layer_indices, null);
    assertEquals([config.mamba_intermediate, config.conv_dim], [8192, 8192 + 512]);
  });

  it("keeps fields it does not know, and Infinity in them", () => {
    const config = new BambaConfig({ ...small, use_mamba_kernels: true, x: [Infinity, { y: -1 }] });
    const json = config.toJSON();
    assertEquals(json.use_mamba_kernels, true);
    assertEquals(json.x, [{ __float__: "Infinity" }, { y: -1 }]);
    assertEquals(BambaConfig.fromJson(JSON.stringify(config)).toJSON(), json);
  });

  it("takes both spellings of the layers", () => {
    const { attn_layer_indices: _, ...rest } = small;
    const spellings = [
      { attn_layer_indices: [1] },
      { layer_types: ["linear_attention", "full_attention", "linear_attention"] },
      { layers_block_type: ["mamba", "attention", "mamba"] },
      { layers_block_type: ["mamba", "attention", "mamba"], attn_layer_indices: [1] },
    ];
    for (const spelling of spellings) {
      const config = new BambaConfig({ ...rest, ...spelling });
      assertEquals(config.attn_layer_indices, [1]);
      assertEquals(config.layers_block_type, ["mamba", "attention", "mamba"]);
      assertEquals(config.layer_types[1], "full_attention");
    }
  });

  it("takes a head_dim that hidden_size does not give", () => {
    const config = new BambaConfig({ ...small, head_dim: 32 });
    assertEquals([config.head_dim, config.rotary_dim], [32, 16]);
  });

  for (const [fields, words] of wrong) {
    it(`refuses ${Object.entries(fields).map(([k, v]) => `${k} ${JSON.stringify(v)}`)}`, () => {
      const error = assertThrows(() => new BambaConfig({ ...small, ...fields }), Error, words);
      assert(error instanceof RangeError || error instanceof TypeError, error.name);
    });
  }
});

describe("config.json", () => {
  it("is named where it cannot be read", () =>
    withFolder(async (folder) => {
      const path = join(folder, "config.json");
      const cases: [string, string][] = [
        ["{", "Expected a string at line 1"],
        ["[]", "JSON object but found []"],
        ['{"model_type": "bamba", "hidden_size": "x"}', "hidden_size"],
        ['{"model_type": "bamba", "time_step_limit": [0, {"__float__": "big"}]}', "__float__"],
        ["{}", 'to be "bamba" but found nothing'],
        ['{"model_type": "granitemoehybrid"}', '"granitemoehybrid"'],
      ];
      const missing = await assertRejects(
        () => BambaConfig.from_pretrained(folder),
        Error,
        "ENOENT",
      );
      assertStringIncludes(missing.message, path);
      for (const [text, words] of cases) {
        writeFileSync(path, text);
        const error = await assertRejects(() => BambaConfig.from_pretrained(folder), Error, words);
        assertStringIncludes(error.message, path);
      }
    }));

  it("may be overridden", () =>
    withFolder(async (folder) => {
      mkdirSync(join(folder, "x"));
      writeFileSync(join(folder, "config.json"), JSON.stringify(small));
      const config = await BambaConfig.from_pretrained(folder, { num_hidden_layers: 2 });
      assertEquals(config.num_hidden_layers, 2);
    }));
});

describe("AutoConfig", () => {
  it("finds the class by model_type, and names another architecture", () =>
    withFolder(async (folder) => {
      const path = join(folder, "config.json");
      writeFileSync(path, JSON.stringify(small));
      assert(await AutoConfig.from_pretrained(folder) instanceof BambaConfig);
      writeFileSync(path, '{"model_type": "llama"}');
      await assertRejects(() => AutoConfig.from_pretrained(folder), TypeError, '"llama"');
      writeFileSync(path, '{"model_type": "constructor"}');
      await assertRejects(() => AutoConfig.from_pretrained(folder), TypeError, "one of bamba");
      writeFileSync(path, "{}");
      await assertRejects(() => AutoConfig.from_pretrained(folder), TypeError, "found nothing");
    }));
});
