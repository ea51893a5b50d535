/** Arena planning: no two values that live at once may overlap. */

import { describe, it } from "node:test";
import { assert, assertEquals } from "@std/assert";
import type { Value } from "../../src/graph/graph.ts";
import { alignment_bytes, placeValues } from "../../src/graph/memory.ts";

function value(bytes: number, first: number, last: number, external = false): Value {
  return { rows: "fixed", shape: [1, bytes / 4], bytes, first, last, external };
}

/** A small generator of repeatable numbers in [0, n). */
function numbers(seed: number): (n: number) => number {
  let state = seed;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * n);
  };
}

describe("placeValues", () => {
  it("reuses memory of values that are dead", () => {
    const { offsets, arena_bytes } = placeValues([
      value(256, 0, 1),
      value(256, 1, 2),
      value(256, 2, 3),
    ]);
    assertEquals(offsets, [0, 256, 0]);
    assertEquals(arena_bytes, 512);
  });

  it("keeps external values apart and out of the arena", () => {
    const placed = placeValues([value(100, 0, 9, true), value(4, 0, 9, true), value(64, 0, 9)]);
    assertEquals(placed.offsets, [0, 128, 0]);
    assertEquals([placed.external_bytes, placed.arena_bytes], [192, 64]);
  });

  it("never overlaps two values that live at once", () => {
    const next = numbers(7);
    for (let round = 0; round < 200; round++) {
      const values = Array.from({ length: 1 + next(40) }, () => {
        const first = next(30);
        return value(4 * (1 + next(500)), first, first + next(8));
      });
      const { offsets, arena_bytes } = placeValues(values);
      for (const [i, a] of values.entries()) {
        assertEquals(offsets[i] % alignment_bytes, 0);
        assert(offsets[i] + a.bytes <= arena_bytes, "inside the arena");
        for (const [j, b] of values.entries()) {
          if (i >= j || a.last < b.first || b.last < a.first) continue;
          const apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
          assert(apart, `round ${round}: values ${i} and ${j} overlap`);
        }
      }
    }
  });
});
