/** The example that becomes one file: alone in an empty folder, and with the fewest permissions. */

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { assertEquals } from "@std/assert";
import { findLibrary } from "../../src/native/library.ts";
import { root } from "../cli/support.ts";
import { folder, loadModel, loadTokenizer } from "../generation/support.ts";

const main = join(root, "examples/compiled/main.ts");
const on_bun = process.versions.bun !== undefined;

/** Runs a program without this process's environment. @returns what it printed */
function run(command: string, args: string[], cwd: string): string {
  const { status, stdout, stderr } = spawnSync(command, args, {
    cwd,
    env: { PATH: "/nowhere" },
    encoding: "utf8",
  });
  assertEquals([status, stderr], [0, ""], `${command} ${args.join(" ")}`);
  return stdout;
}

/** Runs the example on a prompt in an empty folder. */
function runExample(prompt: string): string {
  const args = [folder, prompt];
  const place = mkdtempSync(join(tmpdir(), "bamba-compiled-"));
  const empty = join(place, "empty");
  mkdirSync(empty);
  try {
    if (!on_bun) {
      const allowed = [`--allow-ffi=${findLibrary()}`, `--allow-read=${folder}`];
      const options = ["--quiet", "--no-prompt", "--no-check", `--config=${root}deno.json`];
      return run(process.execPath, ["run", ...options, ...allowed, main, ...args], empty);
    }
    const program = join(place, "bamba");
    const build = ["build", "--compile", main, "--outfile", program];
    assertEquals(spawnSync(process.execPath, build, { cwd: root }).status, 0);
    return run(program, args, empty);
  } finally {
    rmSync(place, { recursive: true });
  }
}

describe("examples/compiled", () => {
  it("needs no more than the model and the library", { timeout: 60_000 }, async () => {
    using model = await loadModel({ device: "cpu", dtype: "auto" });
    const tokenizer = await loadTokenizer();
    const prompt = "a small cat is";
    const [ids] = await model.generate(tokenizer([prompt]));
    const text = tokenizer.decode(ids, { skip_special_tokens: true });
    assertEquals(runExample(prompt), `${text}\n`);
  });
});
