/**
 * The named special tokens of a tokenizer, as properties, and the vocabulary around them.
 *
 * @module
 */
import type { Backend } from "./backend.ts";
import { checkId, show } from "./options.ts";
import type { AddedToken, AddedTokenEntry } from "./types.ts";

/** Names that every tokenizer may set. */
export const SPECIAL_TOKEN_NAMES = [
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
] as const;

/** Text of a token that is given as text or with its flags. */
export function tokenText(token: string | AddedToken): string {
  return typeof token === "string" ? token : token.content;
}

/** A token with flags; a bare text becomes a special token. */
export function toAddedToken(token: string | AddedToken): AddedToken {
  return typeof token === "string" ? { content: token, special: true } : token;
}

/** An object that can be called: `tokenizer("text")`. */
export abstract class Callable {
  constructor() {
    // deno-lint-ignore no-explicit-any
    const self = (...args: any[]) => (self as any).call_(...args);
    // deno-lint-ignore no-explicit-any
    delete (self as any).length; // so that the getter of the class is seen
    // deno-lint-ignore no-explicit-any
    delete (self as any).name;
    return Object.setPrototypeOf(self, new.target.prototype);
  }
}

/** Vocabulary and special tokens; every id that a token does not have is `null`. */
export abstract class SpecialTokens extends Callable {
  /** Token at the beginning of a text. */
  declare bos_token: string | null;
  declare bos_token_id: number | null;
  /** Token at the end of a text. */
  declare eos_token: string | null;
  declare eos_token_id: number | null;
  /** Token for what the vocabulary cannot spell. */
  declare unk_token: string | null;
  declare unk_token_id: number | null;
  declare sep_token: string | null;
  declare sep_token_id: number | null;
  /** Token that fills up short rows of a batch. */
  declare pad_token: string | null;
  declare pad_token_id: number | null;
  declare cls_token: string | null;
  declare cls_token_id: number | null;
  declare mask_token: string | null;
  declare mask_token_id: number | null;

  readonly #backend: Backend;
  readonly #named = new Map<string, string | null>();
  #extra: string[] = [];

  constructor(backend: Backend) {
    super();
    this.#backend = backend;
  }

  /** Vocabulary and encoder underneath. */
  get backend_tokenizer(): Backend {
    return this.#backend;
  }

  /** Text of a named special token, such as `"image_token"`; null when it is not set. */
  special_token(name: string): string | null {
    return this.#named.get(name) ?? null;
  }

  /**
   * Names a special token. It is not added to the vocabulary: `add_special_tokens` does that.
   *
   * @throws {TypeError} when the value is no text
   */
  set_special_token(name: string, token: string | null): void {
    if (token !== null && typeof token !== "string") {
      throw new TypeError(`Expected ${name} to be a text or null but found ${show(token)}.`);
    }
    this.#named.set(name, token);
  }

  /** Further special tokens, without a name. */
  get extra_special_tokens(): string[] {
    return [...this.#extra];
  }
  set extra_special_tokens(tokens: readonly string[]) {
    this.#extra = [...tokens];
  }

  /** Named special tokens that are set: name to text. */
  get special_tokens_map(): Record<string, string> {
    const set = [...this.#named].filter((entry): entry is [string, string] => entry[1] !== null);
    const rank = (name: string) => {
      const place = (SPECIAL_TOKEN_NAMES as readonly string[]).indexOf(name);
      return place < 0 ? SPECIAL_TOKEN_NAMES.length : place;
    };
    return Object.fromEntries(set.sort((a, b) => rank(a[0]) - rank(b[0])));
  }

  /** Every special token once, the named ones first. */
  get all_special_tokens(): string[] {
    return [...new Set([...Object.values(this.special_tokens_map), ...this.#extra])];
  }

  /**
   * Ids of `all_special_tokens`; a token outside the vocabulary counts as the unknown token or is
   * left out.
   */
  get all_special_ids(): number[] {
    return this.all_special_tokens
      .map((token) => this.convert_tokens_to_ids(token))
      .filter((id): id is number => id !== null);
  }

  /** Number of tokens of the model itself, without added tokens. */
  get vocab_size(): number {
    return this.#backend.vocab_size;
  }

  /** Number of tokens, added tokens included: HF's `len(tokenizer)`. */
  get length(): number {
    return this.#backend.length;
  }

  /** Every token with its id. */
  get_vocab(): Record<string, number> {
    return Object.fromEntries(this.#backend.vocab());
  }

  /** Added tokens with their ids. */
  get_added_vocab(): Record<string, number> {
    return Object.fromEntries(this.#backend.addedTokens.map((token) => [token.content, token.id]));
  }

  /** Added tokens by id, with their flags. */
  get added_tokens_decoder(): Record<number, AddedTokenEntry> {
    return Object.fromEntries(this.#backend.addedTokens.map((token) => [token.id, token]));
  }

  /**
   * Adds tokens to the vocabulary.
   *
   * @returns how many were not there yet
   */
  add_tokens(
    tokens: string | AddedToken | readonly (string | AddedToken)[],
    options: { special_tokens?: boolean } = {},
  ): number {
    const list = Array.isArray(tokens) ? tokens : [tokens];
    const special = options.special_tokens ?? false;
    return this.#backend.addTokens(
      list.map((token) => typeof token === "string" ? { content: token, special } : token),
    );
  }

  /**
   * Names special tokens and adds them to the vocabulary, such as `{ pad_token: "<|pad|>" }`.
   *
   * @returns how many were not there yet
   * @throws {TypeError} when a name does not end in `_token`
   */
  add_special_tokens(
    tokens: Record<string, string | AddedToken | readonly (string | AddedToken)[]>,
  ): number {
    let added = 0;
    for (const [name, value] of Object.entries(tokens)) {
      const list = (Array.isArray(value) ? value : [value]) as (string | AddedToken)[];
      if (name === "extra_special_tokens" || name === "additional_special_tokens") {
        this.#extra = list.map(tokenText);
      } else if (name.endsWith("_token") && list.length === 1) {
        this.set_special_token(name, tokenText(list[0]));
      } else {
        throw new TypeError(
          `Expected the name of a special token, such as pad_token, but found "${name}".`,
        );
      }
      added += this.add_tokens(list.map(toAddedToken));
    }
    return added;
  }

  /**
   * Id of a token; for a token outside the vocabulary the id of the unknown token, or null without
   * one.
   */
  convert_tokens_to_ids(tokens: string): number | null;
  convert_tokens_to_ids(tokens: readonly string[]): (number | null)[];
  convert_tokens_to_ids(tokens: string | readonly string[]): number | null | (number | null)[] {
    const convert = (token: string): number | null => {
      if (typeof token !== "string") {
        throw new TypeError(`Expected a token to be a text but found ${show(token)}.`);
      }
      const unk = this.special_token("unk_token");
      return this.#backend.tokenToId(token) ??
        (unk === null ? null : this.#backend.tokenToId(unk) ?? null);
    };
    return typeof tokens === "string" ? convert(tokens) : tokens.map(convert);
  }

  /**
   * Token of an id; null where the vocabulary has a hole.
   *
   * @throws {TypeError} when an id is no integer
   * @throws {RangeError} when an id is out of range
   */
  convert_ids_to_tokens(ids: number | bigint): string | null;
  convert_ids_to_tokens(
    ids: ArrayLike<number | bigint>,
    options?: { skip_special_tokens?: boolean },
  ): (string | null)[];
  convert_ids_to_tokens(
    ids: number | bigint | ArrayLike<number | bigint>,
    options: { skip_special_tokens?: boolean } = {},
  ): string | null | (string | null)[] {
    const convert = (id: number | bigint) =>
      this.#backend.idToToken(checkId(id, this.#backend.idEnd)) ?? null;
    if (typeof ids === "number" || typeof ids === "bigint") return convert(ids);
    const skip = new Set(options.skip_special_tokens ? this.all_special_ids : []);
    return Array.from(ids).filter((id) => !skip.has(Number(id))).map(convert);
  }
}

// The properties declared above: the token is stored, its id follows from the vocabulary of the
// moment.
for (const name of SPECIAL_TOKEN_NAMES) {
  Object.defineProperties(SpecialTokens.prototype, {
    [name]: {
      get(this: SpecialTokens): string | null {
        return this.special_token(name);
      },
      set(this: SpecialTokens, token: string | null) {
        this.set_special_token(name, token);
      },
    },
    [`${name}_id`]: {
      get(this: SpecialTokens): number | null {
        const token = this.special_token(name);
        return token === null ? null : this.convert_tokens_to_ids(token);
      },
      set(this: SpecialTokens, id: number | null) {
        this.set_special_token(name, id === null ? null : this.convert_ids_to_tokens(id));
      },
    },
  });
}
