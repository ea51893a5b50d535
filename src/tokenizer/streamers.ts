/**
 * Streamers that `generate` hands its tokens to.
 *
 * @module
 */
import process from "node:process";
import { checkNames, idRow, show } from "./options.ts";
import { type DecodingTokenizer, IncrementalDecoder } from "./stream.ts";
import type { DecodeOptions, TokenIdRows, TokenIds } from "./types.ts";

/** What `generate` calls: `put` with the prompt and then with each new token, `end` at the end. */
export abstract class BaseStreamer {
  abstract put(value: TokenIds | TokenIdRows): void;
  abstract end(): void;
}

/** Options of {@linkcode TextStreamer}. */
export interface TextStreamerOptions extends DecodeOptions {
  /** Leaves out the first `put`, which is the prompt. */
  skip_prompt?: boolean;
  /** Receives the text instead of standard output. */
  callback_function?: (text: string) => void;
}

const OPTION_NAMES = [
  "skip_prompt",
  "callback_function",
  "skip_special_tokens",
  "clean_up_tokenization_spaces",
];

/** Ideographs, which are words by themselves; kana and hangul are not among them. */
const IDEOGRAPH = new RegExp(
  "[\\u4E00-\\u9FFF\\u3400-\\u4DBF\\uF900-\\uFAFF\\u{20000}-\\u{2A6DF}\\u{2A700}-\\u{2B73F}" +
    "\\u{2B740}-\\u{2CEAF}\\u{2F800}-\\u{2FA1F}]$",
  "u",
);

/** The one row of a value that `generate` puts. */
function singleRow(value: TokenIds | TokenIdRows): ArrayLike<number | bigint> {
  if (typeof value === "object" && "shape" in value) {
    if (value.shape.length > 1 && value.shape[0] !== 1) {
      throw new RangeError(
        `Expected a batch of 1 to stream as text but found ${value.shape[0]} rows.`,
      );
    }
    return idRow(value.data);
  }
  if (Array.isArray(value) && typeof value[0] === "object") {
    if (value.length !== 1) {
      throw new RangeError(
        `Expected a batch of 1 to stream as text but found ${value.length} rows.`,
      );
    }
    return idRow(value[0]);
  }
  return idRow(value as TokenIds);
}

/**
 * Prints text as soon as whole words are formed: up to the last space, at once after a line end or
 * an ideograph. Text that has been printed never changes.
 *
 * @example
 * ```ts
 * const streamer = new TextStreamer(tokenizer, { skip_prompt: true, skip_special_tokens: true });
 * await model.generate({ ...inputs, streamer });
 * ```
 */
export class TextStreamer extends BaseStreamer {
  readonly #decoder: IncrementalDecoder;
  readonly #skipPrompt: boolean;
  readonly #write: (text: string) => void;
  readonly #ownLine: boolean;
  #promptComes = true;
  #word = "";

  /** @throws {TypeError} for an unknown option */
  constructor(tokenizer: DecodingTokenizer, options: TextStreamerOptions = {}) {
    super();
    checkNames(options, OPTION_NAMES, "TextStreamer");
    const { skip_prompt = false, callback_function, ...decodeOptions } = options;
    this.#decoder = new IncrementalDecoder(tokenizer, decodeOptions);
    this.#skipPrompt = skip_prompt;
    this.#ownLine = callback_function === undefined;
    this.#write = callback_function ?? ((text) => void process.stdout.write(text));
  }

  /**
   * Takes the prompt, or new tokens.
   *
   * @throws {RangeError} when there is more than one row
   */
  put(value: TokenIds | TokenIdRows): void {
    const ids = singleRow(value);
    const isPrompt = this.#promptComes;
    this.#promptComes = false;
    if (isPrompt && this.#skipPrompt) return;
    for (let i = 0; i < ids.length; i++) this.#word += this.#decoder.push(ids[i]);
    const whole = this.#word.endsWith("\n") || IDEOGRAPH.test(this.#word);
    const end = whole ? this.#word.length : this.#word.lastIndexOf(" ") + 1;
    if (end === 0) return;
    const text = this.#word.slice(0, end);
    this.#word = this.#word.slice(end);
    this.on_finalized_text(text, false);
  }

  /** Passes on what is left and gets ready for another prompt. */
  end(): void {
    const text = this.#word + this.#decoder.end();
    this.#word = "";
    this.#promptComes = true;
    this.on_finalized_text(text, true);
  }

  /** Receives text that is final; override it to send the text elsewhere. */
  on_finalized_text(text: string, stream_end: boolean): void {
    this.#write(stream_end && this.#ownLine ? text + "\n" : text);
  }
}

/** Options of {@linkcode TextIteratorStreamer}. */
export interface TextIteratorStreamerOptions extends DecodeOptions {
  skip_prompt?: boolean;
  /** Seconds to wait for the next text before the loop throws; without it, for ever. */
  timeout?: number;
}

/**
 * Hands the text to a loop: `for await (const text of streamer)`.
 *
 * @example
 * ```ts
 * const streamer = new TextIteratorStreamer(tokenizer, { skip_prompt: true });
 * const done = model.generate({ ...inputs, streamer });
 * for await (const text of streamer) console.log(text);
 * await done;
 * ```
 */
export class TextIteratorStreamer extends TextStreamer implements AsyncIterable<string> {
  readonly #queue: (string | null)[] = []; // null marks the end of one generation
  readonly #timeout: number | undefined;
  #wake: (() => void) | undefined;
  #error: { reason: unknown } | undefined;

  /** @throws {TypeError} for an unknown option, or a timeout that is no positive number */
  constructor(tokenizer: DecodingTokenizer, options: TextIteratorStreamerOptions = {}) {
    const { timeout, ...rest } = options;
    super(tokenizer, { ...rest, callback_function: () => {} });
    if (timeout !== undefined && !(timeout > 0)) {
      throw new TypeError(
        `Expected timeout to be a number of seconds above 0 but found ${show(timeout)}.`,
      );
    }
    this.#timeout = timeout;
  }

  override on_finalized_text(text: string, stream_end: boolean): void {
    if (text !== "") this.#queue.push(text);
    if (stream_end) this.#queue.push(null);
    this.#wake?.();
  }

  /** Makes the loop throw, for a generation that failed. */
  fail(reason: unknown): void {
    this.#error = { reason };
    this.#wake?.();
  }

  async #wait(): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        this.#wake = resolve;
        if (this.#timeout === undefined) return;
        const late = () => reject(new Error(`No text came for ${this.#timeout} seconds.`));
        timer = setTimeout(late, this.#timeout * 1000);
      });
    } finally {
      clearTimeout(timer);
      this.#wake = undefined;
    }
  }

  /**
   * Pieces of text until the generation ends.
   *
   * @throws {Error} when no text comes within the timeout, or what `fail` was given
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    while (true) {
      while (this.#queue.length === 0 && !this.#error) await this.#wait();
      if (this.#queue.length === 0) {
        const { reason } = this.#error!;
        this.#error = undefined;
        throw reason;
      }
      const text = this.#queue.shift();
      if (text === null || text === undefined) return;
      yield text;
    }
  }
}
