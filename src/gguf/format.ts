/** The numbers of the GGUF format: value types of metadata, tensor types, and their sizes. */

/** "GGUF" as the u32 that a file begins with. */
export const gguf_magic = 0x46554747;
/** What tensors' offsets are multiples of, where a file does not say. */
export const default_alignment = 32;

/** Types of metadata values by their number. */
export const ValueType = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
} as const;

/** The name of a metadata value's type. */
export type ValueTypeName = keyof typeof ValueType;
/** Types that an array's values may have here: arrays of arrays are not taken. */
export type ItemTypeName = Exclude<ValueTypeName, "array">;

/** Names of value types by their number. */
export const value_type_names: readonly ValueTypeName[] = Object.entries(ValueType)
  .sort(([, a], [, b]) => a - b)
  .map(([name]) => name as ValueTypeName);

/** Bytes of a value; 0 where it tells its length itself. */
export const value_bytes: Readonly<Record<ValueTypeName, number>> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  string: 0,
  array: 0,
  u64: 8,
  i64: 8,
  f64: 8,
};

/** A value of metadata; 64-bit integers are exact numbers or not taken. */
export type GgufValue = number | boolean | string | GgufArray;

/** An array of metadata: its values have one type. */
export interface GgufArray {
  readonly type: ItemTypeName;
  readonly values: readonly (number | boolean | string)[];
}

/** Metadata by key, in the file's order, each with its type. */
export type Metadata = ReadonlyMap<string, { readonly type: ValueTypeName; value: GgufValue }>;

/** A tensor type: its number in a file, and the columns and bytes of a block. */
export interface TensorType {
  readonly id: number;
  readonly columns: number;
  readonly bytes: number;
}

/** Tensor types by name, also those that are only named here and cannot be run. */
export const tensor_types: Readonly<Record<string, TensorType>> = {
  F32: { id: 0, columns: 1, bytes: 4 },
  F16: { id: 1, columns: 1, bytes: 2 },
  Q4_0: { id: 2, columns: 32, bytes: 18 },
  Q4_1: { id: 3, columns: 32, bytes: 20 },
  Q5_0: { id: 6, columns: 32, bytes: 22 },
  Q5_1: { id: 7, columns: 32, bytes: 24 },
  Q8_0: { id: 8, columns: 32, bytes: 34 },
  Q8_1: { id: 9, columns: 32, bytes: 40 },
  Q2_K: { id: 10, columns: 256, bytes: 84 },
  Q3_K: { id: 11, columns: 256, bytes: 110 },
  Q4_K: { id: 12, columns: 256, bytes: 144 },
  Q5_K: { id: 13, columns: 256, bytes: 176 },
  Q6_K: { id: 14, columns: 256, bytes: 210 },
  Q8_K: { id: 15, columns: 256, bytes: 292 },
  IQ2_XXS: { id: 16, columns: 256, bytes: 66 },
  IQ2_XS: { id: 17, columns: 256, bytes: 74 },
  IQ3_XXS: { id: 18, columns: 256, bytes: 98 },
  IQ1_S: { id: 19, columns: 256, bytes: 50 },
  IQ4_NL: { id: 20, columns: 32, bytes: 18 },
  IQ3_S: { id: 21, columns: 256, bytes: 110 },
  IQ2_S: { id: 22, columns: 256, bytes: 82 },
  IQ4_XS: { id: 23, columns: 256, bytes: 136 },
  I8: { id: 24, columns: 1, bytes: 1 },
  I16: { id: 25, columns: 1, bytes: 2 },
  I32: { id: 26, columns: 1, bytes: 4 },
  I64: { id: 27, columns: 1, bytes: 8 },
  F64: { id: 28, columns: 1, bytes: 8 },
  IQ1_M: { id: 29, columns: 256, bytes: 56 },
  BF16: { id: 30, columns: 1, bytes: 2 },
  TQ1_0: { id: 34, columns: 256, bytes: 54 },
  TQ2_0: { id: 35, columns: 256, bytes: 66 },
  MXFP4: { id: 39, columns: 32, bytes: 17 },
};

/** Names of tensor types by their number. */
export const tensor_type_names: ReadonlyMap<number, string> = new Map(
  Object.entries(tensor_types).map(([name, { id }]) => [id, name]),
);

/** Bytes of a tensor whose rows hold whole blocks. @param shape rows first, columns last */
export function tensorBytes(type: string, shape: readonly number[]): number {
  const { columns, bytes } = tensor_types[type];
  return shape.reduce((a, b) => a * b, 1) / columns * bytes;
}

/** The next multiple of an alignment. */
export function align(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment;
}

/** A name or text for a sentence, cut where it is long. */
export function quote(text: string): string {
  const quoted = JSON.stringify(text.length > 100 ? text.slice(0, 100) : text);
  return quoted.length > 90 ? `${quoted.slice(0, 89)}…"` : quoted;
}
