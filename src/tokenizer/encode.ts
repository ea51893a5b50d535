/**
 * From texts to rows of ids that fit together: what a call of a tokenizer does.
 *
 * @module
 */
import type { Backend } from "./backend.ts";
import { tokenSpans } from "./byte_level.ts";
import { checkChoice, checkNames, idRow, show } from "./options.ts";
import {
  type Fit,
  paddedLength,
  padList,
  type PadSettings,
  resolveFit,
  toTensor,
  truncateTexts,
} from "./padding.ts";
import { layOut, type Row, specialCount, type Template, tokens } from "./post_processor.ts";
import type {
  Encoding,
  IntTensor,
  PadOptions,
  Text,
  TextInput,
  TokenIds,
  TokenizeOptions,
} from "./types.ts";

/** Names of the options of a call. */
export const TOKENIZE_OPTIONS = [
  "text_pair",
  "add_special_tokens",
  "padding",
  "truncation",
  "max_length",
  "pad_to_multiple_of",
  "padding_side",
  "truncation_side",
  "is_split_into_words",
  "split_special_tokens",
  "return_tensors",
  "return_attention_mask",
  "return_token_type_ids",
  "return_special_tokens_mask",
  "return_offsets_mapping",
  "return_length",
];
const PAD_OPTIONS = [
  "padding",
  "max_length",
  "pad_to_multiple_of",
  "padding_side",
  "return_attention_mask",
  "return_tensors",
];

/** What encoding needs to know of a tokenizer. */
export interface EncodingTokenizer extends PadSettings {
  backend_tokenizer: Backend;
  template: Template;
  split_special_tokens: boolean;
  model_input_names: string[];
}

/** Any encoding: of one text, a batch, or in tensors. */
export type AnyEncoding = Encoding<number[] | number[][] | IntTensor>;

interface Pair {
  a: Text;
  b: Text | null;
}

function checkText(text: unknown, words: boolean, where: string): Text {
  if (!words && typeof text === "string") return text;
  if (words && Array.isArray(text) && text.every((word) => typeof word === "string")) return text;
  const expected = words ? "a list of words" : "a text";
  const item = words && Array.isArray(text) ? text.find((word) => typeof word !== "string") : text;
  throw new TypeError(`Expected ${where} to be ${expected} but found ${show(item)}.`);
}

/** Sorts out whether the input is one text, a batch, or a batch of pairs. */
function pairsOf(text: TextInput, options: TokenizeOptions): { pairs: Pair[]; batched: boolean } {
  const words = options.is_split_into_words ?? false;
  const second = options.text_pair ?? null;
  const batched = Array.isArray(text) && (!words || Array.isArray(text[0]));
  if (!batched) {
    const a = checkText(text, words, "text");
    // An empty second text is none.
    const b = second === null || second.length === 0 ? null : checkText(second, words, "text_pair");
    return { pairs: [{ a, b }], batched };
  }
  const list = text as readonly unknown[];
  if (second !== null && !Array.isArray(second)) {
    throw new TypeError(`Expected text_pair to be a list like text but found ${show(second)}.`);
  }
  if (second !== null && second.length !== list.length) {
    throw new RangeError(
      `Expected text_pair to have as many texts as text (${list.length}) but found ` +
        `${second.length}.`,
    );
  }
  const pairs = list.map((item, i): Pair => {
    if (second !== null) {
      const b = checkText(second[i], words, `text_pair[${i}]`);
      return { a: checkText(item, words, `text[${i}]`), b };
    }
    if (!words && Array.isArray(item) && item.length === 2) { // [first, second]
      const b = checkText(item[1], false, `text[${i}][1]`);
      return { a: checkText(item[0], false, `text[${i}][0]`), b };
    }
    return { a: checkText(item, words, `text[${i}]`), b: null };
  });
  return { pairs, batched };
}

function encodeText(tokenizer: EncodingTokenizer, text: Text, options: TokenizeOptions): Row {
  const backend = tokenizer.backend_tokenizer;
  const split = options.split_special_tokens ?? tokenizer.split_special_tokens;
  const parts = typeof text === "string" ? [text] : text;
  const offsets = options.return_offsets_mapping ?? false;
  if (offsets && !backend.spellsText) {
    throw new TypeError(
      "Offsets are known only for byte-level tokenizers without normalizer or added space.",
    );
  }
  // Lists are joined by flat: to spread a long one would exceed the call stack.
  const encoded = parts.map((part) => ({ part, ...backend.encode(part, split) }));
  const isAdded = (token: string) => !split && backend.isAdded(token);
  const spans = offsets
    ? encoded.map(({ part, tokens }) => tokenSpans(tokens, part.toWellFormed(), isAdded)).flat()
    : undefined;
  return tokens(encoded.map(({ ids }) => ids).flat(), 0, spans);
}

function encodePair(
  tokenizer: EncodingTokenizer,
  pair: Pair,
  fit: Fit,
  options: TokenizeOptions,
): Row {
  const addSpecial = options.add_special_tokens ?? true;
  const pieces = pair.b === null ? tokenizer.template.single : tokenizer.template.pair;
  const [a, b] = truncateTexts(
    encodeText(tokenizer, pair.a, options),
    pair.b === null ? null : encodeText(tokenizer, pair.b, options),
    fit,
    addSpecial ? specialCount(pieces) : 0,
  );
  return layOut(pieces, a, b, addSpecial);
}

function checkTensors(value: unknown): boolean {
  if (value === undefined || value === null) return false;
  checkChoice(value, ["pt", "np", "ts"], "return_tensors");
  return true;
}

/**
 * Encodes a text, a batch, or a batch of pairs.
 *
 * @throws {TypeError} for input that is no text, an unknown option, or padding without a pad token
 * @throws {RangeError} for lengths that cannot be, or rows of several lengths where a tensor was
 * asked for
 */
export function encodeBatch(
  tokenizer: EncodingTokenizer,
  text: TextInput,
  options: TokenizeOptions,
): AnyEncoding {
  checkNames(options, TOKENIZE_OPTIONS, "The tokenizer");
  const asTensors = checkTensors(options.return_tensors);
  const fit = resolveFit(options, tokenizer);
  const { pairs, batched } = pairsOf(text, options);
  const rows = pairs.map((pair) => encodePair(tokenizer, pair, fit, options));

  const length = paddedLength(rows.map((row) => row.ids.length), fit);
  const fill = <T>(lists: T[][], value: T) =>
    lists.map((list) => padList(list, length, fit.padding_side, value));
  const wanted = (asked: boolean | null | undefined, name: string) =>
    asked ?? tokenizer.model_input_names.includes(name);

  const input_ids = fill(rows.map((row) => row.ids), tokenizer.pad_token_id ?? 0);
  const lists: Record<string, number[][]> = { input_ids };
  if (wanted(options.return_token_type_ids, "token_type_ids")) {
    lists.token_type_ids = fill(rows.map((row) => row.types), tokenizer.pad_token_type_id);
  }
  if (wanted(options.return_attention_mask, "attention_mask")) {
    lists.attention_mask = fill(rows.map((row) => row.ids.map(() => 1)), 0);
  }
  if (options.return_special_tokens_mask) {
    lists.special_tokens_mask = fill(rows.map((row) => row.special), 1);
  }
  const shaped = <T>(list: T[]): T | T[] => batched || asTensors ? list : list[0];
  const encoding: Record<string, unknown> = {};
  for (const [name, list] of Object.entries(lists)) {
    encoding[name] = asTensors ? toTensor(list, name) : shaped(list);
  }
  if (options.return_offsets_mapping) {
    encoding.offset_mapping = shaped(fill(rows.map((row) => row.spans!), [0, 0]));
  }
  if (options.return_length) encoding.length = shaped(input_ids.map((list) => list.length));
  return encoding as AnyEncoding;
}

type Rows = TokenIds | readonly TokenIds[] | IntTensor;

/** Any form of rows as lists, and whether it was a batch. */
function listsOf(value: Rows, name: string): { rows: number[][]; batched: boolean } {
  const list = (row: TokenIds) => Array.from(idRow(row), Number);
  if (typeof value === "object" && value !== null && "shape" in value) {
    const [rows, length] = value.shape;
    const cut = (i: number) => Array.from(value.data.subarray(i * length, (i + 1) * length));
    return { rows: Array.from({ length: rows }, (_, i) => cut(i)), batched: true };
  }
  if (Array.isArray(value) && (typeof value[0] === "object" || value.length === 0)) {
    return { rows: value.map(list), batched: true };
  }
  if (value === undefined || value === null) {
    throw new TypeError(`Expected every encoding to have ${name} but found one without.`);
  }
  return { rows: [list(value as TokenIds)], batched: false };
}

/**
 * Pads encodings that exist already.
 *
 * @throws {TypeError} when there are no `input_ids`, or no pad token
 * @throws {RangeError} when lists differ in their number of rows
 */
export function padEncodings(
  tokenizer: EncodingTokenizer,
  encoded: Record<string, Rows> | readonly Record<string, Rows>[],
  options: PadOptions,
): AnyEncoding {
  checkNames(options, PAD_OPTIONS, "pad");
  const asTensors = checkTensors(options.return_tensors);
  const fit = resolveFit({ padding: true, ...options, truncation: false }, tokenizer);
  let fields: Record<string, Rows>;
  if (Array.isArray(encoded)) {
    const names = Object.keys(encoded[0] ?? { input_ids: [] });
    fields = Object.fromEntries(
      names.map((name) => [name, encoded.map((item) => item[name]) as unknown as Rows]),
    );
  } else fields = encoded as Record<string, Rows>;
  if (fields.input_ids === undefined) {
    throw new TypeError(
      `Expected the encoding to have input_ids but found only ${
        Object.keys(fields).join(", ") || "nothing"
      }.`,
    );
  }
  const { rows, batched } = listsOf(fields.input_ids, "input_ids");
  const mask = options.return_attention_mask ??
    tokenizer.model_input_names.includes("attention_mask");
  const length = paddedLength(rows.map((row) => row.length), fit);
  const fillers: Record<string, number> = {
    input_ids: tokenizer.pad_token_id ?? 0,
    attention_mask: 0,
    token_type_ids: tokenizer.pad_token_type_id,
    special_tokens_mask: 1,
  };
  const lists: Record<string, number[][]> = {};
  for (const [name, value] of Object.entries(fields)) {
    const list = listsOf(value, name).rows;
    if (list.length !== rows.length) {
      throw new RangeError(
        `Expected ${name} to have ${rows.length} rows but found ${list.length}.`,
      );
    }
    lists[name] = list;
  }
  if (mask) lists.attention_mask ??= rows.map((row) => row.map(() => 1));
  const encoding: Record<string, unknown> = {};
  for (const [name, list] of Object.entries(lists)) {
    const filler = fillers[name];
    const full = filler === undefined
      ? list
      : list.map((row) => padList(row, length, fit.padding_side, filler));
    encoding[name] = asTensors ? toTensor(full, name) : batched ? full : full[0];
  }
  return encoding as AnyEncoding;
}
