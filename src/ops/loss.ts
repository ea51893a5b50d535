/** Cross entropy. */

import { graphOf } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";

/**
 * Negative log likelihood of each row's label and the row's logsumexp, so that the mean over rows
 * and the z-loss can be taken over whatever spans the caller needs.
 *
 * @param logits (logits, vocab_size); labels come from the step buffer, -100 counts nothing
 * @returns (logits, 2): nll, logsumexp
 */
export function crossEntropy(logits: Tensor): Tensor {
  const graph = graphOf("cross_entropy", logits);
  const out = graph.value(logits.rows, 2, "float32");
  graph.emit("cross_entropy", [logits, graph.step("labels", "logits")], [out]);
  return out;
}
