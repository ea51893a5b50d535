/** Writes GGUF files of version 3: metadata, then tensors whose data comes in parts. */

import { writeWhole } from "../weights/whole_file.ts";
import {
  align,
  default_alignment,
  gguf_magic,
  type GgufValue,
  type ItemTypeName,
  type Metadata,
  tensor_types,
  tensorBytes,
  value_bytes,
  ValueType,
  type ValueTypeName,
} from "./format.ts";

/** A tensor to write. */
export interface GgufTensorToWrite {
  readonly name: string;
  /** A name of the format's tensor types. */
  readonly type: string;
  /** Rows first, columns last. */
  readonly shape: readonly number[];
  /** Its bytes in parts, so that it never lies in memory as a whole; see {@link writeGguf}. */
  readonly data: () => Iterable<ArrayBufferView> | AsyncIterable<ArrayBufferView>;
}

/** Collects numbers and texts as the format has them. */
class Packer {
  private bytes = new Uint8Array(1 << 16);
  private view = new DataView(this.bytes.buffer);
  private at = 0;

  number(type: Exclude<ItemTypeName, "string" | "bool">, value: number): void {
    const at = this.room(value_bytes[type]);
    const { view } = this;
    if (type === "f32") view.setFloat32(at, value, true);
    else if (type === "f64") view.setFloat64(at, value, true);
    else if (type === "u64" || type === "i64") view.setBigInt64(at, BigInt(value), true);
    else if (value_bytes[type] === 4) view.setUint32(at, value, true);
    else if (value_bytes[type] === 2) view.setUint16(at, value, true);
    else view.setUint8(at, value);
  }

  string(text: string): void {
    const utf8 = new TextEncoder().encode(text);
    this.number("u64", utf8.length);
    const at = this.room(utf8.length); // which may replace the bytes
    this.bytes.set(utf8, at);
  }

  item(type: ItemTypeName, value: number | boolean | string): void {
    if (type === "string") this.string(value as string);
    else if (type === "bool") this.number("u8", value ? 1 : 0);
    else this.number(type, value as number);
  }

  value(type: ValueTypeName, value: GgufValue): void {
    this.number("u32", ValueType[type]);
    if (type !== "array") return this.item(type, value as number | boolean | string);
    const { type: item, values } = value as Exclude<GgufValue, number | boolean | string>;
    this.number("u32", ValueType[item]);
    this.number("u64", values.length);
    for (const one of values) this.item(item, one);
  }

  /** Zeros up to a multiple of the alignment. */
  pad(alignment: number): void {
    this.room(align(this.at, alignment) - this.at);
  }

  packed(): Uint8Array {
    return this.bytes.subarray(0, this.at);
  }

  private room(n: number): number {
    const begin = this.at;
    this.at += n;
    if (this.at > this.bytes.length) {
      const larger = new Uint8Array(2 * this.at);
      larger.set(this.bytes);
      this.bytes = larger;
      this.view = new DataView(larger.buffer);
    }
    return begin;
  }
}

/** The bytes before the tensors' data. */
export function packGgufHeader(
  metadata: Metadata,
  tensors: readonly Omit<GgufTensorToWrite, "data">[],
): Uint8Array {
  const packer = new Packer();
  packer.number("u32", gguf_magic);
  packer.number("u32", 3);
  packer.number("u64", tensors.length);
  packer.number("u64", metadata.size);
  for (const [key, { type, value }] of metadata) {
    packer.string(key);
    packer.value(type, value);
  }
  let offset = 0;
  for (const { name, type, shape } of tensors) {
    packer.string(name);
    packer.number("u32", shape.length);
    for (const n of [...shape].reverse()) packer.number("u64", n);
    packer.number("u32", tensor_types[type].id);
    packer.number("u64", offset);
    offset = align(offset + tensorBytes(type, shape), default_alignment);
  }
  packer.pad(default_alignment);
  return packer.packed();
}

interface Part {
  readonly tensor: GgufTensorToWrite;
  /** None behind the tensor's last. */
  readonly bytes?: Uint8Array;
}

/** All tensors' parts, in order. */
async function* partsOf(tensors: readonly GgufTensorToWrite[]): AsyncGenerator<Part> {
  for (const tensor of tensors) {
    for await (const { buffer, byteOffset, byteLength } of tensor.data()) {
      yield { tensor, bytes: new Uint8Array(buffer, byteOffset, byteLength) };
    }
    yield { tensor };
  }
}

/** Has the next value made while the last one is used. */
async function* oneAhead<T>(source: AsyncGenerator<T>): AsyncGenerator<T> {
  let next = source.next();
  try {
    for (;;) {
      const { done, value } = await next;
      if (done) return;
      next = source.next();
      yield value;
    }
  } finally {
    await next.catch(() => {});
    await source.return(undefined);
  }
}

/**
 * Writes a GGUF file. It appears under its name when whole. A part is made while the one before it
 * is written: its bytes must stay what they are until the one behind it has been asked for.
 *
 * @param written_callback is told each tensor behind its last byte
 * @throws {RangeError} when a tensor gives more or fewer bytes than its shape needs
 * @throws as {@link writeWhole}
 */
export async function writeGguf(
  path: string,
  metadata: Metadata,
  tensors: readonly GgufTensorToWrite[],
  written_callback?: (tensor: GgufTensorToWrite) => void,
): Promise<void> {
  await writeWhole(path, async (write) => {
    await write(packGgufHeader(metadata, tensors));
    let written = 0;
    for await (const { tensor, bytes } of oneAhead(partsOf(tensors))) {
      const { name, type, shape } = tensor;
      const expected = tensorBytes(type, shape);
      written += bytes?.length ?? 0;
      if (bytes ? written > expected : written !== expected) {
        throw new RangeError(
          `Expected ${expected} bytes for tensor "${name}" but found ${bytes ? "more" : written}`,
        );
      }
      await write(bytes ?? new Uint8Array(align(expected, default_alignment) - expected));
      if (bytes) continue;
      written = 0;
      written_callback?.(tensor);
    }
  });
}
