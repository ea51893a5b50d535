/** Reads ids, masks and labels as users pass them: nested arrays, shaped typed arrays, Tensors. */

import { Tensor } from "../graph/tensor.ts";

/** A typed array with its shape, as tokenizers and other libraries give. */
export interface ShapedArray {
  readonly data: ArrayLike<number> | ArrayLike<bigint>;
  readonly shape: readonly number[];
}

/** Anything that can stand for a matrix of numbers; one dimension means one row. */
export type MatrixInput =
  | readonly number[]
  | readonly (readonly number[])[]
  | Int32Array
  | Uint32Array
  | Float32Array
  | BigInt64Array
  | ShapedArray
  | Tensor;

/** Numbers of any shape. */
export type ShapedInput = ShapedArray | Tensor;

/** A rectangle of numbers, row after row. */
export interface Matrix {
  readonly data: Float64Array;
  readonly rows: number;
  readonly columns: number;
}

/**
 * Reads a matrix.
 *
 * @param name the argument's name, for errors
 * @throws {TypeError} for other things, {RangeError} for ragged or empty rows
 */
export async function readMatrix(name: string, input: MatrixInput): Promise<Matrix> {
  if (isShaped(input)) return shaped(name, await readShaped(name, input));
  if (ArrayBuffer.isView(input)) {
    const data = input as unknown as ArrayLike<number>;
    return shaped(name, { data, shape: [data.length] });
  }
  if (Array.isArray(input)) return nested(name, input);
  throw new TypeError(
    `Expected ${name} to be an array of rows, a typed array with a shape or a Tensor ` +
      `but found ${describe(input)}`,
  );
}

function isShaped(input: unknown): input is ShapedInput {
  return typeof input === "object" && input !== null && "data" in input && "shape" in input &&
    Array.isArray(input.shape);
}

/**
 * Reads numbers that come with their shape.
 *
 * @throws {TypeError} for other things, {RangeError} where shape and numbers do not fit
 */
export async function readShaped(name: string, input: unknown): Promise<ShapedArray> {
  if (!isShaped(input)) {
    throw new TypeError(
      `Expected ${name} to be a typed array with a shape or a Tensor but found ${describe(input)}`,
    );
  }
  const { shape } = input;
  const data = input instanceof Tensor ? await input.data() : input.data;
  const size = shape.reduce((a, b) => a * b, 1);
  if (data.length !== size) {
    throw new RangeError(
      `Expected ${size} numbers in ${name} for shape [${shape}] but found ${data.length}`,
    );
  }
  return { data, shape };
}

/**
 * Reads a matrix of whole numbers that fit 32 bits.
 *
 * @throws {RangeError} naming the first number that is not one
 */
export async function readIntegers(name: string, input: MatrixInput): Promise<Matrix> {
  const matrix = await readMatrix(name, input);
  const { data, columns } = matrix;
  // A loop, as below: a long prompt's GPU waits for the host, and a call an element takes long.
  for (let at = 0; at < data.length; at++) {
    if ((data[at] | 0) === data[at] && data[at] !== -0x80000000) continue;
    throw new RangeError(
      `Expected whole numbers in ${name} but found ${data[at]} in row ${
        Math.floor(at / columns)
      }, ` +
        `column ${at % columns}`,
    );
  }
  return matrix;
}

/** Reads one row of whole numbers, such as `cu_seq_lens_q`. */
export async function readList(name: string, input: MatrixInput): Promise<number[]> {
  const { rows, data } = await readIntegers(name, input);
  if (rows !== 1) throw new RangeError(`Expected ${name} to be one row but found ${rows}`);
  return [...data];
}

function nested(name: string, input: readonly unknown[]): Matrix {
  if (input.length === 0) throw new RangeError(`Expected ${name} to hold numbers but found none`);
  const list =
    (Array.isArray(input[0]) || ArrayBuffer.isView(input[0])
      ? input
      : [input]) as readonly ArrayLike<unknown>[];
  const columns = list[0].length;
  if (columns === 0) throw new RangeError(`Expected ${name} to hold numbers but row 0 is empty`);
  const data = new Float64Array(list.length * columns);
  for (const [r, row] of list.entries()) {
    if (row === null || typeof row !== "object" || row.length === undefined) {
      throw new TypeError(`Expected row ${r} of ${name} to be a list but found ${describe(row)}`);
    }
    if (row.length !== columns) {
      throw new RangeError(
        `Expected every row of ${name} to have ${columns} entries like row 0 but row ${r} has ` +
          `${row.length}: pad them to one length and pass an attention_mask`,
      );
    }
    for (let c = 0; c < columns; c++) {
      const value = row[c];
      data[r * columns + c] = typeof value === "number" ? value : number(name, value, r, c);
    }
  }
  return { data, rows: list.length, columns };
}

function shaped(name: string, { data, shape }: ShapedArray): Matrix {
  const [rows, columns] = shape.length === 1 ? [1, shape[0]] : shape;
  if (shape.length < 1 || shape.length > 2 || !(rows > 0) || !(columns > 0)) {
    throw new RangeError(`Expected ${name} to have shape (rows, columns) but found [${shape}]`);
  }
  const out = new Float64Array(rows * columns);
  for (let i = 0; i < out.length; i++) {
    const value = data[i];
    out[i] = typeof value === "number"
      ? value
      : number(name, value, Math.floor(i / columns), i % columns);
  }
  return { data: out, rows, columns };
}

function number(name: string, value: unknown, row: number, column: number): number {
  if (typeof value === "number") return value;
  if (typeof value === "bigint" || typeof value === "boolean") return Number(value);
  throw new TypeError(
    `Expected numbers in ${name} but found ${describe(value)} in row ${row}, column ${column}`,
  );
}

/** A short name of any value, for error sentences. */
export function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (typeof value === "string") return JSON.stringify(value.slice(0, 40));
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object") return `a ${value.constructor?.name ?? "object"}`;
  return String(value);
}
