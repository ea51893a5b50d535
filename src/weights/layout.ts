/** How weights lie in native memory once they are loaded. */

import { DType, panel } from "../native/bindings.gen.ts";

/** A dtype that weights can be held in. */
export type WeightDType = "float32" | "bfloat16" | "float16";

/** How a weight's elements are ordered: `Layout` in zig/command.zig. */
export type WeightLayout = "panel" | "row_major";

/** Every weight starts at a multiple of this many bytes. */
export const weight_alignment = 64;

/** HF's names of the dtypes that files store weights in. */
export const dtype_of_stored: Readonly<Record<string, WeightDType>> = {
  F32: "float32",
  BF16: "bfloat16",
  F16: "float16",
};

/** The library's numbers of dtypes. */
export const dtype_codes: Readonly<Record<WeightDType, number>> = {
  float32: DType.f32,
  bfloat16: DType.bf16,
  float16: DType.f16,
};

/** Bytes of one element. */
export function elementBytes(dtype: WeightDType): number {
  return dtype === "float32" ? 4 : 2;
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
  if (layout === "row_major") return rows * cols * elementBytes(dtype);
  const padded_rows = Math.ceil(rows / panel) * panel;
  // bf16 panels hold pairs of neighbouring columns.
  const padded_cols = dtype === "bfloat16" ? Math.ceil(cols / 2) * 2 : cols;
  return padded_rows * padded_cols * elementBytes(dtype);
}

/** The next multiple of {@link weight_alignment}. */
export function alignWeight(offset: number): number {
  return Math.ceil(offset / weight_alignment) * weight_alignment;
}
