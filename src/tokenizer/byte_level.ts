/**
 * Byte-level tokens: every byte of the text is one printable character of the token.
 *
 * @module
 */
import type { Sink, Step } from "./step.ts";

/**
 * Characters of the byte alphabet; printable Latin-1 stands for itself, the rest starts at U+0100.
 */
const BYTE_OF = new Map<string, number>();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173);
  BYTE_OF.set(String.fromCharCode(printable ? byte : next++), byte);
}

/** The characters of the byte alphabet, that of byte n at n. */
export function byteAlphabet(): string[] {
  return [...BYTE_OF.keys()];
}

const UTF8 = new TextEncoder();

/**
 * The bytes of a token; a token with a character outside the byte alphabet is taken as plain text.
 */
export function tokenBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTE_OF.get(token[i]);
    if (byte === undefined) return UTF8.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

/** Lowest and highest allowed second byte of a UTF-8 sequence. */
function secondByteRange(lead: number): [number, number] {
  if (lead === 0xe0) return [0xa0, 0xbf];
  if (lead === 0xed) return [0x80, 0x9f];
  if (lead === 0xf0) return [0x90, 0xbf];
  if (lead === 0xf4) return [0x80, 0x8f];
  return [0x80, 0xbf];
}

/**
 * How many bytes at the end are the valid beginning of a character whose rest is still to come.
 *
 * @returns 0 to 3
 */
export function incompleteSuffix(bytes: Uint8Array): number {
  const n = bytes.length;
  for (let back = 1; back <= Math.min(3, n); back++) {
    const byte = bytes[n - back];
    if (byte < 0x80) return 0;
    if (byte < 0xc0) continue; // a continuation byte: the lead lies further back
    const length = byte < 0xc2 || byte > 0xf4 ? 0 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    if (back >= length) return 0;
    if (back >= 2) {
      const [low, high] = secondByteRange(byte);
      if (bytes[n - back + 1] < low || bytes[n - back + 1] > high) return 0;
    }
    return back;
  }
  return 0;
}

/** Tokens of printable ASCII, which stands for itself, and U+0120, which stands for the space. */
const ASCII_WORD = /^[!-~\u0120]*$/;

/** Joins the bytes of tokens and passes on whole characters; invalid bytes become U+FFFD. */
export class ByteLevelStep implements Step {
  #held = new Uint8Array(0);
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  push(token: string, out: Sink): void {
    if (this.#held.length === 0 && ASCII_WORD.test(token)) { // most tokens; saves the bytes
      out(token.replaceAll("\u0120", " "));
      return;
    }
    let bytes = tokenBytes(token);
    if (this.#held.length > 0) {
      const joined = new Uint8Array(this.#held.length + bytes.length);
      joined.set(this.#held);
      joined.set(bytes, this.#held.length);
      bytes = joined;
    }
    const cut = bytes.length - incompleteSuffix(bytes);
    this.#held = bytes.slice(cut);
    if (cut > 0) out(this.#utf8.decode(bytes.subarray(0, cut)));
  }

  end(out: Sink): void {
    if (this.#held.length > 0) out(this.#utf8.decode(this.#held));
    this.#held = new Uint8Array(0);
  }
}

/**
 * Where each token lies in its text.
 *
 * @param tokens the tokens of `text`, in order
 * @param text the text, which no normalizer has changed
 * @param isAdded whether a token is an added token, which stands for itself
 * @returns [start, end) of each token in UTF-16 units; a token holding part of a character spans
 * all of it
 * @throws {Error} when the tokens do not spell the text
 */
export function tokenSpans(
  tokens: readonly string[],
  text: string,
  isAdded: (token: string) => boolean,
): [number, number][] {
  const unitOf: number[] = []; // for each byte, the UTF-16 unit at which its character starts
  const endOf: number[] = []; // and the unit behind that character
  for (let unit = 0; unit < text.length;) {
    const code = text.codePointAt(unit)!;
    const units = code > 0xffff ? 2 : 1;
    const bytes = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (let i = 0; i < bytes; i++) {
      unitOf.push(unit);
      endOf.push(unit + units);
    }
    unit += units;
  }
  let at = 0; // in bytes
  const spans = tokens.map((token): [number, number] => {
    const added = isAdded(token);
    if (added) { // an added token may swallow the white space before it
      const found = text.indexOf(token, unitOf[at] ?? text.length);
      while (at < unitOf.length && unitOf[at] < found) at++;
    }
    const start = at;
    at += added ? UTF8.encode(token).length : tokenBytes(token).length;
    const span: [number, number] = [unitOf[start] ?? text.length, endOf[at - 1] ?? 0];
    if (added && text.slice(...span) !== token) at = Infinity;
    return span;
  });
  if (at > unitOf.length || tokens.length > 0 && /\S/.test(text.slice(unitOf[at] ?? text.length))) {
    throw new Error("The offsets of tokens are known only where the tokens spell out the text.");
  }
  return spans;
}
