/**
 * Decoding while tokens arrive.
 *
 * @module
 */
import type { Backend } from "./backend.ts";
import { CleanUpStep, StepChain } from "./decoder.ts";
import { checkId } from "./options.ts";
import type { Step } from "./step.ts";
import type { DecodeOptions } from "./types.ts";

/** What a decoder needs of a tokenizer. */
export interface DecodingTokenizer {
  backend_tokenizer: Backend;
  clean_up_tokenization_spaces: boolean;
  clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output: boolean;
}

/** Whether decoding removes spaces before punctuation: never for BPE, which it would corrupt. */
function cleansUp(tokenizer: DecodingTokenizer, options: DecodeOptions): boolean {
  const asked = options.clean_up_tokenization_spaces ?? tokenizer.clean_up_tokenization_spaces;
  return asked && (tokenizer.backend_tokenizer.model_type !== "BPE" ||
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output);
}

/**
 * Turns token ids into text as they come. What `push` has returned never changes, half a character
 * is held back until it is whole, and all pieces joined are exactly `tokenizer.decode` of all ids.
 * The work for a token does not grow with the tokens before it.
 *
 * @example
 * ```ts
 * const decoder = new IncrementalDecoder(tokenizer, { skip_special_tokens: true });
 * for (const id of ids) process.stdout.write(decoder.push(id));
 * process.stdout.write(decoder.end());
 * ```
 */
export class IncrementalDecoder {
  readonly #backend: Backend;
  readonly #skip: boolean;
  readonly #fresh: () => StepChain;
  #chain: StepChain;

  constructor(tokenizer: DecodingTokenizer, options: DecodeOptions = {}) {
    this.#backend = tokenizer.backend_tokenizer;
    this.#skip = options.skip_special_tokens ?? false;
    const cleanUp = cleansUp(tokenizer, options);
    this.#fresh = () => {
      const steps: Step[] = this.#backend.decoderSteps();
      return new StepChain(cleanUp ? [...steps, new CleanUpStep()] : steps);
    };
    this.#chain = this.#fresh();
  }

  /**
   * Takes the next token.
   *
   * @returns the text that is now final, often one word, sometimes none
   * @throws {TypeError} when the id is no integer
   * @throws {RangeError} when the id is out of range
   */
  push(id: number | bigint): string {
    const checked = checkId(id, this.#backend.idEnd);
    if (this.#skip && this.#backend.specialIds.has(checked)) return "";
    const token = this.#backend.idToToken(checked);
    if (token === undefined) return ""; // a hole in the vocabulary has no text
    this.#chain.push(token);
    return this.#chain.take();
  }

  /**
   * Ends the text: half a character becomes U+FFFD. The decoder can be used again for another text.
   *
   * @returns the text that was held back
   */
  end(): string {
    this.#chain.end();
    const rest = this.#chain.take();
    this.#chain = this.#fresh();
    return rest;
  }
}
