/**
 * The assertions of `@std/assert` that this project uses, over `node:assert`.
 *
 * The package lives on JSR and cannot be installed from npm. To use it instead, change one line per
 * runtime: `"@std/assert": "jsr:@std/assert@1"` in the imports of deno.json, and
 * `"@std/assert": ["./node_modules/@jsr/std__assert/mod.ts"]` in the paths of tsconfig.json.
 *
 * @module
 */
import nodeAssert, { AssertionError } from "node:assert";
import { inspect } from "node:util";

export { AssertionError };

/** A class whose instances can be tested for, abstract or not. */
// deno-lint-ignore no-explicit-any
export type ErrorClass<E = Error> = abstract new (...args: any[]) => E;

function show(value: unknown): string {
  return inspect(value, { depth: 4, maxArrayLength: 16, breakLength: 100 });
}

/**
 * Fails always.
 *
 * @throws {AssertionError}
 */
export function fail(msg?: string): never {
  throw new AssertionError({ message: msg ?? "Failed." });
}

/** Asserts that a value is truthy. */
export function assert(expr: unknown, msg = "Expected a truthy value."): asserts expr {
  if (!expr) fail(msg);
}

/** Asserts that a value is falsy. */
export function assertFalse(expr: unknown, msg = "Expected a falsy value."): void {
  if (expr) fail(msg);
}

/** Asserts that two values are deeply and strictly equal. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  // A runtime's own message sets all numbers as lines beside each other: hours for a vocabulary's.
  if (
    actual instanceof Float32Array && expected instanceof Float32Array &&
    actual.length === expected.length
  ) {
    const at = actual.findIndex((value, i) => !Object.is(value, expected[i]));
    if (at < 0) return;
    fail(msg ?? `Expected ${expected[at]} at ${at} of ${actual.length} but found ${actual[at]}.`);
  }
  nodeAssert.deepStrictEqual(actual, expected, msg);
}

/** Asserts that two values are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  nodeAssert.notDeepStrictEqual(actual, expected, msg);
}

/** Asserts that two values are the same by `Object.is`. */
export function assertStrictEquals<T>(
  actual: unknown,
  expected: T,
  msg?: string,
): asserts actual is T {
  nodeAssert.strictEqual(actual, expected, msg);
}

/** Asserts that two values are not the same by `Object.is`. */
export function assertNotStrictEquals<T>(actual: T, expected: T, msg?: string): void {
  nodeAssert.notStrictEqual(actual, expected, msg);
}

/** Asserts that two numbers differ by no more than the tolerance (default 1e-7 of the expected). */
export function assertAlmostEquals(
  actual: number,
  expected: number,
  tolerance?: number,
  msg?: string,
): void {
  if (Object.is(actual, expected)) return;
  const allowed = tolerance ?? (Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  const delta = Math.abs(expected - actual);
  if (delta <= allowed) return;
  fail(
    `${msg ? `${msg}: ` : ""}Expected ${actual} to be within ${allowed} of ${expected} ` +
      `but the difference is ${delta}.`,
  );
}

/** Asserts that a value is neither null nor undefined. */
export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T> {
  if (actual === undefined || actual === null) {
    fail(msg ?? `Expected a value but found ${actual}.`);
  }
}

/** Asserts `actual > expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual > expected)) fail(msg ?? `Expected ${show(actual)} > ${show(expected)}.`);
}

/** Asserts `actual >= expected`. */
export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual >= expected)) fail(msg ?? `Expected ${show(actual)} >= ${show(expected)}.`);
}

/** Asserts `actual < expected`. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual < expected)) fail(msg ?? `Expected ${show(actual)} < ${show(expected)}.`);
}

/** Asserts `actual <= expected`. */
export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual <= expected)) fail(msg ?? `Expected ${show(actual)} <= ${show(expected)}.`);
}

/** Asserts that a text matches a regular expression. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  if (!expected.test(actual)) fail(msg ?? `Expected ${show(actual)} to match ${expected}.`);
}

/** Asserts that a text does not match a regular expression. */
export function assertNotMatch(actual: string, expected: RegExp, msg?: string): void {
  if (expected.test(actual)) fail(msg ?? `Expected ${show(actual)} not to match ${expected}.`);
}

/** Asserts that a text contains another. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  if (!actual.includes(expected)) {
    fail(msg ?? `Expected ${show(actual)} to contain ${show(expected)}.`);
  }
}

/** Asserts that an array-like contains every one of the values, compared deeply. */
export function assertArrayIncludes<T>(
  actual: ArrayLike<T>,
  expected: ArrayLike<T>,
  msg?: string,
): void {
  const missing = Array.from(expected).filter((want) =>
    !Array.from(actual).some((have) => deeplyEqual(have, want))
  );
  if (missing.length) fail(msg ?? `Expected ${show(actual)} to contain ${show(missing)}.`);
}

function deeplyEqual(a: unknown, b: unknown): boolean {
  try {
    nodeAssert.deepStrictEqual(a, b);
    return true;
  } catch {
    return false;
  }
}

/** Asserts that a value is an instance of a class. */
export function assertInstanceOf<E>(
  actual: unknown,
  expectedType: ErrorClass<E>,
  msg?: string,
): asserts actual is E {
  if (!(actual instanceof expectedType)) {
    fail(msg ?? `Expected an instance of ${expectedType.name} but found ${show(actual)}.`);
  }
}

/** Asserts that a value is an error of a class whose message contains a text. */
export function assertIsError<E extends Error = Error>(
  error: unknown,
  // deno-lint-ignore no-explicit-any
  ErrorClass: ErrorClass<E> = Error as any,
  msgMatches?: string | RegExp,
  msg?: string,
): asserts error is E {
  assertInstanceOf(error, ErrorClass, msg);
  if (msgMatches === undefined) return;
  if (typeof msgMatches === "string") assertStringIncludes(error.message, msgMatches, msg);
  else assertMatch(error.message, msgMatches, msg);
}

/**
 * Asserts that a function throws, and returns what it threw.
 *
 * @param fn the function to call
 * @param ErrorClass the class the error must have
 * @param msgIncludes a text the error's message must contain
 */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass?: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): E {
  let caught: unknown;
  try {
    fn();
  } catch (error) {
    caught = error;
    assertIsError(caught, ErrorClass, msgIncludes, msg);
    return caught;
  }
  return fail(msg ?? "Expected the function to throw but it returned.");
}

/**
 * Asserts that a promise rejects, and returns what it rejected with.
 *
 * @param fn the function whose promise must reject
 * @param ErrorClass the class the error must have
 * @param msgIncludes a text the error's message must contain
 */
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass?: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E> {
  let promise: PromiseLike<unknown>;
  try {
    promise = fn();
  } catch (error) {
    return fail(`Expected a rejected promise but the function threw: ${error}`);
  }
  try {
    await promise;
  } catch (error) {
    assertIsError(error, ErrorClass, msgIncludes, msg);
    return error;
  }
  return fail(msg ?? "Expected the promise to reject but it resolved.");
}
