/** Arena planning: activations whose lives do not overlap share memory. */

import type { Value } from "./graph.ts";

/** Every activation starts at a multiple of this many bytes. */
export const alignment_bytes = 64;

/** Where each value lies. */
export interface Placement {
  /** By value index: bytes from the start of the arena, or of the input/output buffer. */
  readonly offsets: readonly number[];
  readonly arena_bytes: number;
  readonly external_bytes: number;
}

const align = (n: number) => Math.ceil(n / alignment_bytes) * alignment_bytes;

/**
 * Places values: the largest first, each at the lowest offset that is free during its whole life.
 *
 * @param values with the first and last command that touch each one
 * @param margin commands for which a value's memory is left alone after its last use: a device
 *   that does neighbours at once writes the last one's result while it reads the first's inputs
 */
export function placeValues(values: readonly Value[], margin = 0): Placement {
  const offsets = new Array<number>(values.length).fill(0);
  let external_bytes = 0;
  for (const [i, value] of values.entries()) {
    if (!value.external) continue;
    offsets[i] = external_bytes;
    external_bytes += align(value.bytes);
  }
  const order = [...values.keys()].filter((i) => !values[i].external)
    .sort((a, b) => values[b].bytes - values[a].bytes || a - b);
  const placed: number[] = [];
  let arena_bytes = 0;
  for (const i of order) {
    const rivals = placed.filter((j) =>
      values[j].first <= values[i].last + margin && values[i].first <= values[j].last + margin
    ).sort((a, b) => offsets[a] - offsets[b]);
    const size = align(values[i].bytes);
    let at = 0;
    for (const j of rivals) {
      if (offsets[j] >= at + size) break;
      at = Math.max(at, offsets[j] + align(values[j].bytes));
    }
    offsets[i] = at;
    placed.push(i);
    arena_bytes = Math.max(arena_bytes, at + size);
  }
  return { offsets, arena_bytes, external_bytes };
}
