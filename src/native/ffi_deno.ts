/** Deno's FFI and permissions: the only file that names them. */

import type { CallTable, NativeCall, OpenedLibrary } from "./calls.ts";

interface DenoDefinition {
  name: string;
  parameters: readonly string[];
  result: string;
  nonblocking?: boolean;
}

interface DenoLike {
  dlopen(path: string, definitions: Record<string, DenoDefinition>): {
    symbols: Record<string, NativeCall>;
    close(): void;
  };
  permissions: {
    querySync(o: { name: string; variable?: string; path?: string }): { state: string };
  };
}

const deno = (globalThis as { Deno?: DenoLike }).Deno;

/**
 * Whether asking needs no prompt: always true outside Deno.
 *
 * @param o what to read: an environment variable or a file
 */
export function mayRead(o: { variable: string } | { path: string }): boolean {
  if (deno === undefined) return true;
  const name = "variable" in o ? "env" : "read";
  return deno.permissions.querySync({ name, ...o }).state === "granted";
}

/**
 * Opens a shared library. The functions named in `waits` also get a form that runs off the main
 * thread, so that the event loop stays free.
 *
 * @throws {Error} in Deno's words when the file is no library, lacks a symbol or is not permitted
 */
export function openDeno(
  path: string,
  table: CallTable,
  waits: readonly string[] = [],
): OpenedLibrary {
  const definitions: Record<string, DenoDefinition> = {};
  for (const [name, f] of Object.entries(table)) definitions[name] = { name, ...f };
  for (const name of waits) {
    definitions[`${name}_nonblocking`] = { name, ...table[name], nonblocking: true };
  }
  const library = deno!.dlopen(path, definitions);
  const waitAsync = library.symbols.bamba_job_wait_nonblocking as unknown as
    | OpenedLibrary["waitAsync"]
    | undefined;
  return { call: library.symbols, waitAsync, close: () => library.close() };
}
