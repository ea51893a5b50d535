/** From logits to the next id, by each sequence's sampling parameters in the step buffer. */

import { graphOf, type OpName } from "../graph/graph.ts";
import type { Tensor } from "../graph/tensor.ts";

function rowwise(op: OpName, scores: Tensor): Tensor {
  const graph = graphOf(op, scores);
  const out = graph.value(scores.rows, scores.shape[1], scores.dtype);
  graph.emit(op, [scores], [out]);
  return out;
}

/**
 * Repetition penalty, no-repeat n-grams, bad words, minimum length, in HF's order.
 *
 * @param scores (logits, vocab_size), row r for sequence r
 * @returns (logits, vocab_size), banned ids at -inf
 */
export function logitsProcess(scores: Tensor): Tensor {
  return rowwise("logits_process", scores);
}

/**
 * Temperature, top-k, top-p, min-p and typical-p, in HF's order.
 *
 * @param scores (logits, vocab_size), row r for sequence r
 * @returns (logits, vocab_size), removed ids at -inf
 */
export function logitsWarp(scores: Tensor): Tensor {
  return rowwise("logits_warp", scores);
}

/** x - logsumexp(x) over each row. @param x (rows, n) @returns (rows, n) */
export function logSoftmax(x: Tensor): Tensor {
  return rowwise("log_softmax", x);
}

/**
 * Chooses the next id of every sequence: the best one, or a draw from softmax(scores). The ids go
 * into the step buffer and, in a decode job, straight into the next step.
 *
 * @param scores (logits, vocab_size), row r for sequence r
 */
export function sample(scores: Tensor): void {
  const graph = graphOf("sample", scores);
  graph.emit("sample", [scores], [graph.step("sampled", "seqs")]);
}
