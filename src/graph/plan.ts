/** Plans: a graph with its memory placed, handed to the library, which checks and resolves it. */

import type { Device } from "../device.ts";
import {
  abi_hash,
  absent,
  Command,
  DType,
  Layout,
  Op,
  Operand,
  plan_magic,
  PlanHeader,
  Rows,
  Space,
  StepField,
} from "../native/bindings.gen.ts";
import { writeStruct } from "../native/struct.ts";
import type { Capacity, Graph } from "./graph.ts";
import { type Placement, placeValues } from "./memory.ts";
import { type DTypeName, elementBytes, type Tensor } from "./tensor.ts";

/** Sizes that a plan's commands are checked against. */
export interface PlanSizes {
  readonly slot_bytes: number;
  readonly page_bytes: number;
  readonly vocab_size: number;
}

/** Where an output's (or input's) rows lie in the buffer given with each run. */
export interface ExternalPlace {
  /** Bytes to the first element. */
  readonly offset: number;
  /** Bytes from one row to the next. */
  readonly row_bytes: number;
  readonly columns: number;
  readonly rows: Tensor["rows"];
  readonly dtype: DTypeName;
}

const dtype_codes: Record<DTypeName, number> = {
  float32: DType.f32,
  bfloat16: DType.bf16,
  float16: DType.f16,
  float8_e4m3fn: DType.f8_e4m3,
  int32: DType.i32,
  q8_0: DType.q8_0,
  q4_0: DType.q4_0,
  q4_k: DType.q4_k,
  q5_k: DType.q5_k,
  q6_k: DType.q6_k,
};

/**
 * Commands between the first and the last of those that a GPU does at once (zig/cuda/chain.zig), or
 * a CPU's threads without meeting while they decode (zig/phases.zig).
 */
const chain_margin = 2;

/** A compiled graph on a device. Run it as often as needed; dispose of it when done. */
export class Plan {
  private constructor(
    readonly device: Device,
    readonly handle: number,
    readonly capacity: Capacity,
    readonly decode: boolean,
    readonly outputs: ReadonlyMap<string, ExternalPlace>,
    readonly inputs: ReadonlyMap<string, ExternalPlace>,
    /** Size of the input/output buffer of a run. */
    readonly external_bytes: number,
    /** Native memory the plan holds. */
    readonly bytes: number,
  ) {}

  /**
   * Places the graph's activations and has the library check and resolve every command.
   *
   * @throws {RangeError | TypeError | NativeError} in the library's words when it refuses
   */
  static create(device: Device, graph: Graph, sizes: PlanSizes): Plan {
    const apart = device.kind === "cuda" || graph.decode;
    const placement = placeValues(graph.values, apart ? chain_margin : 0);
    const encoded = encodePlan(graph, placement, sizes);
    const { handle, bytes } = device.native.createPlan(device.handle, encoded);
    const places = (tensors: ReadonlyMap<string, Tensor>) =>
      new Map([...tensors].map(([name, t]) => [name, externalPlace(t, placement)]));
    return new Plan(
      device,
      handle,
      graph.capacity,
      graph.decode,
      places(graph.outputs),
      places(graph.inputs),
      placement.external_bytes,
      bytes,
    );
  }

  dispose(): void {
    this.device.native.free(this.handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function externalPlace(tensor: Tensor, placement: Placement): ExternalPlace {
  const storage = tensor.storage;
  if (storage.space !== "value") throw new TypeError(`Expected an activation but found ${tensor}`);
  const { dtype, rows } = tensor;
  const size = elementBytes(dtype);
  return {
    offset: placement.offsets[storage.value] + size * storage.column,
    row_bytes: size * storage.row_stride,
    columns: tensor.shape[1],
    rows,
    dtype,
  };
}

/** The bytes of a plan, as zig/command.zig describes them. */
export function encodePlan(graph: Graph, placement: Placement, sizes: PlanSizes): Uint8Array {
  const operands: Tensor[] = [];
  const index = new Map<Tensor, number>();
  for (const command of graph.commands) {
    for (const tensor of command.operands) {
      if (tensor && !index.has(tensor)) index.set(tensor, operands.push(tensor) - 1);
    }
  }
  const commands_at = PlanHeader.size + operands.length * Operand.size;
  const bytes = new Uint8Array(commands_at + graph.commands.length * Command.size);
  const view = new DataView(bytes.buffer);
  writeStruct(view, 0, PlanHeader, {
    magic: plan_magic,
    abi: abi_hash,
    n_operands: operands.length,
    n_commands: graph.commands.length,
    max_tokens: graph.capacity.tokens,
    max_seqs: graph.capacity.seqs,
    max_logits: graph.capacity.logits,
    vocab_size: sizes.vocab_size,
    arena_bytes: placement.arena_bytes,
    output_bytes: placement.external_bytes,
    slot_bytes: sizes.slot_bytes,
    page_bytes: sizes.page_bytes,
  });
  for (const [i, tensor] of operands.entries()) {
    writeOperand(view, PlanHeader.size + i * Operand.size, tensor, graph, placement);
  }
  for (const [i, command] of graph.commands.entries()) {
    const indices = command.operands.map((tensor) => tensor ? index.get(tensor)! : absent);
    const padding = new Array<number>(Command.fields.operands.length - indices.length).fill(absent);
    writeStruct(view, commands_at + i * Command.size, Command, {
      op: Op[command.op],
      n_operands: indices.length,
      operands: [...indices, ...padding],
      attrs: command.attrs,
    });
  }
  return bytes;
}

function writeOperand(
  view: DataView,
  at: number,
  tensor: Tensor,
  graph: Graph,
  placement: Placement,
): void {
  const { shape, storage } = tensor;
  const place = { space: 0, layout: Layout.row_major as number, buffer: 0, offset: 0 };
  let row_stride = shape.length > 1 ? shape.slice(1).reduce((a, b) => a * b, 1) : 1;
  switch (storage.space) {
    case "value":
      place.space = graph.values[storage.value].external ? Space.output : Space.arena;
      place.offset = placement.offsets[storage.value] +
        elementBytes(tensor.dtype) * storage.column;
      row_stride = storage.row_stride;
      break;
    case "weight":
      place.space = Space.weight;
      place.layout = Layout[storage.layout];
      place.buffer = storage.buffer;
      place.offset = storage.offset;
      break;
    case "state":
    case "kv":
      place.space = Space[storage.space];
      place.offset = storage.offset;
      break;
    case "step":
      place.space = Space.step;
      place.offset = StepField[storage.field as keyof typeof StepField];
      break;
    default:
      throw new TypeError(`Cannot give ${tensor} to a plan`);
  }
  const filled = [...shape, 1, 1, 1, 1].slice(0, 4);
  writeStruct(view, at, Operand, {
    ...place,
    dtype: dtype_codes[tensor.dtype],
    rows: Rows[tensor.rows],
    rank: shape.length,
    shape: filled,
    row_stride,
    reserved: 0,
  });
}
