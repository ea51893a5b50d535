/** The cache as a value: forks, selections and reorderings go on as what they were made from. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertThrows } from "@std/assert";
import type { BambaForCausalLM, HybridMambaAttentionDynamicCache } from "../../mod.ts";
import { loadModel } from "../generation/support.ts";

const lengths = [130, 64, 5];
const columns = Math.max(...lengths);
const input_ids = lengths.map((_, r) =>
  Array.from({ length: columns }, (_, t) => 3 + (t * 7 + r * 131) % 4000)
);
const attention_mask = lengths.map((n) => Array.from({ length: columns }, (_, t) => Number(t < n)));

async function filled(model: BambaForCausalLM): Promise<HybridMambaAttentionDynamicCache> {
  const output = await model.call({ input_ids, attention_mask, logits_to_keep: 1 });
  output.logits!.dispose();
  return output.past_key_values!;
}

/** Logits of two more steps for each row. */
async function goOn(model: BambaForCausalLM, cache: HybridMambaAttentionDynamicCache) {
  const logits: Float32Array[] = [];
  for (const id of [300, 301]) {
    const next = Array.from({ length: cache.batch_size }, () => [id]);
    const output = await model.call({ input_ids: next, past_key_values: cache });
    logits.push(await output.logits!.data() as Float32Array);
    output.logits!.dispose();
  }
  return logits;
}

describe("HybridMambaAttentionDynamicCache", () => {
  it("reorders rows as if they had been selected", async () => {
    using model = await loadModel();
    for (const order of [[0, 1, 2], [2, 0, 0], [1, 1, 1], [1, 2, 0]]) {
      using cache = await filled(model);
      using selected = cache.select(order);
      assertEquals(selected.lengths, order.map((row) => lengths[row]));
      cache.reorder_cache(order);
      assertEquals(cache.lengths, selected.lengths);
      const truth = await goOn(model, selected);
      assertEquals(await goOn(model, cache), truth, `order ${order}`);
      cache.reorder_cache([0, 0, 1]);
      assertEquals(cache.lengths, [0, 0, 1].map((row) => selected.lengths[row]));
    }
  });

  it("takes no more memory however often it is reordered", async () => {
    using model = await loadModel();
    using cache = await filled(model);
    cache.reorder_cache([0, 0, 0]);
    cache.reorder_cache([2, 1, 0]);
    await goOn(model, cache);
    const before = cache.bytes;
    for (let i = 0; i < 200; i++) cache.reorder_cache([i % 3, (i + 1) % 3, i % 3]);
    assertEquals(cache.bytes, before);
  });

  it("goes on in every fork by itself", async () => {
    using model = await loadModel();
    using cache = await filled(model);
    using fork = cache.fork();
    const truth = await goOn(model, cache);
    assertEquals(await goOn(model, fork), truth);
    assertEquals(cache.get_seq_length(), columns + 2);
    assertEquals(fork.get_seq_length(2), lengths[2] + 2);
  });

  it("names rows and layers that it does not have", async () => {
    using model = await loadModel();
    using cache = await filled(model);
    assertThrows(() => cache.select([3]), RangeError, "below 3 but found 3");
    assertThrows(() => cache.reorder_cache([0]), RangeError);
    assertThrows(() => cache.layer(99), RangeError, "found 99");
    const { keys } = cache.layer(3, 1);
    assertEquals(keys.shape, [2, 64, 64]);
    assert((await keys.data()).every(Number.isFinite), "real keys");
  });
});
