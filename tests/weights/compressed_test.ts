/** FP8 checkpoints: the bits of their products in f32, held in 8 bits, saved and refused. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Buffer } from "node:buffer";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { AutoModelForCausalLM } from "../../mod.ts";
import type { JsonObject } from "../../src/weights/json.ts";
import { checkQuantizationConfig, openSafetensors } from "../../src/weights/compressed.ts";
import { eight_values, quantizationConfig, toEight, writeConfig, writeEights } from "./eights.ts";
import { withFolder } from "./support.ts";

const ids = Array.from({ length: 70 }, (_, i) => 3 + (i * 131) % 4000);

async function logitsOf(path: string, o: Record<string, unknown> = {}) {
  using model = await AutoModelForCausalLM.from_pretrained(path, { device: "cpu", ...o });
  using output = await model.call({ input_ids: [ids] });
  const text = await model.generate({ input_ids: [ids.slice(0, 5)], max_new_tokens: 20 });
  return {
    logits: await output.logits!.data() as Float32Array,
    text,
    bytes: model.get_memory_footprint(),
    dtypes: new Set([...model.namedParameters()].map(([, tensor]) => tensor.dtype)),
  };
}

const twoFolders = (body: (eights: string, exact: string) => Promise<void>) =>
  withFolder(async (folder) => {
    const [eights, exact] = [join(folder, "eights"), join(folder, "exact")];
    for (const path of [eights, exact]) mkdirSync(path);
    await body(eights, exact);
  });

describe("FP8 checkpoints", () => {
  it("has test values that are f8_e4m3", () => {
    assertEquals([eight_values[0x38], eight_values[0x7e], eight_values[0x81]], [
      1,
      448,
      -(2 ** -9),
    ]);
    for (let byte = 0; byte < 127; byte++) assertEquals(toEight(eight_values[byte]), byte);
    assertEquals([toEight(1.0625), toEight(1.1875), toEight(-0.3)], [0x38, 0x3a, 0xaa]);
  });

  const kinds = [
    { strategy: "channel", scales: "BF16" },
    { strategy: "tensor", scales: "F32" },
    { strategy: "channel", scales: "F32", sharded: true },
  ] as const;
  for (const kind of kinds) {
    it(`${JSON.stringify(kind)}: the bits of the unpacked weights, in less memory`, () =>
      twoFolders(async (eights, exact) => {
        await writeEights(eights, exact, kind);
        const truth = await logitsOf(exact);
        const found = await logitsOf(eights);
        assertEquals(found.logits, truth.logits);
        assertEquals(found.text, truth.text);
        assert(found.dtypes.has("float8_e4m3fn"), [...found.dtypes].join());
        assert(found.bytes < truth.bytes / 2.5, `${found.bytes} bytes for ${truth.bytes}`);
        // unpacked while it is loaded, on request only
        const wide = await logitsOf(eights, { dtype: "float32" });
        assertEquals(wide.logits, (await logitsOf(exact, { dtype: "float32" })).logits);
        assert(!wide.dtypes.has("float8_e4m3fn"));
      }));
  }

  it("goes into GGUF files and into blocks", () =>
    twoFolders(async (eights, exact) => {
      await writeEights(eights, exact, { strategy: "channel", scales: "F32" });
      for (const type of ["f32", "q8_0"]) {
        const files: Uint8Array[] = [];
        for (const folder of [eights, exact]) {
          using model = await AutoModelForCausalLM.from_pretrained(folder, { device: "cpu" });
          const path = join(folder, `${type}.gguf`);
          await model.save_gguf(path, { type });
          files.push(readFileSync(path));
        }
        const tail = (bytes: Uint8Array) => bytes.subarray(bytes.length - (4 << 20));
        assert(Buffer.from(tail(files[0])).equals(tail(files[1])), `the same weights in ${type}`);
      }
      const quantization_config = { type: "q4_k_m" };
      const quantized = await logitsOf(eights, { quantization_config });
      assertEquals(quantized.logits, (await logitsOf(exact, { quantization_config })).logits);
    }));

  it("refuses what it would run wrongly, in a sentence", () =>
    twoFolders(async (eights, exact) => {
      await writeEights(eights, exact, { strategy: "channel", scales: "F32" });
      const refused = (change: JsonObject) => ({ ...quantizationConfig("channel"), ...change });
      const check = (config: JsonObject, words: string) =>
        assertThrows(() => checkQuantizationConfig(config, "config.json"), TypeError, words);
      check(refused({ quant_method: "gptq" }), 'found "gptq"');
      check(refused({ format: "pack-quantized" }), 'found "pack-quantized"');
      check(quantizationConfig("block"), 'strategy of "config.json" to be "channel" or "tensor"');
      writeConfig(eights, refused({ quant_method: "awq" }));
      await assertRejects(() => logitsOf(eights), TypeError, 'found "awq"');
      writeConfig(eights, quantizationConfig("channel"));

      // a NaN among the numbers
      const path = join(eights, "model.safetensors");
      const bytes = readFileSync(path);
      const { offset } = openSafetensors(eights).get("model.layers.0.mamba.out_proj.weight");
      const broken = Uint8Array.from(bytes);
      broken[offset + 1000] = 0xff;
      writeFileSync(path, broken);
      await assertRejects(() => logitsOf(eights), Error, "found NaN in row 1 of 256 rows");

      // a scale that is not there: its name is another
      const text = "model.layers.0.mamba.out_proj.weight_scale";
      const at = bytes.indexOf(text);
      const renamed = Uint8Array.from(bytes);
      renamed[at + text.length - 1] = "f".charCodeAt(0);
      writeFileSync(path, renamed);
      await assertRejects(() => logitsOf(eights), RangeError, "1 have none: model.layers.0.mamba");
    }));
});
