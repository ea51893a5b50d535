/** Where things lie: the project's folder, its tools, its default model. */
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** The project's folder. */
export const root: string = fileURLToPath(new URL("../../", import.meta.url));

/** The model that is used when none is named. */
export const default_model = "models/bamba-wordnet-8m";

/** How the user started this program, for usage lines and messages. */
export const program_name = process.env.BAMBA_DEV_ROOT ? "./dev" : "bamba";

/** The native library that a build leaves behind. */
export const library_path: string = join(
  root,
  "zig/zig-out/lib",
  process.platform === "darwin" ? "libbamba.dylib" : "libbamba.so",
);

/**
 * Finds a model's folder or file: as the caller's path, else as a path in the project.
 *
 * @param model relative to the working directory or to the project
 * @throws {RangeError} when neither exists
 */
export function modelFolder(model: string): string {
  for (const folder of [resolve(model), join(root, model)]) {
    if (existsSync(folder)) return folder;
  }
  throw new RangeError(
    `Expected --model to be a folder or a .gguf file but '${model}' does not exist.`,
  );
}

/**
 * Path of a pinned tool, as `./dev` passes it on.
 *
 * @throws {Error} when this program was not started by `./dev`
 */
export function toolPath(tool: "bun" | "deno" | "zig"): string {
  const path = process.env[`BAMBA_DEV_${tool.toUpperCase()}`];
  if (!path) throw new Error(`This subcommand needs the pinned ${tool}: start it with ./dev.`);
  return path;
}
