/** Finds the native library's file. */

import { createHash } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { mayRead } from "./ffi_deno.ts";

const file_name = process.platform === "darwin" ? "libbamba.dylib" : "libbamba.so";
let embedded_path: string | undefined;

/** Whether `path` is the one that {@link setLibraryPath} named. */
export function isEmbedded(path: string): boolean {
  return path === embedded_path;
}

/** An environment variable, or undefined where it is unset, empty or not permitted. */
export function environment(variable: string): string | undefined {
  return mayRead({ variable }) ? process.env[variable] || undefined : undefined;
}

/**
 * Names the library of a program made by `bun build --compile`: the path which
 * `import path from "….so" with { type: "file" }` gives. Call it before anything is loaded.
 */
export function setLibraryPath(path: string): void {
  embedded_path = path;
}

/** True, false, or undefined where looking is not permitted. */
function isFile(path: string): boolean | undefined {
  if (!mayRead({ path })) return undefined;
  return existsSync(path) && statSync(path).isFile();
}

/**
 * The path of the native library: `BAMBA_LIBRARY`, else the one that {@link setLibraryPath} named,
 * else the one that `./dev build` made.
 *
 * @throws {Error} when there is none, saying how to build it
 */
export function findLibrary(): string {
  const chosen = environment("BAMBA_LIBRARY");
  if (chosen !== undefined) {
    if (isFile(chosen) === false) {
      throw new Error(`Expected BAMBA_LIBRARY to name a file but found "${chosen}"`);
    }
    return chosen;
  }
  if (embedded_path !== undefined) return embedded_path;
  const built = builtLibrary();
  if (built !== undefined && isFile(built) !== false) return built;
  throw new Error(missingSentence(built));
}

/** What to do when there is no library. @param path where it was looked for */
export function missingSentence(path?: string): string {
  return `The native library is missing${path ? ` at "${path}"` : ""}: run ./dev build, ` +
    "or set BAMBA_LIBRARY to its path";
}

/** Where `./dev build` puts the library; undefined when this code does not run from files. */
function builtLibrary(): string | undefined {
  const url = new URL(`../../zig/zig-out/lib/${file_name}`, import.meta.url);
  return url.protocol === "file:" ? fileURLToPath(url) : undefined;
}

/**
 * Copies a library into the user's cache folder, for programs whose embedded library cannot be
 * loaded from the temporary folder (missing, or mounted noexec).
 *
 * @returns the path of the copy
 * @throws {Error} when the library cannot be read or the folder cannot be written
 */
export function copyToCache(path: string): string {
  const bytes = readFileSync(path);
  const folder = join(environment("XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "bamba");
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  chmodSync(folder, 0o700); // a library that others could replace must not be loaded
  const digest = createHash("sha256").update(bytes).digest("hex").slice(0, 16);
  const target = join(folder, `${digest}-${file_name}`);
  // Renamed into place when whole, so that a second process never loads half a file.
  const unfinished = `${target}.${process.pid}`;
  writeFileSync(unfinished, bytes, { mode: 0o700 });
  renameSync(unfinished, target);
  return target;
}
