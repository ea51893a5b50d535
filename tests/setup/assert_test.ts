import { describe, it } from "node:test";
import * as a from "@std/assert";

const numbers = (of: number[]) => new Float32Array(of);

describe("@std/assert", () => {
  const holds: [string, () => void][] = [
    ["assert", () => a.assert(1)],
    ["assertFalse", () => a.assertFalse(0)],
    ["assertEquals", () => a.assertEquals({ x: [1, NaN] }, { x: [1, NaN] })],
    ["assertEquals of floats", () => a.assertEquals(numbers([NaN]), numbers([NaN]))],
    ["assertNotEquals", () => a.assertNotEquals([1], [2])],
    ["assertStrictEquals", () => a.assertStrictEquals(NaN, NaN)],
    ["assertNotStrictEquals", () => a.assertNotStrictEquals([], [])],
    ["assertAlmostEquals", () => a.assertAlmostEquals(1, 1.01, 0.02)],
    ["assertAlmostEquals infinity", () => a.assertAlmostEquals(Infinity, Infinity)],
    ["assertExists", () => a.assertExists(0)],
    ["assertGreater", () => a.assertGreater(2, 1)],
    ["assertGreaterOrEqual", () => a.assertGreaterOrEqual(1, 1)],
    ["assertLess", () => a.assertLess(1, 2)],
    ["assertLessOrEqual", () => a.assertLessOrEqual(1, 1)],
    ["assertMatch", () => a.assertMatch("bamba", /mb/)],
    ["assertNotMatch", () => a.assertNotMatch("bamba", /x/)],
    ["assertStringIncludes", () => a.assertStringIncludes("bamba", "amb")],
    ["assertArrayIncludes", () => a.assertArrayIncludes([[1], [2]], [[2]])],
    ["assertInstanceOf", () => a.assertInstanceOf(new RangeError(), Error)],
    ["assertIsError", () => a.assertIsError(new RangeError("found 3"), RangeError, /\d/)],
  ];
  for (const [name, run] of holds) it(`${name} accepts`, run);

  const breaks: [string, () => void][] = [
    ["fail", () => a.fail("no")],
    ["assert", () => a.assert(0)],
    ["assertFalse", () => a.assertFalse(1)],
    ["assertEquals", () => a.assertEquals<unknown>({ x: 1 }, { x: "1" })],
    ["assertEquals of floats", () => a.assertEquals(numbers([0]), numbers([-0]))],
    ["assertEquals of fewer floats", () => a.assertEquals(numbers([0]), numbers([0, 0]))],
    ["assertNotEquals", () => a.assertNotEquals([1], [1])],
    ["assertStrictEquals", () => a.assertStrictEquals<unknown>([], [])],
    ["assertNotStrictEquals", () => a.assertNotStrictEquals(1, 1)],
    ["assertAlmostEquals", () => a.assertAlmostEquals(1, 1.01, 0.001)],
    ["assertAlmostEquals NaN", () => a.assertAlmostEquals(NaN, 1, 5)],
    ["assertExists", () => a.assertExists(null)],
    ["assertGreater", () => a.assertGreater(1, 1)],
    ["assertGreaterOrEqual", () => a.assertGreaterOrEqual(1, 2)],
    ["assertLess", () => a.assertLess(NaN, 1)],
    ["assertLessOrEqual", () => a.assertLessOrEqual(2, 1)],
    ["assertMatch", () => a.assertMatch("bamba", /x/)],
    ["assertNotMatch", () => a.assertNotMatch("bamba", /mb/)],
    ["assertStringIncludes", () => a.assertStringIncludes("bamba", "x")],
    ["assertArrayIncludes", () => a.assertArrayIncludes([[1]], [[2]])],
    ["assertInstanceOf", () => a.assertInstanceOf(new Error(), RangeError)],
    ["assertIsError", () => a.assertIsError(new Error("x"), Error, "y")],
    ["assertThrows", () => a.assertThrows(() => 1)],
    ["assertThrows of another class", () =>
      a.assertThrows(() => {
        throw new Error("x");
      }, RangeError)],
  ];
  for (const [name, run] of breaks) {
    it(`${name} refuses`, () => {
      a.assertThrows(run, a.AssertionError);
    });
  }

  it("assertRejects returns the error", async () => {
    const error = await a.assertRejects(
      () => Promise.reject(new RangeError("found 3")),
      RangeError,
      "found",
    );
    a.assertEquals(error.message, "found 3");
    await a.assertRejects(() => a.assertRejects(() => Promise.resolve(1)), a.AssertionError);
  });
});
