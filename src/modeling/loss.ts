/** The loss of a call, from each row's negative log likelihood and logsumexp. */

import { Tensor } from "../graph/tensor.ts";

/** Pairs of nll and logsumexp, one after another. */
export type LossRows = Float32Array;

/**
 * HF's causal language modelling loss: mean of nll over the labels that count (or their sum over
 * `num_items_in_batch`), plus z_loss_coefficient times the mean of logsumexp² over all positions.
 *
 * @param count labels that are not -100; with none the mean is 0 / 0, NaN, as in HF
 * @returns a tensor of shape ()
 */
export function crossEntropyLoss(
  parts: readonly LossRows[],
  count: number,
  z_loss_coefficient: number,
  num_items_in_batch?: number,
): Tensor {
  let nll = 0;
  let squares = 0;
  let positions = 0;
  for (const rows of parts) {
    for (let i = 0; i < rows.length; i += 2) {
      nll += rows[i];
      squares += rows[i + 1] ** 2;
      positions++;
    }
  }
  let loss = nll / (num_items_in_batch ?? count);
  if (z_loss_coefficient > 0) loss += z_loss_coefficient * squares / positions;
  return Tensor.from(Float32Array.of(loss), []);
}
