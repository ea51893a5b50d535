/**
 * What a tokenizer puts around a text: begin-of-text, separators, and the segment number of each
 * token.
 *
 * @module
 */

/** A post-processor as tokenizer.json describes it. */
export interface PostProcessorJson {
  type: string;
  // deno-lint-ignore no-explicit-any
  [field: string]: any;
}

/** A piece of a template: the first text, the second, or special tokens. */
export type Piece = { text: "A" | "B"; type: number } | { special: number[]; type: number };

/** How one text and how a pair of texts is laid out. */
export interface Template {
  single: Piece[];
  pair: Piece[];
}

/** One encoded text; all lists are as long as `ids`. */
export interface Row {
  ids: number[];
  /** Segment of each token. */
  types: number[];
  /** 1 where the tokenizer, not the text, brought the token. */
  special: number[];
  /** [start, end) in the text, in UTF-16 units. */
  spans?: [number, number][];
}

const A: Piece = { text: "A", type: 0 };
const PLAIN: Template = { single: [A], pair: [A, { text: "B", type: 1 }] };

// deno-lint-ignore no-explicit-any
function templatePiece(piece: any, specials: any): Piece {
  if (piece.Sequence) {
    return { text: piece.Sequence.id === "B" ? "B" : "A", type: piece.Sequence.type_id ?? 0 };
  }
  const { id, type_id = 0 } = piece.SpecialToken ?? {};
  const ids = specials?.[id]?.ids;
  if (!Array.isArray(ids)) {
    throw new TypeError(`The post-processor of tokenizer.json uses "${id}" but gives it no ids.`);
  }
  return { special: ids, type: type_id };
}

/** BERT's and RoBERTa's layout: [CLS] A [SEP], and behind it ([SEP]) B [SEP]. */
function clsSep(json: PostProcessorJson, between: boolean, pairType: number): Template {
  const sep = (type: number): Piece => ({ special: [json.sep[1]], type });
  const single: Piece[] = [{ special: [json.cls[1]], type: 0 }, A, sep(0)];
  const middle = between ? [sep(0)] : [];
  return { single, pair: [...single, ...middle, { text: "B", type: pairType }, sep(pairType)] };
}

/**
 * The layout that a post-processor asks for.
 *
 * @throws {TypeError} for a post-processor that is not known
 */
export function createTemplate(json: PostProcessorJson | null | undefined): Template {
  switch (json?.type) {
    case undefined:
    case "ByteLevel": // only changes offsets
      return PLAIN;
    case "TemplateProcessing": {
      // deno-lint-ignore no-explicit-any
      const pieces = (list: any[]) =>
        list.map((piece) => templatePiece(piece, json!.special_tokens));
      return { single: pieces(json!.single), pair: pieces(json!.pair) };
    }
    case "BertProcessing":
      return clsSep(json!, false, 1);
    case "RobertaProcessing":
      return clsSep(json!, true, 0);
    case "Sequence": {
      const parts: PostProcessorJson[] = json!.processors ?? [];
      const laying = parts.filter((part) => part.type !== "ByteLevel");
      if (laying.length > 1) {
        throw new TypeError(
          "Expected tokenizer.json to add special tokens in one post-processor but found " +
            `${laying.map((part) => part.type).join(", ")}.`,
        );
      }
      return createTemplate(laying[0]);
    }
    default:
      throw new TypeError(`Expected a known post-processor but found "${json!.type}".`);
  }
}

/** A token and its id. */
export type NamedId = { token: string; id: number };

/**
 * The post-processor that `add_bos_token` and `add_eos_token` stand for.
 *
 * @param bos the token before each text, if any
 * @param eos the token behind each text, if any
 */
export function bosEosProcessor(bos?: NamedId, eos?: NamedId): PostProcessorJson {
  const special = (named: NamedId | undefined, type_id: number) =>
    named ? [{ SpecialToken: { id: named.token, type_id } }] : [];
  const part = (id: "A" | "B", type_id: number) => [
    ...special(bos, type_id),
    { Sequence: { id, type_id } },
    ...special(eos, type_id),
  ];
  const special_tokens: Record<string, unknown> = {};
  for (const named of [bos, eos]) {
    if (!named) continue;
    const { token, id } = named;
    special_tokens[token] = { id: token, ids: [id], tokens: [token] };
  }
  const single = part("A", 0);
  return { type: "TemplateProcessing", single, pair: [...single, ...part("B", 1)], special_tokens };
}

/** Number of special tokens that a layout adds. */
export function specialCount(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, piece) => sum + ("special" in piece ? piece.special.length : 0), 0);
}

/**
 * Lays out one text or a pair.
 *
 * @param pieces the layout
 * @param a the first text
 * @param b the second text, for a layout of pairs
 * @param addSpecial leaves the special tokens out when false
 */
export function layOut(pieces: readonly Piece[], a: Row, b: Row | null, addSpecial: boolean): Row {
  const row: Row = { ids: [], types: [], special: [], spans: a.spans && [] };
  const add = (from: Row, type: number) => {
    for (let i = 0; i < from.ids.length; i++) {
      row.ids.push(from.ids[i]);
      row.types.push(type);
      row.special.push(from.special[i]);
      row.spans?.push(from.spans?.[i] ?? [0, 0]);
    }
  };
  for (const piece of pieces) {
    if ("special" in piece) {
      if (addSpecial) add(tokens(piece.special, 1), piece.type);
    } else {
      const text = piece.text === "A" ? a : b;
      if (text) add(text, piece.type);
    }
  }
  return row;
}

/** A row of ids with nothing else known. */
export function tokens(ids: readonly number[], special = 0, spans?: [number, number][]): Row {
  return { ids: [...ids], types: ids.map(() => 0), special: ids.map(() => special), spans };
}
