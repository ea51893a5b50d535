/** A benchmark's result: printed for people or programs, kept with what it was taken on. */

import { execFileSync } from "node:child_process";
import { appendFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import process from "node:process";
import type { BenchOptions } from "../../src/cli/bench.ts";
import { root } from "../../src/cli/place.ts";
import { loadNative } from "../../src/native/ffi.ts";
import { type Line, Table } from "./table.ts";

const table = new Table();

/** Digits that a shared machine can repeat. */
export function rounded(x: number, digits = 4): number {
  return Number(x.toPrecision(digits));
}

/** The commit this folder is at, with a "+" where files differ from it; empty without git. */
function commit(): string {
  const git = (...args: string[]) =>
    execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })
      .trim();
  try {
    return git("rev-parse", "--short", "HEAD") +
      (git("status", "--porcelain", "--", "zig", "src", "kernels", "bench/*.ts") ? "+" : "");
  } catch {
    return "";
  }
}

/**
 * Prints a result as a row of a table, or as one JSON line with `--json`; with `--record FILE` also
 * appends that line there, with machine, date, commit and command.
 */
export async function printLine(options: BenchOptions, line: Line): Promise<void> {
  console.log(options.json ? JSON.stringify(line) : table.rows(line).join("\n"));
  if (!options.record) return;
  const { cpu_name } = (await loadNative()).info();
  const runtime = process.versions.bun ? "bun" : "deno";
  const [, , , ...args] = process.argv;
  const command = [
    "./dev bench",
    ...args.filter((arg, i) => arg !== "--record" && args[i - 1] !== "--record"),
  ];
  const taken_on = {
    machine: `${cpu_name}, ${availableParallelism()} processors`,
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    runtime,
    command: command.join(" "),
  };
  appendFileSync(options.record, JSON.stringify({ ...line, ...taken_on }) + "\n");
}
