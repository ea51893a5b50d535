import { assert, assertEquals, assertGreater, assertMatch, assertThrows } from "@std/assert";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { honestGguf, mutateGguf, survives } from "../../bench/lib/gguf_mutate.ts";
import type { GgufArray } from "../../src/gguf/format.ts";
import { parseGguf, readGgufHeader } from "../../src/gguf/reader.ts";
import { packGgufHeader } from "../../src/gguf/writer.ts";
import { randomIntegers, withFolder } from "../weights/support.ts";

const mutations = 120_000;

/** Parses bytes that are a whole file. */
function parse(bytes: Uint8Array) {
  const read = (at: number, into: Uint8Array) => {
    const some = bytes.subarray(at, at + into.length);
    into.set(some);
    return some.length;
  };
  return parseGguf(read, bytes.length);
}

/** An honest file with data behind its header. */
function whole(): Uint8Array<ArrayBuffer> {
  const header = honestGguf();
  const bytes = new Uint8Array(header.length + 4096);
  bytes.set(header);
  return bytes;
}

const array = (n: number): { type: "array"; value: GgufArray } => ({
  type: "array",
  value: { type: "u8", values: new Array(n).fill(0) },
});

/** Where some text starts in a file. */
function find(bytes: Uint8Array, text: string): number {
  const wanted = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length; at++) {
    if (wanted.every((byte, i) => bytes[at + i] === byte)) return at;
  }
  throw new Error(`no ${text}`);
}

/** Changes a copy of an honest file. */
function changed(change: (view: DataView, bytes: Uint8Array) => void): Uint8Array {
  const bytes = whole();
  change(new DataView(bytes.buffer), bytes);
  return bytes;
}

describe("a hostile GGUF file", () => {
  it(`survives ${mutations} mutations: each is refused in words or true`, () => {
    const random = randomIntegers(5);
    const original = honestGguf();
    assertEquals(survives(original), false);
    let refused = 0;
    for (let i = 0; i < mutations; i++) {
      if (survives(mutateGguf(original, random))) refused++;
    }
    assertGreater(refused, mutations / 3);
    assertGreater(mutations - refused, 1000); // a changed name or value is still true
  });

  // Of a tensor's entry: name, rank u32, columns u64, rows u64, type u32, offset u64.
  const name = "blk.1.weight";
  const lies: [string, Uint8Array, RegExp][] = [
    ["is something else", new TextEncoder().encode("PK\x03\x04 and more"), /begin with "GGUF"/],
    ["is empty", new Uint8Array(), /ends inside the magic number: is it truncated\?/],
    ["is big-endian", changed((v) => v.setUint32(4, 3, false)), /big-endian/],
    ["is of the future", changed((v) => v.setUint32(4, 9, true)), /version 2 or 3 but found 9/],
    [
      "lies about its tensors",
      changed((v) => v.setBigUint64(8, 2n ** 40n, true)),
      /at most \d+ tensors in the \d+ bytes that are left but found 1099511627776/,
    ],
    [
      "lies about its metadata beyond 2^53",
      changed((v) => v.setBigUint64(16, 2n ** 63n, true)),
      /number of metadata values to be below 2\^53/,
    ],
    [
      "has a text that never ends",
      changed((v, b) => v.setBigUint64(find(b, "granitehybrid") - 8, 2n ** 27n, true)),
      /ends inside "general.architecture": is it truncated\?/,
    ],
    [
      "has a text that is no text",
      changed((_, b) => b[find(b, "granitehybrid")] = 0xff),
      /"general.architecture" is not UTF-8/,
    ],
    [
      "has a key twice",
      changed((_, b) => b.set(new TextEncoder().encode("a.scale"), find(b, "a.small"))),
      /the key "a.scale" twice/,
    ],
    [
      "has a value of no type",
      changed((v, b) => v.setUint32(find(b, "a.flag") + 6, 77, true)),
      /type of "a.flag" but found 77/,
    ],
    [
      "has two tensors of one name",
      changed((_, b) => b[find(b, name) + 4] = 0x30),
      /two tensors of the name "blk.0.weight"/,
    ],
    [
      "has a tensor of 9 dimensions",
      changed((v, b) => v.setUint32(find(b, name) + 12, 9, true)),
      /1 to 4 dimensions but found 9/,
    ],
    [
      "has a tensor without elements",
      changed((v, b) => v.setBigUint64(find(b, name) + 16, 0n, true)),
      /1 to \d+ elements but found \[0,2\]/,
    ],
    [
      "has a tensor larger than the world",
      changed((v, b) => v.setBigUint64(find(b, name) + 16, 2n ** 52n, true)),
      /elements but found/,
    ],
    [
      "has a tensor of no type",
      changed((v, b) => v.setUint32(find(b, name) + 32, 5, true)),
      /known type of tensor "blk.1.weight" but found 5/,
    ],
    [
      "has half a block in a row",
      changed((v, b) => v.setBigUint64(find(b, "blk.3.weight") + 16, 255n, true)),
      /whole blocks of 256 as Q4_K needs but found 255/,
    ],
    [
      "has a tensor between two multiples",
      changed((v, b) => v.setBigUint64(find(b, name) + 36, 33n, true)),
      /multiple of 32 bytes but found 33/,
    ],
    [
      "has tensors on each other",
      changed((v, b) => v.setBigUint64(find(b, name) + 36, 0n, true)),
      /tensors "blk.[01].weight" and "blk.[01].weight" overlap/,
    ],
    [
      "has a tensor behind its end",
      changed((v, b) => v.setBigUint64(find(b, name) + 36, 32n * 10_000n, true)),
      /ends at byte \d+ but the file has \d+: is it truncated\?/,
    ],
  ];
  for (const [what, bytes, sentence] of lies) {
    it(`that ${what} gets a sentence`, () => {
      const error = assertThrows(() => parse(bytes), Error);
      assertMatch(error.message, sentence);
      assert(!error.message.includes("\n"));
    });
  }

  it("whose hole stands for more values than memory has room for gets a sentence", () => {
    const bytes = packGgufHeader(new Map([["a", array(0)], ["b", array(2)]]), []);
    const [first, second] = [find(bytes, "a") + 9, find(bytes, "b") + 9];
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    view.setBigUint64(first, 2n ** 33n, true);
    const read = (at: number, into: Uint8Array) => {
      into.fill(0).set(bytes.subarray(at, at + into.length));
      return into.length;
    };
    const refused = (sentence: RegExp) =>
      assertMatch(assertThrows(() => parseGguf(read, 2 ** 40), RangeError).message, sentence);
    refused(/arrays of at most 16777216 values in all but found 8589934592 more in "a"/);
    view.setBigUint64(first, 0n, true);
    view.setBigUint64(second, 2n ** 24n + 1n, true);
    refused(/found 16777217 more in "b"/);
  });

  it("is named with its path", () =>
    withFolder((folder) => {
      const path = join(folder, "x.gguf");
      writeFileSync(path, whole().subarray(0, 600));
      assertThrows(
        () => readGgufHeader(path),
        RangeError,
        `Cannot read "${path}" as GGUF: tensor "blk`,
      );
      assertThrows(() => readGgufHeader(folder), TypeError, "it is not a regular file");
      assertThrows(() => readGgufHeader(join(folder, "no.gguf")), Error, "ENOENT");
    }));

  it("that is cut anywhere gets a sentence", () => {
    const bytes = honestGguf();
    for (let n = 0; n < bytes.length; n++) assertThrows(() => parse(bytes.subarray(0, n)), Error);
  });
});
