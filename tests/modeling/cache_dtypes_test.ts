/** Caches kept in fewer bits: near f32, the same bits in any batch and cut, read back, refused. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import type { BambaForCausalLM } from "../../mod.ts";
import { CacheLayout } from "../../src/modeling/cache_layout.ts";
import type { CacheDTypes } from "../../src/modeling/cache_dtypes.ts";
import { dog, loadModel as load } from "../generation/support.ts";

/** On the CPU; tests/runtime/cuda_cache_test.ts has the same on a GPU. */
const loadModel = (o: CacheDTypes = {}) => load({ ...o, device: "cpu", dtype: "auto" });
const vocab = 4096;
const ids = Array.from({ length: 200 }, (_, i) => 3 + (i * 131) % 4000);

/** How far logits may be from those of an f32 cache. */
const kinds: [CacheDTypes, number][] = [
  [{ cache_dtype: "bfloat16" }, 0.3],
  [{ cache_dtype: "float16" }, 0.05],
  [{ cache_dtype: "q8_0" }, 0.3],
  [{ state_dtype: "bfloat16" }, 1.5],
  [{ state_dtype: "float16" }, 0.2],
  [{ cache_dtype: "q8_0", state_dtype: "float16" }, 0.4],
];

async function logitsOf(model: BambaForCausalLM, rows: number[][], cuts: number[] = []) {
  const columns = rows[0].length;
  const parts: Float32Array[] = [];
  let past_key_values;
  let done = 0;
  for (const end of [...cuts, columns]) {
    const input_ids = rows.map((row) => row.slice(done, end));
    const output = await model.call({ input_ids, past_key_values });
    past_key_values = output.past_key_values!;
    parts.push(await output.logits!.data() as Float32Array);
    output.logits!.dispose();
    done = end;
  }
  return { logits: parts, cache: past_key_values! };
}

const worst = (a: Float32Array, b: Float32Array) =>
  a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);

describe("cache_dtype and state_dtype", () => {
  for (const [options, tolerance] of kinds) {
    it(`${JSON.stringify(options)}: near f32, whatever the batch and the cut`, async () => {
      using plain = await loadModel();
      using model = await loadModel(options);
      const cuts = [64, 128, 192];
      const truth = await logitsOf(plain, [ids], cuts);
      const whole = await logitsOf(model, [ids]);
      const cut = await logitsOf(model, [ids], cuts);
      const difference = Math.max(...cut.logits.map((part, i) => worst(part, truth.logits[i])));
      assert(difference < tolerance, `logits differ by ${difference}`);
      assert(difference > 0, "the cache has fewer bits");
      assert(cut.cache.bytes < truth.cache.bytes);
      const joined = new Float32Array(ids.length * vocab);
      cut.logits.reduce((at, part) => (joined.set(part, at), at + part.length), 0);
      assertEquals(joined, whole.logits[0], "any cut at multiples of 64");

      const other = ids.map((id) => (id * 7) % 4000);
      const batch = await logitsOf(model, [other, ids]);
      assertEquals(batch.logits[0].subarray(ids.length * vocab), whole.logits[0]);

      for (const layer of [0, 3]) {
        const a = truth.cache.layer(layer), b = cut.cache.layer(layer);
        for (const name of Object.keys(a)) {
          const [want, found] = [await a[name].data(), await b[name].data()] as Float32Array[];
          const size = worst(want, new Float32Array(want.length));
          assertEquals(b[name].shape, a[name].shape);
          assert(worst(want, found) < size * 0.02, `${name} differ by ${worst(want, found)}`);
        }
      }
      for (const { cache } of [truth, whole, cut, batch]) cache.dispose();
    });
  }

  it("decodes with the bits of a prompt's last token", async () => {
    using model = await loadModel({ cache_dtype: "q8_0", state_dtype: "bfloat16" });
    const { logits, cache } = await logitsOf(model, [ids.slice(0, 65)], [64]);
    const whole = await logitsOf(model, [ids.slice(0, 65)]);
    assertEquals(logits[1], whole.logits[0].subarray(64 * vocab));
    const text = await model.generate({ input_ids: dog, max_new_tokens: 40 });
    assertEquals(await model.generate({ input_ids: dog, max_new_tokens: 40 }), text);
    cache.dispose();
    whole.cache.dispose();
  });

  it("says what it takes, and where it does not fit", async () => {
    const wrong = (options: Record<string, string>) => loadModel(options as CacheDTypes);
    await assertRejects(() => wrong({ cache_dtype: "int4" }), RangeError, "found int4");
    await assertRejects(() => wrong({ state_dtype: "q8_0" }), RangeError, "found q8_0");
    const heads = { type: "attention", kv_heads: 1, head_dim: 24 } as const;
    const layout = (device: "cpu" | "cuda", dtypes: CacheDTypes) =>
      new CacheLayout([heads], device, "float32", dtypes);
    assertThrows(() => layout("cpu", { cache_dtype: "q8_0" }), RangeError, "but found 24");
    assertThrows(() => layout("cuda", { cache_dtype: "q8_0" }), TypeError, "of q8_0 on cuda");
    assertEquals(layout("cuda", { cache_dtype: "float32" }).page_bytes, 64 * 24 * 8);
  });

  it("refuses a cache kept in something else", async () => {
    using plain = await loadModel();
    using model = await loadModel({ state_dtype: "bfloat16" });
    using output = await plain.call({ input_ids: dog });
    const { past_key_values } = output;
    await assertRejects(
      () => model.call({ input_ids: [[5]], past_key_values }),
      TypeError,
      "past_key_values of this model",
    );
    await assertRejects(
      () => model.generate({ input_ids: [[...dog[0], 5]], past_key_values }),
      TypeError,
      "past_key_values of this model",
    );
  });
});
