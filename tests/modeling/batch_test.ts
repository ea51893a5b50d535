/** How masks, positions and packed arguments become sequences, and how prompts are cut. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { type BatchArguments, cutIntoRuns, readBatch } from "../../src/modeling/batch.ts";
import { readIntegers, readMatrix } from "../../src/modeling/inputs.ts";

async function spans(rows: number, columns: number, args: BatchArguments) {
  const { sequences } = await readBatch(rows, columns, args);
  return sequences.map((s) => [s.row, s.begin, s.count]);
}

async function refusal(rows: number, columns: number, args: BatchArguments, past?: number[]) {
  const error = await assertRejects(() => readBatch(rows, columns, args, past), RangeError);
  return error.message;
}

describe("readBatch", () => {
  it("drops padding on either side", async () => {
    const attention_mask = [[0, 1, 1], [1, 1, 0], [1, 1, 1]];
    assertEquals(await spans(3, 3, { attention_mask }), [[0, 1, 2], [1, 0, 2], [2, 0, 3]]);
  });

  it("finds the same documents by each packed argument", async () => {
    const truth = [[0, 0, 2], [0, 2, 3]];
    assertEquals(await spans(1, 5, { seq_idx: [[0, 0, 1, 1, 1]] }), truth);
    assertEquals(await spans(1, 5, { cu_seq_lens_q: [0, 2, 5], cu_seq_lens_k: [0, 2, 5] }), truth);
    assertEquals(await spans(1, 5, { position_ids: [[0, 1, 0, 1, 2]] }), truth);
  });

  it("takes positions that do not restart as one sequence", async () => {
    assertEquals(await spans(1, 3, { position_ids: [[5, 6, 7]] }), [[0, 0, 3]]);
  });

  it("names holes, empty rows and odd values in a mask", async () => {
    assertStringIncludes(await refusal(1, 4, { attention_mask: [[1, 0, 1, 1]] }), "column 1");
    assertStringIncludes(await refusal(1, 2, { attention_mask: [[0, 0]] }), "masks all");
    assertStringIncludes(await refusal(1, 2, { attention_mask: [[1, 2]] }), "found 2");
    assertStringIncludes(await refusal(1, 2, { attention_mask: [[1, 1], [1, 1]] }), "[2,2]");
  });

  it("names packed arguments that contradict each other", async () => {
    const both = { seq_idx: [[0, 0, 1]], cu_seq_lens_q: [0, 1, 3] };
    assertStringIncludes(await refusal(1, 3, both), "[2,1] and [1,2]");
    assertStringIncludes(await refusal(1, 3, { cu_seq_lens_q: [0, 2, 4] }), "[0,2,4]");
    assertStringIncludes(await refusal(1, 3, { cu_seq_lens_q: [0, 2, 2, 3] }), "rise");
    assertStringIncludes(await refusal(1, 3, { seq_idx: [[1, 0, 0]] }), "decrease");
    const long = { cu_seq_lens_q: [0, 1, 3], max_length_q: 3 };
    assertStringIncludes(await refusal(1, 3, long), "found 3");
    const masked = { seq_idx: [[0, 0, 1]], attention_mask: [[1, 1, 1]] };
    assertStringIncludes(await refusal(1, 3, masked), "no attention_mask");
    assertStringIncludes(await refusal(1, 3, { seq_idx: [[0, 0, 1]] }, [4]), "no past_key_values");
  });

  it("accepts a mask over past and present, and checks the past", async () => {
    const attention_mask = [[0, 1, 1, 1]];
    const { sequences } = await readBatch(1, 1, { attention_mask }, [2]);
    assertEquals(sequences, [{ row: 0, begin: 0, count: 1 }]);
    assertStringIncludes(await refusal(1, 1, { attention_mask }, [3]), "3 ones");
  });
});

describe("readMatrix", () => {
  it("reads rows, typed arrays with a shape, bigints and one row", async () => {
    const truth = [1, 2, 3, 4];
    const inputs = [
      [[1, 2], [3, 4]],
      { data: Int32Array.of(1, 2, 3, 4), shape: [2, 2] },
      { data: BigInt64Array.of(1n, 2n, 3n, 4n), shape: [2, 2] },
    ];
    for (const input of inputs) {
      const { data, rows, columns } = await readMatrix("ids", input);
      assertEquals([[...data], rows, columns], [truth, 2, 2]);
    }
    assertEquals((await readMatrix("ids", [7, 8])).rows, 1);
  });

  it("names ragged rows, fractions and things that are no numbers", async () => {
    const ragged = await assertRejects(() => readMatrix("ids", [[1, 2], [3]]), RangeError);
    assertStringIncludes(ragged.message, "row 1 has 1");
    const fraction = await assertRejects(() => readIntegers("ids", [[1, 2.5]]), RangeError);
    assertStringIncludes(fraction.message, "found 2.5 in row 0, column 1");
    // deno-lint-ignore no-explicit-any -- what a JavaScript caller may pass
    const wrong: any = [["a"]];
    await assertRejects(() => readMatrix("ids", wrong), TypeError);
    await assertRejects(() => readMatrix("ids", []), RangeError);
    await assertRejects(() => readMatrix("ids", [[]]), RangeError);
  });
});

describe("cutIntoRuns", () => {
  it("covers every token once, in order, cut at multiples from the sequence's start", () => {
    for (const counts of [[1], [64], [65, 1, 700], [3, 3, 3], [511, 2], [1000, 1, 1000]]) {
      for (const past0 of [0, 1, 63, 64, 100]) {
        const past = counts.map((_, s) => s === 0 ? past0 : 0);
        const runs = cutIntoRuns(counts, past, 128, 64);
        const done = counts.map(() => 0);
        for (const run of runs) {
          assert(run.reduce((sum, p) => sum + p.count, 0) <= 128, "within the limit");
          for (const { sequence, begin, count } of run) {
            assertEquals(begin, done[sequence]);
            assert(count > 0, "no empty piece");
            done[sequence] += count;
            const end = past[sequence] + done[sequence];
            assert(done[sequence] === counts[sequence] || end % 64 === 0, "cut at a multiple");
          }
        }
        assertEquals(done, counts);
      }
    }
  });
});
