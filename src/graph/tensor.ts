/** Tensors: small frozen records of shape, dtype and where the numbers live. */

import type { Graph } from "./graph.ts";

/** Element types by PyTorch's names; those behind them are weights in blocks, by GGUF's names. */
export type DTypeName =
  | "float32"
  | "bfloat16"
  | "float16"
  | "float8_e4m3fn"
  | "int32"
  | "q8_0"
  | "q4_0"
  | "q4_k"
  | "q5_k"
  | "q6_k";

/** Bytes of one element in native memory. */
export function elementBytes(dtype: DTypeName): number {
  return dtype === "bfloat16" || dtype === "float16" ? 2 : 4;
}

/** What the first dimension of a recorded tensor counts; its extent is then a capacity. */
export type RowKind = "fixed" | "tokens" | "seqs" | "logits";

/** Order of a weight matrix's elements in memory: see `Layout` in zig/command.zig. */
export type LayoutName = "row_major" | "panel";

/** Where a tensor's numbers live. */
export type Storage =
  /** Declared by a module, not loaded yet. */
  | { readonly space: "parameter"; readonly layout: LayoutName; readonly keep_f32: boolean }
  /** A small table computed by a module (not in the checkpoint), not on a device yet. */
  | { readonly space: "constant"; readonly values: Float32Array }
  /** In a device buffer or mapped file. */
  | {
    readonly space: "weight";
    readonly layout: LayoutName;
    readonly buffer: number;
    readonly offset: number;
  }
  /** A recorded activation, or a column slice of one. */
  | {
    readonly space: "value";
    readonly value: number;
    readonly column: number;
    readonly row_stride: number;
  }
  /** An array of the step buffer. */
  | { readonly space: "step"; readonly field: string }
  /** A region of every sequence's slot or of every page of the cache. */
  | { readonly space: "state" | "kv"; readonly offset: number }
  /** Numbers in JavaScript, or to be fetched from a device when asked for. */
  | { readonly space: "data"; readonly source: DataSource };

/** Typed arrays that carry tensor data. bfloat16 and float16 are widened to Float32Array. */
export type TensorData = Float32Array | Int32Array;

/** Nested arrays of numbers, as `tolist()` gives them. */
export type NestedNumbers = number | NestedNumbers[];

/** Fetches the numbers of a result and gives its memory back. */
export interface DataSource {
  read(): Promise<TensorData>;
  dispose(): void;
}

/** A tensor: a parameter, a recorded activation, or a result with numbers. Never holds a loop. */
export class Tensor {
  /** Extents; for recorded activations the first one is a capacity, see {@link Tensor.rows}. */
  readonly shape: readonly number[];
  readonly dtype: DTypeName;
  readonly storage: Storage;
  /** The graph this activation belongs to. */
  readonly graph: Graph | undefined;
  readonly rows: RowKind;

  constructor(
    shape: readonly number[],
    dtype: DTypeName,
    storage: Storage,
    graph?: Graph,
    rows: RowKind = "fixed",
  ) {
    this.shape = Object.freeze([...shape]);
    this.dtype = dtype;
    this.storage = storage;
    this.graph = graph;
    this.rows = rows;
    Object.freeze(this);
  }

  /**
   * A tensor over numbers that are already in JavaScript.
   *
   * @param data as many numbers as `shape` multiplies to
   * @throws {RangeError} when the counts differ, or for a shape of other than whole numbers
   */
  static from(data: TensorData | ArrayLike<number>, shape: readonly number[]): Tensor {
    if (shape.some((n) => !Number.isInteger(n) || n < 0)) {
      throw new RangeError(`Expected a shape of whole numbers of 0 or more but found [${shape}]`);
    }
    const array = data instanceof Float32Array || data instanceof Int32Array
      ? data
      : Float32Array.from(data);
    const size = shape.reduce((a, b) => a * b, 1);
    if (array.length !== size) {
      throw new RangeError(
        `Expected ${size} numbers for a tensor of shape [${shape}] but found ${array.length}`,
      );
    }
    const source: DataSource = { read: () => Promise.resolve(array), dispose() {} };
    const dtype = array instanceof Int32Array ? "int32" : "float32";
    return new Tensor(shape, dtype, { space: "data", source });
  }

  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }

  /**
   * The numbers in row-major order.
   *
   * @returns a Float32Array (bfloat16 and float16 widened), or an Int32Array for int32
   * @throws {TypeError} while a graph is recorded, and for parameters
   */
  async data(): Promise<TensorData> {
    const storage = this.storage;
    if (storage.space === "data") return await storage.source.read();
    if (storage.space === "value" || storage.space === "step") {
      throw new TypeError(
        `Cannot read the values of ${this}: it is recorded, without any until the plan runs; ` +
          "branch on config and shapes only",
      );
    }
    throw new TypeError(`Cannot read ${this} into JavaScript: only results of call() have data()`);
  }

  /** The numbers as nested arrays. @throws as {@link Tensor.data} */
  async tolist(): Promise<NestedNumbers> {
    const data = await this.data();
    let at = 0;
    const nest = (depth: number): NestedNumbers =>
      depth === this.shape.length
        ? data[at++]
        : Array.from({ length: this.shape[depth] }, () => nest(depth + 1));
    return nest(0);
  }

  /** The only number of a tensor of one element. @throws {RangeError} for other sizes */
  async item(): Promise<number> {
    if (this.size !== 1) {
      throw new RangeError(`Expected one element for item() but found shape [${this.shape}]`);
    }
    return (await this.data())[0];
  }

  /** Gives the memory of a result back; reading it afterwards is an error. */
  dispose(): void {
    if (this.storage.space === "data") this.storage.source.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  toString(): string {
    const where = this.storage.space === "value"
      ? `%${this.storage.value}`
      : this.storage.space === "step"
      ? this.storage.field
      : this.storage.space;
    const shape = this.shape.map((n, i) => i === 0 && this.rows !== "fixed" ? this.rows : n);
    return `${where}: ${this.dtype}(${shape.join(", ")})`;
  }
}

/**
 * Declares a weight of a module; loading a checkpoint replaces it.
 *
 * @param shape as in the checkpoint
 * @param o `layout: "panel"` for the matrix of a linear layer; `keep_f32` widens whatever is stored
 */
export function parameter(
  shape: readonly number[],
  o: { layout?: LayoutName; keep_f32?: boolean } = {},
): Tensor {
  const { layout = "row_major", keep_f32 = layout === "row_major" } = o;
  return new Tensor(shape, "float32", { space: "parameter", layout, keep_f32 });
}

/** Declares a small table that a module computes itself, like HF's non-persistent buffers. */
export function constant(values: Float32Array): Tensor {
  return new Tensor([values.length], "float32", { space: "constant", values });
}
