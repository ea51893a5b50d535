/** Table look-up. */

import { graphOf } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";

/**
 * Rows of a table.
 *
 * @param ids (tokens) of int32, checked against the vocabulary before a run
 * @param weight (vocab_size, hidden), row-major or panels
 * @returns (tokens, hidden)
 */
export function embedding(ids: Tensor, weight: Tensor): Tensor {
  const graph = graphOf("embedding", ids);
  const out = graph.value(ids.rows, weight.shape[1]);
  graph.emit("embedding", [ids, weight], [out]);
  return out;
}
