/** How far results may be from the truth, by the dtype of weights: one table for all tests. */

import process from "node:process";

/** A GPU rounds activations to bf16 where weights are bf16. */
const rounds = process.env.BAMBA_DEVICE?.startsWith("cuda") ?? false;

/** What to load weights as where results must not be rounded on their way. */
export const exact_dtype = rounds ? "float32" : "auto";

/** Largest difference allowed, as a share of the truth's largest value. */
export const tolerances = {
  /** f32 weights, or bf16 weights widened: only orders of summation differ. */
  float32: 2e-4,
  /** Weights stored as bf16, f32 activations: the goldens widen bf16 weights too. */
  bfloat16: rounds ? 3e-2 : 2e-4,
  /** f32 weights rounded to bf16 when loaded. */
  rounded_bfloat16: 5e-2,
  /** f32 weights rounded to f16 when loaded. */
  rounded_float16: 5e-3,
} as const;

/** The largest difference as a share of the truth's largest value; NaN anywhere gives NaN. */
export function relativeError(actual: ArrayLike<number>, truth: ArrayLike<number>): number {
  if (actual.length !== truth.length) {
    throw new RangeError(`Expected ${truth.length} numbers but found ${actual.length}`);
  }
  let largest = 1e-30;
  let difference = 0;
  for (let i = 0; i < truth.length; i++) {
    largest = Math.max(largest, Math.abs(truth[i]));
    const d = Math.abs(actual[i] - truth[i]);
    if (!(d <= difference)) difference = d;
  }
  return difference / largest;
}
