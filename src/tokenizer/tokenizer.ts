/**
 * The tokenizer, with the meaning of Hugging Face's `PreTrainedTokenizerFast`.
 *
 * @module
 */
import { Backend, type TokenizerJson } from "./backend.ts";
import { type ChatMessage } from "./chat_template.ts";
import { applyChatTemplate, type ChatTemplateOptions } from "./chat.ts";
import { StepChain } from "./decoder.ts";
import { encodeBatch, padEncodings, TOKENIZE_OPTIONS } from "./encode.ts";
import { folderPath, type TokenizerFiles, writeFolder } from "./load.ts";
import { checkNames, checkSide, idRow, show } from "./options.ts";
import { NO_MAX_LENGTH } from "./padding.ts";
import { bosEosProcessor, createTemplate, specialCount, type Template } from "./post_processor.ts";
import { SPECIAL_TOKEN_NAMES, SpecialTokens, toAddedToken, tokenText } from "./special_tokens.ts";
import { IncrementalDecoder } from "./stream.ts";
import type {
  AddedToken,
  DecodeOptions,
  EncodedAs,
  Encoding,
  PadOptions,
  Side,
  Text,
  TextInput,
  TokenIdRows,
  TokenIds,
  TokenizeOptions,
  TokenizerInit,
} from "./types.ts";

const DECODE_OPTIONS = ["skip_special_tokens", "clean_up_tokenization_spaces"];

type TokenValue = string | AddedToken;

/** The call itself: `tokenizer("text")`, `tokenizer(["a", "b"], { padding: true })`. */
export interface PreTrainedTokenizer {
  <const I extends TextInput, const O extends TokenizeOptions = Record<never, never>>(
    text: I,
    options?: O,
  ): Encoding<EncodedAs<I, O>>;
}

/**
 * Turns text into token ids and back.
 *
 * @example
 * ```ts
 * const tokenizer = await AutoTokenizer.from_pretrained("models/bamba-wordnet-8m");
 * const { input_ids } = tokenizer("a small dog is");
 * tokenizer.decode(input_ids, { skip_special_tokens: true }); // "a small dog is"
 * ```
 */
export class PreTrainedTokenizer extends SpecialTokens {
  /** Where it was loaded from. */
  name_or_path: string;
  /** Longest input in tokens that the model was trained for; 1e30 when it has none. */
  model_max_length: number;
  /** Which side of a short row is filled up. */
  padding_side: Side;
  /** Which side of a long text is cut off. */
  truncation_side: Side;
  /** Segment number of padding. */
  pad_token_type_id: number;
  /** Names of what a call returns when it is not told. */
  model_input_names: string[];
  clean_up_tokenization_spaces: boolean;
  clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output: boolean;
  /** Reads special tokens in a text as ordinary text. */
  split_special_tokens: boolean;
  /** The chat template, or several by name. */
  chat_template: string | Record<string, string> | null;

  #template: Template;
  #addBos = false;
  #addEos = false;
  readonly #original: { json: TokenizerJson; text: string };
  readonly #init: Record<string, unknown>;

  /**
   * `AutoTokenizer.from_pretrained` is the usual way here.
   *
   * @throws {TypeError} when the files contradict themselves or a value is of another type
   */
  constructor(files: TokenizerFiles) {
    super(new Backend(files.json));
    const { json, init } = files;
    this.#original = { json, text: files.jsonText };
    this.#init = init;
    this.name_or_path = init.name_or_path ?? "";
    this.model_max_length = init.model_max_length ?? NO_MAX_LENGTH;
    const direction = (set?: { direction?: string } | null) => set?.direction?.toLowerCase();
    this.padding_side = checkSide(
      init.padding_side ?? direction(json.padding) ?? "right",
      "padding_side",
    );
    this.truncation_side = checkSide(
      init.truncation_side ?? direction(json.truncation) ?? "right",
      "truncation_side",
    );
    this.pad_token_type_id = init.pad_token_type_id ?? json.padding?.pad_type_id ?? 0;
    this.model_input_names = init.model_input_names ?? ["input_ids", "attention_mask"];
    this.clean_up_tokenization_spaces = init.clean_up_tokenization_spaces ?? false;
    this.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output =
      init.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output ?? false;
    this.split_special_tokens = init.split_special_tokens ?? false;
    this.chat_template = init.chat_template ?? null;
    this.#nameSpecialTokens(init, json.padding?.pad_token, files.addedTokens);

    this.#template = createTemplate(json.post_processor);
    this.#addBos = init.add_bos_token ?? false;
    this.#addEos = init.add_eos_token ?? false;
    const asked = init.add_bos_token !== undefined || init.add_eos_token !== undefined;
    if (asked || json.post_processor === null) this.#updatePostProcessor();
  }

  /** Names the special tokens of a config, and adds those that the vocabulary lacks. */
  #nameSpecialTokens(
    init: TokenizerInit & Record<string, unknown>,
    padToken: string | undefined,
    addedTokens: readonly AddedToken[],
  ): void {
    const standard: readonly string[] = SPECIAL_TOKEN_NAMES;
    const named = new Map<string, TokenValue>();
    for (const [name, value] of Object.entries(init)) {
      if (!name.endsWith("_token") || value === null || value === undefined) continue;
      const isToken = typeof value === "string" ||
        typeof (value as AddedToken).content === "string";
      if (isToken) named.set(name, value as TokenValue);
      else if (standard.includes(name)) {
        throw new TypeError(`Expected ${name} to be a text but found ${show(value)}.`);
      }
    }
    if (padToken !== undefined && !named.has("pad_token")) named.set("pad_token", padToken);
    const listed = init.extra_special_tokens ?? [];
    if (!Array.isArray(listed)) {
      for (const [name, token] of Object.entries(listed)) named.set(name, token);
    }
    const hasList = Array.isArray(listed) && listed.length > 0;
    const extra = hasList ? listed : init.additional_special_tokens ?? [];

    for (const [name, token] of named) this.set_special_token(name, tokenText(token));
    this.extra_special_tokens = extra.map(tokenText);
    const special = new Set([...named.values()].map(tokenText));
    // The config's flags win over those of tokenizer.json; a special token that is there stays as
    // it is.
    const backend = this.backend_tokenizer;
    this.add_tokens([
      ...addedTokens.map((token) =>
        special.has(token.content) && !backend.isAdded(token.content)
          ? { ...token, special: true }
          : token
      ),
      ...[...named.values(), ...extra].map(toAddedToken).filter(({ content }) =>
        !backend.isAdded(content) && !addedTokens.some((token) => token.content === content)
      ),
    ]);
  }

  #updatePostProcessor(): void {
    const named = (token: string | null, id: number | null) =>
      token === null || id === null ? undefined : { token, id };
    const bos = this.#addBos ? named(this.bos_token, this.bos_token_id) : undefined;
    const eos = this.#addEos ? named(this.eos_token, this.eos_token_id) : undefined;
    this.#addBos = bos !== undefined;
    this.#addEos = eos !== undefined;
    const json = bosEosProcessor(bos, eos);
    this.backend_tokenizer.setPostProcessor(json);
    this.#template = createTemplate(json);
  }

  /**
   * Whether begin-of-text is put before each text because this was asked for. False for a tokenizer
   * whose tokenizer.json puts it there. Setting it replaces what tokenizer.json says, as in Hugging
   * Face.
   */
  get add_bos_token(): boolean {
    return this.#addBos;
  }
  set add_bos_token(add: boolean) {
    this.#addBos = add;
    this.#updatePostProcessor();
  }

  /** The same for end-of-text behind each text. */
  get add_eos_token(): boolean {
    return this.#addEos;
  }
  set add_eos_token(add: boolean) {
    this.#addEos = add;
    this.#updatePostProcessor();
  }

  /** Layout of special tokens around one text and around a pair. */
  get template(): Template {
    return this.#template;
  }

  /** Number of special tokens that a call adds to one text, or to a pair. */
  num_special_tokens_to_add(pair = false): number {
    return specialCount(pair ? this.#template.pair : this.#template.single);
  }

  /** What a call does; HF's `__call__`. */
  protected call_(text: TextInput, options: TokenizeOptions = {}): unknown {
    return encodeBatch(this, text, options);
  }

  /**
   * Ids of one text.
   *
   * @throws {TypeError} when the text is no string, or for an unknown option
   */
  encode(text: Text, options: Omit<TokenizeOptions, "return_tensors"> = {}): number[] {
    const split = typeof text !== "string";
    const { input_ids } = encodeBatch(this, text, { ...options, is_split_into_words: split });
    return input_ids as number[];
  }

  /** Tokens of one text; byte-level tokens look like `Ġdog`. */
  tokenize(
    text: string,
    options: { text_pair?: string; add_special_tokens?: boolean } = {},
  ): string[] {
    checkNames(options, TOKENIZE_OPTIONS, "tokenize");
    const ids = this.encode(text, { add_special_tokens: false, ...options });
    return this.convert_ids_to_tokens(ids).map((token) => token ?? "");
  }

  /**
   * Fills up rows that are already encoded.
   *
   * @param encoded one encoding, a batch, or a list of encodings
   * @throws {TypeError} when there are no `input_ids`, or no pad token
   */
  pad<O extends PadOptions>(
    encoded: object | readonly object[],
    options?: O,
  ): Encoding<O extends { return_tensors: string } ? import("./types.ts").IntTensor : number[][]> {
    // deno-lint-ignore no-explicit-any
    return padEncodings(this, encoded as any, options ?? {}) as any;
  }

  /**
   * Text of ids; of several rows, a list of texts.
   *
   * @throws {TypeError} when an id is no integer, or for an unknown option
   * @throws {RangeError} when an id is out of range
   */
  decode(ids: TokenIds, options?: DecodeOptions): string;
  decode(ids: TokenIdRows, options?: DecodeOptions): string[];
  decode(ids: TokenIds | TokenIdRows, options: DecodeOptions = {}): string | string[] {
    checkNames(options, DECODE_OPTIONS, "decode");
    if (typeof ids === "object" && ids !== null && "shape" in ids) {
      const data = idRow(ids.data);
      const [rows, tokens] = ids.shape.length > 1 ? ids.shape : [1, data.length];
      const cut = (i: number) => Array.prototype.slice.call(data, i * tokens, (i + 1) * tokens);
      const texts = Array.from({ length: rows }, (_, i) => this.#decodeRow(cut(i), options));
      return ids.shape.length > 1 ? texts : texts[0];
    }
    if (Array.isArray(ids) && typeof ids[0] === "object") {
      return ids.map((row) => this.#decodeRow(idRow(row), options));
    }
    return this.#decodeRow(idRow(ids as TokenIds), options);
  }

  #decodeRow(ids: ArrayLike<number | bigint>, options: DecodeOptions): string {
    const decoder = new IncrementalDecoder(this, options);
    let text = "";
    for (let i = 0; i < ids.length; i++) text += decoder.push(ids[i]);
    return text + decoder.end();
  }

  /** Texts of several rows of ids; one row of ids gives a list of one text. */
  batch_decode(rows: TokenIds | TokenIdRows, options: DecodeOptions = {}): string[] {
    if (Array.isArray(rows) && rows.length === 0) return [];
    const texts = this.decode(rows as TokenIdRows, options) as string | string[];
    return typeof texts === "string" ? [texts] : texts;
  }

  /** Text of tokens, special ones included. */
  convert_tokens_to_string(tokens: readonly string[]): string {
    const chain = new StepChain(this.backend_tokenizer.decoderSteps());
    for (const token of tokens) chain.push(token);
    chain.end();
    return chain.take();
  }

  /**
   * A conversation as the model was trained to see it: ids by default, text with `tokenize: false`.
   *
   * @param conversation messages of one chat, or of several
   * @throws {TypeError} when there is no template, or options contradict each other
   * @throws {TemplateError} when the template fails or refuses the conversation
   */
  apply_chat_template<const O extends ChatTemplateOptions = Record<never, never>>(
    conversation: readonly ChatMessage[],
    options?: O,
  ): ChatResult<O, number[], string>;
  apply_chat_template<const O extends ChatTemplateOptions = Record<never, never>>(
    conversation: readonly (readonly ChatMessage[])[],
    options?: O,
  ): ChatResult<O, number[][], string[]>;
  apply_chat_template(
    conversation: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
    options: ChatTemplateOptions = {},
    // deno-lint-ignore no-explicit-any
  ): any {
    return applyChatTemplate(this, conversation, options);
  }

  /**
   * Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat templates.
   *
   * @returns the paths of the files
   */
  save_pretrained(folder: string | URL): Promise<string[]> {
    const { name_or_path: _, ...config } = this.#init;
    delete config.chat_template;
    const json = this.backend_tokenizer.json;
    const special = this.special_tokens_map;
    const extra = this.extra_special_tokens;
    const current = {
      ...special,
      ...(extra.length > 0 ? { extra_special_tokens: extra } : {}),
      model_max_length: this.model_max_length,
      padding_side: this.padding_side,
      truncation_side: this.truncation_side,
      model_input_names: this.model_input_names,
      clean_up_tokenization_spaces: this.clean_up_tokenization_spaces,
      split_special_tokens: this.split_special_tokens,
    };
    for (const name of Object.keys(config)) if (name.endsWith("_token")) delete config[name];
    delete config.additional_special_tokens;
    delete config.extra_special_tokens;
    return writeFolder(folderPath(folder), {
      jsonText: json === this.#original.json ? this.#original.text : JSON.stringify(json, null, 2),
      config: { tokenizer_class: "PreTrainedTokenizerFast", ...config, ...current },
      special_tokens_map: special,
      chat_template: this.chat_template,
    });
  }
}

/** What `apply_chat_template` returns for its options. */
export type ChatResult<O, Ids, Texts> = O extends { tokenize: false } ? Texts
  : O extends { return_tensors: string }
    ? (O extends { return_dict: false } ? import("./types.ts").IntTensor
      : Encoding<import("./types.ts").IntTensor>)
  : O extends { return_dict: false } ? Ids
  : Encoding<Ids>;
