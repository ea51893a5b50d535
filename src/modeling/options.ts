/** Checks of options: an unknown name is an error that suggests the nearest. */

import { editDistance } from "../tokenizer/options.ts";
import { describe } from "./inputs.ts";

/** The known name closest to `name`, when it is close enough to be meant. */
export function nearestName(name: string, known: readonly string[]): string | undefined {
  const ranked = known.map((k) => [editDistance(name.toLowerCase(), k.toLowerCase()), k] as const)
    .sort((a, b) => a[0] - b[0]);
  return ranked.length > 0 && ranked[0][0] <= Math.max(2, name.length / 3)
    ? ranked[0][1]
    : undefined;
}

/**
 * Checks the names, and the option that every long function shares: `signal`.
 *
 * @param where the function whose options these are
 * @throws {TypeError} naming the first unknown option and the nearest known one
 */
export function checkOptions(where: string, options: object, known: readonly string[]): void {
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw new TypeError(
      `Expected one object with the options of ${where} but found ${describe(options)}`,
    );
  }
  for (const name of Object.keys(options)) {
    if (known.includes(name)) continue;
    const nearest = nearestName(name, known);
    const hint = nearest ? `: did you mean "${nearest}"?` : "";
    throw new TypeError(`Unknown option "${name}" of ${where}${hint}`);
  }
  const { signal } = options as { signal?: AbortSignal };
  if (signal !== undefined && typeof signal?.throwIfAborted !== "function") {
    throw new TypeError(`Expected signal to be an AbortSignal but found ${describe(signal)}`);
  }
}

/** @throws {TypeError} naming the first of the options `names` that is neither true nor false */
export function checkFlags(options: object, names: readonly string[]): void {
  for (const name of names) {
    const value = (options as Record<string, unknown>)[name];
    if (value === undefined || typeof value === "boolean") continue;
    throw new TypeError(`Expected ${name} to be true or false but found ${describe(value)}`);
  }
}
