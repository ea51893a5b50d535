/** A call's tokens without padding: which sequences there are and where each token came from. */

import {
  describe,
  type Matrix,
  type MatrixInput,
  readIntegers,
  readList,
  readMatrix,
} from "./inputs.ts";

/** The arguments that say how tokens form sequences; HF's names. */
export interface BatchArguments {
  readonly attention_mask?: MatrixInput;
  readonly position_ids?: MatrixInput;
  /** Document of each token of a packed row. */
  readonly seq_idx?: MatrixInput;
  /** Edges of the documents of a packed row, from 0 to its length. */
  readonly cu_seq_lens_q?: MatrixInput;
  readonly cu_seq_lens_k?: MatrixInput;
  /** Longest document of a packed row. */
  readonly max_length_q?: number;
  readonly max_length_k?: number;
}

/** One sequence: tokens [begin, begin + count) of a row. */
export interface Sequence {
  readonly row: number;
  readonly begin: number;
  readonly count: number;
}

/** The tokens of a call. */
export interface Batch {
  /** The caller's frame. */
  readonly rows: number;
  readonly columns: number;
  readonly sequences: readonly Sequence[];
  /** Several documents in one row, each a sequence of its own. */
  readonly packed: boolean;
  /** Positions as the caller gave them, in the frame. */
  readonly position_ids?: Matrix;
}

/**
 * Finds the sequences in a frame of (rows, columns) tokens.
 *
 * @param past tokens that each row has in the cache already
 * @throws {RangeError} for masks with holes and packed arguments that contradict each other
 */
export async function readBatch(
  rows: number,
  columns: number,
  args: BatchArguments,
  past?: readonly number[],
): Promise<Batch> {
  const position_ids = args.position_ids === undefined
    ? undefined
    : await readPositions(args.position_ids, rows, columns);
  const edges = await packedEdges(rows, columns, args, position_ids);
  const masked = args.attention_mask !== undefined;
  if (edges) {
    if (masked) {
      throw new RangeError(
        `Expected no attention_mask with ${edges.name}: packed documents have no padding`,
      );
    }
    if (past?.some((n) => n > 0)) {
      throw new RangeError(
        `Expected no past_key_values with ${edges.name}: packed documents start from nothing`,
      );
    }
    return { rows, columns, sequences: edges.sequences, packed: true, position_ids };
  }
  const sequences = masked
    ? maskedSequences(await readMatrix("attention_mask", args.attention_mask!), rows, columns, past)
    : Array.from({ length: rows }, (_, row) => ({ row, begin: 0, count: columns }));
  return { rows, columns, sequences, packed: false, position_ids };
}

async function readPositions(input: MatrixInput, rows: number, columns: number): Promise<Matrix> {
  const matrix = await readIntegers("position_ids", input);
  const negative = matrix.data.find((x) => x < 0);
  if (negative !== undefined) {
    throw new RangeError(`Expected position_ids of 0 or more but found ${negative}`);
  }
  if (matrix.columns === columns && matrix.rows === rows) return matrix;
  if (matrix.columns === columns && matrix.rows === 1) {
    const data = new Float64Array(rows * columns);
    for (let r = 0; r < rows; r++) data.set(matrix.data, r * columns);
    return { data, rows, columns };
  }
  throw new RangeError(
    `Expected position_ids of shape [${rows},${columns}] but found ` +
      `[${matrix.rows},${matrix.columns}]`,
  );
}

interface Edges {
  readonly name: string;
  readonly sequences: Sequence[];
}

/** Document edges by seq_idx, cu_seq_lens or position_ids; all that are given must agree. */
async function packedEdges(
  rows: number,
  columns: number,
  args: BatchArguments,
  position_ids: Matrix | undefined,
): Promise<Edges | undefined> {
  const found: Edges[] = [];
  if (args.seq_idx !== undefined) {
    const matrix = await readIntegers("seq_idx", args.seq_idx);
    if (matrix.rows !== rows || matrix.columns !== columns) {
      throw new RangeError(
        `Expected seq_idx of shape [${rows},${columns}] but found ` +
          `[${matrix.rows},${matrix.columns}]`,
      );
    }
    found.push({
      name: "seq_idx",
      sequences: cut(matrix, (before, now) => {
        if (now < before) {
          throw new RangeError(
            `Expected seq_idx never to decrease but found ${now} after ${before}`,
          );
        }
        return now !== before;
      }),
    });
  }
  for (const side of ["q", "k"] as const) {
    const name = `cu_seq_lens_${side}` as const;
    if (args[name] === undefined) continue;
    const sequences = fromCuSeqLens(name, await readList(name, args[name]), rows, columns);
    found.push({ name, sequences });
  }
  if (position_ids && rows === 1) {
    const sequences = cut(position_ids, (_, now) => now === 0);
    if (sequences.length > 1 || found.length > 0) {
      found.push({ name: "position_ids that restart at 0", sequences });
    }
  }
  for (const side of ["q", "k"] as const) checkLongest(`max_length_${side}`, args, found);
  for (const other of found.slice(1)) {
    const first = found[0].sequences;
    const same = first.length === other.sequences.length &&
      first.every((s, i) => s.count === other.sequences[i].count);
    if (!same) {
      throw new RangeError(
        `Expected ${
          found[0].name
        } and ${other.name} to name the same documents but found lengths ` +
          `[${lengths(first)}] and [${lengths(other.sequences)}]`,
      );
    }
  }
  return found[0];
}

/** `max_length_q` and `max_length_k` say again what the edges say. */
function checkLongest(
  name: "max_length_q" | "max_length_k",
  args: BatchArguments,
  found: readonly Edges[],
): void {
  const given = args[name];
  if (given === undefined) return;
  const edges = found.find((edges) => edges.name.startsWith("cu_seq_lens"));
  if (!edges) throw new RangeError(`Expected cu_seq_lens_q with ${name} but found none`);
  const longest = Math.max(...edges.sequences.map((s) => s.count));
  if (given !== longest) {
    throw new RangeError(
      `Expected ${name} to be the longest document of ${edges.name}, ${longest}, but found ` +
        describe(given),
    );
  }
}

const lengths = (sequences: readonly Sequence[]) => sequences.map((s) => s.count);

/** Cuts each row where `starts` holds. */
function cut(matrix: Matrix, starts: (before: number, now: number) => boolean): Sequence[] {
  const sequences: Sequence[] = [];
  for (let row = 0; row < matrix.rows; row++) {
    const at = row * matrix.columns;
    let begin = 0;
    for (let c = 1; c <= matrix.columns; c++) {
      const edge = c === matrix.columns || starts(matrix.data[at + c - 1], matrix.data[at + c]);
      if (!edge) continue;
      sequences.push({ row, begin, count: c - begin });
      begin = c;
    }
  }
  return sequences;
}

function fromCuSeqLens(name: string, edges: number[], rows: number, columns: number): Sequence[] {
  const rising = edges.every((e, i) => i === 0 ? e === 0 : e > edges[i - 1]);
  if (rows !== 1 || edges.length < 2 || !rising || edges[edges.length - 1] !== columns) {
    throw new RangeError(
      `Expected ${name} to rise from 0 to the ${columns} tokens of one row but found ` +
        `[${edges.slice(0, 8)}${edges.length > 8 ? ", …" : ""}] for ${rows} rows`,
    );
  }
  return edges.slice(1).map((end, i) => ({ row: 0, begin: edges[i], count: end - edges[i] }));
}

/** One run of ones in each row; everything else is padding. */
function maskedSequences(
  mask: Matrix,
  rows: number,
  columns: number,
  past: readonly number[] | undefined,
): Sequence[] {
  if (mask.rows !== rows || mask.columns < columns) {
    throw new RangeError(
      `Expected attention_mask of shape [${rows},${columns}] but found ` +
        `[${mask.rows},${mask.columns}]`,
    );
  }
  const extra = mask.columns - columns;
  return Array.from({ length: rows }, (_, row) => {
    const line = mask.data.subarray(row * mask.columns, (row + 1) * mask.columns);
    const odd = line.find((x) => x !== 0 && x !== 1);
    if (odd !== undefined) {
      throw new RangeError(`Expected 0 and 1 in attention_mask but found ${odd} in row ${row}`);
    }
    const known = line.subarray(0, extra).reduce((a, b) => a + b, 0);
    if (extra > 0 && known !== (past?.[row] ?? 0)) {
      throw new RangeError(
        `Expected the past of attention_mask row ${row} to have ${past?.[row] ?? 0} ones like ` +
          `past_key_values but found ${known}`,
      );
    }
    const real = line.subarray(extra);
    const begin = real.indexOf(1);
    const end = real.lastIndexOf(1) + 1;
    if (begin < 0) {
      throw new RangeError(`Expected attention_mask row ${row} to keep a token but it masks all`);
    }
    const hole = real.subarray(begin, end).indexOf(0);
    if (hole >= 0) {
      throw new RangeError(
        `Expected the ones of attention_mask row ${row} to stand together but found a 0 between ` +
          `them in column ${begin + hole}: only padding at either end can be masked`,
      );
    }
    return { row, begin, count: end - begin };
  });
}

/** A piece of a sequence that one run takes. */
export interface Piece {
  /** Index into the batch's sequences. */
  readonly sequence: number;
  /** Tokens of the sequence (of this call) before the piece. */
  readonly begin: number;
  readonly count: number;
}

/**
 * Cuts sequences into runs of at most `limit` tokens. A sequence is cut only where its position,
 * counted from its start, is a multiple of `multiple`, so that the cut changes no bit.
 *
 * @param counts tokens of each sequence @param past tokens before them
 */
export function cutIntoRuns(
  counts: readonly number[],
  past: readonly number[],
  limit: number,
  multiple: number,
): Piece[][] {
  const runs: Piece[][] = [];
  let run: Piece[] = [];
  let room = limit;
  const close = () => {
    if (run.length > 0) runs.push(run);
    run = [];
    room = limit;
  };
  for (const [sequence, total] of counts.entries()) {
    let begin = 0;
    while (begin < total) {
      let count = total - begin;
      if (count > room) {
        const start = past[sequence] + begin;
        count = Math.floor((start + room) / multiple) * multiple - start;
      }
      if (count <= 0) {
        close();
        continue;
      }
      run.push({ sequence, begin, count });
      begin += count;
      room -= count;
    }
  }
  close();
  return runs;
}
