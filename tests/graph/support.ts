/** Small recordings without a device. */

import { Graph } from "../../src/graph/graph.ts";
import { Tensor } from "../../src/graph/tensor.ts";

/** A loaded weight that no kernel will ever read. */
export function weight(shape: readonly number[], layout: "row_major" | "panel" = "row_major") {
  return new Tensor(shape, "float32", { space: "weight", layout, buffer: 1, offset: 0 });
}

/** A graph for at most eight tokens of two sequences. */
export function smallGraph(o: { decode?: boolean } = {}): Graph {
  return new Graph({ capacity: { tokens: 8, seqs: 2, logits: 2 }, ...o });
}
