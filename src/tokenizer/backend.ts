/**
 * The vocabulary and the splitting of text, from `@huggingface/tokenizers`.
 *
 * What that package lacks or does otherwise than Hugging Face (special tokens around a text,
 * truncation, padding, decoding) lies in the other files of this folder, so of the package only
 * encoding one bare text is used.
 *
 * @module
 */
import { Tokenizer } from "@huggingface/tokenizers";
import { createSteps, type DecoderJson } from "./decoder.ts";
import type { PostProcessorJson } from "./post_processor.ts";
import type { Step } from "./step.ts";
import type { AddedToken, AddedTokenEntry } from "./types.ts";

/** The parts of tokenizer.json that this file reads. */
export interface TokenizerJson {
  added_tokens: AddedTokenEntry[];
  // deno-lint-ignore no-explicit-any
  normalizer: any;
  // deno-lint-ignore no-explicit-any
  pre_tokenizer: any;
  post_processor: PostProcessorJson | null;
  decoder: DecoderJson | null;
  truncation?: { direction?: string } | null;
  padding?: { direction?: string; pad_token?: string; pad_type_id?: number } | null;
  // deno-lint-ignore no-explicit-any
  model: { type?: string; vocab: any; unk_token?: string | null; [field: string]: any };
}

/**
 * Checks that a parsed tokenizer.json has the parts a tokenizer needs.
 *
 * @throws {TypeError} naming the part
 */
export function checkTokenizerJson(json: unknown, path: string): TokenizerJson {
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new TypeError(`Expected ${path} to hold a JSON object.`);
  }
  const value = json as Partial<TokenizerJson>;
  if (typeof value.model !== "object" || value.model === null || !("vocab" in value.model)) {
    throw new TypeError(`Expected ${path} to have a "model" with a "vocab" but found none.`);
  }
  const { normalizer = null, pre_tokenizer = null, post_processor = null, decoder = null } = value;
  const added_tokens = value.added_tokens ?? [];
  return {
    ...value,
    added_tokens,
    normalizer,
    pre_tokenizer,
    post_processor,
    decoder,
  } as TokenizerJson;
}

const FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"] as const;

/**
 * A tokenizer.json as the package should see it. Without a normalizer it would find added tokens of
 * both kinds in one pass; one that does nothing makes it look for the normalized ones second, as it
 * should.
 */
function forPackage(json: TokenizerJson, added_tokens: AddedTokenEntry[]): object {
  const identity = { type: "Sequence", normalizers: [] };
  return { ...json, added_tokens, normalizer: json.normalizer ?? identity, post_processor: null };
}

/** Vocabulary, encoder and decoder of one tokenizer.json. */
export class Backend {
  /** tokenizer.json as it is now, tokens added since included. */
  json: TokenizerJson;
  /** Number of tokens of the model itself. */
  readonly vocab_size: number;
  #tokenizer!: Tokenizer;
  #plain: Tokenizer | undefined;
  #added = new Map<string, AddedTokenEntry>();
  #special = new Set<number>();
  readonly #modelTokens: Map<string, number>;

  constructor(json: TokenizerJson) {
    this.json = json;
    const vocab = json.model.vocab;
    this.#modelTokens = new Map(
      Array.isArray(vocab)
        ? vocab.map((entry, id): [string, number] => [entry[0], id])
        : Object.entries(vocab as Record<string, number>),
    );
    this.vocab_size = this.#modelTokens.size;
    this.#build();
  }

  #build(): void {
    this.#tokenizer = new Tokenizer(forPackage(this.json, this.json.added_tokens), {});
    this.#plain = undefined;
    this.#added = new Map(this.json.added_tokens.map((token) => [token.content, token]));
    this.#special = new Set(
      this.json.added_tokens.filter((token) => token.special).map((token) => token.id),
    );
  }

  /** Type of the model: BPE, Unigram, WordPiece or WordLevel. */
  get model_type(): string {
    return this.json.model.type ?? (Array.isArray(this.json.model.vocab) ? "Unigram" : "BPE");
  }

  /** Ids run from 0 to this minus one; some in between may be no token. */
  get idEnd(): number {
    return this.#tokenizer.model!.vocab.length;
  }

  /** Number of tokens, added tokens included. */
  get length(): number {
    let count = this.vocab_size;
    for (const token of this.#added.keys()) if (!this.#modelTokens.has(token)) count++;
    return count;
  }

  /** Ids that `skip_special_tokens` leaves out. */
  get specialIds(): ReadonlySet<number> {
    return this.#special;
  }

  /** Added tokens in the order of their ids. */
  get addedTokens(): AddedTokenEntry[] {
    return [...this.#added.values()].sort((a, b) => a.id - b.id);
  }

  /** Whether a text is an added token. */
  isAdded(token: string): boolean {
    return this.#added.has(token);
  }

  /** Id of a token, or undefined. */
  tokenToId(token: string): number | undefined {
    return this.#added.get(token)?.id ?? this.#modelTokens.get(token);
  }

  /** Token of an id, or undefined where the vocabulary has a hole. */
  idToToken(id: number): string | undefined {
    return this.#tokenizer.id_to_token(id);
  }

  /** Every token with its id. */
  vocab(): Map<string, number> {
    const all = new Map(this.#modelTokens);
    for (const token of this.#added.values()) all.set(token.content, token.id);
    return all;
  }

  /**
   * Adds tokens; one that the model knows keeps its id, one that was added before takes the new
   * flags.
   *
   * @returns how many were new or changed
   */
  addTokens(tokens: readonly AddedToken[]): number {
    const entries = new Map(this.#added);
    let last = this.json.added_tokens.reduce(
      (max, { id }) => Math.max(max, id),
      this.vocab_size - 1,
    );
    let changes = 0;
    for (const token of tokens) {
      const { content, single_word = false, lstrip = false, rstrip = false } = token;
      if (content === "") continue;
      const normalized = token.normalized ?? !token.special;
      const old = entries.get(content);
      const special = token.special || old?.special || false; // special once is special for good
      const id = old?.id ?? this.#modelTokens.get(content) ?? ++last;
      const entry = { id, content, single_word, lstrip, rstrip, normalized, special };
      if (old && FLAGS.every((flag) => (old[flag] ?? false) === entry[flag])) continue;
      entries.set(content, entry);
      changes++;
    }
    if (changes > 0) {
      const added_tokens = [...entries.values()].sort((a, b) => a.id - b.id);
      this.json = { ...this.json, added_tokens };
      this.#build();
    }
    return changes;
  }

  /** Replaces what puts special tokens around a text. */
  setPostProcessor(post_processor: PostProcessorJson): void {
    this.json = { ...this.json, post_processor };
  }

  /**
   * Tokens and ids of one bare text, without the special tokens that stand around it.
   *
   * @param splitSpecial reads special tokens in the text as ordinary text
   */
  encode(text: string, splitSpecial: boolean): { ids: number[]; tokens: string[] } {
    // Half of a surrogate pair is no text: it becomes U+FFFD, as it would on its way to UTF-8.
    const { ids, tokens } = this.#encoder(splitSpecial).encode(text.toWellFormed(), {
      add_special_tokens: false,
    });
    const unknown = this.tokenToId(this.json.model.unk_token ?? "");
    return { ids: ids.map((id) => id ?? unknown), tokens };
  }

  #encoder(splitSpecial: boolean): Tokenizer {
    if (!splitSpecial) return this.#tokenizer;
    const added_tokens = this.json.added_tokens.filter((token) => !token.special);
    this.#plain ??= new Tokenizer(forPackage(this.json, added_tokens), {});
    return this.#plain;
  }

  /** Whether the offsets of tokens follow from their bytes: byte-level and no normalizer. */
  get spellsText(): boolean {
    const stages = [this.json.pre_tokenizer, ...(this.json.pre_tokenizer?.pretokenizers ?? [])];
    const byteLevel = stages.find((stage) => stage?.type === "ByteLevel");
    return byteLevel !== undefined && !byteLevel.add_prefix_space && this.json.normalizer === null;
  }

  /** A fresh decoder. */
  decoderSteps(): Step[] {
    return createSteps(this.json.decoder);
  }
}
