/** `./dev ok`: format, lint, types in both runtimes, tidiness, and generated files up to date. */
import type { Command } from "commander";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { SilentFailure } from "./errors.ts";
import { addRuntime } from "./options.ts";
import { root, toolPath } from "./place.ts";
import { type Ended, runTool } from "./process.ts";

interface Check {
  name: string;
  /** Sentence that helps when the check fails. */
  help: string;
  run: () => Promise<Ended>;
}

const bindings_path = "src/native/bindings.gen.ts";

/** Zig's own sources: everything in zig/ but caches and results. */
function zigFiles(): string[] {
  return readdirSync(join(root, "zig"), { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".zig") && !/^(zig-out|\.zig-cache)/.test(path))
    .map((path) => `zig/${path}`);
}

/** Builds the bindings again and fails when that changes the file. */
async function bindingsFresh(): Promise<Ended> {
  const before = readFileSync(join(root, bindings_path), "utf8");
  const args = ["build", "--build-file", "zig/build.zig", "bindings"];
  const ended = await runTool(toolPath("zig"), args);
  if (ended.code !== 0) return ended;
  const same = readFileSync(join(root, bindings_path), "utf8") === before;
  return same
    ? ended
    : { ...ended, code: 1, output: `${bindings_path} was older than its sources.` };
}

function checks(): Check[] {
  const deno = (args: string[]) => () => runTool(toolPath("deno"), args);
  const zig = (args: string[]) => () => runTool(toolPath("zig"), args);
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  return [
    { name: "deno fmt", help: "./dev deno fmt mends it.", run: deno(["fmt", "--check"]) },
    { name: "deno lint", help: "Mend what is named above.", run: deno(["lint"]) },
    {
      name: "deno check",
      help: "Mend the types.",
      run: deno(["check", "--quiet", "mod.ts", "src", "tests", "bench", "examples"]),
    },
    {
      name: "tsc",
      help: "Mend the types.",
      run: () => runTool(toolPath("bun"), [tsc, "--noEmit"]),
    },
    {
      name: "zig fmt",
      help: "./dev zig fmt zig mends it.",
      run: () => runTool(toolPath("zig"), ["fmt", "--check", ...zigFiles()]),
    },
    {
      name: "tidy",
      help: "Mend what is named above.",
      run: zig(["build", "--build-file", "zig/build.zig", "tidy"]),
    },
    {
      name: "bindings",
      help: "If the file has changed, commit it.",
      run: bindingsFresh,
    },
  ];
}

async function ok(): Promise<void> {
  let bad = 0;
  for (const { name, help, run } of checks()) {
    const ended = await run();
    if (ended.code === 0) {
      console.log(`ok      ${name} (${ended.seconds.toFixed(1)} s)`);
    } else {
      bad++;
      console.log(`${ended.output.trimEnd()}\nnot ok  ${name}. ${help}`);
    }
  }
  if (bad) throw new SilentFailure();
}

/** Adds `ok` to the program. */
export function addOk(program: Command): void {
  const command = program.command("ok").description(
    "Check format, lint, types in both runtimes, tidiness and generated bindings",
  );
  addRuntime(command).action(ok);
}
