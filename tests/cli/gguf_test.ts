import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { tiny_path } from "../gguf/support.ts";
import { MetadataBuilder } from "../../src/gguf/values.ts";
import { writeGguf } from "../../src/gguf/writer.ts";
import { writeSafetensors } from "../../src/weights/safetensors.ts";
import { model_folder, withFolder } from "../weights/support.ts";
import { cli } from "./support.ts";

describe("inspect", () => {
  it("shows files, metadata, tensors, types and bits of a GGUF file", async () => {
    const { code, stdout, stderr } = await cli(["inspect", tiny_path]);
    assertEquals([code, stderr], [0, ""]);
    assertStringIncludes(stdout, `${tiny_path}: GGUF version 3`);
    assertMatch(stdout, /general\.architecture = "granitehybrid"/);
    assertMatch(stdout, /tokenizer\.ggml\.tokens = \["<unk>",.*… \(273\)\]/);
    assertMatch(stdout, /24 tensors\n +token_embd\.weight +Q8_0 +\[273, 32\] +0\.01 MiB/);
    assertMatch(stdout, /Q8_0 +6 tensors, 18336 weights of 8\.5 bits/);
    assertMatch(stdout, /25076 weights, 14\.816 bits a weight\n$/);
  });

  it("shows a folder, and as JSON all of it", async () => {
    const { code, stdout } = await cli(["inspect", model_folder, "--json"]);
    assertEquals(code, 0);
    const found = JSON.parse(stdout);
    assertEquals([found.format, found.weights, found.bits_per_weight], [
      "safetensors",
      8168848,
      16,
    ]);
    assertEquals([found.tensors.length, found.types.BF16.tensors], [89, 89]);
    const short = await cli(["inspect", model_folder, "--tensors", "2"]);
    assertMatch(short.stdout, / {2}and 87 more\n/);
  });

  it("knows both kinds under any name", () =>
    withFolder(async (folder) => {
      const kinds = [["GGUF", tiny_path], [
        "safetensors",
        join(model_folder, "model.safetensors"),
      ]];
      for (const [format, from] of kinds) {
        const path = join(folder, `sha256-${format}`);
        copyFileSync(from, path);
        const { stdout } = await cli(["inspect", path, "--json"]);
        assertEquals(JSON.parse(stdout).format, format);
      }
    }));

  it("counts scales beside 8-bit floats as bits of theirs", () =>
    withFolder(async (folder) => {
      const path = join(folder, "x.safetensors");
      await writeSafetensors(path, [
        ["a.weight", { dtype: "F8_E4M3", shape: [4, 8], data: new Uint8Array(32) }],
        ["a.weight_scale", { dtype: "F32", shape: [4, 1], data: new Float32Array(4) }],
      ]);
      const { stdout } = await cli(["inspect", path]);
      assertStringIncludes(stdout, "  a.weight        F8_E4M3 [4, 8] ");
      assertStringIncludes(stdout, "  a.weight_scale  F32     [4, 1] ");
      assertMatch(stdout, /F8_E4M3 1 tensors, 32 weights of 8 bits/);
      assertMatch(stdout, /\n32 weights, 12\.000 bits a weight\n$/);
    }));

  it("shows names that would steer a terminal as what they are", () =>
    withFolder(async (folder) => {
      const path = join(folder, "x.gguf");
      const builder = new MetadataBuilder().add("a\x1b[2Jb", "string", "c\x1b[0m");
      const tensor = { name: "d\r\n", type: "F32", shape: [1], data: () => [Float32Array.of(1)] };
      await writeGguf(path, builder.metadata, [tensor]);
      const { stdout } = await cli(["inspect", path]);
      assertStringIncludes(stdout, '  a\\u001b[2Jb = "c\\u001b[0m"\n');
      assertStringIncludes(stdout, "  d\\r\\n  F32 ");
      const model = await cli(["generate", "--model", path, "x"]);
      assert(!model.stderr.includes("\x1b"), model.stderr);
    }));

  it("tells a file of another kind from none", () =>
    withFolder(async (folder) => {
      const path = join(folder, "x.bin");
      const none = await cli(["inspect", path]);
      assertEquals(none.code, 1);
      assertMatch(none.stderr, /\.gguf file, but found nothing at ".*x\.bin"\.\n$/);
      writeFileSync(path, "x");
      const other = await cli(["inspect", path]);
      assertEquals(other.code, 1);
      assertMatch(other.stderr, /\.gguf file, but found another file at ".*x\.bin"\.\n$/);
    }));

  it("tells in a sentence what is wrong with a file", () =>
    withFolder(async (folder) => {
      const path = join(folder, "x.gguf");
      writeFileSync(path, "GGUF\x03");
      const { code, stdout, stderr } = await cli(["inspect", path]);
      assertEquals([code, stdout], [1, ""]);
      assertMatch(stderr, /^bamba: Cannot read ".*x\.gguf" as GGUF: .*truncated\?\n$/);
    }));
});

describe("quantize", () => {
  it("names what does not fit in a folder, and writes nothing", () =>
    withFolder(async (folder) => {
      const [model, out] = [join(folder, "model"), join(folder, "x.gguf")];
      mkdirSync(model);
      for (const name of ["tokenizer.json", "tokenizer_config.json", "model.safetensors"]) {
        copyFileSync(join(model_folder, name), join(model, name));
      }
      const config = JSON.parse(readFileSync(join(model_folder, "config.json"), "utf8"));
      const refused = async (fields: Record<string, unknown>, words: RegExp) => {
        writeFileSync(join(model, "config.json"), JSON.stringify({ ...config, ...fields }));
        const { code, stderr } = await cli(["quantize", model, out], { writes: folder });
        assertEquals(code, 1);
        assertMatch(stderr, words);
        assertEquals(readdirSync(folder), ["model"]);
      };
      await refused(
        { intermediate_size: 512 },
        /21 misshapen: .*\[768,256\] instead of \[512,256\]/,
      );
      await refused({ mlp_bias: true }, /21 missing: .*gate_proj\.bias/);
      await refused({ num_hidden_layers: 6, attn_layer_indices: [3] }, /surplus: .*layers\.6\./);
      rmSync(join(model, "tokenizer.json"));
      await refused({}, /has no tokenizer\.json: .*--no-tokenizer\.$/m);
    }));

  it("writes a file that generate runs, and never over another", () =>
    withFolder(async (folder) => {
      const path = join(folder, "m.gguf");
      const first = await cli(["quantize", model_folder, path, "--type", "BF16"], {
        writes: folder,
      });
      assertEquals(first.code, 0);
      assertMatch(first.stderr, /^(?: \d0 % {2}\S+ \S+\n){5,9}100 % {2}\S+ \S+\n$/);
      assertMatch(first.stdout, /m\.gguf: bf16, 15\.6 MiB became 15\.8 MiB in \d+\.\d s\n$/);
      const again = await cli(["quantize", model_folder, path], { writes: folder });
      assertEquals(again.code, 1);
      assertMatch(
        again.stderr,
        /^bamba: '.*m\.gguf' is there already: --force writes over it\.\n$/,
      );
      const args = ["--max-new-tokens", "8", "a small dog is"];
      const [own, back] = [
        await cli(["generate", ...args]),
        await cli(["generate", "--model", path, ...args]),
      ];
      assertEquals([back.code, back.stdout], [0, own.stdout], back.stderr);
      assert(own.stdout.length > 8);
      assertEquals(readdirSync(folder), ["m.gguf"]);
    }));
});
