/** Weights quantized while they load: types, results near the float ones, the same bits in any batch. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { QuantizationConfig } from "../../src/modeling/quantization.ts";
import { dog, loadModel } from "../generation/support.ts";

const ids = [1, 67, 707, 1208, 268, 90, 1203, 455, 31, 2900];

/** How far the loss over the model's own text may be from that of the weights as they are stored. */
const types = {
  f8_e4m3: 0.05,
  q8_0: 0.03,
  q6_k: 0.05,
  q5_k_m: 0.1,
  q4_k_m: 0.3,
  q4_0: 0.4,
} as const;

describe("quantization_config", () => {
  for (const [type, loss_max] of Object.entries(types)) {
    it(`${type}: near the stored weights, alone as in a batch`, async () => {
      using plain = await loadModel();
      using model = await loadModel({ quantization_config: { type } as QuantizationConfig });
      assert(model.get_memory_footprint() < plain.get_memory_footprint() * 0.6);
      const text = await plain.generate({
        input_ids: dog,
        min_new_tokens: 60,
        max_new_tokens: 60,
      });
      const own = { input_ids: text, labels: text };
      using truth = await plain.call(own);
      using other = await model.call(own);
      const difference = await other.loss!.item() - await truth.loss!.item();
      assert(Math.abs(difference) < loss_max, `the loss differs by ${difference}`);
      assert(difference !== 0, "the weights were quantized");

      using alone = await model.call({ input_ids: [ids] });
      const input_ids = [[...ids].reverse(), ids, ids.slice(3).concat(ids.slice(0, 3))];
      using batch = await model.call({ input_ids });
      const size = ids.length * 4096;
      assertEquals(
        (await batch.logits!.data()).subarray(size, 2 * size),
        await alone.logits!.data(),
      );
    });
  }

  it("continues a cache with the bits of one run", async () => {
    using model = await loadModel({ quantization_config: { type: "q4_k_m" } });
    using whole = await model.call({ input_ids: [ids] });
    using first = await model.call({ input_ids: [ids.slice(0, 9)] });
    using last = await model.call({
      input_ids: [ids.slice(9)],
      past_key_values: first.past_key_values,
    });
    const wanted = await whole.logits!.data();
    const found = await last.logits!.data();
    for (const [i, x] of found.entries()) {
      assert(Math.abs(x - wanted[9 * 4096 + i]) < 1e-2, `logit ${i} is ${x}`);
    }
  });

  it("says what it takes", async () => {
    const load = (config: unknown) =>
      loadModel({ quantization_config: config as QuantizationConfig });
    await assertRejects(() => load({ type: "q3_k" }), RangeError, 'found "q3_k"');
    await assertRejects(() => load({ type: "f32" }), RangeError, 'found "f32"');
    await assertRejects(() => load({ bits: 4 }), TypeError, "to be { type }");
    await assertRejects(() => load("q8_0"), TypeError, "to be { type }");
  });
});
