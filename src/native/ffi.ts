/** Loads the native library once per process, on either runtime. */

import process from "node:process";
import { abi_hash, Status, symbols } from "./bindings.gen.ts";
import type { CallTable, OpenedLibrary } from "./calls.ts";
import { NativeError } from "./error.ts";
import { openDeno } from "./ffi_deno.ts";
import { copyToCache, findLibrary, isEmbedded, missingSentence } from "./library.ts";
import { Native } from "./native.ts";

export { Native };

async function open(path: string, table: CallTable, waits?: string[]): Promise<OpenedLibrary> {
  if (process.versions.bun === undefined) return openDeno(path, table, waits);
  const { openBun } = await import("./ffi_bun.ts");
  return await openBun(path, table);
}

/** The first line of what a runtime says, without its own "could not open library". */
function reason(error: unknown): string {
  const [line] = (error instanceof Error ? error.message : String(error)).split("\n");
  return line.replace(/^(?:(?:Could not|Failed to) open library[^:]*: )+/, "");
}

function otherSources(path: string): NativeError {
  return new NativeError(
    Status.version,
    `The native library at "${path}" was built from other sources than this TypeScript code: ` +
      "run ./dev build",
  );
}

/**
 * Opens the library at `path` and checks that it was built from the same declarations.
 *
 * @param expected_abi the hash it must answer
 * @throws {NativeError} with `version` when it was built from others, or is no library of ours
 */
export async function openNative(path: string, expected_abi: number = abi_hash): Promise<Native> {
  // The hash alone first: a library of another version may lack other symbols.
  const { bamba_abi } = symbols;
  let probe: OpenedLibrary;
  try {
    probe = await open(path, { bamba_abi });
  } catch (error) {
    const detail = reason(error);
    if (/\bbamba_abi\b/.test(detail)) {
      throw new NativeError(
        Status.version,
        `The file "${path}" is not Bamba's native library: it has no bamba_abi`,
      );
    }
    const sentence = /No such file/.test(detail)
      ? missingSentence(path) // not seen earlier where looking at files is not permitted
      : `Cannot load the native library at "${path}": ${detail}`;
    throw new NativeError(Status.io, sentence);
  }
  const found = probe.call.bamba_abi();
  if (found !== expected_abi) throw otherSources(path);
  try {
    return new Native(path, await open(path, symbols, ["bamba_job_wait"]));
  } catch {
    throw otherSources(path);
  }
}

let loading: Promise<Native> | undefined;

/**
 * The native library, loaded at the first call.
 *
 * @throws {Error} when there is no library, saying how to build it
 * @throws {NativeError} as {@link openNative}
 */
export function loadNative(): Promise<Native> {
  loading ??= load().catch((error) => {
    loading = undefined; // the user may build the library and try again
    throw error;
  });
  return loading;
}

async function load(): Promise<Native> {
  const path = findLibrary();
  try {
    return await openNative(path);
  } catch (error) {
    if (!isEmbedded(path) || (error as NativeError).code !== Status.io) throw error;
    return await openNative(copyToCache(path)).catch((second) => {
      throw new NativeError(Status.io, `${reason(error)}; nor from the cache: ${reason(second)}`);
    });
  }
}
