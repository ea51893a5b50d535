/**
 * Truncation and padding, which make the rows of a batch fit.
 *
 * @module
 */
import { checkChoice, checkCount, checkSide } from "./options.ts";
import type { Row } from "./post_processor.ts";
import type { IntTensor, PadOptions, Side, Truncation } from "./types.ts";

/**
 * `model_max_length` of a tokenizer that has no limit, and the bound above which one counts as
 * none.
 */
export const NO_MAX_LENGTH = 1e30;
const LARGE_LENGTH = 1e20;

/** What padding needs to know of a tokenizer. */
export interface PadSettings {
  model_max_length: number;
  padding_side: Side;
  truncation_side: Side;
  pad_token: string | null;
  pad_token_id: number | null;
  pad_token_type_id: number;
}

/** Options with every default resolved. */
export interface Fit {
  pad: "longest" | "max_length" | "do_not_pad";
  truncate: "longest_first" | "only_first" | "only_second" | "do_not_truncate";
  /** In tokens; undefined where neither padding nor truncation has one. */
  max_length: number | undefined;
  multiple: number;
  padding_side: Side;
  truncation_side: Side;
}

type FitOptions = PadOptions & { truncation?: Truncation | null; truncation_side?: Side | null };

/**
 * Resolves padding and truncation as Hugging Face does: a lone `max_length` truncates; without a
 * length, `model_max_length` is it, and a model without limit neither pads to it nor truncates.
 *
 * @throws {TypeError} when padding is asked for and there is no pad token, or a choice is not known
 * @throws {RangeError} when a length is not a whole number, or no multiple of `pad_to_multiple_of`
 */
export function resolveFit(options: FitOptions, settings: PadSettings): Fit {
  const { padding = false } = options;
  const choices = [true, false, "longest", "max_length", "do_not_pad"] as const;
  const chosenPad = checkChoice(padding, choices, "padding");
  let pad: Fit["pad"] = chosenPad === true
    ? "longest"
    : chosenPad === false
    ? "do_not_pad"
    : chosenPad;

  let max_length = options.max_length == null
    ? undefined
    : checkCount(options.max_length, 0, "max_length");
  let truncation = options.truncation;
  if (max_length !== undefined && padding === false && truncation == null) truncation = true;
  const cuts = ["longest_first", "only_first", "only_second", "do_not_truncate"] as const;
  const chosenCut = checkChoice(truncation ?? false, [true, false, ...cuts], "truncation");
  let truncate: Fit["truncate"] = chosenCut === true
    ? "longest_first"
    : chosenCut === false
    ? "do_not_truncate"
    : chosenCut;

  if (max_length === undefined && (pad === "max_length" || truncate !== "do_not_truncate")) {
    if (settings.model_max_length <= LARGE_LENGTH) max_length = settings.model_max_length;
    else {
      if (pad === "max_length") pad = "do_not_pad";
      truncate = "do_not_truncate";
    }
  }
  if (pad !== "do_not_pad" && settings.pad_token_id === null) {
    throw new TypeError(
      settings.pad_token === null
        ? "Cannot pad because this tokenizer has no pad token. Choose one, for example with " +
          "tokenizer.pad_token = tokenizer.eos_token, or add one with " +
          'tokenizer.add_special_tokens({ pad_token: "<|pad|>" }).'
        : `Cannot pad because the pad token "${settings.pad_token}" is not in the vocabulary.`,
    );
  }
  const multiple = options.pad_to_multiple_of == null
    ? 1
    : checkCount(options.pad_to_multiple_of, 1, "pad_to_multiple_of");
  if (
    pad !== "do_not_pad" && truncate !== "do_not_truncate" && max_length !== undefined &&
    max_length % multiple !== 0
  ) {
    throw new RangeError(
      `Expected max_length to be a multiple of pad_to_multiple_of (${multiple}) when both ` +
        `truncation and padding are on, but found ${max_length}.`,
    );
  }
  return {
    pad,
    truncate,
    max_length,
    multiple,
    padding_side: checkSide(options.padding_side ?? settings.padding_side, "padding_side"),
    truncation_side: checkSide(
      options.truncation_side ?? settings.truncation_side,
      "truncation_side",
    ),
  };
}

function cut(row: Row, length: number, side: Side): Row {
  const excess = row.ids.length - length;
  if (excess <= 0) return row;
  const part = <T>(list: T[]) => side === "right" ? list.slice(0, length) : list.slice(excess);
  return {
    ids: part(row.ids),
    types: part(row.types),
    special: part(row.special),
    spans: row.spans && part(row.spans),
  };
}

/**
 * Cuts one text, or both of a pair, so that together with `reserved` special tokens they fit.
 *
 * @param reserved special tokens that will be added around the texts
 * @throws {RangeError} when the special tokens alone do not fit, or the one text that may be cut is
 * too short
 */
export function truncateTexts(
  a: Row,
  b: Row | null,
  fit: Fit,
  reserved: number,
): [Row, Row | null] {
  if (fit.truncate === "do_not_truncate" || fit.max_length === undefined) return [a, b];
  const room = fit.max_length - reserved;
  if (room < 0) {
    throw new RangeError(
      `Expected max_length to leave room for the ${reserved} special tokens but found ` +
        `${fit.max_length}.`,
    );
  }
  const excess = a.ids.length + (b?.ids.length ?? 0) - room;
  if (excess <= 0) return [a, b];
  const side = fit.truncation_side;
  if (room === 0) return [cut(a, 0, side), b && cut(b, 0, side)];
  if (fit.truncate === "longest_first") {
    if (!b) return [cut(a, room, side), null];
    // The shorter text stays whole while it is no longer than half of the room.
    const half = Math.floor(room / 2);
    const firstIsShorter = a.ids.length <= b.ids.length;
    const shorter = Math.min(a.ids.length, b.ids.length);
    const keepShorter = shorter <= half ? shorter : half;
    const keepLonger = room - keepShorter;
    return firstIsShorter
      ? [cut(a, keepShorter, side), cut(b, keepLonger, side)]
      : [cut(a, keepLonger, side), cut(b, keepShorter, side)];
  }
  const target = fit.truncate === "only_first" ? a : b;
  if (!target) {
    throw new TypeError('Expected a text_pair for truncation "only_second" but found none.');
  }
  if (target.ids.length <= excess) {
    throw new RangeError(
      `Cannot remove ${excess} tokens with truncation "${fit.truncate}" because that text has ` +
        `only ${target.ids.length}.`,
    );
  }
  const kept = cut(target, target.ids.length - excess, side);
  return target === a ? [kept, b] : [a, kept];
}

/** The length, in tokens, to which rows are padded; undefined for no padding. */
export function paddedLength(lengths: readonly number[], fit: Fit): number | undefined {
  if (fit.pad === "do_not_pad") return undefined;
  const longest = lengths.reduce((max, length) => Math.max(max, length), 0);
  const length = fit.pad === "longest" ? longest : fit.max_length!;
  return Math.ceil(length / fit.multiple) * fit.multiple;
}

/** A list extended to a length on one side; a longer list stays as it is. */
export function padList<T>(list: T[], length: number | undefined, side: Side, value: T): T[] {
  const missing = (length ?? 0) - list.length;
  if (missing <= 0) return list;
  const filler = new Array<T>(missing).fill(value);
  return side === "right" ? [...list, ...filler] : [...filler, ...list];
}

/**
 * Rows of one length as a tensor.
 *
 * @throws {RangeError} when the rows differ in length
 */
export function toTensor(rows: readonly (readonly number[])[], name: string): IntTensor {
  const tokens = rows[0]?.length ?? 0;
  const odd = rows.find((row) => row.length !== tokens);
  if (odd) {
    throw new RangeError(
      `Expected every row of ${name} to have ${tokens} tokens for a tensor but found one with ` +
        `${odd.length}. Use padding: true, and truncation: true if rows may be too long.`,
    );
  }
  const data = new Int32Array(rows.length * tokens);
  rows.forEach((row, i) => data.set(row, i * tokens));
  return { data, shape: [rows.length, tokens] };
}
