/** `call`: what it accepts and what its results are, on the default model. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Tensor } from "../../mod.ts";
import { loadModel } from "../generation/support.ts";

const ids = [1, 67, 707, 1208, 268];

describe("call", () => {
  it("takes ids as rows, typed arrays with a shape, one row and Tensors", async () => {
    using model = await loadModel();
    using truth = await model.call({ input_ids: [ids] });
    const logits = await truth.logits!.data();
    const inputs = [
      ids,
      Int32Array.from(ids),
      BigInt64Array.from(ids.map(BigInt)),
      { data: Int32Array.from(ids), shape: [1, 5] },
      Tensor.from(Int32Array.from(ids), [1, 5]),
    ];
    for (const input_ids of inputs) {
      using output = await model.call({ input_ids });
      assertEquals(await output.logits!.data(), logits);
    }
  });

  it("gives from embeddings what it gives from their ids, to the bit", async () => {
    using model = await loadModel();
    const input_ids = [ids, [...ids].reverse()];
    using truth = await model.call({ input_ids, output_hidden_states: true });
    const inputs_embeds = truth.hidden_states![0];
    using output = await model.call({ inputs_embeds });
    assertEquals(await output.logits!.data(), await truth.logits!.data());
  });

  it("gives tensors with shape, dtype, nested lists and one number", async () => {
    using model = await loadModel();
    using output = await model.call({ input_ids: [ids], labels: [ids], logits_to_keep: 0 });
    const logits = output.logits!;
    assertEquals([logits.shape, logits.dtype], [[1, 5, 4096], "float32"]);
    const data = await logits.data();
    const list = await logits.tolist() as number[][][];
    assertEquals([list.length, list[0].length, list[0][0].length], [1, 5, 4096]);
    assertEquals(list[0][4][7], data[4 * 4096 + 7]);
    assertEquals(output.loss!.shape, []);
    assert(await output.loss!.item() > 0, "a loss");
  });

  it("returns a cache unless told not to", async () => {
    using model = await loadModel();
    using with_cache = await model.call({ input_ids: [ids] });
    assertEquals(with_cache.past_key_values!.get_seq_length(), 5);
    using without = await model.call({ input_ids: [ids], use_cache: false });
    assertEquals(without.past_key_values, undefined);
  });

  it("gives everything back", async () => {
    using model = await loadModel();
    (await model.call({ input_ids: [ids], output_hidden_states: true })).dispose();
    const before = model.device.memoryUsage();
    for (let i = 0; i < 30; i++) {
      using _ = await model.call({ input_ids: [ids], output_hidden_states: true });
    }
    const after = model.device.memoryUsage();
    assertEquals([after.n_buffers, after.allocated], [before.n_buffers, before.allocated]);
  });

  it("tells its dtype, its size and its memory", async () => {
    using model = await loadModel({ dtype: "auto" });
    assertEquals(model.dtype, "bfloat16");
    assert(model.num_parameters() > 8e6 && model.num_parameters() < 9e6, "8 M weights");
    const bytes = model.get_memory_footprint();
    assert(bytes > 2 * model.num_parameters() && bytes < 2.2 * model.num_parameters(), `${bytes}`);
    using mixed = await loadModel({ quantization_config: { type: "q4_k_m" } });
    assertEquals(mixed.dtype, "q4_k"); // embedding and head are q6_k
  });

  it("is always in evaluation mode", async () => {
    using model = await loadModel();
    assertEquals([model.eval(), model.train(false)], [model, model]);
    assertThrows(() => model.train(), TypeError, "Cannot train");
  });
});
