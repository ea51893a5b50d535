import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "node:test";
import * as bindings from "../../src/native/bindings.gen.ts";
import {
  type Field,
  packStruct,
  packStructs,
  readStruct,
  type Struct,
  writeStruct,
} from "../../src/native/struct.ts";

const sample = {
  size: 24,
  fields: {
    a: { offset: 0, type: "u32" },
    b: { offset: 4, type: "i32" },
    c: { offset: 8, type: "u64" },
    d: { offset: 16, type: "f32" },
    e: { offset: 20, type: "u8", length: 4 },
  },
} as const;

describe("structs", () => {
  it("come back as they were written", () => {
    const values = { a: 0xffff_ffff, b: -5, c: 2 ** 53 - 1, d: 0.5, e: [1, 2, 3, 255] };
    assertEquals(readStruct(sample, packStruct(sample, values)), values);
    const two = packStructs(sample, [values, { a: 7 }]);
    assertEquals(two.length, 48);
    assertEquals(readStruct(sample, two.subarray(24)), { a: 7, b: 0, c: 0, d: 0, e: [0, 0, 0, 0] });
  });

  it("are little-endian", () => {
    const bytes = packStruct(sample, { a: 0x01020304, c: 0x0102030405 });
    assertEquals([...bytes.subarray(0, 4)], [4, 3, 2, 1]);
    assertEquals([...bytes.subarray(8, 16)], [5, 4, 3, 2, 1, 0, 0, 0]);
  });

  it("refuse what would wrap, naming the field", () => {
    for (const a of [-1, 2 ** 32, 1.5, NaN, Infinity]) {
      assertThrows(() => packStruct(sample, { a }), RangeError, `a to be an integer from 0 to`);
    }
    assertThrows(() => packStruct(sample, { b: 2 ** 31 }), RangeError, "found 2147483648");
    assertThrows(() => packStruct(sample, { c: 2 ** 53 }), RangeError, "c to be");
    assertThrows(() => packStruct(sample, { e: [256] }), RangeError, "e[0] to be");
    assertThrows(() => packStruct(sample, { e: [1, 2, 3, 4, 5] }), RangeError, "at most 4 values");
    const view = new DataView(new ArrayBuffer(24));
    const unknown: Struct = sample;
    assertThrows(() => writeStruct(view, 0, unknown, { x: 1 }), TypeError, "found x");
  });

  it("of the generated bindings have fields that fit and do not overlap", () => {
    const bytes: Record<Field["type"], number> = { u8: 1, u32: 4, i32: 4, f32: 4, u64: 8 };
    let checked = 0;
    for (const [name, value] of Object.entries(bindings)) {
      if (typeof value !== "object" || !("fields" in value)) continue;
      let end = 0;
      for (
        const [field, { offset, type, length = 1 }] of Object.entries(
          (value as Struct).fields,
        )
      ) {
        assert(offset >= end && offset % bytes[type] === 0, `${name}.${field} at ${offset}`);
        end = offset + bytes[type] * length;
      }
      assert(end <= value.size, `${name} ends at ${end} of ${value.size}`);
      checked++;
    }
    assert(checked >= 10, `only ${checked} structs`);
  });
});
