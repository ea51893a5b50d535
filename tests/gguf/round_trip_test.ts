import { assert, assertEquals, assertRejects } from "@std/assert";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { GgufValue, ItemTypeName } from "../../src/gguf/format.ts";
import { readGgufHeader } from "../../src/gguf/reader.ts";
import { MetadataBuilder, Values } from "../../src/gguf/values.ts";
import { writeGguf } from "../../src/gguf/writer.ts";
import { withFolder } from "../weights/support.ts";

const numbers: [ItemTypeName, number[]][] = [
  ["u8", [0, 255]],
  ["i8", [-128, 127]],
  ["u16", [0, 65535]],
  ["i16", [-32768, 32767]],
  ["u32", [0, 2 ** 32 - 1]],
  ["i32", [-(2 ** 31), 2 ** 31 - 1]],
  ["f32", [0.5, -1e10, Math.fround(1e-5)]],
  ["u64", [0, Number.MAX_SAFE_INTEGER]],
  ["i64", [Number.MIN_SAFE_INTEGER, 5]],
  ["f64", [Math.PI, 1e300]],
];

describe("GGUF metadata and tensors", () => {
  it("come back as they were written", () =>
    withFolder(async (folder) => {
      const builder = new MetadataBuilder().add("text", "string", "dog é 日本 \u{1f436}")
        .add("empty", "string", "").add("yes", "bool", true).add("left out", "u8", undefined)
        .addArray("texts", "string", ["a", "", "é"]).addArray("flags", "bool", [true, false]);
      for (const [type, values] of numbers) {
        builder.addArray(`many ${type}`, type, values);
        for (const [i, value] of values.entries()) builder.add(`${type} ${i}`, type, value);
      }
      const part = (n: number) => Uint8Array.from({ length: n }, (_, i) => i % 251);
      const tensors = [
        { name: "a", type: "F32", shape: [3, 5], data: () => [part(20), part(40)] },
        { name: "b", type: "Q8_0", shape: [2, 64], data: () => [part(136)] },
        { name: "c", type: "BF16", shape: [7], data: () => [new Uint16Array(7)] },
      ];
      const path = join(folder, "all.gguf");
      await writeGguf(path, builder.metadata, tensors);
      const { version, metadata, tensors: found, dataOffset, fileBytes } = readGgufHeader(path);
      assertEquals(version, 3);
      assertEquals([...metadata], [...builder.metadata]);
      assertEquals(metadata.has("left out"), false);
      const shapes = [...found].map(([name, { type, shape, offset, bytes }]) => [
        name,
        type,
        shape,
        offset - dataOffset,
        bytes,
      ]);
      assertEquals(shapes, [
        ["a", "F32", [3, 5], 0, 60],
        ["b", "Q8_0", [2, 64], 64, 136],
        ["c", "BF16", [7], 224, 14],
      ]);
      assertEquals(fileBytes, dataOffset + 256);
    }));

  it("leave no file behind when a tensor gives too few or too many bytes", () =>
    withFolder(async (folder) => {
      for (const n of [59, 61]) {
        const data = () => [new Uint8Array(n)];
        await assertRejects(
          () =>
            writeGguf(join(folder, "x.gguf"), new Map(), [{
              name: "a",
              type: "F32",
              shape: [15],
              data,
            }]),
          RangeError,
          `Expected 60 bytes for tensor "a" but found ${n === 59 ? "59" : "more"}`,
        );
      }
      assertEquals(readdirSync(folder), []);
      assert(!existsSync(join(folder, "x.gguf")));
    }));

  it("name the path where it cannot be written", () =>
    withFolder(async (folder) => {
      const path = join(folder, "none", "x.gguf");
      await assertRejects(
        () => writeGguf(path, new Map(), []),
        Error,
        `Cannot write "${path}": ENOENT`,
      );
      const refused = (to: unknown, words: string) =>
        assertRejects(() => writeGguf(to as string, new Map(), []), TypeError, words);
      await refused(folder, `found the folder "${folder}"`);
      await refused(undefined, "path of a file to write but found undefined");
    }));

  it("stay apart where two get one name, of which the last stays", () =>
    withFolder(async (folder) => {
      const path = join(folder, "x.gguf");
      let go = () => {};
      const second = new Promise<void>((resolve) => go = resolve);
      const write = (value: number, before: () => Promise<void> | void) =>
        writeGguf(path, new Map(), [{
          name: "a",
          type: "F32",
          shape: [1],
          async *data() {
            await before();
            yield Float32Array.of(value);
          },
        }]);
      const slow = write(1, () => second);
      await write(2, () => {});
      const at = readGgufHeader(path).dataOffset;
      const value = () => readFileSync(path).readFloatLE(at);
      assertEquals(value(), 2);
      go();
      await slow;
      assertEquals(value(), 1);
      assertEquals(readdirSync(folder), ["x.gguf"]);
    }));
});

describe("values of metadata", () => {
  const entry = (value: GgufValue) => ({ type: "string" as const, value });
  const values = new Values(new Map([["n", entry(5)], ["s", entry("x")]]));

  it("are told when they are missing or of another type", () => {
    const told = (body: () => unknown) => {
      try {
        body();
      } catch (error) {
        return `${(error as Error).name}: ${(error as Error).message}`;
      }
      return "nothing";
    };
    assertEquals(
      told(() => values.number("s")),
      'TypeError: Expected s of the metadata to be a number but found "x"',
    );
    assertEquals(
      told(() => values.texts("n")),
      "TypeError: Expected n of the metadata to be an array of texts but found 5",
    );
    assertEquals(
      told(() => values.text("t")),
      "TypeError: Expected the metadata to have t but found nothing",
    );
    assertEquals([values.numberOr("x"), values.number("n")], [undefined, 5]);
  });
});
