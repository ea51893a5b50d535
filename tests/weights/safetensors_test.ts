import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import {
  dtype_bytes,
  readSafetensorsHeader,
  type TensorToWrite,
  writeSafetensors,
} from "../../src/weights/safetensors.ts";
import { golden_names, goldenFolder, safetensorsBytes, withFolder } from "./support.ts";

const entry = (dtype: string, shape: unknown, data_offsets: unknown) => ({
  dtype,
  shape,
  data_offsets,
});
const f32x2 = entry("F32", [2], [0, 8]);

/** Headers that lie, the bytes of data behind them, and words of the sentence each must get. */
const lies: [string, unknown, number, string][] = [
  ["truncated data", { a: f32x2 }, 4, 'tensor "a" ends at byte 8 but the file holds 4 bytes'],
  ["surplus data", { a: f32x2 }, 9, "1 bytes after the last tensor"],
  ["data without tensors", {}, 3, "3 bytes after the last tensor"],
  ["hole before", { a: entry("F32", [1], [4, 8]) }, 8, "4 bytes before tensor"],
  [
    "hole between",
    { a: entry("F32", [1], [0, 4]), b: entry("F32", [1], [8, 12]) },
    12,
    '4 bytes before tensor "b"',
  ],
  ["overlap", { a: f32x2, b: entry("F32", [1], [4, 8]) }, 8, "overlap"],
  ["same span", { a: f32x2, b: f32x2 }, 8, "overlap"],
  ["too few bytes", { a: entry("F32", [3], [0, 8]) }, 8, "needs 12 bytes but"],
  ["too many bytes", { a: entry("F32", [1], [0, 8]) }, 8, "needs 4 bytes but"],
  ["reversed span", { a: entry("F32", [0], [8, 0]) }, 8, "data_offsets"],
  ["negative span", { a: entry("F32", [0], [-8, -8]) }, 0, "data_offsets"],
  ["fractional span", { a: entry("F32", [0], [0.5, 0.5]) }, 0, "data_offsets"],
  ["one offset", { a: entry("F32", [2], [8]) }, 8, "data_offsets"],
  ["no offsets", { a: { dtype: "F32", shape: [2] } }, 8, "found nothing"],
  ["offsets of text", { a: entry("F32", [2], ["0", "8"]) }, 8, "data_offsets"],
  ["far offsets", { a: entry("F32", [2], [2 ** 60, 2 ** 60 + 8]) }, 8, "data_offsets"],
  ["unknown dtype", { a: entry("F31", [2], [0, 8]) }, 8, 'unknown dtype "F31"'],
  ["inherited dtype", { a: entry("toString", [2], [0, 8]) }, 8, "unknown dtype"],
  ["no dtype", { a: { shape: [2], data_offsets: [0, 8] } }, 8, "unknown dtype nothing"],
  ["negative shape", { a: entry("F32", [-2], [0, 8]) }, 8, "shape"],
  ["fractional shape", { a: entry("F32", [2.5], [0, 10]) }, 10, "shape"],
  ["shape of text", { a: entry("F32", "2", [0, 8]) }, 8, "shape"],
  ["deep shape", { a: entry("F32", new Array(9).fill(1), [0, 4]) }, 4, "at most 8"],
  [
    "overflowing shape",
    { a: entry("F32", [2 ** 32, 2 ** 32, 2 ** 31], [0, 8]) },
    8,
    "more bytes than a file can have",
  ],
  ["tensor as list", { a: [1] }, 8, "to be an object"],
  ["header as list", [1], 0, "JSON object"],
  ["header as text", '"x"', 0, "JSON object"],
  ["metadata of numbers", { __metadata__: { a: 1 } }, 0, "__metadata__"],
  ["metadata as list", { __metadata__: [] }, 0, "__metadata__"],
  ["no JSON", '{"a":', 0, "Expected a value"],
  ["empty header", "", 0, "Expected a value"],
  ["duplicate name", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":1}', 1, "twice"],
];

describe("readSafetensorsHeader", () => {
  for (const [name, header, data_bytes, words] of lies) {
    it(`names the lie: ${name}`, () =>
      withFolder((folder) => {
        const path = join(folder, "model.safetensors");
        writeFileSync(path, safetensorsBytes(header, data_bytes));
        const error = assertThrows(() => readSafetensorsHeader(path), Error, words);
        assertStringIncludes(error.message, path);
      }));
  }

  it("names files that cannot hold a header", () =>
    withFolder((folder) => {
      const path = join(folder, "x.safetensors");
      const read = () => readSafetensorsHeader(path);
      assertThrows(read, Error, "ENOENT");
      mkdirSync(path);
      assertThrows(read, TypeError, "not a regular file");
      const other = join(folder, "y.safetensors");
      const cases: [Uint8Array, string][] = [
        [new Uint8Array(0), "at least 8 bytes but the file has 0"],
        [new Uint8Array(7), "at least 8 bytes but the file has 7"],
        [Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0), "should have 1 bytes"],
        [Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 1), "at most 100000000 bytes"],
        [new Uint8Array(16).fill(255), "at most 100000000 bytes"],
        [Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 0, 0x22, 0xff, 0x22), "not UTF-8"],
      ];
      for (const [bytes, words] of cases) {
        writeFileSync(other, bytes);
        assertThrows(() => readSafetensorsHeader(other), Error, words);
      }
    }));

  it("takes empty tensors, scalars, spaces after the header and every dtype", () =>
    withFolder((folder) => {
      const path = join(folder, "x.safetensors");
      const header: Record<string, unknown> = { __metadata__: { a: "b" } };
      let end = 0;
      for (const [dtype, bytes] of Object.entries(dtype_bytes)) {
        header[dtype] = entry(dtype, [3, 1], [end, end += 3 * bytes]);
      }
      header.scalar = entry("F32", [], [end, end += 4]);
      header.none = entry("F32", [0, 7], [end, end]);
      writeFileSync(path, safetensorsBytes(`${JSON.stringify(header)}   `, end));
      const { tensors, metadata, dataOffset, fileBytes } = readSafetensorsHeader(path);
      assertEquals(metadata, { a: "b" });
      assertEquals(tensors.size, Object.keys(dtype_bytes).length + 2);
      assertEquals(tensors.get("none")?.shape, [0, 7]);
      assertEquals(dataOffset + end, fileBytes);
    }));

  it("reads the goldens' files, and sees each cut", async () => {
    for (const name of golden_names) {
      const folder = goldenFolder(name);
      if (folder === undefined) return;
      const path = join(folder, "goldens.safetensors");
      const { tensors, metadata } = readSafetensorsHeader(path);
      assert(tensors.size > 10);
      assertEquals(metadata.format, "pt");
      await withFolder((scratch) => {
        const copy = join(scratch, "cut.safetensors");
        const bytes = readFileSync(path);
        for (const length of [0, 7, 8, 100, bytes.length - 1]) {
          writeFileSync(copy, bytes);
          truncateSync(copy, length);
          assertThrows(() => readSafetensorsHeader(copy), Error, "cut.safetensors");
        }
      });
    }
  });
});

describe("writeSafetensors", () => {
  it("writes what it reads, in parts or whole, for every dtype", () =>
    withFolder(async (folder) => {
      const path = join(folder, "x.safetensors");
      const tensors = Object.entries(dtype_bytes).map(([dtype, bytes], i) => {
        const data = new Uint8Array(6 * bytes).fill(i + 1);
        const halves = () => [data.subarray(0, 5), data.subarray(5)];
        const tensor: TensorToWrite = { dtype, shape: [2, 3], data: i % 2 ? halves : data };
        return [`${dtype} "é"`, tensor] as const;
      });
      await writeSafetensors(path, tensors, { note: "x" });
      const bytes = readFileSync(path);
      const header = readSafetensorsHeader(path);
      assertEquals(header.dataOffset % 8, 0);
      assertEquals(header.metadata, { note: "x" });
      assertEquals([...header.tensors.keys()].sort(), tensors.map(([name]) => name).sort());
      for (const [i, [name, { dtype }]] of tensors.entries()) {
        const { begin, end } = header.tensors.get(name)!;
        assertEquals(begin % dtype_bytes[dtype], 0);
        const part = bytes.subarray(header.dataOffset + begin, header.dataOffset + end);
        assert(part.every((byte) => byte === i + 1));
      }
    }));

  it("leaves no file behind when a tensor gives the wrong number of bytes", () =>
    withFolder(async (folder) => {
      const path = join(folder, "x.safetensors");
      const write = (bytes: number) =>
        writeSafetensors(path, [["a", { dtype: "F32", shape: [2], data: new Uint8Array(bytes) }]]);
      await assertRejects(
        () => write(7),
        RangeError,
        'Expected 8 bytes for tensor "a" but found 7',
      );
      await assertRejects(() => write(9), RangeError, "found more");
      const odd = { dtype: "F5", shape: [1], data: new Uint8Array(1) };
      await assertRejects(() => writeSafetensors(path, [["a", odd]]), TypeError, "F5");
      assertThrows(() => readSafetensorsHeader(path), Error, "ENOENT");
    }));

  it("leaves no file behind when the process exits meanwhile", () =>
    withFolder((folder) => {
      const module = new URL("../../src/weights/whole_file.ts", import.meta.url).href;
      const script = join(folder, "exit.ts");
      writeFileSync(
        script,
        `import process from "node:process";
        import { writeWhole } from ${JSON.stringify(module)};
        await writeWhole(${JSON.stringify(join(folder, "x"))}, async (write) => {
          await write(new Uint8Array(9));
          process.exit(3);
        });`,
      );
      const rights = process.versions.bun ? [] : ["--quiet", "--no-check", "--allow-all"];
      const { status, stderr } = spawnSync(process.execPath, ["run", ...rights, script], {
        encoding: "utf8",
      });
      assertEquals(status, 3, stderr);
      assertEquals(readdirSync(folder), ["exit.ts"]);
    }));
});
