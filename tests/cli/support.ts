/** Starts the command line on the runtime that runs the tests, as `./dev` would. */
import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

export const root: string = fileURLToPath(new URL("../../", import.meta.url));
const library = `${root}zig/zig-out/lib/libbamba.so`;
const on_bun = process.versions.bun !== undefined;

export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface CliOptions {
  /** Text on stdin; none: stdin is empty. */
  stdin?: string;
  cwd?: string;
  env?: Record<string, string>;
  /** A folder that may be written to. */
  writes?: string;
  /** Sends a signal once stdout has shown this many characters. */
  interruptAfter?: number;
  /** Which one: SIGINT where nothing is said. */
  signal?: "SIGINT" | "SIGTERM";
}

/** Runs `bamba ARGUMENT...` and waits for its end. */
export function cli(args: string[], options: CliOptions = {}): Promise<Outcome> {
  const runtime = on_bun ? [] : [
    "run",
    "--quiet",
    "--no-prompt",
    "--no-check",
    `--config=${root}deno.json`,
    "--allow-read",
    `--allow-ffi=${library}`,
    "--allow-env=BAMBA_*,NO_COLOR,FORCE_COLOR,CLICOLOR_FORCE",
    ...(options.writes ? [`--allow-write=${options.writes}`] : []),
  ];
  const command = [...runtime, `${root}src/cli/main.ts`, ...args];
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, command, {
      cwd: options.cwd ?? root,
      env: { ...process.env, NO_COLOR: "1", BAMBA_DEV_ROOT: root, ...options.env },
      stdio: ["pipe", "pipe", "pipe"],
    });
    const outcome: Outcome = { code: null, stdout: "", stderr: "" };
    let interrupted = false;
    child.stdout.setEncoding("utf8").on("data", (piece: string) => {
      outcome.stdout += piece;
      const { interruptAfter } = options;
      if (interrupted || interruptAfter === undefined) return;
      if (outcome.stdout.length < interruptAfter) return;
      interrupted = true;
      // not child.kill: Deno would then report the signal as the child's end, whatever its status
      process.kill(child.pid!, options.signal ?? "SIGINT");
    });
    child.stderr.setEncoding("utf8").on("data", (piece: string) => outcome.stderr += piece);
    child.stdin.on("error", () => {}); // a program that ends early does not read it
    child.stdin.end(options.stdin ?? "");
    const timer = setTimeout(() => child.kill("SIGKILL"), 60_000);
    child.on("error", reject);
    child.on("close", (code: number | null) => {
      clearTimeout(timer);
      resolve({ ...outcome, code });
    });
  });
}
