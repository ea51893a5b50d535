/** Shape checks shared by the ops: errors are sentences with the found value. */

import type { Tensor } from "../graph/tensor.ts";

/** @throws {RangeError} unless `tensor` has exactly `columns` columns (last dimension). */
export function expectColumns(op: string, name: string, tensor: Tensor, columns: number): void {
  const found = tensor.shape[tensor.shape.length - 1];
  if (found !== columns) {
    throw new RangeError(`Expected ${name} of ${op} to have ${columns} columns but found ${found}`);
  }
}

/** @throws {RangeError} unless `tensor` has exactly this shape. */
export function expectShape(
  op: string,
  name: string,
  tensor: Tensor,
  shape: readonly number[],
): void {
  const { shape: found } = tensor;
  if (found.length !== shape.length || found.some((n, i) => n !== shape[i])) {
    throw new RangeError(`Expected ${name} of ${op} to have shape [${shape}] but found [${found}]`);
  }
}

/** @throws {RangeError} unless two activations count the same kind and number of rows. */
export function expectSameRows(op: string, a: Tensor, b: Tensor): void {
  if (a.rows !== b.rows || a.shape[0] !== b.shape[0]) {
    throw new RangeError(
      `Expected equal rows in ${op} but found ${a.shape[0]} ${a.rows} and ${b.shape[0]} ${b.rows}`,
    );
  }
}
