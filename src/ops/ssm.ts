/** The state space model of Mamba2 (Dao and Gu 2024): chunked scan, and one step when decoding. */

import { f32Bits, graphOf } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";
import { expectColumns, expectShape } from "./check.ts";

/** Operands and constants of {@link ssmScan}. */
export interface SsmOperands {
  /** (tokens, heads * head_dim) */
  readonly x: Tensor;
  /** (tokens, heads), before dt_bias and softplus */
  readonly dt: Tensor;
  /** (tokens, groups * state_size) */
  readonly B: Tensor;
  /** (tokens, groups * state_size) */
  readonly C: Tensor;
  /** (heads); the decay rate is -exp(A_log) */
  readonly A_log: Tensor;
  /** (heads); adds D * x */
  readonly D: Tensor;
  /** (heads) */
  readonly dt_bias: Tensor;
  readonly groups: number;
  /** Clamp of softplus(dt + dt_bias). */
  readonly time_step_limit: readonly [number, number];
}

/**
 * For each head: h = exp(dt A) h + dt x Bᵀ, y = h C + D x, along each sequence. Many tokens run as
 * chunks of matrix products; where every sequence has one token, as one update.
 *
 * @param ssm_state (heads, state_size, head_dim), on a GPU (heads, head_dim, state_size), in each
 * sequence's slot; read where a sequence has a past, always written
 * @returns y (tokens, heads * head_dim)
 * @throws {RangeError} when shapes do not fit
 */
export function ssmScan(operands: SsmOperands, ssm_state: Tensor): Tensor {
  const { x, dt, B, C, A_log, D, dt_bias, groups, time_step_limit } = operands;
  const op = graphOf("ssm_scan", x).decode ? "ssm_update" : "ssm_scan";
  const graph = graphOf(op, x);
  const heads = dt.shape[1];
  const head_dim = x.shape[1] / heads;
  const state_size = B.shape[1] / groups;
  // In the order that the device keeps: the library checks it.
  const [, ...found] = ssm_state.shape;
  if (!found.includes(head_dim) || !found.includes(state_size)) {
    throw new RangeError(
      `Expected ssm_state of ${op} to have heads of ${head_dim} x ${state_size} ` +
        `but found [${found}]`,
    );
  }
  expectColumns(op, "C", C, groups * state_size);
  expectShape(op, "A_log", A_log, [heads]);
  expectShape(op, "D", D, [heads]);
  expectShape(op, "dt_bias", dt_bias, [heads]);
  if (heads % groups !== 0) {
    throw new RangeError(`Expected groups to divide ${heads} heads but found ${groups}`);
  }
  const y = graph.value(x.rows, heads * head_dim, x.dtype);
  const [dt_min, dt_max] = time_step_limit;
  graph.emit(op, [x, dt, B, C, A_log, D, dt_bias, ssm_state], [y], [
    heads,
    head_dim,
    groups,
    state_size,
    f32Bits(dt_min),
    f32Bits(dt_max),
  ]);
  return y;
}
