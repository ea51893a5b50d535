import { assert, assertEquals, assertGreater } from "@std/assert";
import { it } from "node:test";
import { dtype_bytes, parseHeader } from "../../src/weights/safetensors.ts";
import { randomIntegers } from "./support.ts";

const mutations = 40_000;
const data_bytes = 4096;

/** A header that is true of `data_bytes` bytes. */
function trueHeader(): string {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let end = 0;
  for (const [i, dtype] of ["F32", "BF16", "F16", "I64", "U8"].entries()) {
    const shape = [4, 8, i + 1];
    const bytes = 32 * (i + 1) * dtype_bytes[dtype];
    header[`model.layers.${i}.weight`] = { dtype, shape, data_offsets: [end, end += bytes] };
  }
  header.rest = { dtype: "U8", shape: [data_bytes - end], data_offsets: [end, data_bytes] };
  return JSON.stringify(header);
}

const pieces = [
  "-1",
  "1e999",
  "9007199254740993",
  "18446744073709551616",
  "null",
  "[]",
  "{}",
  '""',
  "[[[[",
  '"dtype"',
  '"shape"',
  '"data_offsets"',
  "NaN",
  "\\u0000",
  "\\ud800",
  "é",
  "0.5",
  ",",
  ":",
  "}",
];

it(`survives ${mutations} mutated headers: each is refused in words or true`, () => {
  const random = randomIntegers(20240607);
  const original = trueHeader();
  const encoder = new TextEncoder();
  assertEquals(
    parseHeader(encoder.encode(original), 8 + original.length + data_bytes).tensors.size,
    6,
  );
  let refused = 0;
  let true_ones = 0;
  for (let i = 0; i < mutations; i++) {
    const bytes = mutate(original, random, encoder);
    const file_bytes = 8 + bytes.length + data_bytes;
    try {
      const { tensors, dataOffset } = parseHeader(bytes, file_bytes);
      let filled = 0;
      for (
        const { dtype, shape, begin, end } of [...tensors.values()].sort((a, b) => a.end - b.end)
      ) {
        assertEquals(end - begin, shape.reduce((a, b) => a * b, dtype_bytes[dtype]));
        filled += end - begin;
        assert(begin >= 0 && end <= data_bytes);
      }
      assertEquals(filled, data_bytes);
      assertEquals(dataOffset + filled, file_bytes);
      true_ones++;
    } catch (error) {
      const known = error instanceof RangeError || error instanceof SyntaxError ||
        error instanceof TypeError;
      assert(known && /tensor|header|JSON|__metadata__|bytes/.test(error.message), String(error));
      refused++;
    }
  }
  assertEquals(refused + true_ones, mutations);
  assertGreater(refused, mutations / 2);
  assertGreater(true_ones, 100); // a mutated name or note is still true
});

/** Changes characters, tokens, numbers or bytes at one to three places. */
function mutate(
  original: string,
  random: (below: number) => number,
  encoder: TextEncoder,
): Uint8Array {
  let text = original;
  const at = () => random(text.length);
  let raw = false;
  for (let n = 1 + random(3); n > 0; n--) {
    const place = at();
    switch (random(7)) {
      case 0:
        text = text.slice(0, place) + pieces[random(pieces.length)] + text.slice(place);
        break;
      case 1:
        text = text.slice(0, place) + text.slice(place + 1 + random(12));
        break;
      case 2:
        text = text.replace(/\d+/g, (digits) => random(20) ? digits : String(random(5000)));
        break;
      case 3:
        text = text.slice(0, place) + String.fromCharCode(32 + random(95)) + text.slice(place + 1);
        break;
      case 4:
        text = text.slice(0, place) + text.slice(place - random(60), place) + text.slice(place);
        break;
      case 5:
        text = text.slice(0, place);
        break;
      default:
        raw = true;
    }
    if (text.length === 0) text = " ";
  }
  const bytes = encoder.encode(text);
  if (raw) bytes[random(bytes.length)] ^= 1 << random(8);
  return bytes;
}
