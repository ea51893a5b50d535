/** Operations on each element, and moves of whole rows or columns. */

import { graphOf, type OpName } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";
import { expectColumns, expectSameRows } from "./check.ts";

function binary(op: OpName, a: Tensor, b: Tensor): Tensor {
  const graph = graphOf(op, a);
  expectSameRows(op, a, b);
  expectColumns(op, "the second operand", b, a.shape[1]);
  const out = graph.value(a.rows, a.shape[1], a.dtype);
  graph.emit(op, [a, b], [out]);
  return out;
}

/** silu(gate) * up. @param gate (rows, n) @param up (rows, n) @returns (rows, n) */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return binary("swiglu", gate, up);
}

/** a + b. @param a (rows, n) @param b (rows, n) @returns (rows, n) */
export function add(a: Tensor, b: Tensor): Tensor {
  return binary("add", a, b);
}

/** a * b. @param a (rows, n) @param b (rows, n) @returns (rows, n) */
export function mul(a: Tensor, b: Tensor): Tensor {
  return binary("mul", a, b);
}

/** x * sigmoid(x). @param x (rows, n) @returns (rows, n) */
export function silu(x: Tensor): Tensor {
  const graph = graphOf("silu", x);
  const out = graph.value(x.rows, x.shape[1], x.dtype);
  graph.emit("silu", [x], [out]);
  return out;
}

/**
 * Column slices side by side, like torch.split along the last dimension; no numbers move.
 *
 * @param x (rows, sum of sizes)
 * @returns one (rows, size) view for each size
 * @throws {RangeError} when the sizes do not add up to the columns
 */
export function split(x: Tensor, sizes: readonly number[]): Tensor[] {
  const graph = graphOf("split", x);
  const total = sizes.reduce((a, b) => a + b, 0);
  if (total !== x.shape[1]) {
    throw new RangeError(`Expected sizes adding up to ${x.shape[1]} but found [${sizes}]`);
  }
  let begin = 0;
  return sizes.map((size) => {
    const view = graph.columns(x, begin, size);
    begin += size;
    return view;
  });
}

/**
 * The rows whose logits are wanted, in the order of the step buffer's `logit_rows`.
 *
 * @param x (tokens, n)
 * @returns (logits, n)
 */
export function gatherRows(x: Tensor): Tensor {
  const graph = graphOf("gather_rows", x);
  const out = graph.value("logits", x.shape[1], x.dtype);
  graph.emit("gather_rows", [x, graph.step("logit_rows", "logits")], [out]);
  return out;
}
