/** Weights quantized while they load: types, results near the float ones, the same bits in any batch. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { BambaForCausalLM } from "../../mod.ts";
import type { CallInputs } from "../../src/modeling/call_inputs.ts";
import type { QuantizationConfig } from "../../src/modeling/quantization.ts";
import { dog, loadModel } from "../generation/support.ts";

const ids = [1, 67, 707, 1208, 268, 90, 1203, 455, 31, 2900];

async function logitsOf(model: BambaForCausalLM, inputs: CallInputs): Promise<Float32Array> {
  using output = await model.call({ ...inputs, use_cache: false });
  return await output.logits!.data() as Float32Array;
}

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
    const quantization_config = { type } as QuantizationConfig;
    it(`${type}: near the stored weights`, async () => {
      using plain = await loadModel();
      using model = await loadModel({ quantization_config });
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
    });

    it(`${type}: the same bits alone, in a batch, padded, packed, with any threads`, async () => {
      using model = await loadModel({ quantization_config, threads: 2 });
      using one = await loadModel({ quantization_config, threads: 1 });
      const alone = await logitsOf(one, { input_ids: [ids] });
      assertEquals(await logitsOf(model, { input_ids: [ids] }), alone);
      const size = ids.length * 4096;
      const turned = [[...ids].reverse(), ids, ids.slice(3).concat(ids.slice(0, 3))];
      const batch = await logitsOf(model, { input_ids: turned });
      assertEquals(batch.subarray(size, 2 * size), alone);
      const packed = await logitsOf(model, {
        input_ids: [turned.flat()],
        position_ids: [turned.flatMap((row) => [...row.keys()])],
      });
      assertEquals(packed, batch);
      const short = ids.slice(0, 3);
      const padded = await logitsOf(model, {
        input_ids: [[...ids.slice(3).fill(0), ...short], ids],
        attention_mask: [ids.map((_, i) => i < ids.length - 3 ? 0 : 1), ids.map(() => 1)],
      });
      assertEquals(padded.subarray(size), alone);
      // a row's first logits do not see what comes behind them
      assertEquals(padded.subarray(size - 3 * 4096, size), alone.subarray(0, 3 * 4096));
    });
  }

  it("continues a cache as one run would go on", async () => {
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
