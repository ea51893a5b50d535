/** Every surprise of recording, as a test: what looks like numbers is a recording of what to do. */

import { describe, it } from "node:test";
import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { Tensor } from "../../src/graph/tensor.ts";
import { parameter } from "../../src/graph/tensor.ts";
import * as ops from "../../src/ops/mod.ts";
import { smallGraph, weight } from "./support.ts";

describe("recording", () => {
  it("has no numbers to read", async () => {
    const graph = smallGraph();
    const x = ops.embedding(graph.step("ids", "tokens"), weight([10, 4]));
    const error = await assertRejects(() => x.data(), TypeError);
    assertStringIncludes(error.message, "branch on config and shapes only");
    await assertRejects(() => x.tolist(), TypeError);
    await assertRejects(() => graph.step("ids", "tokens").data(), TypeError);
  });

  it("knows capacities, not the rows of a run", () => {
    const graph = smallGraph();
    const x = ops.embedding(graph.step("ids", "tokens"), weight([10, 4]));
    assertEquals(x.shape, [8, 4]);
    assertEquals(x.rows, "tokens");
  });

  it("refuses an activation of another recording", () => {
    const a = smallGraph().value("tokens", 4);
    const b = smallGraph().value("tokens", 4);
    const error = assertThrows(() => ops.add(a, b), TypeError);
    assertStringIncludes(error.message, "another recording");
  });

  it("refuses numbers in place of an activation", () => {
    const graph = smallGraph();
    const x = graph.value("tokens", 4);
    const numbers = Tensor.from(new Float32Array(32), [8, 4]);
    assertThrows(() => ops.rmsNorm(x, Tensor.from(new Float32Array(4), [4]), 1e-5), TypeError);
    assertThrows(() => ops.silu(numbers), TypeError);
  });

  it("refuses weights that are not loaded", () => {
    const x = smallGraph().value("tokens", 4);
    const error = assertThrows(() => ops.linear(x, parameter([3, 4], { layout: "panel" })));
    assertStringIncludes((error as Error).message, "not loaded");
  });

  it("records a second time what is called a second time", () => {
    const graph = smallGraph();
    const x = graph.value("tokens", 4);
    ops.silu(x);
    ops.silu(x);
    assertEquals(graph.commands.length, 2);
  });

  it("keeps commands whose result nobody reads", () => {
    const graph = smallGraph();
    ops.silu(graph.value("tokens", 4));
    assertEquals(graph.commands.map((c) => c.op), ["silu"]);
  });

  it("splits into views of one block of memory", () => {
    const graph = smallGraph();
    const x = graph.value("tokens", 10);
    const [a, b] = ops.split(x, [4, 6]);
    assertEquals(graph.values.length, 1);
    assertEquals([a.shape, b.shape], [[8, 4], [8, 6]]);
    assertEquals(b.storage, { space: "value", value: 0, column: 4, row_stride: 10 });
  });

  it("picks the update forms by the graph's kind, not by a count", () => {
    const state = new Tensor([4, 6], "float32", { space: "state", offset: 0 });
    const taps = weight([6, 1, 4]);
    for (
      const [decode, op] of [[true, "causal_conv1d_update"], [false, "causal_conv1d"]] as const
    ) {
      const graph = smallGraph({ decode });
      ops.causalConv1d(graph.value("tokens", 6), taps, undefined, state);
      assertEquals(graph.commands[0].op, op);
    }
  });

  it("freezes tensors", () => {
    const x = smallGraph().value("tokens", 4);
    assertThrows(() => {
      (x as { dtype: string }).dtype = "bfloat16";
    }, TypeError);
  });

  it("names shapes that do not fit", () => {
    const x = smallGraph().value("tokens", 4);
    const error = assertThrows(() => ops.linear(x, weight([3, 8], "panel")), RangeError);
    assertEquals(error.message, "Expected x of linear to have 8 columns but found 4");
    assertThrows(() => ops.split(x, [1, 2]), RangeError);
    assertThrows(() => ops.rmsNorm(x, weight([5]), 1e-5), RangeError);
  });

  it("prints itself the same each time", () => {
    const print = () => {
      const graph = smallGraph();
      const x = ops.embedding(graph.step("ids", "tokens"), weight([10, 4]));
      ops.sample(ops.linear(ops.gatherRows(x), weight([10, 4], "panel")));
      return graph.toString();
    };
    assertEquals(
      print(),
      [
        "%0: float32(tokens, 4) = embedding(ids: int32(tokens), weight: float32(10, 4))",
        "%1: float32(logits, 4) = gather_rows(%0: float32(tokens, 4), logit_rows: int32(logits))",
        "%2: float32(logits, 10) = linear(%1: float32(logits, 4), weight: float32(10, 4), -, -)",
        "sampled: int32(seqs) = sample(%2: float32(logits, 10))",
      ].join("\n"),
    );
    assertEquals(print(), print());
  });
});
