/** A graph: the ordered commands a forward function recorded. It never reorders and never fuses. */

import type { Op } from "../native/bindings.gen.ts";
import { type DTypeName, elementBytes, type RowKind, Tensor } from "./tensor.ts";

/** An operation's name, the same from the model file to the kernel. */
export type OpName = keyof typeof Op;

/** The most rows of each kind that one run of the graph's plan may have. */
export interface Capacity {
  readonly tokens: number;
  readonly seqs: number;
  readonly logits: number;
}

/** An activation: one block of memory in the arena, or in the input/output buffer. */
export interface Value {
  readonly rows: RowKind;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** Index of the first and the last command that touch it. */
  first: number;
  last: number;
  /** Lives in the input/output buffer, where JavaScript can write it before and read it after. */
  external: boolean;
}

/** One recorded command. */
export interface RecordedCommand {
  readonly op: OpName;
  /** In the order of `Op` in zig/command.zig: inputs first, then results. */
  readonly operands: readonly (Tensor | undefined)[];
  readonly results: number;
  readonly attrs: readonly number[];
  readonly scope: string;
}

/** What a graph is recorded for. */
export interface GraphOptions {
  readonly capacity: Capacity;
  /** Every sequence has exactly one token: the update forms of the sequence ops are recorded. */
  readonly decode?: boolean;
  /** What activations are stored as, unless an op says otherwise. A CPU takes float32 only. */
  readonly activations?: DTypeName;
}

const float_view = new DataView(new ArrayBuffer(4));

/** The bits of a number as f32, for a command's attribute. */
export function f32Bits(x: number): number {
  float_view.setFloat32(0, x, true);
  return float_view.getUint32(0, true);
}

/** Records commands. Made for one forward pass at fixed capacities. */
export class Graph {
  readonly capacity: Capacity;
  readonly decode: boolean;
  readonly activations: DTypeName;
  readonly commands: RecordedCommand[] = [];
  readonly values: Value[] = [];
  /** Results by name: what {@link Graph.output} marked. */
  readonly outputs: Map<string, Tensor> = new Map();
  /** Inputs written from JavaScript before a run. */
  readonly inputs: Map<string, Tensor> = new Map();
  private readonly scopes: string[] = [];
  private readonly wanted_taps: ReadonlySet<string> | undefined;

  constructor(options: GraphOptions, wanted_taps?: ReadonlySet<string>) {
    this.capacity = options.capacity;
    this.decode = options.decode ?? false;
    this.activations = options.activations ?? "float32";
    this.wanted_taps = wanted_taps;
  }

  /** An array of the step buffer as a tensor. */
  step(field: string, rows: RowKind): Tensor {
    return new Tensor([this.rowCapacity(rows)], "int32", { space: "step", field }, this, rows);
  }

  /** A new activation of (rows, columns). */
  value(rows: RowKind, columns: number, dtype: DTypeName = this.activations): Tensor {
    if (!Number.isInteger(columns) || columns < 1) {
      throw new RangeError(`Expected at least one column but found ${columns}`);
    }
    const count = this.rowCapacity(rows);
    const shape = [count, columns];
    this.values.push({
      rows,
      shape,
      bytes: count * columns * elementBytes(dtype),
      first: this.commands.length,
      last: this.commands.length,
      external: false,
    });
    const value = this.values.length - 1;
    const storage = { space: "value", value, column: 0, row_stride: columns } as const;
    return new Tensor(shape, dtype, storage, this, rows);
  }

  /** An activation that JavaScript writes before each run. */
  input(name: string, rows: RowKind, columns: number, dtype?: DTypeName): Tensor {
    const tensor = this.value(rows, columns, dtype);
    this.values[this.values.length - 1].external = true;
    this.inputs.set(name, tensor);
    return tensor;
  }

  /** Columns [begin, begin + count) of an activation; no numbers move. */
  columns(tensor: Tensor, begin: number, count: number): Tensor {
    const { storage } = tensor;
    if (storage.space !== "value") throw new TypeError(`Cannot take columns of ${tensor}`);
    if (begin < 0 || count < 1 || begin + count > tensor.shape[1]) {
      throw new RangeError(
        `Expected columns within 0..${tensor.shape[1]} but found ${begin}..${begin + count}`,
      );
    }
    const view = { ...storage, column: storage.column + begin };
    return new Tensor([tensor.shape[0], count], tensor.dtype, view, this, tensor.rows);
  }

  /** Appends a command; `inputs` are read, `results` written. */
  emit(
    op: OpName,
    inputs: readonly (Tensor | undefined)[],
    results: readonly Tensor[],
    attrs: readonly number[] = [],
  ): void {
    const operands = [...inputs, ...results];
    for (const tensor of operands) this.touch(op, tensor);
    const scope = this.scopes.join(".");
    this.commands.push({ op, operands, results: results.length, attrs, scope });
  }

  /** Keeps a tensor's numbers for JavaScript under a name. */
  output(name: string, tensor: Tensor): void {
    if (tensor.storage.space !== "value" || tensor.graph !== this) {
      throw new TypeError(`Cannot keep ${tensor} as output "${name}": it is not of this graph`);
    }
    this.values[tensor.storage.value].external = true;
    this.outputs.set(name, tensor);
  }

  /** Names an activation; kept as an output only when a test asked for that name. */
  tap(name: string, tensor: Tensor): Tensor {
    const path = this.path(name);
    if (this.wanted_taps?.has(path)) this.output(path, tensor);
    return tensor;
  }

  /** A name below the current scopes. */
  path(name: string): string {
    return [...this.scopes, name].join(".");
  }

  /** Runs `body` with `name` on the path that taps and printed commands show. */
  scope<T>(name: string, body: () => T): T {
    this.scopes.push(name);
    try {
      return body();
    } finally {
      this.scopes.pop();
    }
  }

  rowCapacity(rows: RowKind): number {
    return rows === "fixed" ? 1 : this.capacity[rows];
  }

  /** One line a command, results first: stable text for snapshots. */
  toString(): string {
    return this.commands.map((c) => {
      const inputs = c.operands.slice(0, c.operands.length - c.results);
      const results = c.operands.slice(c.operands.length - c.results);
      const attrs = c.attrs.length ? ` {${c.attrs.join(", ")}}` : "";
      return `${results.join(", ")} = ${c.op}(${inputs.map((t) => t ?? "-").join(", ")})${attrs}`;
    }).join("\n");
  }

  private touch(op: string, tensor: Tensor | undefined): void {
    if (tensor === undefined) return;
    const { storage } = tensor;
    if (tensor.graph !== undefined && tensor.graph !== this) {
      throw new TypeError(`Cannot use ${tensor} in ${op}: another recording made it`);
    }
    if (storage.space === "value") {
      const value = this.values[storage.value];
      value.last = this.commands.length;
    } else if (storage.space === "parameter" || storage.space === "constant") {
      throw new TypeError(
        `Cannot use a ${storage.space} of shape [${tensor.shape}] in ${op}: ` +
          "the model's weights are not loaded",
      );
    } else if (storage.space === "data") {
      throw new TypeError(
        `Cannot use a tensor with data in ${op}: a recording takes its inputs by call()`,
      );
    }
  }
}

/** The graph that records `op`: that of its first activation. */
export function graphOf(op: string, tensor: Tensor): Graph {
  if (tensor.graph === undefined) {
    throw new TypeError(`Expected a recorded activation as input of ${op} but found ${tensor}`);
  }
  return tensor.graph;
}
