/** Reads what a GGUF file says of itself: metadata and tensors; their data stays in the file. */

import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { explain } from "../weights/explain.ts";
import { Cursor, type ReadBytes } from "./cursor.ts";
import {
  align,
  default_alignment,
  gguf_magic,
  type GgufValue,
  type ItemTypeName,
  type Metadata,
  quote,
  tensor_type_names,
  tensor_types,
  tensorBytes,
  value_bytes,
  value_type_names,
  type ValueTypeName,
} from "./format.ts";

/** One tensor of a file. */
export interface GgufTensor {
  /** As the format names it: F32, Q4_K, … */
  readonly type: string;
  /** Rows first, columns last: the file has them the other way round. */
  readonly shape: readonly number[];
  /** Bytes from the file's start. */
  readonly offset: number;
  readonly bytes: number;
}

/** All that a file says before its tensors' data. */
export interface GgufHeader {
  readonly version: number;
  readonly metadata: Metadata;
  /** By name, in the file's order. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly alignment: number;
  /** Where the tensors' data starts, and how many bytes the file has in all. */
  readonly dataOffset: number;
  readonly fileBytes: number;
}

const rank_max = 4;
const key_bytes_max = 65535;
const string_bytes_max = 1 << 28;
/** Of all arrays together: a hole in a file, which takes no disk, must not fill memory. */
const values_max = 1 << 24;
const elements_max = 2 ** 50;
const alignment_max = 1 << 20;

/**
 * Reads the header of a GGUF file.
 *
 * @throws {RangeError} when a count, size or offset is impossible in a file of this length
 * @throws {SyntaxError} when a text is not UTF-8
 * @throws {TypeError} when it is no GGUF file, or of a version or type that is unknown
 * @throws {Error} when the file cannot be read
 */
export function readGgufHeader(path: string): GgufHeader {
  return explain(`Cannot read "${path}" as GGUF`, () => {
    // A file that is no regular file is not opened: it could block.
    if (!statSync(path).isFile()) throw new TypeError("it is not a regular file");
    const file = openSync(path, "r");
    try {
      const read: ReadBytes = (at, into) => readSync(file, into, 0, into.length, at);
      return parseGguf(read, fstatSync(file).size);
    } finally {
      closeSync(file);
    }
  });
}

/**
 * Reads a header from wherever its bytes are.
 *
 * @param read fills a span from an offset on and tells how many bytes it got
 * @param fileBytes size of the whole file
 * @throws as {@link readGgufHeader}, without the path
 */
export function parseGguf(read: ReadBytes, fileBytes: number): GgufHeader {
  const cursor = new Cursor(read, fileBytes);
  const { version, n_tensors, n_values } = readStart(cursor);
  const metadata = readMetadata(cursor, n_values);
  const alignment = readAlignment(metadata);
  const found = readTensors(cursor, n_tensors);
  const dataOffset = align(cursor.at, alignment);
  const tensors = placeTensors(found, alignment, dataOffset, fileBytes);
  return { version, metadata, tensors, alignment, dataOffset, fileBytes };
}

function readStart(cursor: Cursor): { version: number; n_tensors: number; n_values: number } {
  const magic = cursor.u32("the magic number");
  if (magic !== gguf_magic) {
    throw new TypeError(`expected it to begin with "GGUF" but found 0x${magic.toString(16)}`);
  }
  const version = cursor.u32("the version");
  if (version !== 2 && version !== 3) {
    const swapped = version >= 2 ** 24 && version % 2 ** 24 === 0;
    throw new TypeError(
      swapped
        ? "it is big-endian, which is not supported"
        : `expected version 2 or 3 but found ${version}`,
    );
  }
  // Each takes at least so many bytes of the file: a lying count ends here.
  const n_tensors = cursor.count("tensors", 24);
  const n_values = cursor.count("metadata values", 13);
  return { version, n_tensors, n_values };
}

function readMetadata(cursor: Cursor, n: number): Metadata {
  const metadata = new Map<string, { type: ValueTypeName; value: GgufValue }>();
  let room = values_max;
  for (let i = 0; i < n; i++) {
    const key = cursor.string("a metadata key", key_bytes_max);
    const quoted = quote(key);
    if (metadata.has(key)) throw new RangeError(`the metadata has the key ${quoted} twice`);
    const type = readType(cursor, quoted);
    const value = readValue(cursor, type, quoted, room);
    if (typeof value === "object") room -= value.values.length;
    metadata.set(key, { type, value });
  }
  return metadata;
}

function readType(cursor: Cursor, what: string): ValueTypeName {
  const id = cursor.u32(`the type of ${what}`);
  const name = value_type_names[id];
  if (name === undefined) throw new TypeError(`expected a type of ${what} but found ${id}`);
  return name;
}

/** @param room how many values an array may have */
function readValue(cursor: Cursor, type: ValueTypeName, what: string, room: number): GgufValue {
  if (type !== "array") return readItem(cursor, type, what);
  const item = readType(cursor, `the values of ${what}`);
  if (item === "array") throw new TypeError(`${what} is an array of arrays, which is not taken`);
  // A string takes at least the eight bytes of its length.
  const n = cursor.count(`values of ${what}`, value_bytes[item] || 8);
  if (n > room) {
    throw new RangeError(
      `expected arrays of at most ${values_max} values in all but found ${n} more in ${what}`,
    );
  }
  const values: (number | boolean | string)[] = [];
  for (let i = 0; i < n; i++) values.push(readItem(cursor, item, what));
  return { type: item, values };
}

function readItem(cursor: Cursor, type: ItemTypeName, what: string): number | boolean | string {
  if (type === "string") return cursor.string(what, string_bytes_max);
  if (type !== "bool") return cursor.number(type, what);
  const byte = cursor.number("u8", what);
  if (byte > 1) throw new RangeError(`expected ${what} to be true or false but found ${byte}`);
  return byte === 1;
}

function readAlignment(metadata: Metadata): number {
  const found = metadata.get("general.alignment");
  if (found === undefined) return default_alignment;
  const { value } = found;
  const fits = typeof value === "number" && Number.isInteger(Math.log2(value)) &&
    value >= 8 && value <= alignment_max;
  if (!fits) {
    throw new RangeError(
      `expected general.alignment to be a power of two from 8 to ${alignment_max} ` +
        `but found ${quote(String(value))}`,
    );
  }
  return value;
}

/** A tensor as it is listed: its offset counts from the data's start. */
interface Listed {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
  readonly offset: number;
}

function readTensors(cursor: Cursor, n: number): Listed[] {
  const found: Listed[] = [];
  const names = new Set<string>();
  for (let i = 0; i < n; i++) {
    const name = cursor.string("a tensor's name", key_bytes_max);
    const quoted = quote(name);
    if (names.has(name)) throw new RangeError(`there are two tensors of the name ${quoted}`);
    names.add(name);
    const rank = cursor.u32(`the rank of tensor ${quoted}`);
    if (rank < 1 || rank > rank_max) {
      throw new RangeError(
        `expected tensor ${quoted} to have 1 to ${rank_max} dimensions but found ${rank}`,
      );
    }
    const dims = Array.from({ length: rank }, () => cursor.number("u64", `the shape of ${quoted}`));
    const id = cursor.u32(`the type of tensor ${quoted}`);
    const type = tensor_type_names.get(id);
    if (type === undefined) {
      throw new TypeError(`expected a known type of tensor ${quoted} but found ${id}`);
    }
    checkShape(quoted, type, dims);
    const offset = cursor.number("u64", `the offset of tensor ${quoted}`);
    found.push({ name, type, shape: dims.reverse(), offset });
  }
  return found;
}

/** @param dims as in the file: columns first */
function checkShape(quoted: string, type: string, dims: readonly number[]): void {
  const elements = dims.reduce((a, b) => a * b, 1);
  if (elements < 1 || elements > elements_max) {
    throw new RangeError(
      `expected tensor ${quoted} to have 1 to ${elements_max} elements but found [${dims}]`,
    );
  }
  const { columns } = tensor_types[type];
  if (dims[0] % columns !== 0) {
    throw new RangeError(
      `expected rows of tensor ${quoted} to be whole blocks of ${columns} as ${type} needs ` +
        `but found ${dims[0]} columns`,
    );
  }
}

/** Checks that tensors lie within the file, aligned and apart. */
function placeTensors(
  found: readonly Listed[],
  alignment: number,
  dataOffset: number,
  fileBytes: number,
): Map<string, GgufTensor> {
  const tensors = new Map<string, GgufTensor>();
  for (const { name, type, shape, offset } of found) {
    const bytes = tensorBytes(type, shape);
    if (offset % alignment !== 0) {
      throw new RangeError(
        `expected tensor ${quote(name)} at a multiple of ${alignment} bytes ` +
          `but found ${offset}`,
      );
    }
    if (dataOffset + offset + bytes > fileBytes) {
      throw new RangeError(
        `tensor ${quote(name)} ends at byte ${dataOffset + offset + bytes} ` +
          `but the file has ${fileBytes}: is it truncated?`,
      );
    }
    tensors.set(name, { type, shape, offset: dataOffset + offset, bytes });
  }
  const order = [...tensors].sort(([, a], [, b]) => a.offset - b.offset);
  for (let i = 1; i < order.length; i++) {
    const [[before, { offset, bytes }], [name, next]] = [order[i - 1], order[i]];
    if (offset + bytes > next.offset) {
      throw new RangeError(
        `tensors ${quote(before)} and ${quote(name)} overlap`,
      );
    }
  }
  return tensors;
}
