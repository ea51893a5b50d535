import { assert, assertEquals, assertLess } from "@std/assert";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { it } from "node:test";
import { Device } from "../../src/device.ts";
import { loadNative } from "../../src/native/ffi.ts";
import { Checkpoint } from "../../src/weights/checkpoint.ts";
import { loadWeights, type WeightSpec } from "../../src/weights/load.ts";
import { writeSafetensors } from "../../src/weights/safetensors.ts";
import { withFolder } from "../weights/support.ts";

const rounds = 1000;
const warm_up = 100;
/** A round's weights are 1 MiB: a leak of one round in ten would show as 90 MiB. */
const growth_bytes_max = 64 * 2 ** 20;

/** Open files and threads of this process, where the runtime may look. */
function openThings(): number[] | undefined {
  try {
    return ["fd", "task"].map((kind) => readdirSync(`/proc/self/${kind}`).length);
  } catch {
    return undefined;
  }
}

it(
  `keeps memory flat over ${rounds} rounds of open, load, dispose`,
  { timeout: 120_000 },
  () =>
    withFolder(async (folder) => {
      const shape = [256, 128];
      const names = Array.from({ length: 8 }, (_, i) => `weight.${i}`);
      const data = new Float32Array(256 * 128).fill(0.25);
      const path = join(folder, "model.safetensors");
      await writeSafetensors(
        path,
        names.map((name) => [name, { dtype: "F32", shape, data }] as const),
      );
      const specs: WeightSpec[] = names.map((name, i) => ({
        name,
        shape,
        layout: i === 0 ? "row_major" : "panel",
        keepMapped: i === 0,
      }));
      const native = await loadNative();
      const round = async () => {
        using device = await Device.open("cpu", { threads: 2 });
        using set = await loadWeights(device, Checkpoint.open(folder), specs, { dtype: "auto" });
        assertEquals(set.weights.size, names.length);
        using buffer = device.createBuffer(1 << 20);
        buffer.write(0, data);
      };
      const begin = native.info();
      for (let i = 0; i < warm_up; i++) await round();
      const things = openThings();
      const rss = process.memoryUsage().rss;
      for (let i = warm_up; i < rounds; i++) await round();
      const growth = process.memoryUsage().rss - rss;
      assertLess(growth, growth_bytes_max, `grew by ${(growth / 2 ** 20).toFixed(1)} MiB`);
      const end = native.info();
      for (
        const key of ["allocated", "mapped", "n_buffers", "n_plans", "n_jobs", "n_files"] as const
      ) {
        // Less than at the beginning is what another file left and the collector has freed since.
        assert(end[key] <= begin[key], `${key} went from ${begin[key]} to ${end[key]}`);
      }
      const [files, threads] = openThings() ?? [0, 0];
      const [files_before, threads_before] = things ?? [0, 0];
      assertLess(files, files_before + 10);
      assertLess(threads, threads_before + 10);
    }),
);
