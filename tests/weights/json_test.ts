import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import { parseJson } from "../../src/weights/json.ts";

describe("parseJson", () => {
  it("reads what JSON.parse reads, with the same result", () => {
    for (
      const text of [
        '{"a": [1, -2.5e3, 0, "x\\n\\u00e9\\"]"], "b": {"c": null}, "d": true, "e": false}',
        " [ ] ",
        "{}",
        '"\\\\"',
        "-0",
        '{"__proto__": {"x": 1}}',
        '["\\ud83d\\ude00", "😀"]',
        "1E+2",
      ]
    ) assertEquals(parseJson(text), JSON.parse(text));
    assertEquals(Object.getPrototypeOf(parseJson('{"__proto__": {"x": 1}}')), Object.prototype);
  });

  it("refuses what JSON.parse refuses", () => {
    const texts = [
      "",
      "{",
      "[1,]",
      '{"a":1,}',
      "01",
      "1.",
      "+1",
      "'a'",
      '"\n"',
      '"\\x"',
      "nul",
      "[1]]",
    ];
    for (
      const text of [...texts, "{a:1}", '{"a" 1}', '"abc', '"\\"', "NaN", "Infinity", "\ufeff1"]
    ) {
      assertThrows(() => JSON.parse(text), SyntaxError);
      assertThrows(() => parseJson(text), SyntaxError);
    }
  });

  it("names duplicate keys, which JSON.parse swallows", () => {
    assertThrows(() => parseJson('{"a": 1, "b": {"a": 2}, "a": 3}'), SyntaxError, '"a" twice');
    assertEquals(parseJson('{"a": 1, "b": {"a": 2}}'), { a: 1, b: { a: 2 } });
    assertEquals(parseJson('{"a": 1, "a": 3}', { as_python: true }), { a: 3 });
  });

  it("takes bare numbers only when asked to, and never inside strings", () => {
    const text = '{"limit": [0.0, Infinity], "low": -Infinity, "n": NaN, "s": "Infinity, NaN"}';
    assertEquals(parseJson(text, { as_python: true }), {
      limit: [0, Infinity],
      low: -Infinity,
      n: NaN,
      s: "Infinity, NaN",
    });
    assertThrows(() => parseJson(text), SyntaxError, "line 1, column 17");
  });

  it("gives line and column", () => {
    assertThrows(() => parseJson('{\n  "a": 1,\n  b\n}'), SyntaxError, "line 3, column 3");
  });

  it("stops at absurd nesting without running out of stack", () => {
    assertThrows(() => parseJson("[".repeat(1_000_000)), SyntaxError, "64 levels");
  });

  it("reads a string of ten million characters", () => {
    const text = "x".repeat(10_000_000);
    assertEquals((parseJson(`"${text}"`) as string).length, text.length);
  });
});
