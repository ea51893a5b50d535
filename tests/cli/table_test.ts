import { assertEquals } from "@std/assert";
import { describe, it } from "node:test";
import { joined } from "../../bench/lib/gpu_profile.ts";
import { Table } from "../../bench/lib/table.ts";

describe("a table of results", () => {
  it("names its columns once, and again where they change or are too narrow", () => {
    const table = new Table();
    assertEquals(table.rows({ bench: "decode", tok_s: 14.25, peak: 41.236e9 }), [
      "bench        tok_s      peak",
      "decode       14.25    41.24G",
    ]);
    assertEquals(table.rows({ bench: "prefill", tok_s: 214, peak: 2e12 }), [
      "prefill        214        2T",
    ]);
    assertEquals(table.rows({ bench: "prefill of 512", tok_s: 9, peak: 1 }), [
      "",
      "bench              tok_s      peak",
      "prefill of 512         9         1",
    ]);
    assertEquals(table.rows({ bench: "decode", tok_s: 8, peak: 12_345.678 }), [
      "decode                 8     12350",
    ]);
    assertEquals(table.rows({ bench: "fuzz", rounds: 3, left_out: undefined }), [
      "",
      "bench       rounds",
      "fuzz             3",
    ]);
  });

  it("shows the span of rounds, what is none as a dash, and parts below", () => {
    const table = new Table();
    assertEquals(table.rows({ ratios: [2, 1.5], names: ["a", "b"], none: [], null: null }), [
      "  ratios     names      none      null",
      "  1.5..2       a,b         -         -",
    ]);
    assertEquals(table.rows({ small: 0.00025, tiny: -0.00000312345, none: 0 }), [
      "",
      "   small      tiny      none",
      " 0.00025  -3.12e-6         0",
    ]);
    assertEquals(
      table.rows({ bench: "parts", shares: { linear: 0.9, scan: 0.00025 } }),
      [
        "",
        "bench   ",
        "parts   ",
        "  linear       0.9",
        "  scan     0.00025",
      ].map((row) => row.trimEnd()),
    );
  });
});

describe("a launch's name", () => {
  it("says once what comes again and again", () => {
    for (
      const [parts, name] of [
        ["norm", "norm"],
        ["norm in norm out", "norm+in+norm+out"],
        ["o norm up down norm up down norm up down head", "o+3 x (norm+up+down)+head"],
        ["in out in out up up", "2 x (in+out)+up+up"],
      ]
    ) assertEquals(joined(parts.split(" ")), name);
  });
});
