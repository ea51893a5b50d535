/** Caches of fewer bits on a GPU: near the CPU's, the same bits in any cut and batch when asked to. */

import { describe } from "node:test";
import { assert, assertEquals } from "@std/assert";
import { AutoModelForCausalLM, type BambaForCausalLM } from "../../mod.ts";
import { randomModel } from "../../bench/lib/random_model.ts";
import type { CacheDTypes } from "../../src/modeling/cache_dtypes.ts";
import { folder } from "../generation/support.ts";
import { relativeError } from "../tolerance.ts";
import { idsOf, onGpu } from "./gpu.ts";

const never = new AbortController().signal;
const vocab_thin = 1024;

const kinds: CacheDTypes[] = [
  { state_dtype: "bfloat16" },
  { state_dtype: "float16" },
  { cache_dtype: "float16" },
  { cache_dtype: "float32", state_dtype: "float16" },
  { cache_dtype: "bfloat16", state_dtype: "bfloat16" },
];

/** Logits of a row in parts that end at `cuts`, and what the cache then holds of layers 0 and 1. */
async function inParts(model: BambaForCausalLM, ids: number[], cuts: number[]) {
  const vocab = model.config.vocab_size;
  const logits = new Float32Array(ids.length * vocab);
  let past_key_values;
  let done = 0;
  for (const end of [...cuts, ids.length]) {
    const output = await model.call({ input_ids: [ids.slice(done, end)], past_key_values });
    past_key_values = output.past_key_values!;
    logits.set(await output.logits!.data() as Float32Array, done * vocab);
    output.logits!.dispose();
    done = end;
  }
  using cache = past_key_values!;
  const kept: Float32Array[] = [];
  for (const layer of [0, 1, 2, 3]) {
    if (layer >= (model.config as unknown as { num_hidden_layers: number }).num_hidden_layers) {
      break;
    }
    for (const value of Object.values(cache.layer(layer))) {
      kept.push(await value.data() as Float32Array);
    }
  }
  return { logits, kept, bytes: cache.bytes };
}

describe("caches of fewer bits on a GPU", () => {
  for (const dtypes of kinds) {
    onGpu(`${JSON.stringify(dtypes)}: near the CPU's in f32`, async () => {
      const load = (device: string, o: CacheDTypes) =>
        AutoModelForCausalLM.from_pretrained(folder, { dtype: "float32", device, ...o });
      using gpu = await load("cuda", dtypes);
      using cpu = await load("cpu", dtypes);
      using plain = await load("cpu", {});
      const ids = idsOf(150, 3);
      const cuts = [64, 128, 129, 130];
      const truth = await inParts(cpu, ids, cuts);
      const found = await inParts(gpu, ids, cuts);
      const f32 = await inParts(plain, ids, cuts);
      const error = relativeError(found.logits, truth.logits);
      assert(error < 1e-2, `off by ${error}`);
      for (const [i, kept] of found.kept.entries()) {
        const off = relativeError(kept, truth.kept[i]);
        assert(off < 2e-2, `part ${i} of the cache is off by ${off}`);
      }
      assert(dtypes.state_dtype === undefined || found.bytes < f32.bytes, `${found.bytes} bytes`);
    });

    onGpu(`${JSON.stringify(dtypes)}: the same bits in any cut and batch`, async () => {
      using model = await AutoModelForCausalLM.from_pretrained(
        await randomModel("9b-thin", never),
        { dtype: "bfloat16", device: "cuda", batch_invariant: true, ...dtypes },
      );
      using plain = await AutoModelForCausalLM.from_pretrained(
        await randomModel("9b-thin", never),
        { dtype: "bfloat16", device: "cuda", batch_invariant: true },
      );
      const ids = idsOf(200, 5);
      const whole = await inParts(model, ids, []);
      const truth = await inParts(plain, ids, []);
      const error = relativeError(whole.logits, truth.logits);
      assert(error < 3e-2, `off by ${error}`);
      for (const cuts of [[64], [64, 128, 192], [128]]) {
        const cut = await inParts(model, ids, cuts);
        assertEquals(cut.logits, whole.logits, `cut at ${cuts}`);
        assertEquals(cut.kept, whole.kept, `cache of a cut at ${cuts}`);
      }
      using both = await model.call({ input_ids: [idsOf(200, 8), ids], use_cache: false });
      const all = await both.logits!.data() as Float32Array;
      assertEquals(all.subarray(ids.length * vocab_thin), whole.logits);
      const prompt = { input_ids: [idsOf(9, 1)], max_new_tokens: 20, eos_token_id: null };
      const [text] = await model.generate(prompt);
      const rows = Array.from({ length: 12 }, (_, r) => idsOf(9, r + 1));
      assertEquals((await model.generate({ ...prompt, input_ids: rows }))[0], text);
    });
  }
});
