/** The safetensors format: reads headers, writes files. */

import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { explain } from "./explain.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "./json.ts";
import { writeWhole } from "./whole_file.ts";

/** Bytes of one element by dtype. */
export const dtype_bytes: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  F8_E8M0: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  F64: 8,
  I64: 8,
  U64: 8,
  C64: 8,
};

/** One tensor of a file. */
export interface TensorInfo {
  /** As in the file: F32, BF16, … */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Its bytes, counted from the header's `dataOffset`. */
  readonly begin: number;
  readonly end: number;
}

/** What the start of a file says. */
export interface SafetensorsHeader {
  readonly tensors: Map<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
  /** Where the tensors' bytes start, and how many the file has in all. */
  readonly dataOffset: number;
  readonly fileBytes: number;
}

const header_bytes_max = 100_000_000;
const rank_max = 8;

/**
 * Reads the header of a safetensors file and nothing else, and checks all it says against the
 * file's size: the tensors must fill it without holes or overlaps.
 *
 * @throws {RangeError} when a size or an offset is impossible
 * @throws {SyntaxError} when the header is not JSON in UTF-8
 * @throws {TypeError} when an entry lacks something or has the wrong type
 * @throws {Error} when the file cannot be read
 */
export function readSafetensorsHeader(path: string): SafetensorsHeader {
  return explain(`Cannot read "${path}" as safetensors`, () => {
    const { text, fileBytes } = readHeaderText(path);
    return parseHeader(text, fileBytes);
  });
}

/** Whether a path that does not end in .safetensors is a file which begins like one. */
export function looksLikeSafetensors(path: string): boolean {
  const begin = firstBytes(path, 9);
  if (begin.length < 9) return false;
  return headerLength(begin) <= header_bytes_max && begin[8] === "{".charCodeAt(0);
}

/** Bytes of the header, as a file's first eight say. */
function headerLength(begin: Uint8Array<ArrayBuffer>): number {
  const prefix = new DataView(begin.buffer);
  return prefix.getUint32(0, true) + prefix.getUint32(4, true) * 2 ** 32;
}

/** A regular file's first bytes, or as many as it has; none of anything else. */
export function firstBytes(path: string, count: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(count);
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) return bytes.subarray(0, 0);
  const file = openSync(path, "r");
  try {
    return bytes.subarray(0, readSync(file, bytes, 0, count, 0));
  } finally {
    closeSync(file);
  }
}

/** The header's bytes as text. A file that is no regular file is not opened: it could block. */
function readHeaderText(path: string): { text: Uint8Array; fileBytes: number } {
  const found = statSync(path);
  if (!found.isFile()) throw new TypeError("it is not a regular file");
  const file = openSync(path, "r");
  try {
    const fileBytes = fstatSync(file).size;
    if (fileBytes < 8) {
      throw new RangeError(`expected at least 8 bytes but the file has ${fileBytes}`);
    }
    const length = headerLength(readFully(file, 0, 8));
    if (length > header_bytes_max) {
      throw new RangeError(`expected a header of at most 100000000 bytes but found ${length}`);
    }
    if (length > fileBytes - 8) {
      throw new RangeError(
        `the header should have ${length} bytes but the file has ${fileBytes}: is it truncated?`,
      );
    }
    return { text: readFully(file, 8, length), fileBytes };
  } finally {
    closeSync(file);
  }
}

function readFully(file: number, position: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const count = readSync(file, bytes, at, length - at, position + at);
    if (count === 0) throw new RangeError("the file ended while it was read");
    at += count;
  }
  return bytes;
}

/**
 * Checks the bytes of a header.
 *
 * @param text the JSON, without its length
 * @param fileBytes size of the whole file
 * @throws as {@link readSafetensorsHeader}, without the path
 */
export function parseHeader(text: Uint8Array, fileBytes: number): SafetensorsHeader {
  const header = parseJson(decode(text));
  if (!isJsonObject(header)) throw new TypeError("expected the header to be a JSON object");
  const tensors = new Map<string, TensorInfo>();
  let metadata: Record<string, string> = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") metadata = readMetadata(entry);
    else tensors.set(name, readTensor(name, entry));
  }
  const dataOffset = 8 + text.length;
  checkSpans(tensors, fileBytes - dataOffset);
  return { tensors, metadata, dataOffset, fileBytes };
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new SyntaxError("the header is not UTF-8");
  }
}

function readMetadata(entry: JsonValue): Record<string, string> {
  const isText = isJsonObject(entry) && Object.values(entry).every((v) => typeof v === "string");
  if (!isText) throw new TypeError("expected __metadata__ to map names to strings");
  return entry as Record<string, string>;
}

function readTensor(name: string, entry: JsonValue): TensorInfo {
  const quoted = show(name);
  if (!isJsonObject(entry)) throw new TypeError(`expected tensor ${quoted} to be an object`);
  const { dtype, shape, data_offsets: span } = entry as JsonObject;
  if (typeof dtype !== "string" || !Object.hasOwn(dtype_bytes, dtype)) {
    throw new TypeError(`tensor ${quoted} has the unknown dtype ${show(dtype)}`);
  }
  if (!isCounts(shape) || shape.length > rank_max) {
    throw new TypeError(
      `expected the shape of tensor ${quoted} to be at most ${rank_max} whole numbers ` +
        `but found ${show(shape)}`,
    );
  }
  if (!isCounts(span) || span.length !== 2 || span[0] > span[1]) {
    throw new TypeError(
      `expected data_offsets of tensor ${quoted} to be its begin and end but found ${show(span)}`,
    );
  }
  const bytes = shape.reduce((a, b) => a * b, dtype_bytes[dtype]);
  const [begin, end] = span;
  if (bytes !== end - begin) {
    const needed = Number.isSafeInteger(bytes) ? bytes : "more bytes than a file can have";
    throw new RangeError(
      `tensor ${quoted} of dtype ${dtype} and shape [${shape}] needs ${needed}` +
        `${needed === bytes ? " bytes" : ""} but its data_offsets span ${end - begin}`,
    );
  }
  return { dtype, shape, begin, end };
}

function isCounts(value: JsonValue | undefined): value is number[] {
  return Array.isArray(value) &&
    value.every((n) => typeof n === "number" && Number.isSafeInteger(n) && n >= 0);
}

/** A found value for a sentence, cut where it is long. */
function show(value: JsonValue | undefined): string {
  const text = value === undefined ? "nothing" : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

/** The tensors must fill the data exactly, as the format demands. */
function checkSpans(tensors: ReadonlyMap<string, TensorInfo>, dataBytes: number): void {
  const order = [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  let filled = 0;
  let previous = "";
  for (const [name, { begin, end }] of order) {
    if (end > dataBytes) {
      throw new RangeError(
        `tensor ${show(name)} ends at byte ${end} but the file holds ${dataBytes} bytes of data: ` +
          "is it truncated?",
      );
    }
    if (begin < filled) throw new RangeError(`tensors ${previous} and ${show(name)} overlap`);
    if (begin > filled) {
      throw new RangeError(`${begin - filled} bytes before tensor ${show(name)} belong to none`);
    }
    filled = end;
    previous = show(name);
  }
  if (filled < dataBytes) {
    throw new RangeError(`${dataBytes - filled} bytes after the last tensor belong to none`);
  }
}

/** A tensor to write; `data` may come in parts so that it never lies in memory as a whole. */
export interface TensorToWrite {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data:
    | ArrayBufferView
    | (() => Iterable<ArrayBufferView> | AsyncIterable<ArrayBufferView>);
}

/**
 * Writes a safetensors file. It appears under its name when whole; tensors lie in the order of
 * their element sizes, the largest first, then of their names, as other writers have it.
 *
 * @param metadata strings for `__metadata__`
 * @throws {TypeError} for an unknown dtype
 * @throws {RangeError} when a tensor gives more or fewer bytes than its shape needs
 * @throws as {@link writeWhole}
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<readonly [string, TensorToWrite]>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const entries = [...tensors].sort(([a, x], [b, y]) =>
    (dtype_bytes[y.dtype] ?? 0) - (dtype_bytes[x.dtype] ?? 0) || (a < b ? -1 : a > b ? 1 : 0)
  );
  const prefix = packHeader(entries, metadata);
  await writeWhole(path, async (write) => {
    await write(prefix);
    for (const [name, tensor] of entries) {
      const expected = byteLength(name, tensor);
      let written = 0;
      for await (const part of typeof tensor.data === "function" ? tensor.data() : [tensor.data]) {
        const bytes = new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
        written += bytes.length;
        if (written > expected) break;
        await write(bytes);
      }
      if (written !== expected) {
        throw new RangeError(
          `Expected ${expected} bytes for tensor "${name}" but found ` +
            `${written > expected ? "more" : written}`,
        );
      }
    }
  });
}

function packHeader(
  entries: readonly (readonly [string, TensorToWrite])[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const members: string[] = [];
  if (Object.keys(metadata).length) members.push(`"__metadata__":${JSON.stringify(metadata)}`);
  const names = new Set(["__metadata__"]);
  let begin = 0;
  for (const [name, tensor] of entries) {
    if (names.has(name)) throw new RangeError(`Cannot write two tensors of the name "${name}"`);
    names.add(name);
    const { dtype, shape } = tensor;
    const end = begin + byteLength(name, tensor);
    members.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`,
    );
    begin = end;
  }
  const text = new TextEncoder().encode(`{${members.join(",")}}`);
  const padded = Math.ceil(text.length / 8) * 8; // so that the data starts at a multiple of 8
  const bytes = new Uint8Array(8 + padded).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(text, 8);
  return bytes;
}

function byteLength(name: string, { dtype, shape }: TensorToWrite): number {
  if (!Object.hasOwn(dtype_bytes, dtype)) {
    throw new TypeError(`Cannot write tensor "${name}": its dtype ${dtype} is unknown`);
  }
  return shape.reduce((a, b) => a * b, dtype_bytes[dtype]);
}
