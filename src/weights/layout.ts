/** How weights lie in native memory once they are loaded. */

import { DType, panel } from "../native/bindings.gen.ts";

/** Weights in blocks with their own scales, as GGUF files hold them. */
export type BlockDType = "q8_0" | "q4_0" | "q4_k" | "q5_k" | "q6_k";

/** A dtype that weights can be held in. Those of 8-bit floats have a scale for each row. */
export type WeightDType = "float32" | "bfloat16" | "float16" | "float8_e4m3fn" | BlockDType;

/** How a weight's elements are ordered: `Layout` in zig/command.zig. */
export type WeightLayout = "panel" | "row_major";

/** Every weight starts at a multiple of this many bytes. */
export const weight_alignment = 64;

/** Our names of the dtypes that files store weights in. */
export const dtype_of_stored: Readonly<Record<string, WeightDType>> = {
  F32: "float32",
  BF16: "bfloat16",
  F16: "float16",
  F8_E4M3: "float8_e4m3fn",
  Q8_0: "q8_0",
  Q4_0: "q4_0",
  Q4_K: "q4_k",
  Q5_K: "q5_k",
  Q6_K: "q6_k",
};

/** Columns and bytes of a block; a single element where there are none. */
export const blocks: Readonly<Record<WeightDType, { columns: number; bytes: number }>> = {
  float32: { columns: 1, bytes: 4 },
  bfloat16: { columns: 1, bytes: 2 },
  float16: { columns: 1, bytes: 2 },
  float8_e4m3fn: { columns: 1, bytes: 1 },
  q8_0: { columns: 32, bytes: 34 },
  q4_0: { columns: 32, bytes: 18 },
  q4_k: { columns: 256, bytes: 144 },
  q5_k: { columns: 256, bytes: 176 },
  q6_k: { columns: 256, bytes: 210 },
};

/** Whether weights of a dtype lie in blocks. */
export function isBlocks(dtype: WeightDType): dtype is BlockDType {
  return blocks[dtype].columns > 1;
}

/** Columns that a row in blocks must be a multiple of on a GPU. */
const gpu_columns: Readonly<Record<BlockDType, number>> = {
  q8_0: 128,
  q4_0: 128,
  q4_k: 256,
  q5_k: 256,
  q6_k: 256,
};

/** Whether a device has kernels for a weight: what has none is told, never turned into another. */
export function isRunnable(
  device: "cpu" | "cuda",
  dtype: WeightDType,
  shape: readonly number[],
): boolean {
  if (device === "cpu" || !isBlocks(dtype)) return true;
  return matrixShape(shape).cols % gpu_columns[dtype] === 0;
}

/**
 * The layout in which a device has a weight that asks for one. On a GPU blocks lie in panels and
 * other weights in rows; matrices of 8-bit floats have their scales in front, and count as panels.
 */
export function layoutOn(
  device: "cpu" | "cuda",
  dtype: WeightDType,
  wanted: WeightLayout,
): WeightLayout {
  if (device === "cpu" || (dtype === "float8_e4m3fn" && wanted === "panel")) return wanted;
  return isBlocks(dtype) ? "panel" : "row_major";
}

/** The library's numbers of dtypes. */
export const dtype_codes: Readonly<Record<WeightDType, number>> = {
  float32: DType.f32,
  bfloat16: DType.bf16,
  float16: DType.f16,
  float8_e4m3fn: DType.f8_e4m3,
  q8_0: DType.q8_0,
  q4_0: DType.q4_0,
  q4_k: DType.q4_k,
  q5_k: DType.q5_k,
  q6_k: DType.q6_k,
};

/** Bytes of so many rows; of a dtype with blocks, rows hold whole ones. */
export function rowsBytes(rows: number, cols: number, dtype: WeightDType): number {
  const { columns, bytes } = blocks[dtype];
  return rows * (cols / columns) * bytes;
}

/** A tensor as a matrix: its first extent, and the product of the others; a vector is one row. */
export function matrixShape(shape: readonly number[]): { rows: number; cols: number } {
  const [first = 1, ...rest] = shape;
  return shape.length < 2
    ? { rows: 1, cols: first }
    : { rows: first, cols: rest.reduce((a, b) => a * b, 1) };
}

/** Bytes of a weight in this layout, without padding to the next weight. */
export function layoutBytes(
  shape: readonly number[],
  dtype: WeightDType,
  layout: WeightLayout,
): number {
  const { rows, cols } = matrixShape(shape);
  if (layout === "row_major") return rowsBytes(rows, cols, dtype);
  const padded_rows = Math.ceil(rows / panel) * panel;
  // bf16 panels hold pairs of neighbouring columns.
  const padded_cols = dtype === "bfloat16" ? Math.ceil(cols / 2) * 2 : cols;
  const scales = dtype === "float8_e4m3fn" ? padded_rows * 4 : 0;
  return scales + rowsBytes(padded_rows, padded_cols, dtype);
}

/** The next multiple of {@link weight_alignment}. */
export function alignWeight(offset: number): number {
  return Math.ceil(offset / weight_alignment) * weight_alignment;
}
