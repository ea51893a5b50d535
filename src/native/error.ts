/** Failures of the native library as JavaScript errors. */

import { Status } from "./bindings.gen.ts";

/** A failure that is neither a wrong value (RangeError) nor a wrong type (TypeError). */
export class NativeError extends Error {
  override readonly name = "NativeError";
  /** The status of the library, one of `Status` in zig/command.zig. */
  readonly code: number;

  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

/** The name of a status, like "stale"; its number when there is no such status. */
export function statusName(status: number): string {
  return Object.entries(Status).find(([, value]) => value === status)?.[0] ?? String(status);
}

/**
 * Throws the library's sentence as the closest class.
 *
 * @param status negative
 * @param sentence the library's own words; when empty, the name of the status stands in
 * @throws {RangeError} for `invalid` and `range`
 * @throws {TypeError} for `type`
 * @throws {NativeError} for everything else
 */
export function throwStatus(status: number, sentence: string): never {
  const message = sentence || `The native library failed with status ${statusName(status)}`;
  if (status === Status.invalid || status === Status.range) throw new RangeError(message);
  if (status === Status.type) throw new TypeError(message);
  throw new NativeError(status, message);
}
