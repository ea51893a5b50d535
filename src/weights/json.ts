/** A strict JSON reader that names duplicate keys; asked to, it takes JSON as Python reads it. */

/** A value of JSON. */
export type JsonValue = null | boolean | number | string | JsonValue[] | {
  [key: string]: JsonValue;
};

/** An object of JSON. */
export type JsonObject = { [key: string]: JsonValue };

const depth_max = 64;
const number_pattern = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const space_pattern = /[ \t\n\r]*/y;
const words: readonly [string, JsonValue][] = [["true", true], ["false", false], ["null", null]];
const bare_numbers: readonly [string, number][] = [
  ["NaN", NaN],
  ["Infinity", Infinity],
  ["-Infinity", -Infinity],
];

class Reader {
  private at = 0;

  constructor(private readonly text: string, private readonly as_python: boolean) {}

  read(): JsonValue {
    const value = this.value(0);
    this.skipSpace();
    if (this.at < this.text.length) this.fail("the end");
    return value;
  }

  private value(depth: number): JsonValue {
    this.skipSpace();
    if (depth > depth_max) {
      throw new SyntaxError(`Expected at most ${depth_max} levels of nesting in the JSON`);
    }
    const { text } = this;
    const first = text[this.at];
    if (first === "{") return this.object(depth);
    if (first === "[") return this.array(depth);
    if (first === '"') return this.string();
    for (const [word, value] of this.as_python ? [...words, ...bare_numbers] : words) {
      if (text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    const digits = this.match(number_pattern);
    return digits === undefined ? this.fail("a value") : Number(digits);
  }

  private object(depth: number): JsonObject {
    const result: JsonObject = {};
    const keys = new Set<string>();
    this.at++;
    this.skipSpace();
    if (this.take("}")) return result;
    do {
      this.skipSpace();
      const key = this.string();
      if (keys.has(key) && !this.as_python) {
        throw new SyntaxError(
          `Found the key ${JSON.stringify(key)} twice in one object of the JSON`,
        );
      }
      keys.add(key);
      this.skipSpace();
      if (!this.take(":")) this.fail('":"');
      const value = this.value(depth + 1);
      // Plain assignment to "__proto__" would set the prototype.
      Object.defineProperty(result, key, {
        value,
        writable: true,
        enumerable: true,
        configurable: true,
      });
      this.skipSpace();
    } while (this.take(","));
    if (!this.take("}")) this.fail('"," or "}"');
    return result;
  }

  private array(depth: number): JsonValue[] {
    const result: JsonValue[] = [];
    this.at++;
    this.skipSpace();
    if (this.take("]")) return result;
    do {
      result.push(this.value(depth + 1));
      this.skipSpace();
    } while (this.take(","));
    if (!this.take("]")) this.fail('"," or "]"');
    return result;
  }

  private string(): string {
    const { text, at } = this;
    if (text[at] !== '"') this.fail("a string");
    let end = at + 1;
    while (end < text.length && text[end] !== '"') end += text[end] === "\\" ? 2 : 1;
    try {
      const value: string = JSON.parse(text.slice(at, end + 1));
      this.at = end + 1;
      return value;
    } catch {
      return this.fail("a whole string without control characters");
    }
  }

  private skipSpace(): void {
    this.match(space_pattern);
  }

  private take(character: string): boolean {
    if (this.text[this.at] !== character) return false;
    this.at++;
    return true;
  }

  private match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text)?.[0];
    if (found !== undefined) this.at += found.length;
    return found;
  }

  private fail(expected: string): never {
    const { text, at } = this;
    const found = at < text.length ? JSON.stringify(text.slice(at, at + 12)) : "its end";
    const line = text.slice(0, at).split("\n").length;
    const column = at - text.lastIndexOf("\n", at - 1);
    throw new SyntaxError(
      `Expected ${expected} at line ${line}, column ${column} of the JSON but found ${found}`,
    );
  }
}

/**
 * Reads JSON.
 *
 * @param o `as_python` takes NaN, Infinity and -Infinity, and of a key that stands twice the last
 * @throws {SyntaxError} with line and column; also for a key that stands twice in one object
 */
export function parseJson(text: string, o: { as_python?: boolean } = {}): JsonValue {
  return new Reader(text, o.as_python ?? false).read();
}

/** Whether a value of JSON is an object. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
