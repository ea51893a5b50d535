/** Reads and writes the library's structs at the offsets that bindings.gen.ts gives. */

/** One field of a struct; with `length` it is an array. */
export interface Field {
  readonly offset: number;
  readonly type: "u8" | "u32" | "i32" | "f32" | "u64";
  readonly length?: number;
}

/** The size in bytes and the fields of a struct, all little-endian. */
export interface Struct {
  readonly size: number;
  readonly fields: Readonly<Record<string, Field>>;
}

/** Values by field name; what is left out stays as it is (zero in a new struct). */
export type FieldValues<S extends Struct> = {
  readonly [K in keyof S["fields"]]?: S["fields"][K] extends { readonly length: number }
    ? ArrayLike<number>
    : number;
};

/** What {@link readStruct} gives. */
export type FieldResults<S extends Struct> = {
  [K in keyof S["fields"]]: S["fields"][K] extends { readonly length: number } ? number[] : number;
};

const field_bytes = { u8: 1, u32: 4, i32: 4, f32: 4, u64: 8 } as const;
const limits = {
  u8: [0, 0xff],
  u32: [0, 0xffff_ffff],
  i32: [-0x8000_0000, 0x7fff_ffff],
  u64: [0, Number.MAX_SAFE_INTEGER],
} as const;

function write(view: DataView, at: number, type: Field["type"], value: number, name: string): void {
  if (type === "f32") return view.setFloat32(at, value, true);
  const [low, high] = limits[type];
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new RangeError(
      `Expected ${name} to be an integer from ${low} to ${high} but found ${value}`,
    );
  }
  if (type === "u8") view.setUint8(at, value);
  else if (type === "i32") view.setInt32(at, value, true);
  else {
    view.setUint32(at, value % 2 ** 32, true);
    if (type === "u64") view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
  }
}

function read(view: DataView, at: number, type: Field["type"]): number {
  switch (type) {
    case "u8":
      return view.getUint8(at);
    case "u32":
      return view.getUint32(at, true);
    case "i32":
      return view.getInt32(at, true);
    case "f32":
      return view.getFloat32(at, true);
    case "u64":
      return view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
  }
}

/**
 * Writes fields of a struct that starts at byte `at` of `view`.
 *
 * @throws {RangeError} when an integer does not fit its field, naming the field
 */
export function writeStruct<S extends Struct>(
  view: DataView,
  at: number,
  struct: S,
  values: FieldValues<S>,
): void {
  for (const [name, value] of Object.entries(values) as [string, number | ArrayLike<number>][]) {
    const field = struct.fields[name];
    if (field === undefined) {
      throw new TypeError(`Expected a field of the struct but found ${name}`);
    }
    if (value === undefined) continue;
    const start = at + field.offset;
    if (typeof value === "number") {
      write(view, start, field.type, value, name);
      continue;
    }
    if (value.length > (field.length ?? 1)) {
      throw new RangeError(
        `Expected at most ${field.length ?? 1} values for ${name} but found ${value.length}`,
      );
    }
    const step = field_bytes[field.type];
    for (let i = 0; i < value.length; i++) {
      write(view, start + i * step, field.type, value[i], `${name}[${i}]`);
    }
  }
}

/** A new struct with these fields and zeros elsewhere. @throws as {@link writeStruct} */
export function packStruct<S extends Struct>(
  struct: S,
  values: FieldValues<S>,
): Uint8Array<ArrayBuffer> {
  return packStructs(struct, [values]);
}

/** Structs one after another. @throws as {@link writeStruct} */
export function packStructs<S extends Struct>(
  struct: S,
  rows: readonly FieldValues<S>[],
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(rows.length * struct.size);
  const view = new DataView(bytes.buffer);
  for (const [i, values] of rows.entries()) writeStruct(view, i * struct.size, struct, values);
  return bytes;
}

/** All fields of the struct at the start of `bytes`. u64 above 2^53 lose their last bits. */
export function readStruct<S extends Struct>(struct: S, bytes: Uint8Array): FieldResults<S> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const result: Record<string, number | number[]> = {};
  for (const [name, field] of Object.entries(struct.fields)) {
    const { offset, type, length } = field;
    result[name] = length === undefined
      ? read(view, offset, type)
      : Array.from({ length }, (_, i) => read(view, offset + i * field_bytes[type], type));
  }
  return result as FieldResults<S>;
}
