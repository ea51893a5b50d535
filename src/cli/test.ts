/** `./dev test`: the tests of all three rooms, counted together. */
import { type Command, Option } from "commander";
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { bunCounts, type Counts, denoCounts, sum, zigCounts } from "./counts.ts";
import { SilentFailure } from "./errors.ts";
import { addRuntime, deviceName } from "./options.ts";
import { library_path, root, toolPath } from "./place.ts";
import { type Ended, runTool } from "./process.ts";

type Runner = "zig" | "bun" | "deno";
const runners: Runner[] = ["zig", "bun", "deno"];

/** A golden comparison on a busy machine may be slow; a hang still ends. */
const timeout_ms = "120000";

interface TestFlags {
  only?: Runner;
  device: string;
}

/** The test files whose path contains the filter, as "./tests/ops/ssm_test.ts". */
export function testFiles(filter = ""): string[] {
  return readdirSync(join(root, "tests"), { recursive: true, encoding: "utf8" })
    .map((path) => `./tests/${path.replaceAll("\\", "/")}`)
    .filter((path) => path.endsWith("_test.ts") && path.includes(filter))
    .sort();
}

/**
 * Whether a Zig test's name, as in "cpu.ssm.test.scans in chunks", contains the filter. Zig itself
 * would run the nameless blocks that import other files, whatever the filter.
 */
export function matchesZigTest(filter: string): boolean {
  return readdirSync(join(root, "zig"), { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".zig") && !path.startsWith("."))
    .some((path) => {
      const module = path.slice(0, -".zig".length).replaceAll(/[\\/]/g, ".");
      const tests = readFileSync(join(root, "zig", path), "utf8").matchAll(/^ *test "(.*)" \{/gm);
      return [...tests].some(([, name]) => `${module}.test.${name}`.includes(filter));
    });
}

async function runZig(filter: string | undefined, env: Record<string, string>): Promise<Counts> {
  const args = ["build", "--build-file", "zig/build.zig", "test", "--summary", "all"];
  if (filter) args.push(`-Dtest-filter=${filter}`);
  const ended = await runTool(toolPath("zig"), args, { show: true, env });
  return told("zig", ended, zigCounts(ended.output, ended.code));
}

async function runBun(files: string[], env: Record<string, string>): Promise<Counts> {
  const ended = await runTool(toolPath("bun"), ["test", "--timeout", timeout_ms, ...files], {
    show: true,
    env,
  });
  return told("bun", ended, bunCounts(ended.output, ended.code));
}

/** Deno runs with what the tests truly need: no network, and writing in temporary folders only. */
async function runDeno(files: string[], env: Record<string, string>): Promise<Counts> {
  const junit = join(root, ".tools", `deno-test-${process.pid}.xml`);
  mkdirSync(join(root, ".tools"), { recursive: true });
  const args = [
    "test",
    "--no-check", // `./dev ok` checks the types
    "--no-prompt",
    "--allow-read",
    "--allow-env",
    "--allow-sys",
    `--allow-write=${tmpdir()}`,
    `--allow-ffi=${library_path}`,
    "--allow-run", // the command line is tested as a program of its own, Ctrl-C included
    `--junit-path=${junit}`,
    ...files,
  ];
  const ended = await runTool(toolPath("deno"), args, { show: true, env });
  let report = "";
  try {
    report = readFileSync(junit, "utf8");
  } catch {
    // no report: the runner did not come that far, and its exit status says so
  }
  rmSync(junit, { force: true });
  return told("deno", ended, denoCounts(report, ended.output, ended.code));
}

function told(runner: Runner, ended: Ended, counts: Counts): Counts {
  const { passed, failed, skipped } = counts;
  const words = `${passed} of ${passed + failed} tests passed, ${skipped} skipped`;
  console.log(`\n== ${runner}: ${words}, ${ended.seconds.toFixed(1)} s\n`);
  return counts;
}

/** The closing line, which other programs read. */
export function closingLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`;
}

async function test(filter: string | undefined, flags: TestFlags): Promise<void> {
  const wanted = runners.filter((runner) => !flags.only || flags.only === runner);
  const files = testFiles(filter);
  const env = {
    BAMBA_DEVICE: flags.device,
    ZIG_PROGRESS: "0",
  };
  const results: Counts[] = [];
  const empty: Runner[] = [];
  for (const runner of wanted) {
    console.log(`== ${runner}`);
    let counts: Counts = { passed: 0, failed: 0, skipped: 0 };
    if (runner === "zig") {
      if (!filter || matchesZigTest(filter)) counts = await runZig(filter, env);
    } else if (files.length) {
      counts = await (runner === "bun" ? runBun : runDeno)(files, env);
    }
    // With a filter, tests that this machine has to skip (those of a GPU) are found all the same.
    const found = counts.passed + counts.failed + (filter ? counts.skipped : 0);
    if (found === 0) empty.push(runner);
    results.push(counts);
  }
  const total = sum(results);
  // A runner that ran nothing is a failure of the whole; with a filter, only if all ran nothing.
  const nothing = filter ? empty.length === wanted.length : empty.length > 0;
  if (nothing) {
    console.error(
      filter
        ? `bamba: No test matches the filter '${filter}'.`
        : `bamba: Expected every runner to run tests but ${empty.join(" and ")} ran none.`,
    );
  }
  console.log(closingLine(nothing && total.failed === 0 ? { ...total, failed: 1 } : total));
  if (nothing || total.failed > 0) throw new SilentFailure();
}

/** Adds `test` to the program. */
export function addTest(program: Command): void {
  const command = program.command("test")
    .description("Run the Zig, Bun and Deno tests, and count them together")
    .argument("[filter]", "part of a test file's path, or of a Zig test's name")
    .addOption(new Option("--only <runner>", "run one of the three only").choices(runners))
    .option(
      "--device <name>",
      "device of the tests that run on any: cpu or cuda",
      deviceName,
      "cpu",
    );
  addRuntime(command).addHelpText(
    "after",
    `
The last line is "N passed, N failed", counted over all runners.

Examples:
  ./dev test
  ./dev test ops/ssm --only bun
  ./dev test --device cuda`,
  ).action(test);
}
