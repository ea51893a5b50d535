/** Bun's FFI: the only file that names it. */

import type { CallTable, OpenedLibrary } from "./calls.ts";

/**
 * Opens a shared library.
 *
 * @throws {Error} in Bun's words when the file is no library or lacks a symbol
 */
export async function openBun(path: string, table: CallTable): Promise<OpenedLibrary> {
  // Not a literal: Deno's checker would look for a package of this name.
  const specifier: string = "bun:ffi";
  const { dlopen } = await import(specifier);
  const definitions = Object.fromEntries(
    Object.entries(table).map((
      [name, f],
    ) => [name, { args: [...f.parameters], returns: f.result }]),
  );
  const library = dlopen(path, definitions);
  return { call: { ...library.symbols }, close: () => library.close() };
}
