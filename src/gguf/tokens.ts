/** The tokens that a GGUF file's metadata lists, whatever kind of tokenizer they belong to. */

import type { AddedTokenEntry } from "../tokenizer/types.ts";
import type { Values } from "./values.ts";

/** `tokenizer.ggml.token_type`: what a token is. */
export const TokenType = {
  normal: 1,
  unknown: 2,
  control: 3,
  user_defined: 4,
  unused: 5,
  byte: 6,
} as const;

/** Tokens of a file with their types. */
export interface GgufTokens {
  readonly tokens: readonly string[];
  readonly types: readonly number[];
  readonly added: readonly AddedTokenEntry[];
}

/** @throws {RangeError} when tokens and types do not fit each other */
export function readTokens(values: Values): GgufTokens {
  const tokens = values.texts("tokenizer.ggml.tokens");
  const types = values.numbersOr("tokenizer.ggml.token_type") ??
    new Array<number>(tokens.length).fill(TokenType.normal);
  if (types.length !== tokens.length) {
    throw new RangeError(
      `Expected tokenizer.ggml.token_type to have a type for each of ${tokens.length} tokens ` +
        `but found ${types.length}`,
    );
  }
  const added: AddedTokenEntry[] = [];
  for (const [id, content] of tokens.entries()) {
    const special = types[id] === TokenType.control || types[id] === TokenType.unknown;
    if (!special && types[id] !== TokenType.user_defined) continue;
    const off = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    added.push({ id, content, ...off, special });
  }
  return { tokens, types, added };
}
