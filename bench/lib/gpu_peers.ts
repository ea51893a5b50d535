/** The GEMM's benchmark beside cuBLAS, which needs a Python with torch and nvcc; nothing without. */

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { root } from "../../src/cli/place.ts";

const limit_ms = 120_000;

/** Lines of bench/cuda/linear_gemm.py, or one that says why there are none. */
export function gemmPeers(): Record<string, unknown>[] {
  const folder = mkdtempSync(join(tmpdir(), "bamba-bench-"));
  try {
    const script = join(root, "bench/cuda/linear_gemm.py");
    const env = { ...process.env, OUT: folder, CUDA_BUILD: join(folder, "build") };
    const ended = spawnSync("python3", [script, "bench"], { env, timeout: limit_ms });
    const path = join(folder, "results.jsonl");
    if (ended.status !== 0 || !existsSync(path)) {
      return [{ what: "gemm beside cuBLAS", missing: "no Python with torch, or no nvcc" }];
    }
    return readFileSync(path, "utf8").trim().split("\n").map((text) => {
      const { command: _command, commit: _commit, gpu: _gpu, ...fields } = JSON.parse(text);
      return { ...fields, beside: "cuBLAS" };
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
