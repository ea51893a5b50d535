/** Starting the pinned tools. */
import { spawn } from "node:child_process";
import process from "node:process";
import { root } from "./place.ts";

/** How a tool ended. */
export interface Ended {
  /** Exit status; 128 and more when a signal ended it. */
  code: number;
  /** All it printed, stdout and stderr in the order they came. */
  output: string;
  /** Wall time in seconds. */
  seconds: number;
}

/** What a tool is started with. */
export interface StartOptions {
  /** Shows what the tool prints while it runs. */
  show?: boolean;
  env?: Record<string, string>;
}

/**
 * Runs a tool in the project's folder and waits for it.
 *
 * @param path the tool
 * @param args its arguments
 */
export function runTool(path: string, args: string[], options: StartOptions = {}): Promise<Ended> {
  const start = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(path, args, {
      cwd: root,
      env: { ...process.env, NO_COLOR: "1", ...options.env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const pieces: string[] = [];
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8");
      stream.on("data", (piece: string) => {
        pieces.push(piece);
        if (options.show) process.stdout.write(piece);
      });
    }
    child.on("error", reject);
    child.on("close", (code: number | null) => {
      const seconds = (performance.now() - start) / 1000;
      resolve({ code: code ?? 128, output: pieces.join(""), seconds });
    });
  });
}
