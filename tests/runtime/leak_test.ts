import { assert, assertEquals, assertLess } from "@std/assert";
import { readdirSync } from "node:fs";
import process from "node:process";
import { it } from "node:test";
import { AutoModelForCausalLM } from "../../src/auto.ts";
import { loadNative } from "../../src/native/ffi.ts";
import { model_folder } from "../weights/support.ts";

const rounds = 1000;
const warm_up = 100;
/** The model has 17 MB of weights: a leak of one round in a hundred would show as 150 MB. */
const growth_bytes_max = 64 * 2 ** 20;

/** Open files and threads of this process, where the runtime may look. */
function openThings(): number[] | undefined {
  try {
    return ["fd", "task"].map((kind) => readdirSync(`/proc/self/${kind}`).length);
  } catch {
    return undefined;
  }
}

async function round(): Promise<number[]> {
  using model = await AutoModelForCausalLM.from_pretrained(model_folder, {
    dtype: "auto",
    threads: 2,
  });
  const [row] = await model.generate({ input_ids: [[1, 20, 300]], max_new_tokens: 4 });
  return row!;
}

it(
  `keeps memory flat over ${rounds} rounds of load, generate, dispose`,
  { timeout: 240_000 },
  async () => {
    const native = await loadNative();
    const begin = native.info();
    const row = await round();
    for (let i = 1; i < warm_up; i++) await round();
    const things = openThings();
    const rss = process.memoryUsage().rss;
    for (let i = warm_up; i < rounds; i++) assertEquals(await round(), row);
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
  },
);
