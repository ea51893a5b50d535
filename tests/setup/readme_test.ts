/** The README's program runs as it stands there. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { it } from "node:test";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { findLibrary } from "../../src/native/library.ts";
import { root } from "../cli/support.ts";

/** The first TypeScript program of the README, to be run from anywhere. */
function program(): string {
  const [, text] = readFileSync(join(root, "README.md"), "utf8").match(/```ts\n([^]*?)```/)!;
  assertStringIncludes(text, '"./mod.ts"');
  return text.replace('"./mod.ts"', JSON.stringify(join(root, "mod.ts")));
}

it("runs the README's program with the README's permissions", { timeout: 60_000 }, () => {
  const place = mkdtempSync(join(tmpdir(), "bamba-readme-"));
  try {
    const app = join(place, "app.ts");
    writeFileSync(app, program());
    const options = ["--quiet", "--no-prompt", "--no-check", `--config=${root}deno.json`];
    const allowed = [`--allow-ffi=${findLibrary()}`, "--allow-read"];
    const on_bun = process.versions.bun !== undefined;
    const args = on_bun ? [app] : ["run", ...options, ...allowed, app];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, {
      cwd: root,
      env: { NO_COLOR: "1" },
      encoding: "utf8",
    });
    assertEquals([status, stderr], [0, ""]);
    const lines = stdout.trimEnd().split("\n");
    assert(lines[0].startsWith("a small dog is "), lines[0]);
    assertStringIncludes(lines[lines.length - 1].replaceAll(/\s/g, ""), "4096]");
  } finally {
    rmSync(place, { recursive: true });
  }
});
