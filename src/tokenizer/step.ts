/**
 * One stage of a decoder, from tokens to text.
 *
 * @module
 */

/** Receives a piece of text that is final. */
export type Sink = (text: string) => void;

/** One stage of a decoder. */
export interface Step {
  /** Takes the next token (or, behind a fusing step, the next piece of one long text). */
  push(token: string, out: Sink): void;
  /** Passes on what was held back. */
  end(out: Sink): void;
}
