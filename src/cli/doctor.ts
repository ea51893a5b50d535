/** `./dev doctor`: what this machine and this set-up can do, and why. */
import type { Command } from "commander";
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import manifest from "../../deno.json" with { type: "json" };
import { abi_hash } from "../native/bindings.gen.ts";
import { Device } from "../device.ts";
import { loadNative } from "../native/ffi.ts";
import { environment, findLibrary } from "../native/library.ts";
import type { Info } from "../native/native.ts";
import { sentence, SilentFailure } from "./errors.ts";
import { addRuntime } from "./options.ts";
import { default_model, root } from "./place.ts";

/** What `--json` prints; the text form shows the same. Bytes where a name says bytes. */
export interface Diagnosis {
  bamba: string;
  runtime: { name: string; version: string; platform: string };
  library: { path?: string; abi: string; optimized?: boolean; problem?: string };
  cpu?: { name: string; level: string; why: string; features: string[] };
  cores?: { physical: number; logical: number; threads: number };
  memory?: { total_bytes: number; available_bytes: number };
  gpu?: { usable: boolean; name?: string; why: string };
  caches: { what: string; path: string; bytes: number }[];
  model: { path: string; found: boolean };
}

function runtime(): Diagnosis["runtime"] {
  const name = process.versions.bun ? "bun" : process.versions.deno ? "deno" : "node";
  const version = process.versions[name] ?? process.version;
  return { name, version, platform: `${process.platform} ${process.arch}` };
}

/** Why the CPU device runs at its level. */
export function whyLevel(
  level: string,
  { cpu_level: best, features, bf16_gain }: Pick<Info, "cpu_level" | "features" | "bf16_gain">,
  forced?: string,
): string {
  if (forced) return `BAMBA_CPU=${forced} asks for it; the best here would be ${best}`;
  const avx512 = "this CPU has AVX-512 (F, BW, CD, DQ, VL)";
  const timed = `its vdpbf16ps was timed at ${bf16_gain.toFixed(2)} x the f32 multiply-adds`;
  const missing = ["avx2", "fma", "f16c"].filter((one) => !features.includes(one));
  if (level === "v4_bf16") return `the best of all: ${avx512}, VNNI and BF16, and ${timed}`;
  if (level === "v4_vnni") {
    return features.includes("avx512bf16")
      ? `the best here: ${avx512} and VNNI; it has BF16 too, but ${timed}`
      : `the best here: ${avx512} and VNNI, but not BF16`;
  }
  if (level === "v4") return `the best here: ${avx512}, but not VNNI`;
  if (level === "v3") return "the best here: this CPU has AVX2, FMA and F16C, but not AVX-512";
  if (process.arch !== "x64") return `the one level for ${process.arch}`;
  return `the best here: this CPU lacks ${missing.join(", ")}`;
}

/** What the library's CUDA status means. */
export function whyGpu(status: number): string {
  switch (status) {
    case 0:
      return "driver and GPU are there";
    case -9:
      return "this library was built without CUDA: ./dev build --cuda on";
    case -101:
      return "no NVIDIA driver: libcuda was not found";
    case -102:
      return "the NVIDIA driver is older than version 525";
    case -103:
      return "the NVIDIA driver is there, but it shows no GPU";
    default:
      return `the driver answered ${status}`;
  }
}

async function gpu(status: number): Promise<Diagnosis["gpu"]> {
  const why = whyGpu(status);
  if (status !== 0) return { usable: false, why };
  try {
    using device = await Device.open("cuda");
    return { usable: true, name: device.info().cpu_name, why };
  } catch (error) {
    return { usable: false, why: sentence(error) };
  }
}

/** Bytes of all files below a folder; 0 where it does not exist. */
function folderBytes(folder: string): number {
  if (!existsSync(folder)) return 0;
  let bytes = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) bytes += folderBytes(path);
    else if (entry.isFile()) bytes += statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  }
  return bytes;
}

function caches(): Diagnosis["caches"] {
  const places = [
    ["Zig, its build cache, Deno's cache", join(root, ".tools")],
    ["bun, deno, npm packages", join(root, "node_modules")],
  ];
  return places.map(([what, path]) => ({ what, path, bytes: folderBytes(path) }));
}

/** Asks the runtime, the library and the disk. A library that does not load is a finding too. */
export async function diagnose(): Promise<Diagnosis> {
  const result: Diagnosis = {
    bamba: manifest.version,
    runtime: runtime(),
    library: { abi: abi_hash.toString(16).padStart(8, "0") },
    caches: caches(),
    model: { path: default_model, found: existsSync(join(root, default_model, "config.json")) },
  };
  try {
    result.library.path = findLibrary();
    const machine = (await loadNative()).info();
    using device = await Device.open("cpu");
    const { cpu_level: level } = device.info();
    const why = whyLevel(level, machine, environment("BAMBA_CPU"));
    result.library.optimized = !machine.optimize_debug;
    result.cpu = { name: machine.cpu_name, level, why, features: machine.features };
    result.cores = {
      physical: machine.physical_cores,
      logical: machine.logical_cores,
      threads: device.threads,
    };
    result.memory = {
      total_bytes: machine.total_memory,
      available_bytes: machine.available_memory,
    };
    result.gpu = await gpu(machine.cuda_status);
  } catch (error) {
    result.library.problem = sentence(error);
  }
  return result;
}

function size(bytes: number): string {
  return bytes >= 2 ** 30
    ? `${(bytes / 2 ** 30).toFixed(1)} GiB`
    : `${Math.round(bytes / 2 ** 20)} MiB`;
}

/** The diagnosis as lines for a reader. */
export function lines(d: Diagnosis): string[] {
  const { cpu, cores, memory, library } = d;
  const rows: [string, string][] = [
    ["bamba", d.bamba],
    ["runtime", `${d.runtime.name} ${d.runtime.version} on ${d.runtime.platform}`],
    ["library", `${library.path ?? "not found"}`],
    [
      "",
      library.problem ?? `ABI ${library.abi}, ${library.optimized ? "optimized" : "debug build"}`,
    ],
  ];
  if (cpu) rows.push(["cpu", cpu.name], ["", `level ${cpu.level}: ${cpu.why}`]);
  if (cpu?.features.length) rows.push(["", `has ${cpu.features.join(", ")}`]);
  if (cores) {
    const { physical, logical, threads } = cores;
    rows.push(["cores", `${physical} physical, ${logical} logical; ${threads} threads by default`]);
  }
  if (memory) {
    const { available_bytes, total_bytes } = memory;
    rows.push(["memory", `${size(available_bytes)} available of ${size(total_bytes)}`]);
  }
  if (d.gpu) rows.push(["gpu", `${d.gpu.usable ? d.gpu.name : "none"}: ${d.gpu.why}`]);
  d.caches.forEach(({ what, path, bytes }, i) => {
    rows.push([i ? "" : "caches", `${path} (${what}, ${size(bytes)})`]);
  });
  rows.push(["model", `${d.model.path} ${d.model.found ? "is there" : "is missing"}`]);
  return rows.map(([name, text]) => `${name.padEnd(9)}${text}`);
}

/** Adds `doctor` to the program. */
export function addDoctor(program: Command): void {
  const command = program.command("doctor")
    .description("Tell what this machine and this set-up can do, and why")
    .option("--json", "print one JSON object", false);
  addRuntime(command).addHelpText("after", "\nExamples:\n  ./dev doctor\n  ./dev doctor --json")
    .action(async (flags: { json: boolean }) => {
      const diagnosis = await diagnose();
      console.log(flags.json ? JSON.stringify(diagnosis, null, 2) : lines(diagnosis).join("\n"));
      if (diagnosis.library.problem) throw new SilentFailure();
    });
}
