import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertGreater,
  assertLess,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { AutoConfig, AutoModelForCausalLM, AutoTokenizer } from "../../mod.ts";
import { openGguf, readGgufParts } from "../../src/gguf/checkpoint.ts";
import { chooseTypes } from "../../src/gguf/mix.ts";
import { readGgufHeader } from "../../src/gguf/reader.ts";
import { MetadataBuilder } from "../../src/gguf/values.ts";
import { writeGguf } from "../../src/gguf/writer.ts";
import { Checkpoint } from "../../src/weights/checkpoint.ts";
import { type TensorToWrite, writeSafetensors } from "../../src/weights/safetensors.ts";
import { relativeError } from "../tolerance.ts";
import { goldenFolder, model_folder, withFolder } from "../weights/support.ts";
import { save, tiny_path } from "./support.ts";

const prompts = ["a small dog is", "the act of", "to run"];

/** Greedy continuations of the prompts, and the logits of the first one. */
async function speak(path: string, options: { dtype?: "auto" | "float32" | "bfloat16" } = {}) {
  const tokenizer = await AutoTokenizer.from_pretrained(path);
  using model = await AutoModelForCausalLM.from_pretrained(path, { device: "cpu", ...options });
  const rows: number[][] = [];
  for (const prompt of prompts) {
    const { input_ids } = tokenizer(prompt);
    rows.push((await model.generate({ input_ids: [input_ids], max_new_tokens: 24 }))[0]);
  }
  const out = await model.call({ input_ids: [tokenizer(prompts[0]).input_ids] });
  const logits = new Float32Array(await out.logits!.data() as Float32Array);
  out.dispose();
  return { rows, logits, footprint: model.get_memory_footprint() };
}

/** A copy of a golden without the biases that GGUF has no place for. */
async function withoutProjectionBias(golden: string, folder: string): Promise<string> {
  const copy = join(folder, "copy");
  const config = JSON.parse(readFileSync(join(golden, "config.json"), "utf8"));
  mkdirSync(copy);
  writeFileSync(join(copy, "config.json"), JSON.stringify({ ...config, mamba_proj_bias: false }));
  const checkpoint = Checkpoint.open(golden);
  const kept = checkpoint.names.filter((name) => !/mamba\.(in|out)_proj\.bias$/.test(name));
  assertLess(kept.length, checkpoint.names.length);
  const tensors = kept.map((name): [string, TensorToWrite] => {
    const { file, dtype, shape, offset, bytes } = checkpoint.get(name);
    return [name, { dtype, shape, data: readFileSync(file).subarray(offset, offset + bytes) }];
  });
  await writeSafetensors(join(copy, "model.safetensors"), tensors);
  return copy;
}

describe("a GGUF file saved from a folder", () => {
  it("speaks as the folder does, in every type", () =>
    withFolder(async (folder) => {
      const own = await speak(model_folder);
      // Largest difference of logits as a share of the largest logit; A is stored, not its logarithm.
      const bounds = { f32: 1e-5, bf16: 1e-5, f16: 1e-3, q8_0: 0.05, q6_k: 0.12, q5_k_m: 0.25 };
      for (const [type, bound] of Object.entries(bounds)) {
        const path = join(folder, `${type}.gguf`);
        await save(model_folder, path, { type });
        const { rows, logits, footprint } = await speak(
          path,
          type[0] === "q" ? { dtype: "float32" } : {},
        );
        assertLess(relativeError(logits, own.logits), bound, type);
        if (bound < 0.01) assertEquals(rows, own.rows, type);
        if (type === "bf16") assertEquals(footprint, own.footprint);
      }
    }));

  it("is the same file when it is saved from its own kind", () =>
    withFolder(async (folder) => {
      const [first, second] = [join(folder, "a.gguf"), join(folder, "b.gguf")];
      for (const type of ["bf16", "q4_k_m"]) {
        await save(model_folder, first, { type });
        await save(first, second, { type });
        assertEquals(readFileSync(second), readFileSync(first));
      }
    }));

  it("has HF's config and the config of no folder but its own", () =>
    withFolder(async (folder) => {
      const path = join(folder, "m.gguf");
      const seen: string[] = [];
      await save(model_folder, path, {
        type: "q4_0",
        progress_callback: ({ status, saved, total }) => {
          assert(saved <= total);
          seen.push(status);
        },
      });
      assertEquals([seen.at(-1), new Set(seen.slice(0, -1))], ["done", new Set(["progress"])]);
      assertEquals(readdirSync(folder), ["m.gguf"]);
      const [own, back] = [
        await AutoConfig.from_pretrained(model_folder),
        await AutoConfig.from_pretrained(path),
      ];
      const names = [
        "hidden_size",
        "attn_layer_indices",
        "rope_parameters",
        "mamba_d_head",
      ] as const;
      for (const name of [...names, "tie_word_embeddings", "eos_token_id", "vocab_size"] as const) {
        assertEquals(back[name], own[name], name);
      }
      assertEquals((await AutoConfig.from_pretrained(path, { use_cache: false })).use_cache, false);
    }));

  it("of goldens with groups, biases and shards gives their logits", async () => {
    for (const name of ["tiny-a-fp32", "tiny-b-groups2", "tiny-c-sharded-bf16"]) {
      const golden = goldenFolder(name);
      if (golden === undefined) return;
      await withFolder(async (folder) => {
        const from = name === "tiny-b-groups2"
          ? await withoutProjectionBias(golden, folder)
          : golden;
        const path = join(folder, "m.gguf");
        await save(from, path, { type: "f32" });
        const { vocab_size } = await AutoConfig.from_pretrained(path);
        const ids = [[3, 1, 4, 1, 5, 9, 2, 6].map((id) => id % vocab_size)];
        const logits: Float32Array[] = [];
        for (const one of [from, path]) {
          using model = await AutoModelForCausalLM.from_pretrained(one, { dtype: "float32" });
          const out = await model.call({ input_ids: ids });
          logits.push(new Float32Array(await out.logits!.data() as Float32Array));
          out.dispose();
        }
        assertLess(relativeError(logits[1], logits[0]), 1e-5, name);
      });
    }
  });

  it("of goldens that the format has no place for is refused in words", async () => {
    const [b, d] = [goldenFolder("tiny-b-groups2"), goldenFolder("tiny-d-odd")];
    if (b === undefined || d === undefined) return;
    await withFolder(async (folder) => {
      const path = join(folder, "m.gguf");
      await assertRejects(() => save(b, path, { type: "f32" }), RangeError, "mamba_proj_bias");
      await assertRejects(() => save(d, path, { type: "f32" }), RangeError, "time_step_limit");
    });
  });

  it("is not written without the head that its config has", () =>
    withFolder(async (folder) => {
      const config = JSON.parse(readFileSync(join(model_folder, "config.json"), "utf8"));
      const untied = JSON.stringify({ ...config, tie_word_embeddings: false });
      writeFileSync(join(folder, "config.json"), untied);
      const one = { dtype: "F32", shape: [1], data: new Float32Array(1) };
      const names = ["embed_tokens.weight", "final_layernorm.weight"];
      await writeSafetensors(join(folder, "model.safetensors"), names.map((name) => [name, one]));
      await assertRejects(
        () => save(folder, join(folder, "m.gguf"), {}),
        RangeError,
        "Expected a tensor for output.weight in",
      );
    }));

  it("can be written by a loaded model, and stops when asked to", () =>
    withFolder(async (folder) => {
      using model = await AutoModelForCausalLM.from_pretrained(model_folder);
      const path = join(folder, "m.gguf");
      await model.save_gguf(path, { type: "q8_0" });
      assertEquals(readGgufHeader(path).metadata.get("general.file_type")?.value, 7);
      assertEquals(
        readGgufHeader(path).metadata.get("general.name")?.value,
        "bamba-wordnet-8m",
      );
      await assertRejects(() => model.save_gguf(path, { type: "q9" }), RangeError, 'found "q9"');
      const signal = AbortSignal.abort();
      await assertRejects(() => model.save_gguf(join(folder, "n.gguf"), { signal }), Error);
      assertEquals(readdirSync(folder), ["m.gguf"]);
    }));

  it("can be written from another working directory than its model was loaded in", () =>
    withFolder(async (folder) => {
      const before = process.cwd();
      try {
        process.chdir(dirname(model_folder));
        using model = await AutoModelForCausalLM.from_pretrained(basename(model_folder));
        process.chdir(folder);
        await model.save_gguf("m.gguf", { type: "q8_0" });
      } finally {
        process.chdir(before);
      }
      assertEquals(readdirSync(folder), ["m.gguf"]);
    }));
});

describe("a GGUF file that Python's gguf wrote", () => {
  it("loads with every weight where it belongs", async () => {
    const noted = JSON.parse(readFileSync(tiny_path.replace(/gguf$/, "json"), "utf8"));
    const checkpoint = openGguf(tiny_path);
    assertEquals(checkpoint.get("model.layers.0.mamba.conv1d.weight").shape, [72, 1, 4]);
    assertEquals(checkpoint.get("model.layers.0.mamba.norm.weight").shape, [64]);
    await withFolder(async (folder) => {
      const path = join(folder, "f32.gguf");
      await save(tiny_path, path, { type: "f32" });
      const { tensors } = readGgufHeader(path);
      const bytes = readFileSync(path);
      for (const [name, values] of Object.entries(noted) as [string, number[]][]) {
        const { offset } = tensors.get(name)!;
        values.forEach((value, i) =>
          assertAlmostEquals(bytes.readFloatLE(offset + 4 * i), value, 0, name)
        );
      }
    });
    using model = await AutoModelForCausalLM.from_pretrained(tiny_path, { dtype: "float32" });
    const [row] = await model.generate({ input_ids: [[1, 268, 266]], max_new_tokens: 5 });
    // The first ids are those of llama.cpp, which rounds activations of Q8_0 to eight bits.
    assertEquals(row.slice(0, 5), [1, 268, 266, 96, 78]);
  });

  it("runs in the blocks it is stored in, and is not quantized a second time", async () => {
    using model = await AutoModelForCausalLM.from_pretrained(tiny_path, { device: "cpu" });
    assertEquals(model.dtype, "q8_0");
    const [row] = await model.generate({ input_ids: [[1, 268, 266]], max_new_tokens: 5 });
    assertEquals(row.slice(0, 5), [1, 268, 266, 96, 78]);
    const quantization_config = { type: "q4_0" } as const;
    await assertRejects(
      () => AutoModelForCausalLM.from_pretrained(tiny_path, { quantization_config }),
      RangeError,
      "is stored as q8_0",
    );
  });
});

describe("a split GGUF file", () => {
  /** Splits a file in two, the first part with all metadata. */
  async function split(path: string, folder: string): Promise<string[]> {
    const { metadata, tensors } = readGgufHeader(path);
    const bytes = readFileSync(path);
    const all = [...tensors].map(([name, { type, shape, offset, bytes: n }]) => ({
      name,
      type,
      shape,
      data: () => [bytes.subarray(offset, offset + n)],
    }));
    const paths: string[] = [];
    for (let no = 0; no < 2; no++) {
      const builder = new MetadataBuilder();
      if (no === 0) { for (const [key, entry] of metadata) builder.metadata.set(key, entry); }
      builder.add("split.no", "u16", no).add("split.count", "u16", 2);
      paths.push(join(folder, `m-0000${no + 1}-of-00002.gguf`));
      await writeGguf(paths[no], builder.metadata, no ? all.slice(10) : all.slice(0, 10));
    }
    return paths;
  }

  it("loads by any of its parts, and not without one", () =>
    withFolder(async (folder) => {
      const parts = await split(tiny_path, folder);
      const whole = readGgufParts(tiny_path).header;
      for (const part of parts) {
        const { header, files } = readGgufParts(part);
        assertEquals([...header.tensors.keys()], [...whole.tensors.keys()]);
        assertEquals(header.metadata.get("general.name")?.value, "tiny");
        assertEquals(files.map(({ path }) => path), parts);
        using model = await AutoModelForCausalLM.from_pretrained(part, { dtype: "bfloat16" });
        assertGreater((await model.generate({ input_ids: [[1, 268]] }))[0].length, 2);
      }
      renameSync(parts[1], join(folder, "other.gguf"));
      assertThrows(() => openGguf(parts[0]), Error, `"${parts[1]}" is missing`);
      assertThrows(() => openGguf(join(folder, "other.gguf")), RangeError, "named like");
    }));
});

describe("the types of a file's tensors", () => {
  const layer = (i: number) => [
    { name: `blk.${i}.attn_norm.weight`, shape: [256] },
    { name: `blk.${i}.attn_v.weight`, shape: [64, 256] },
    { name: `blk.${i}.ssm_in.weight`, shape: [64, 256] },
    { name: `blk.${i}.ssm_out.weight`, shape: [256, 288] },
    { name: `blk.${i}.ssm_conv1d.weight`, shape: [64, 4] },
    { name: `blk.${i}.ssm_a`, shape: [8, 1] },
    { name: `blk.${i}.ffn_down.weight`, shape: [256, 512] },
  ];
  const tensors = [
    { name: "token_embd.weight", shape: [1000, 256] },
    ...Array.from({ length: 8 }, (_, i) => layer(i)).flat(),
    { name: "output.weight", shape: [1000, 256] },
  ];

  it("are those of llama.cpp's mixes, with more bits where rows do not fit", () => {
    const types = chooseTypes("q4_k_m", tensors);
    assertEquals(types.get("token_embd.weight"), "Q4_K");
    assertEquals(types.get("output.weight"), "Q6_K");
    const down = tensors.filter(({ name }) => name.includes("ffn_down")).map(({ name }) =>
      types.get(name)
    );
    const [most, more] = ["Q4_K", "Q6_K"];
    assertEquals(down, [more, most, most, more, most, most, more, more]);
    assertEquals(types.get("blk.1.attn_v.weight"), "Q4_K");
    assertEquals(types.get("blk.3.attn_v.weight"), "Q6_K");
    assertEquals(types.get("blk.1.ssm_in.weight"), "Q5_K");
    assertEquals(types.get("blk.1.ssm_out.weight"), "Q8_0"); // 288 is no multiple of 256
    for (const name of ["attn_norm.weight", "ssm_conv1d.weight", "ssm_a"]) {
      assertEquals(types.get(`blk.2.${name}`), "F32", name);
    }
    assertEquals(chooseTypes("q8_0", tensors).get("output.weight"), "Q8_0");
    const tied = chooseTypes("q4_0", tensors.slice(0, -1));
    assertEquals([tied.get("token_embd.weight"), tied.get("blk.0.ffn_down.weight")], [
      "Q6_K",
      "Q4_0",
    ]);
    assertEquals(new Set(chooseTypes("bf16", tensors).values()), new Set(["BF16", "F32"]));
  });
});
