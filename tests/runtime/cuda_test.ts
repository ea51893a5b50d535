/** A GPU under stress: too little memory, two models, cancelling, a thousand models, the same bits. */

import { spawnSync } from "node:child_process";
import process from "node:process";
import { describe } from "node:test";
import { fileURLToPath } from "node:url";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { AutoModelForCausalLM } from "../../mod.ts";
import { randomModel } from "../../bench/lib/random_model.ts";
import type { Buffer } from "../../src/device.ts";
import { HybridMambaAttentionDynamicCache } from "../../src/modeling/cache.ts";
import { folder } from "../generation/support.ts";
import { relativeError, tolerances } from "../tolerance.ts";
import { idsOf, logitsOf, onGpu } from "./gpu.ts";

const never = new AbortController().signal;
const prompt = [[1, 67, 707, 1208, 268]];
const greedy = { input_ids: prompt, max_new_tokens: 24, do_sample: false };

type DType = "float32" | "bfloat16" | "float16";
const load = (dtype: DType = "bfloat16", device = "cuda") =>
  AutoModelForCausalLM.from_pretrained(folder, { dtype, device });
/** The 9B's heads in a small model: its fast kernels run. */
const loadThin = async (device: string, dtype: DType = "bfloat16") =>
  await AutoModelForCausalLM.from_pretrained(await randomModel("9b-thin", never), {
    dtype,
    device,
  });

async function checkThin(dtype: DType, limit: number): Promise<void> {
  using gpu = await loadThin("cuda", dtype);
  using cpu = await loadThin("cpu", dtype);
  for (const tokens of [1, 2, 3, 7, 9, 63, 64, 65, 129, 257, 300, 1025]) {
    const ids = [idsOf(tokens, tokens)];
    const error = relativeError(await logitsOf(gpu, ids), await logitsOf(cpu, ids));
    assert(error <= limit, `${dtype}, ${tokens} tokens: off by ${error}, above ${limit}`);
  }
  // A prompt in parts of any size, then single tokens: states and pages hold what they should.
  const ids = idsOf(400, 5);
  const whole = await logitsOf(cpu, [ids]);
  const vocab = cpu.config.vocab_size;
  let cache: HybridMambaAttentionDynamicCache | undefined;
  let at = 0;
  for (const count of [1, 5, 58, 1, 64, 130, 1, 1, 1, 70, 68]) {
    const input_ids = [ids.slice(at, at + count)];
    const { logits, past_key_values } = await gpu.call({ input_ids, past_key_values: cache });
    cache = past_key_values;
    const truth = whole.subarray(at * vocab, (at + count) * vocab);
    const error = relativeError(await logits!.data() as Float32Array, truth);
    logits!.dispose();
    assert(error <= limit, `${dtype}, ${count} tokens at ${at}: off by ${error}`);
    at += count;
  }
  cache!.dispose();
}

describe("a GPU", () => {
  onGpu(
    "gives what the CPU gives with the 9B's heads in f32",
    () => checkThin("float32", tolerances.float32),
  );

  onGpu("gives what the CPU gives with the 9B's heads in bf16", () => checkThin("bfloat16", 3e-2));

  onGpu("decodes ahead the ids that it decodes step by step", async () => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      using model = await loadThin("cuda", dtype);
      for (const rows of [1, 2, 5, 40]) {
        const input_ids = Array.from({ length: rows }, (_, r) => idsOf(9 + r % 3, r));
        const attention_mask = input_ids.map((ids) => ids.map(() => 1));
        for (const [r, ids] of input_ids.entries()) {
          while (ids.length < 11) ids.unshift(0), attention_mask[r].unshift(0);
        }
        const options = { input_ids, attention_mask, max_new_tokens: 33, pad_token_id: 0 };
        const free = await model.generate({ ...options, eos_token_id: null });
        // ids that come up end some rows early
        const eos_token_id = [free[0][20], free[rows - 1][30]];
        for (const ends of [{ eos_token_id: null }, { eos_token_id }]) {
          for (const how of [{}, { repetition_penalty: 1.3 }, { do_sample: true, seed: 3 }]) {
            const all = { ...options, ...ends, ...how };
            const ahead = await model.generate(all);
            const by_step = await model.generate({
              ...all,
              stopping_criteria: [(ids) => ids.map(() => false)],
            });
            assertEquals(ahead, by_step, JSON.stringify({ dtype, rows, ...ends, ...how }));
          }
        }
      }
    }
  });

  onGpu("draws what the CPU draws, by every rule", async () => {
    using gpu = await load("float32");
    using cpu = await load("float32", "cpu");
    const rules = [
      { typical_p: 0.7 },
      { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.02 },
      { top_k: 100, top_p: 0.95, min_p: 0.01, typical_p: 0.9, repetition_penalty: 1.1 },
    ];
    for (const rule of rules) {
      const options = { ...greedy, ...rule, do_sample: true, seed: 11 };
      assertEquals(await gpu.generate(options), await cpu.generate(options), JSON.stringify(rule));
    }
  });

  onGpu("continues a cache that a generation left, whatever ended it", async () => {
    using model = await loadThin("cuda", "float32");
    const options = { input_ids: [idsOf(9, 1)], max_new_tokens: 40, pad_token_id: 0 };
    const [free] = await model.generate({ ...options, eos_token_id: null });
    for (const eos_token_id of [null, free[25]]) {
      const made = await model.generate({
        ...options,
        eos_token_id,
        return_dict_in_generate: true,
      });
      const ids = made.sequences[0];
      using cache = made.past_key_values;
      using next = await model.call({ input_ids: [ids.slice(-1)], past_key_values: cache });
      const truth = (await logitsOf(model, [ids])).slice(-model.config.vocab_size);
      const error = relativeError(await next.logits!.data() as Float32Array, truth);
      assert(error < tolerances.float32, `off by ${error} after ${ids.length} ids`);
    }
  });

  onGpu("gives the same bits in every run", async () => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      using model = await loadThin("cuda", dtype);
      for (const tokens of [1, 5, 70, 600]) {
        const ids = [idsOf(tokens, 1)];
        const first = await logitsOf(model, ids);
        for (let i = 0; i < 5; i++) assertEquals(await logitsOf(model, ids), first);
      }
    }
  });

  onGpu("gives rows the same bits in any batch when asked to", async () => {
    using model = await AutoModelForCausalLM.from_pretrained(await randomModel("9b-thin", never), {
      dtype: "bfloat16",
      device: "cuda",
      batch_invariant: true,
    });
    const vocab = model.config.vocab_size;
    const rows = Array.from({ length: 70 }, (_, r) => idsOf([1, 2, 7, 40, 65, 129][r % 6], r));
    const alone: Float32Array[] = [];
    for (const ids of rows) alone.push(await logitsOf(model, [ids]));
    const columns = 130;
    const pad = (ids: number[]) => new Array<number>(columns - ids.length).fill(0);
    for (const count of [2, 9, 33, 70]) {
      for (const prefill_chunk_size of [64, 512, 4096]) {
        const batch = rows.slice(0, count);
        const { logits } = await model.call({
          input_ids: batch.map((ids) => [...pad(ids), ...ids]),
          attention_mask: batch.map((ids) => [...pad(ids), ...ids.map(() => 1)]),
          use_cache: false,
          prefill_chunk_size,
        });
        const all = await logits!.data() as Float32Array;
        logits!.dispose();
        for (const [r, ids] of batch.entries()) {
          const own = all.subarray(
            ((r + 1) * columns - ids.length) * vocab,
            (r + 1) * columns * vocab,
          );
          const at = own.findIndex((x, i) => x !== alone[r][i]);
          assert(
            at < 0,
            `row ${r} of ${count}, cut at ${prefill_chunk_size}: token ${at / vocab | 0}`,
          );
        }
      }
    }
    const options = { max_new_tokens: 24, eos_token_id: null };
    const together = await model.generate({
      input_ids: rows.map((_, r) => idsOf(5, r)),
      ...options,
    });
    for (const r of [0, 33, 69]) {
      assertEquals(await model.generate({ input_ids: [idsOf(5, r)], ...options }), [together[r]]);
    }
  });

  onGpu("says how much memory is missing, and goes on", async () => {
    using model = await load();
    const { device } = model;
    const before = await model.generate(greedy);
    const { total_memory } = device.info();
    const sentence = /Expected \d+ MiB of GPU memory for .* but found \d+ MiB available/;
    const refused = async (body: () => unknown) => {
      const error = await assertRejects(async () => await body());
      assert(sentence.test(String(error)), String(error));
    };
    const { allocated } = device.memoryUsage();
    await refused(() => device.createBuffer(total_memory));
    assertEquals(await model.generate(greedy), before);
    const { layout } = model.runtime;
    const rows = Math.ceil(total_memory / layout.slot_bytes);
    await refused(() => new HybridMambaAttentionDynamicCache(device, layout, rows));
    assertEquals(await model.generate(greedy), before);
    // All of it in pieces: what fits is given, then nothing, and a generation is refused, too.
    const pieces: Buffer[] = [];
    try {
      for (const bytes of [2 ** 30, 2 ** 21]) {
        await refused(() => {
          for (;;) pieces.push(device.createBuffer(bytes));
        });
      }
      await refused(() => model.generate({ ...greedy, input_ids: [idsOf(4000, 1)] }));
    } finally {
      for (const buffer of pieces) buffer.dispose();
    }
    assert(device.memoryUsage().allocated <= allocated, "a refused call kept memory");
    assertEquals(await model.generate(greedy), before);
  });

  onGpu("runs two models at once, each as alone", async () => {
    using a = await load("bfloat16");
    using b = await load("float32");
    const alone = [await a.generate(greedy), await b.generate(greedy)];
    for (let i = 0; i < 5; i++) {
      assertEquals(await Promise.all([a.generate(greedy), b.generate(greedy)]), alone);
    }
  });

  onGpu("stops in the middle of a prompt, and goes on", async () => {
    using model = await load();
    const before = await model.generate(greedy);
    const { allocated, n_jobs } = model.device.memoryUsage();
    const long = { input_ids: [idsOf(60_000, 2)], max_new_tokens: 2, prefill_chunk_size: 256 };
    for (const delay_ms of [1, 5, 20]) {
      const controller = new AbortController();
      setTimeout(() => controller.abort(new Error("enough")), delay_ms);
      const running = model.generate({ ...long, signal: controller.signal });
      await assertRejects(() => running, Error, "enough");
    }
    assertEquals(model.device.memoryUsage().n_jobs, n_jobs);
    assertEquals(await model.generate(greedy), before);
    assert(model.device.memoryUsage().allocated <= allocated + 2 ** 30);
  });

  onGpu("is lost with a sentence", () => {
    const script = fileURLToPath(new URL("lose_gpu.ts", import.meta.url));
    const { stdout, stderr, status } = spawnSync(process.execPath, ["run", script], {
      encoding: "utf8",
    });
    assertEquals([stdout.trim(), status], ["the loss was told", 0], stderr);
  }, { skip: process.versions.bun ? false : "written for Bun" });

  onGpu("takes no more memory after a thousand models", async () => {
    const round = async () => {
      using model = await load();
      await model.generate({ ...greedy, max_new_tokens: 10 });
    };
    using keeps = await load();
    const { device } = keeps;
    for (let i = 0; i < 20; i++) await round();
    const before = device.info();
    for (let i = 20; i < 1000; i++) await round();
    const after = device.info();
    assert(after.allocated <= before.allocated, `${after.allocated} after ${before.allocated}`);
    const grown = before.available_memory - after.available_memory;
    assert(grown < 2 ** 23, `the card has ${grown} bytes less`);
  }, { timeout: 300_000 });
});
