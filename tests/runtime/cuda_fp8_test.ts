/** 8-bit floats on a GPU: near the CPU alone and in e4m3 throughout, the same bits in any batch. */

import { describe } from "node:test";
import { assert, assertEquals } from "@std/assert";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { AutoModelForCausalLM } from "../../mod.ts";
import { randomModel } from "../../bench/lib/random_model.ts";
import { folder } from "../generation/support.ts";
import { relativeError } from "../tolerance.ts";
import { writeEights } from "../weights/eights.ts";
import { withFolder } from "../weights/support.ts";
import { idsOf, logitsOf, onGpu } from "./gpu.ts";

const never = new AbortController().signal;
const quantization_config = { type: "f8_e4m3" } as const;

/** Weights as they are, activations in bf16. */
const few_limit = 3e-2;
/** Activations of each row in e4m3, too: 3 bits behind the point. */
const many_limit = 0.15;
/** Rows up to which weights alone are of 8 bits. */
const few = 8;

const loadThin = async (o: Record<string, unknown>) =>
  await AutoModelForCausalLM.from_pretrained(await randomModel("9b-thin", never), {
    quantization_config,
    ...o,
  });

describe("8-bit floats on a GPU", () => {
  onGpu("are near the CPU's, a few rows and many", async () => {
    using gpu = await loadThin({ device: "cuda" });
    using cpu = await loadThin({ device: "cpu" });
    const matrices = [...gpu.namedParameters()].filter(([name]) => name.includes("_proj"));
    for (const [name, { dtype }] of matrices) assertEquals(dtype, "float8_e4m3fn", name);
    for (const tokens of [1, 2, 3, 5, 8, 9, 63, 64, 65, 129, 257, 1025]) {
      const ids = [idsOf(tokens, tokens)];
      const found = await logitsOf(gpu, ids);
      const error = relativeError(found, await logitsOf(cpu, ids));
      const limit = tokens <= few ? few_limit : many_limit;
      assert(error <= limit, `${tokens} tokens: off by ${error}, above ${limit}`);
      assertEquals(await logitsOf(gpu, ids), found, "the same bits again");
    }
  });

  onGpu("take f32 activations where other matrices are f32", async () => {
    const load = (device: string) =>
      AutoModelForCausalLM.from_pretrained(folder, {
        dtype: "float32",
        quantization_config,
        device,
      });
    using gpu = await load("cuda");
    using cpu = await load("cpu");
    for (const tokens of [1, 9, 70]) {
      const ids = [idsOf(tokens, 3)];
      const error = relativeError(await logitsOf(gpu, ids), await logitsOf(cpu, ids));
      assert(error <= 2e-4, `${tokens} tokens: off by ${error}`);
    }
  });

  onGpu("give rows the same bits in any batch when asked to", async () => {
    using model = await loadThin({ device: "cuda", batch_invariant: true });
    const vocab = model.config.vocab_size;
    const rows = Array.from({ length: 70 }, (_, r) => idsOf(1 + r % 5, r));
    const alone: Float32Array[] = [];
    for (const ids of rows) alone.push(await logitsOf(model, [ids]));
    const columns = 5;
    const pad = (ids: number[], x: number) => new Array<number>(columns - ids.length).fill(x);
    for (const count of [2, 9, 70]) {
      const batch = rows.slice(0, count);
      using output = await model.call({
        input_ids: batch.map((ids) => [...pad(ids, 0), ...ids]),
        attention_mask: batch.map((ids) => [...pad(ids, 0), ...ids.map(() => 1)]),
        use_cache: false,
      });
      const all = await output.logits!.data() as Float32Array;
      for (const [r, ids] of batch.entries()) {
        const end = (r + 1) * columns * vocab;
        assertEquals(all.subarray(end - ids.length * vocab, end), alone[r], `row ${r} of ${count}`);
      }
    }
  });

  onGpu("run as FP8 checkpoints hold them, or unpacked", () =>
    withFolder(async (parent) => {
      const [eights, exact] = [join(parent, "eights"), join(parent, "exact")];
      for (const path of [eights, exact]) mkdirSync(path);
      await writeEights(eights, exact, { strategy: "tensor", scales: "BF16" });
      const options = { device: "cuda" };
      using gpu = await AutoModelForCausalLM.from_pretrained(eights, options);
      using cpu = await AutoModelForCausalLM.from_pretrained(eights, { device: "cpu" });
      assert(gpu.get_memory_footprint() < cpu.get_memory_footprint() * 1.01);
      const prompt = { input_ids: [[1, 67, 707, 1208, 268]], max_new_tokens: 60 };
      const text = await cpu.generate({ ...prompt, min_new_tokens: 60 });
      const losses: number[] = [];
      using wide = await AutoModelForCausalLM.from_pretrained(eights, {
        ...options,
        dtype: "float32",
      });
      for (const model of [cpu, gpu, wide]) {
        using output = await model.call({ input_ids: text, labels: text });
        losses.push(await output.loss!.item());
      }
      assert(Math.abs(losses[1] - losses[0]) < 0.05, `losses of ${losses}`);
      assert(Math.abs(losses[2] - losses[0]) < 2e-4, `losses of ${losses}`);
    }));
});
