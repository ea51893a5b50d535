/** config.json files: found, parsed and written as HF has them; or what a GGUF file has instead. */

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { isGguf, readGgufFields } from "../gguf/checkpoint.ts";
import { explain } from "../weights/explain.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../weights/json.ts";
import { show } from "./config_fields.ts";

/**
 * The path of config.json in a folder; that of a .json or GGUF file is taken as it is.
 *
 * @throws {TypeError} when it is no path
 * @throws {Error} when nothing is there, or neither a folder nor such a file
 */
export function configPath(dir: string): string {
  if (typeof dir !== "string" || dir === "") {
    throw new TypeError(`Expected the path of a folder or a .gguf file but found ${show(dir)}`);
  }
  if (dir.endsWith(".json") || isGguf(dir)) return dir;
  const found = statSync(dir, { throwIfNoEntry: false });
  if (found?.isDirectory()) return join(dir, "config.json");
  throw new Error(
    "Expected a folder with config.json and model.safetensors, or a .gguf file, but found " +
      `${found ? "another file" : "nothing"} at "${dir}"`,
  );
}

/**
 * The fields of a config.json, or those that a GGUF file's metadata stand for.
 *
 * @throws {Error} when it cannot be read
 * @throws {SyntaxError | TypeError} when it is no JSON object
 */
export function readConfigFile(path: string): JsonObject {
  if (isGguf(path)) return readGgufFields(path) as JsonObject;
  return explain(`Cannot read "${path}"`, () => parseFields(readFileSync(path, "utf8")));
}

/**
 * The fields in the text of a config.json, read as Python does: with bare Infinity and NaN.
 *
 * @throws {SyntaxError | TypeError} when it is no JSON object
 */
export function parseFields(text: string): JsonObject {
  const value: JsonValue = decodeFloats(parseJson(text, { as_python: true }));
  if (isJsonObject(value)) return value;
  throw new TypeError(`Expected the config to be a JSON object but found ${show(value)}`);
}

/** Turns `{"__float__": "Infinity"}`, as HF writes floats that JSON lacks, into numbers. */
export function decodeFloats(value: JsonValue): JsonValue {
  if (Array.isArray(value)) return value.map(decodeFloats);
  if (!isJsonObject(value)) return value;
  const keys = Object.keys(value);
  if (keys.length === 1 && keys[0] === "__float__") {
    const text = value.__float__;
    if (text === "Infinity" || text === "-Infinity" || text === "NaN") return Number(text);
    throw new RangeError(
      `Expected __float__ of the config to be Infinity, -Infinity or NaN but found ${show(text)}`,
    );
  }
  return Object.fromEntries(keys.map((key) => [key, decodeFloats(value[key])]));
}

/** The inverse of {@link decodeFloats}. */
export function encodeFloats(value: unknown): JsonValue {
  if (typeof value === "number" && !Number.isFinite(value)) return { __float__: String(value) };
  if (Array.isArray(value)) return value.map(encodeFloats);
  if (typeof value !== "object" || value === null) return (value ?? null) as JsonValue;
  return Object.fromEntries(
    Object.entries(value).filter(([, v]) => v !== undefined).map(([k, v]) => [k, encodeFloats(v)]),
  );
}

/** Fields that Python reads as floats: a whole number keeps its ".0". */
const float_names: ReadonlySet<string> = new Set([
  "attention_dropout",
  "initializer_range",
  "rms_norm_eps",
  "z_loss_coefficient",
  "rope_theta",
  "partial_rotary_factor",
  "time_step_limit",
]);

/** JSON as HF writes it: keys sorted, two spaces, floats of whole numbers with ".0". */
export function formatConfig(value: JsonValue, name = "", indent = ""): string {
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    if (value.length === 0) return "[]";
    const items = value.map((item) => inner + formatConfig(item, name, inner));
    return `[\n${items.join(",\n")}\n${indent}]`;
  }
  if (isJsonObject(value)) {
    const keys = Object.keys(value).sort();
    if (keys.length === 0) return "{}";
    const members = keys.map((key) =>
      `${inner}${JSON.stringify(key)}: ${formatConfig(value[key], key, inner)}`
    );
    return `{\n${members.join(",\n")}\n${indent}}`;
  }
  const text = JSON.stringify(value);
  return Number.isInteger(value) && float_names.has(name) && !text.includes("e")
    ? `${text}.0`
    : text;
}
