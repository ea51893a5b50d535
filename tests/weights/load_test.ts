import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { closeSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { Device } from "../../src/device.ts";
import { loadNative } from "../../src/native/ffi.ts";
import { Checkpoint, type TensorPlace } from "../../src/weights/checkpoint.ts";
import { matrixShape } from "../../src/weights/layout.ts";
import {
  type LoadedWeight,
  type LoadOptions,
  type LoadProgress,
  loadWeights,
  type WeightDType,
  type WeightSpec,
} from "../../src/weights/load.ts";
import { writeSafetensors } from "../../src/weights/safetensors.ts";
import { bytesOf, narrow, pack, widen } from "./packing.ts";
import { golden_names, goldenFolder, model_folder, withFolder } from "./support.ts";

/** Specs that load all of a checkpoint: matrices as panels, the rest as f32, as Bamba asks. */
function specsOf(checkpoint: Checkpoint, o: { keepMapped?: boolean } = {}): WeightSpec[] {
  return checkpoint.names.map((name) => {
    const { shape } = checkpoint.get(name);
    if (name.includes("embed_tokens")) {
      return { name, shape, layout: "row_major", keepMapped: o.keepMapped };
    }
    return shape.length === 2
      ? { name, shape, layout: "panel" }
      : { name, shape, layout: "row_major", dtype: "float32" };
  });
}

/** The bytes of a loaded weight. */
function readWeight(device: Device, { buffer, offset, bytes }: LoadedWeight): Uint8Array {
  const out = new Uint8Array(bytes);
  device.native.readBuffer(buffer, offset, out);
  return out;
}

/** The bytes of a tensor as its file has them. */
function storedBytes({ file, offset, bytes }: TensorPlace): Uint8Array {
  const out = new Uint8Array(bytes);
  const opened = openSync(file, "r");
  readSync(opened, out, 0, bytes, offset);
  closeSync(opened);
  return out;
}

/** Compares a loaded weight with the file's bytes, converted and packed here. */
function compare(device: Device, checkpoint: Checkpoint, weight: LoadedWeight): void {
  const place = checkpoint.get(weight.name);
  const stored = storedBytes(place);
  const { rows, cols } = matrixShape(weight.shape);
  const bits = narrow(widen(place.dtype, stored), weight.dtype);
  const expected = bytesOf(pack(bits, rows, cols, weight.dtype, weight.layout));
  const found = readWeight(device, weight);
  assertEquals(found.length, expected.length, weight.name);
  const at = found.findIndex((byte, i) => byte !== expected[i]);
  assertEquals(at, -1, `${weight.name} as ${weight.dtype} ${weight.layout}: byte ${at} differs`);
}

const auto: LoadOptions = { dtype: "auto" };
const dtypes: LoadOptions["dtype"][] = ["auto", "float32", "bfloat16", "float16"];

/** Writes one file of tensors with these shapes and numbers. */
async function writeCheckpoint(
  folder: string,
  tensors: Record<string, { dtype?: string; shape: number[]; data?: ArrayBufferView }>,
): Promise<Checkpoint> {
  await writeSafetensors(
    join(folder, "model.safetensors"),
    Object.entries(tensors).map(([name, { dtype = "F32", shape, data }]) => {
      const size = shape.reduce((a, b) => a * b, 1);
      return [name, { dtype, shape, data: data ?? new Float32Array(size) }] as const;
    }),
  );
  return Checkpoint.open(folder);
}

describe("loadWeights", () => {
  for (const name of [...golden_names, "the default model"]) {
    it(`brings every tensor of ${name} in every dtype`, async () => {
      const folder = name === "the default model" ? model_folder : goldenFolder(name);
      if (folder === undefined) return;
      using device = await Device.open("cpu", { threads: 2 });
      const checkpoint = Checkpoint.open(folder);
      for (const dtype of name === "the default model" ? [dtypes[0]] : dtypes) {
        using set = await loadWeights(device, checkpoint, specsOf(checkpoint), { dtype });
        assertEquals([...set.weights.keys()].sort(), checkpoint.names);
        let bytes = 0;
        for (const weight of set.weights.values()) {
          const kept = dtype === "auto" ? undefined : dtype;
          if (weight.layout === "panel" && kept) assertEquals(weight.dtype, kept);
          if (weight.shape.length === 1) assertEquals(weight.dtype, "float32");
          assertEquals(weight.offset % 64, 0);
          compare(device, checkpoint, weight);
          bytes += weight.bytes;
        }
        assertEquals(set.bytes, bytes);
      }
    });
  }

  it("converts special numbers, ugly shapes and every pair of dtypes exactly", () =>
    withFolder(async (folder) => {
      const values = Float32Array.of(
        0,
        -0,
        1,
        -1,
        1 / 3,
        65504,
        65519.99,
        65520,
        -70000,
        1e-5,
        5.9e-8,
        2.98e-8,
        2.99e-8,
        6e-5,
        6.1e-5,
        6.2e-5,
        1e-40,
        -1e-45,
        3.4e38,
        -3.4e38,
        Infinity,
        -Infinity,
        NaN,
        1.00390625,
        1.01171875,
        0.99951171875,
        2049,
        2051,
        1e10,
        2 ** -14,
        2 ** -24,
        2 ** -25,
        257,
        258.9999,
      );
      const tensors: Parameters<typeof writeCheckpoint>[1] = {};
      const shapes = [[1, 1], [16, 2], [17, 3], [15, 1], [33, 129], [130, 151], [1, 4099]];
      for (const [s, shape] of shapes.entries()) {
        const size = shape[0] * shape[1];
        const f32 = Float32Array.from(
          { length: size },
          (_, i) => values[(i * 7 + s) % values.length],
        );
        tensors[`f32.${s}`] = { shape, data: f32 };
        const halves = (dtype: WeightDType) => narrow(f32, dtype);
        tensors[`bf16.${s}`] = { dtype: "BF16", shape, data: halves("bfloat16") };
        tensors[`f16.${s}`] = { dtype: "F16", shape, data: halves("float16") };
      }
      const checkpoint = await writeCheckpoint(folder, tensors);
      const { cpu_level } = (await loadNative()).info();
      for (const level of new Set(["portable", "v3", cpu_level] as const)) {
        if (cpu_level === "portable" && level === "v3") continue;
        using device = await Device.open("cpu", { threads: 2, level });
        for (const layout of ["panel", "row_major"] as const) {
          const specs = checkpoint.names.map((name) => ({
            name,
            shape: checkpoint.get(name).shape,
            layout,
          }));
          for (const dtype of dtypes) {
            using set = await loadWeights(device, checkpoint, specs, { dtype });
            for (const weight of set.weights.values()) compare(device, checkpoint, weight);
          }
        }
      }
    }));

  it("leaves in its file what may stay there", async () => {
    using device = await Device.open("cpu", { threads: 1 });
    const checkpoint = Checkpoint.open(model_folder);
    const before = device.native.info();
    const set = await loadWeights(
      device,
      checkpoint,
      specsOf(checkpoint, { keepMapped: true }),
      auto,
    );
    const kept = set.weights.get("model.embed_tokens.weight")!;
    assertEquals(kept.offset, checkpoint.get(kept.name).offset);
    assertEquals(kept.dtype, "bfloat16");
    compare(device, checkpoint, kept);
    assertEquals(device.native.info().n_files, before.n_files + 1);
    assertGreater(device.native.info().mapped, before.mapped);
    set.dispose();
    set.dispose();
    assert(set.disposed);
    const after = device.native.info();
    assertEquals(
      [after.n_files, after.n_buffers, after.mapped, after.allocated],
      [before.n_files, before.n_buffers, before.mapped, before.allocated],
    );
    const specs = specsOf(checkpoint, { keepMapped: true });
    using widened = await loadWeights(device, checkpoint, specs, { dtype: "float32" });
    assertEquals(widened.weights.get(kept.name)?.dtype, "float32");
    assertEquals(device.native.info().n_files, before.n_files);
  });

  it("loads a tied weight once, under both names", () =>
    withFolder(async (folder) => {
      using device = await Device.open("cpu", { threads: 1 });
      const data = Float32Array.from({ length: 32 }, (_, i) => i);
      const tied = { head: "embed" };
      const specs: WeightSpec[] = [{ name: "embed", shape: [4, 8], layout: "panel" }];
      const alone = await writeCheckpoint(folder, { embed: { shape: [4, 8], data } });
      using first = await loadWeights(device, alone, specs, { ...auto, tied });
      assertEquals(first.weights.get("head"), first.weights.get("embed"));
      assertEquals(first.bytes, 16 * 8 * 4);
      const both = { embed: { shape: [4, 8], data }, head: { shape: [4, 8], data } };
      const equal = await writeCheckpoint(folder, both);
      using second = await loadWeights(device, equal, specs, { ...auto, tied });
      assertEquals(second.bytes, first.bytes);
      const other = { embed: both.embed, head: { shape: [4, 8], data: data.map((x) => x + 1) } };
      const unequal = await writeCheckpoint(folder, other);
      await assertRejects(
        () => loadWeights(device, unequal, specs, { ...auto, tied }),
        RangeError,
        "head of",
      );
    }));

  it("names all tensors that are missing, surplus, misshapen or of a wrong dtype", () =>
    withFolder(async (folder) => {
      using device = await Device.open("cpu", { threads: 1 });
      const { n_buffers } = device.native.info();
      const surplus = Array.from({ length: 12 }, (_, i) => [`extra.${10 + i}`, { shape: [1] }]);
      const checkpoint = await writeCheckpoint(folder, {
        right: { shape: [2, 2] },
        turned: { shape: [3, 2] },
        flat: { shape: [6] },
        whole: { dtype: "I32", shape: [1], data: new Int32Array(1) },
        ...Object.fromEntries(surplus),
      });
      const spec = (name: string, shape: number[]): WeightSpec => ({
        name,
        shape,
        layout: "row_major",
      });
      const specs = [
        spec("right", [2, 2]),
        spec("turned", [2, 3]),
        spec("flat", [6, 1]),
        spec("whole", [1]),
        spec("absent.a", [1]),
        spec("absent.b", [1]),
      ];
      const error = await assertRejects(
        () => loadWeights(device, checkpoint, specs, auto),
        RangeError,
      );
      for (
        const words of [
          folder,
          "2 missing: absent.a, absent.b",
          "12 surplus: extra.10,",
          "extra.19 and 2 more",
          "turned has shape [3,2] instead of [2,3]",
          "flat has shape [6] instead of [6,1]",
          "whole has I32",
        ]
      ) assertStringIncludes(error.message, words);
      assert(!error.message.includes("extra.20"));
      assertEquals(device.native.info().n_buffers, n_buffers);
      using ignoring = await loadWeights(device, checkpoint, [specs[0]], {
        ...auto,
        ignore: (name) => name !== "right",
      });
      assertEquals([...ignoring.weights.keys()], ["right"]);
    }));

  it("tells its progress by file, and stops on abort without leaving anything", async () => {
    const folder = goldenFolder("tiny-c-sharded-bf16");
    if (folder === undefined) return;
    using device = await Device.open("cpu", { threads: 1 });
    const before = device.native.info();
    const checkpoint = Checkpoint.open(folder);
    const seen: LoadProgress[] = [];
    using set = await loadWeights(device, checkpoint, specsOf(checkpoint), {
      dtype: "float32",
      progress_callback: (progress) => seen.push(progress),
    });
    assertEquals(set.weights.size, checkpoint.names.length);
    for (const { path } of checkpoint.files) {
      const own = seen.filter(({ file }) => file === path);
      assertGreater(own.length, 1);
      assertEquals(own.at(-1)?.status, "done");
      assertEquals(own.at(-1)?.loaded, own[0].total);
      for (const [i, { loaded, total }] of own.entries()) {
        assert(loaded <= total && (i === 0 || loaded >= own[i - 1].loaded));
      }
    }
    set.dispose();
    const controller = new AbortController();
    const aborted = loadWeights(device, checkpoint, specsOf(checkpoint), {
      ...auto,
      signal: controller.signal,
      progress_callback: () => controller.abort(new Error("enough")),
    });
    await assertRejects(() => aborted, Error, "enough");
    const { n_buffers, n_files, n_jobs } = device.native.info();
    assertEquals([n_buffers, n_files, n_jobs], [before.n_buffers, before.n_files, before.n_jobs]);
  });

  it("says how much memory is missing before it takes any", () =>
    withFolder(async (folder) => {
      using device = await Device.open("cpu", { threads: 1 });
      // No machine is short of 256 bytes: this one is said to be.
      const checkpoint = await writeCheckpoint(folder, { a: { shape: [4, 4] } });
      const { native } = device;
      const info = native.info.bind(native);
      native.info = (handle) => ({ ...info(handle), available_memory: 100 });
      try {
        const specs: WeightSpec[] = [{ name: "a", shape: [4, 4], layout: "panel" }];
        const error = await assertRejects(
          () => loadWeights(device, checkpoint, specs, auto),
          Error,
        );
        assertStringIncludes(error.message, "GiB of memory but only 0.00 GiB are available");
      } finally {
        native.info = info;
      }
      assertLess(info().n_buffers, 100);
    }));
});
