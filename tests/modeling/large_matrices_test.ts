/**
 * Matrices and heads of a large model's size: a CPU with products of bf16 multiplies them in another way
 * than the small ones of the default model, with the same promises.
 */

import { describe, it } from "node:test";
import { assert, assertEquals } from "@std/assert";
import { AutoModelForCausalLM, type BambaForCausalLM } from "../../mod.ts";
import { randomModel } from "../../bench/lib/random_model.ts";
import { relativeError } from "../tolerance.ts";
import { withFolder } from "../weights/support.ts";

const never = new AbortController().signal;
const lengths = [70, 9, 33];
const width = Math.max(...lengths);
const rows = lengths.map((n, row) =>
  Array.from({ length: n }, (_, i) => 3 + (i * 7919 + row * 104729) % 1000)
);
const padding = rows.map((row) => Array<number>(width - row.length).fill(0));

async function logitsOf(
  model: BambaForCausalLM,
  inputs: Record<string, number[][]>,
): Promise<Float32Array> {
  using output = await model.call({ ...inputs, use_cache: false });
  return await output.logits!.data() as Float32Array;
}

describe("large matrices", { timeout: 120_000 }, () => {
  it("of bfloat16 give a row the same bits alone, padded and packed, with any threads", () =>
    withFolder(async (parent) => {
      const folder = await randomModel("9b-thin", never, parent);
      using wide = await AutoModelForCausalLM.from_pretrained(folder, { dtype: "float32" });
      let first: Float32Array[] | undefined;
      for (const threads of [1, 2]) {
        using model = await AutoModelForCausalLM.from_pretrained(folder, { threads });
        const vocab = model.config.vocab_size;
        const alone: Float32Array[] = [];
        for (const row of rows) alone.push(await logitsOf(model, { input_ids: [row] }));
        assertEquals(alone, first ??= alone);
        const error = relativeError(alone[0], await logitsOf(wide, { input_ids: [rows[0]] }));
        assert(error <= 3e-2, `off by ${error} from f32`);

        const left = await logitsOf(model, {
          input_ids: rows.map((row, i) => [...padding[i], ...row]),
          attention_mask: rows.map((row, i) => [...padding[i], ...row.map(() => 1)]),
        });
        const packed = await logitsOf(model, {
          input_ids: [rows.flat()],
          position_ids: [rows.flatMap((row) => row.map((_, i) => i))],
        });
        let at = 0;
        for (const [i, row] of rows.entries()) {
          const from = (i * width + padding[i].length) * vocab;
          assertEquals(left.slice(from, from + row.length * vocab), alone[i]);
          assertEquals(packed.slice(at, at + row.length * vocab), alone[i]);
          at += row.length * vocab;
        }
      }
    }));

  for (
    const [kept, quantization_config] of [
      ["bfloat16", undefined],
      ["bfloat16", { type: "f8_e4m3" }],
      ["q8_0", { type: "q8_0" }],
    ] as const
  ) {
    const stored = quantization_config?.type ?? "bfloat16";
    it(`of ${stored} keep keys and values in ${kept}, the same bits in any cut of a prompt`, () =>
      withFolder(async (parent) => {
        const folder = await randomModel("9b-thin", never, parent);
        const ids = Array.from({ length: 257 }, (_, i) => 3 + (i * 7919) % 1000);
        // A GPU multiplies few rows in another order than many, unless it is told not to.
        const same = { threads: 2, batch_invariant: true } as const;
        const blocks = { ...same, quantization_config, device: "cpu" } as const;
        const options = quantization_config ? blocks : same;
        using model = await AutoModelForCausalLM.from_pretrained(folder, options);
        using whole = await model.call({ input_ids: [ids] });
        const want = await whole.logits!.data() as Float32Array;
        const level = model.device.info().cpu_level;
        const expected = level === "portable" ? "bfloat16" : kept;
        assertEquals(whole.past_key_values!.layout.attention(1).keys.dtype, expected);
        let past_key_values;
        let done = 0;
        for (const end of [64, 256, 257]) {
          const output = await model.call({ input_ids: [ids.slice(done, end)], past_key_values });
          const got = await output.logits!.data() as Float32Array;
          const { vocab_size } = model.config;
          assertEquals(got, want.slice(done * vocab_size, end * vocab_size));
          past_key_values = output.past_key_values!;
          output.logits!.dispose();
          done = end;
        }
        past_key_values!.dispose();

        const exact = { ...options, cache_dtype: "float32" } as const;
        using wide = await AutoModelForCausalLM.from_pretrained(folder, exact);
        const error = relativeError(want, await logitsOf(wide, { input_ids: [ids] }));
        assert(error > 0 && error <= 3e-2, `off by ${error} from an f32 cache`);
      }));
  }
});
