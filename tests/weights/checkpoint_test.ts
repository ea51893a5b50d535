import { assert, assertEquals, assertThrows } from "@std/assert";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { Checkpoint } from "../../src/weights/checkpoint.ts";
import { goldenFolder, safetensorsBytes, withFolder } from "./support.ts";

const index_name = "model.safetensors.index.json";

/** Writes shards of one F32 each, and an index that `change` may spoil. */
function writeShards(folder: string, change: (map: Record<string, unknown>) => void = () => {}) {
  const weight_map: Record<string, unknown> = {};
  for (const [i, name] of ["a", "b"].entries()) {
    const shard = `model-0000${i + 1}-of-00002.safetensors`;
    weight_map[name] = shard;
    const header = { [name]: { dtype: "F32", shape: [1], data_offsets: [0, 4] } };
    writeFileSync(join(folder, shard), safetensorsBytes(header, 4));
  }
  change(weight_map);
  writeFileSync(join(folder, index_name), JSON.stringify({ metadata: {}, weight_map }));
}

describe("Checkpoint", () => {
  it("opens a folder with one file, and the file itself", () => {
    const folder = goldenFolder("tiny-a-fp32");
    if (folder === undefined) return;
    const checkpoint = Checkpoint.open(folder);
    assertEquals(checkpoint.names.length, 50);
    assertEquals(checkpoint.names, [...checkpoint.names].sort());
    const place = checkpoint.get("model.embed_tokens.weight");
    assertEquals([place.dtype, place.shape, place.bytes], ["F32", [512, 64], 131072]);
    assertEquals(place.offset, 8 + 5040);
    assertEquals(Checkpoint.open(place.file).names, checkpoint.names);
    assertThrows(() => checkpoint.get("x"), RangeError, 'a tensor "x"');
  });

  it("opens shards by their index", () => {
    const folder = goldenFolder("tiny-c-sharded-bf16");
    if (folder === undefined) return;
    const checkpoint = Checkpoint.open(folder);
    const { weight_map } = JSON.parse(readFileSync(join(folder, index_name), "utf8"));
    assertEquals(checkpoint.names, Object.keys(weight_map).sort());
    assertEquals(checkpoint.files.length, 5);
    for (const name of checkpoint.names) {
      assertEquals(checkpoint.get(name).file, join(folder, weight_map[name]));
    }
  });

  it("names a missing shard", async () => {
    const folder = goldenFolder("tiny-c-sharded-bf16");
    if (folder === undefined) return;
    await withFolder((copy) => {
      for (const name of readdirSync(folder)) copyFileSync(join(folder, name), join(copy, name));
      rmSync(join(copy, "model-00003-of-00005.safetensors"));
      assertThrows(
        () => Checkpoint.open(copy),
        Error,
        "model-00003-of-00005.safetensors is missing",
      );
    });
  });

  it("names what index and shards disagree about", () =>
    withFolder((folder) => {
      const cases: [(map: Record<string, unknown>) => void, string][] = [
        [(map) => map.c = map.a, "c is not in model-00001-of-00002.safetensors"],
        [(map) => [map.a, map.b] = [map.b, map.a], "model-00001-of-00002.safetensors, not"],
        [(map) => (map.x = map.b, delete map.b), "b of"],
        [(map) => map.a = "../model-00001-of-00002.safetensors", "a file name for a"],
        [(map) => map.a = "/etc/passwd", "a file name for a"],
        [(map) => map.a = 3, "found 3"],
        [(map) => map.a = "no.safetensors", "no.safetensors is missing"],
      ];
      writeShards(folder);
      assertEquals(Checkpoint.open(folder).names, ["a", "b"]);
      for (const [change, words] of cases) {
        writeShards(folder, change);
        assertThrows(() => Checkpoint.open(folder), Error, words);
      }
      for (const text of ["{}", "[]", '{"weight_map": {}}', '{"weight_map": []}']) {
        writeFileSync(join(folder, index_name), text);
        assertThrows(() => Checkpoint.open(folder), TypeError, "weight_map");
      }
      writeFileSync(join(folder, index_name), '{"weight_map"');
      assertThrows(() => Checkpoint.open(folder), SyntaxError, index_name);
    }));

  it("names a tensor that stands in two shards", () =>
    withFolder((folder) => {
      writeShards(folder);
      const twice = {
        a: { dtype: "F32", shape: [1], data_offsets: [0, 4] },
        b: { dtype: "F32", shape: [1], data_offsets: [4, 8] },
      };
      writeFileSync(join(folder, "model-00002-of-00002.safetensors"), safetensorsBytes(twice, 8));
      assertThrows(() => Checkpoint.open(folder), RangeError, 'Tensor "a" stands in');
    }));

  it("says what a folder without a checkpoint lacks", () =>
    withFolder((folder) => {
      assertThrows(() => Checkpoint.open(folder), Error, "found neither");
      assertThrows(() => Checkpoint.open(join(folder, "x")), Error, "found nothing at");
      mkdirSync(join(folder, "model.safetensors"));
      const error = assertThrows(() => Checkpoint.open(folder), TypeError, "not a regular file");
      assert(error.message.includes(folder));
    }));
});
