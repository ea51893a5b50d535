/** SentencePiece tokenizers of GGUF files ("llama") as tokenizer.json's BPE with byte fallback. */

import type { TokenizerJson } from "../tokenizer/backend.ts";
import type { GgufTokens } from "./tokens.ts";
import type { Values } from "./values.ts";

/** What stands for a space inside a token. */
const space = "\u2581";
/** Trying every cut takes the square of a token's length: no tokenizer has any near this. */
const token_length_max = 1024;

/**
 * Merges that build every token out of two others, those of tokens with high scores first: the
 * order in which SentencePiece merges.
 */
function mergesByScore(tokens: readonly string[], scores: readonly number[]): string[][] {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const found: { left: string; right: string; score: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    if (token.length > token_length_max) {
      throw new RangeError(
        `Expected tokens of at most ${token_length_max} letters but token ${id} has ` +
          `${token.length}`,
      );
    }
    const letters = [...token];
    for (let cut = 1; cut < letters.length; cut++) {
      const left = letters.slice(0, cut).join("");
      const right = letters.slice(cut).join("");
      if (ids.has(left) && ids.has(right)) found.push({ left, right, score: scores[id] });
    }
  }
  found.sort((a, b) => b.score - a.score);
  return found.map(({ left, right }) => [left, right]);
}

/** @throws {RangeError} when tokens and scores do not fit each other, or a token is too long */
export function sentencePieceJson(values: Values, { tokens, added }: GgufTokens): TokenizerJson {
  const scores = values.numbersOr("tokenizer.ggml.scores") ?? [];
  if (scores.length !== tokens.length) {
    throw new RangeError(
      `Expected tokenizer.ggml.scores to have a score for each of ${tokens.length} tokens ` +
        `but found ${scores.length}`,
    );
  }
  const prefix = values.flagOr("tokenizer.ggml.add_space_prefix") ?? true;
  const unknown = values.numberOr("tokenizer.ggml.unknown_token_id") ?? 0;
  const replace = { type: "Replace", pattern: { String: " " }, content: space };
  const strip = { type: "Strip", content: " ", start: 1, stop: 0 };
  return {
    added_tokens: [...added],
    normalizer: {
      type: "Sequence",
      normalizers: prefix ? [{ type: "Prepend", prepend: space }, replace] : [replace],
    },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: space }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(prefix ? [strip] : []),
      ],
    },
    model: {
      type: "BPE",
      unk_token: tokens[unknown] ?? null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: mergesByScore(tokens, scores),
    },
  };
}
