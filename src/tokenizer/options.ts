/**
 * Checks of what callers hand in: option names, choices and token ids.
 *
 * @module
 */
import type { Side, TokenIds } from "./types.ts";

/** Number of single-character edits between two names. */
export function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = previous[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(replaced, previous[j] + 1, row[j - 1] + 1));
    }
    previous = row;
  }
  return previous[b.length];
}

/** The known name nearest to one that is unknown, with its distance in edits. */
export function nearestName(name: string, known: readonly string[]): [string, number] {
  let best: [string, number] = ["", Infinity];
  for (const candidate of known) {
    const distance = editDistance(name, candidate);
    if (distance < best[1]) best = [candidate, distance];
  }
  return best;
}

/**
 * Refuses options that a function does not have.
 *
 * @throws {TypeError} naming the unknown option and the nearest known one
 */
export function checkNames(options: object, known: readonly string[], owner: string): void {
  for (const name of Object.keys(options)) {
    if (known.includes(name)) continue;
    throw new TypeError(
      `${owner} has no option "${name}". Did you mean "${nearestName(name, known)[0]}"?`,
    );
  }
}

/** A value as an error shows it. */
export function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object" && value !== null) {
    return `an object of class ${value.constructor?.name ?? "null"}`;
  }
  if (typeof value === "function") return `the function ${value.name}`;
  return String(value);
}

/**
 * One of a list of allowed values.
 *
 * @throws {TypeError}
 */
export function checkChoice<T>(value: unknown, allowed: readonly T[], name: string): T {
  if ((allowed as readonly unknown[]).includes(value)) return value as T;
  const list = allowed.map((choice) => JSON.stringify(choice)).join(", ");
  throw new TypeError(`Expected ${name} to be one of ${list} but found ${show(value)}.`);
}

/** `"left"` or `"right"`. */
export function checkSide(value: unknown, name: string): Side {
  return checkChoice<Side>(value, ["left", "right"], name);
}

/**
 * A whole number of at least `min`.
 *
 * @throws {RangeError}
 */
export function checkCount(value: unknown, min: number, name: string): number {
  if (Number.isInteger(value) && (value as number) >= min) return value as number;
  throw new RangeError(
    `Expected ${name} to be a whole number of at least ${min} but found ${show(value)}.`,
  );
}

/**
 * A token id as a number.
 *
 * @param id what the caller gave
 * @param length ids run from 0 to `length - 1`
 * @throws {TypeError} when it is no integer
 * @throws {RangeError} when it is out of range
 */
export function checkId(id: unknown, length: number): number {
  const value = typeof id === "bigint" ? Number(id) : id;
  if (!Number.isInteger(value)) {
    throw new TypeError(`Expected a token id to be an integer but found ${show(id)}.`);
  }
  if ((value as number) < 0 || (value as number) >= length) {
    throw new RangeError(`Expected a token id from 0 to ${length - 1} but found ${id}.`);
  }
  return value as number;
}

/**
 * One row of ids as an array-like; a single id becomes a row of one.
 *
 * @throws {TypeError}
 */
export function idRow(ids: TokenIds): ArrayLike<number | bigint> {
  if (typeof ids === "number" || typeof ids === "bigint") return [ids];
  if (Array.isArray(ids)) return ids;
  if (ArrayBuffer.isView(ids) && !(ids instanceof DataView)) return ids;
  throw new TypeError(
    `Expected token ids as a number or a list of numbers but found ${show(ids)}.`,
  );
}
