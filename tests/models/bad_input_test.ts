/** What calls with bad arguments get: a sentence with the value found, and a model that still works. */

import { describe, it } from "node:test";
import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  AutoConfig,
  AutoModel,
  AutoModelForCausalLM,
  BambaConfig,
  BambaForCausalLM,
  type CallInputs,
  HybridMambaAttentionDynamicCache,
  pipeline,
  type PreTrainedModel,
  Tensor,
} from "../../mod.ts";
import { folder, loadModel } from "../generation/support.ts";

const input_ids = [[1, 67, 707]];

/** A call that fails with these words, in an error of a kind that says what is wrong. */
async function assertNames(
  model: PreTrainedModel,
  inputs: unknown,
  sentence: string,
): Promise<void> {
  const error = await assertRejects(() => model.call(inputs as CallInputs), Error);
  assertStringIncludes(error.message.toLowerCase(), sentence.toLowerCase());
  const known = error instanceof TypeError || error instanceof RangeError;
  assert(known, `${error.name} for ${sentence}`);
}

describe("call", () => {
  it("names what is wrong with its arguments", async () => {
    using model = await loadModel();
    using embeds_of_other_width = Tensor.from(new Float32Array(6), [1, 3, 2]);
    const cases: [Record<string, unknown>, string][] = [
      [{}, "exactly one of input_ids and inputs_embeds"],
      [{ input_ids, inputs_embeds: embeds_of_other_width }, "exactly one"],
      [{ inputs_embeds: embeds_of_other_width }, "[batch,positions,256] but found [1,3,2]"],
      [{ input_ids: [[1, 4096]] }, "0 to 4095 but found 4096 in row 0, column 1"],
      [{ input_ids: [[-1]] }, "found -1"],
      [{ input_ids: [[1.5]] }, "whole numbers in input_ids but found 1.5"],
      [{ input_ids: [[NaN]] }, "found NaN"],
      [{ input_ids: [["a"]] }, "numbers in input_ids but found"],
      [{ input_ids: "text" }, "an array of rows"],
      [{ input_ids: [] }, "found none"],
      [{ input_ids: [[1, 2], [3]] }, "row 1 has 1"],
      [{ input_ids: { data: Int32Array.of(1, 2), shape: [1, 3] } }, "3 numbers"],
      [{ input_ids, attention_mask: [[1, 0, 1]] }, "column 1"],
      [{ input_ids, attention_mask: [[0, 0, 0]] }, "masks all"],
      [{ input_ids, attention_mask: [[1, 1]] }, "[1,3]"],
      [{ input_ids, position_ids: [[0, 1]] }, "position_ids of shape"],
      [{ input_ids, position_ids: [[-1, 0, 1]] }, "0 or more but found -1"],
      [{ input_ids, seq_idx: [[0, 0, 1]], cu_seq_lens_q: [0, 1, 3] }, "same documents"],
      [{ input_ids, seq_idx: [[0, 0, 1]], attention_mask: [[1, 1, 1]] }, "no attention_mask"],
      [{ input_ids, cu_seq_lens_q: [0, 2], cu_seq_lens_k: [0, 2] }, "rise from 0 to the 3"],
      [{ input_ids, cu_seq_lens_q: [0, 1, 3], max_length_q: 9 }, "2, but found 9"],
      [{ input_ids, labels: [[1, 2]] }, "labels of shape [1,3]"],
      [{ input_ids, labels: [[1, 2, 5000]] }, "found 5000"],
      [{ input_ids, labels: input_ids, logits_to_keep: 1 }, "logits_to_keep to be 0"],
      [{ input_ids, logits_to_keep: -1 }, "found -1"],
      [{ input_ids, logits_to_keep: [3] }, "below 3 but found 3"],
      [{ input_ids, prefill_chunk_size: 0.5 }, "found 0.5"],
      [{ input_ids, logits_to_keep: "2" }, 'found "2"'],
      [{ input_ids, logits_to_keep: [] }, "logits_to_keep to hold numbers but found none"],
      [{ input_ids, atention_mask: [[1, 1, 1]] }, 'did you mean "attention_mask"'],
      [{ inputs_embeds: [[[1]]] }, "inputs_embeds to be a typed array with a shape"],
      [{ input_ids, labels: input_ids, num_items_in_batch: 0 }, "above 0 but found 0"],
      [{ input_ids, cu_seq_lens_q: [0, 1, 3], max_length_k: 9 }, "2, but found 9"],
      [{ input_ids, max_length_q: 3 }, "cu_seq_lens_q with max_length_q"],
      [{ input_ids, past_key_values: {} }, "past_key_values that a call returned"],
      [{ input_ids, output_hidden_states: 1 }, "output_hidden_states to be true or false"],
      [{ input_ids, use_cache: "no" }, 'use_cache to be true or false but found "no"'],
      [{ input_ids, signal: 5 }, "an AbortSignal but found 5"],
      [{ input_ids, taps: ["nowhere"] }, 'found "nowhere"'],
    ];
    for (const [inputs, sentence] of cases) await assertNames(model, inputs, sentence);
    for (const inputs of [null, undefined, input_ids]) {
      await assertNames(model, inputs, "one object with the options of call");
    }
    using output = await model.call({ input_ids });
    assert(Number.isFinite((await output.logits!.data())[0]), "still works");
  });

  it("names what only a model with a head understands", async () => {
    using model = await AutoModel.from_pretrained(folder);
    for (const options of [{ labels: input_ids }, { logits_to_keep: 1 }]) {
      await assertNames(model, { input_ids, ...options }, "without a head");
    }
    const after = model.device.memoryUsage().n_buffers;
    await assertNames(model, { input_ids, taps: ["nowhere"] }, "taps");
    assertEquals(model.device.memoryUsage().n_buffers, after);
  });

  it("takes embeddings and kept positions with a shape or as Tensors", async () => {
    using model = await loadModel();
    const data = new Float32Array(3 * 256).fill(0.1);
    using tensor = await model.call({ inputs_embeds: Tensor.from(data, [1, 3, 256]) });
    const keep = Tensor.from(Int32Array.of(2, 0), [2]);
    using kept = await model.call({
      inputs_embeds: { data, shape: [1, 3, 256] },
      logits_to_keep: keep,
    });
    const vocab = model.config.vocab_size;
    const [all, some] = [await tensor.logits!.data(), await kept.logits!.data()];
    assertEquals(kept.logits!.shape, [1, 2, vocab]);
    assertEquals(some.slice(0, vocab), all.slice(2 * vocab));
    assertEquals(some.slice(vocab), all.slice(0, vocab));
  });

  it("refuses a cache of more rows than memory has room for, with the number", async () => {
    using model = await loadModel();
    const { device, layout } = model.runtime;
    const error = assertThrows(
      () => new HybridMambaAttentionDynamicCache(device, layout, 200_000),
      Error,
    );
    assertStringIncludes(error.message, "MiB");
  });
});

describe("from_pretrained", () => {
  it("names folders, options and architectures that it cannot use", async () => {
    const dir = mkdtempSync(join(tmpdir(), "bamba-bad-"));
    try {
      const missing = await assertRejects(
        () => AutoModelForCausalLM.from_pretrained(join(dir, "nowhere")),
        Error,
      );
      assertStringIncludes(missing.message, `found nothing at "${join(dir, "nowhere")}"`);
      const file = join(dir, "model.bin");
      writeFileSync(file, "x");
      for (const [path, sentence] of [[file, "found another file at"], ["", 'found ""']]) {
        const error = await assertRejects(() => AutoModelForCausalLM.from_pretrained(path), Error);
        assertStringIncludes(error.message, sentence);
      }
      writeFileSync(join(dir, "config.json"), '{"model_type": "llama", "vocab_size": 10}');
      for (const auto of [AutoModelForCausalLM, AutoModel, AutoConfig]) {
        const other = await assertRejects(
          () => auto.from_pretrained(dir) as Promise<unknown>,
          Error,
        );
        assertStringIncludes(other.message, "llama");
      }
      const config = readFileSync(join(folder, "config.json"), "utf8");
      writeFileSync(join(dir, "config.json"), config);
      const empty = await assertRejects(() => AutoModelForCausalLM.from_pretrained(dir), Error);
      assertStringIncludes(empty.message, "model.safetensors");
      const options: [Record<string, unknown>, string][] = [
        [{ dtype: "int3" }, "int3"],
        [{ device: "tpu" }, "tpu"],
        [{ threads: -1 }, "-1"],
        [{ batch_invariant: "no" }, "batch_invariant to be true or false but found"],
        [{ thread: 1 }, 'did you mean "threads"'],
        [{ device: "cuda:99" }, "cuda"],
      ];
      for (const [option, sentence] of options) {
        const error = await assertRejects(
          () => AutoModelForCausalLM.from_pretrained(folder, option),
          Error,
        );
        assertStringIncludes(error.message.toLowerCase(), sentence.toLowerCase());
      }
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  it("says what a model without weights lacks", async () => {
    const model = new BambaForCausalLM(await BambaConfig.from_pretrained(folder));
    const error = await assertRejects(() => model.call({ input_ids }), TypeError);
    assertStringIncludes(error.message, "from_pretrained");
  });
});

describe("pipeline", () => {
  it("names tasks and inputs that it cannot use", async () => {
    const task = "fill-mask" as "text-generation";
    const error = await assertRejects(() => pipeline(task, folder), TypeError);
    assertStringIncludes(error.message, "fill-mask");
    using pipe = await pipeline("text-generation", folder);
    await assertRejects(() => pipe([] as string[]), TypeError);
    await assertRejects(() => pipe("a", { max_new_token: 1 } as Record<string, number>), TypeError);
  });
});
