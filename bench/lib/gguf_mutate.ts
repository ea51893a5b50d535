/** A small GGUF file's bytes, and lies about them: for the tests and for `./dev bench fuzz`. */

import { tensor_types, tensorBytes } from "../../src/gguf/format.ts";
import { type GgufHeader, parseGguf } from "../../src/gguf/reader.ts";
import { MetadataBuilder } from "../../src/gguf/values.ts";
import { packGgufHeader } from "../../src/gguf/writer.ts";

/** Bytes of tensors' data behind the header; they are never read. */
const data_bytes = 4096;

/** A true header with every kind of value and several types of tensors. */
export function honestGguf(): Uint8Array<ArrayBuffer> {
  const builder = new MetadataBuilder()
    .add("general.architecture", "string", "granitehybrid")
    .add("granitehybrid.block_count", "u32", 2)
    .add("a.small", "i8", -3)
    .add("a.count", "u64", 2 ** 40)
    .add("a.scale", "f32", 0.5)
    .add("a.flag", "bool", true)
    .addArray("a.heads", "i32", [0, 4, 0])
    .addArray("tokenizer.ggml.tokens", "string", ["<s>", "é", "dog"]);
  const tensors = ["F32", "BF16", "Q8_0", "Q4_K"].map((type, i) => ({
    name: `blk.${i}.weight`,
    type,
    shape: [i + 1, 256],
  }));
  return new Uint8Array(packGgufHeader(builder.metadata, tensors));
}

/** Whole numbers below a bound. */
export type Random = (below: number) => number;

const words = [0, 1, 2, 8, 9, 13, 0x7f, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];

/** Changes bits, bytes, words or spans at one to three places; the length may change, too. */
export function mutateGguf(original: Uint8Array, random: Random): Uint8Array<ArrayBuffer> {
  let bytes = new Uint8Array(original);
  for (let n = 1 + random(3); n > 0 && bytes.length > 16; n--) {
    const at = random(bytes.length - 8);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    switch (random(7)) {
      case 0:
        bytes[at] ^= 1 << random(8);
        break;
      case 1:
        view.setUint32(at, words[random(words.length)], true);
        break;
      case 2: // where lengths, counts, dimensions and offsets are
        view.setUint32(at, random(600), true);
        view.setUint32(at + 4, random(20) ? 0 : words[random(words.length)], true);
        break;
      case 3:
        bytes = bytes.slice(0, at);
        break;
      case 4:
        bytes.copyWithin(at, random(bytes.length), bytes.length - random(8));
        break;
      case 5: {
        const cut = 1 + random(16);
        const longer = new Uint8Array(bytes.length + cut);
        longer.set(bytes.subarray(0, at));
        longer.set(bytes.subarray(at), at + cut);
        bytes = longer;
        break;
      }
      default:
        bytes[at] = random(256);
    }
  }
  return bytes;
}

/** Whether every tensor lies within the file, apart from the others. @throws {Error} otherwise */
function checkTrue({ tensors, dataOffset, fileBytes }: GgufHeader): void {
  let end = dataOffset;
  for (const tensor of [...tensors.values()].sort((a, b) => a.offset - b.offset)) {
    const { type, shape, offset, bytes } = tensor;
    const columns = shape[shape.length - 1];
    const fits = offset >= end && bytes > 0 && bytes === tensorBytes(type, shape) &&
      columns % tensor_types[type].columns === 0;
    if (!fits) throw new Error(`A tensor was let in that lies: ${JSON.stringify(tensor)}`);
    end = offset + bytes;
  }
  if (end > fileBytes) throw new Error(`A tensor was let in that ends at ${end} of ${fileBytes}`);
}

/**
 * Parses a mutated file: it is refused with a sentence, or what it says is possible.
 *
 * @returns whether it was refused
 * @throws {Error} for any other end
 */
export function survives(bytes: Uint8Array): boolean {
  const read = (at: number, into: Uint8Array) => {
    const some = bytes.subarray(at, at + into.length);
    into.set(some);
    // Behind the header lie the tensors' data.
    return Math.max(some.length, Math.min(into.length, bytes.length + data_bytes - at));
  };
  let header: GgufHeader;
  try {
    header = parseGguf(read, bytes.length + data_bytes);
  } catch (error) {
    const known = error instanceof RangeError || error instanceof SyntaxError ||
      error instanceof TypeError;
    const is_ours = known && /^(expected|tensors?|the|there|it is|"|a )/.test(error.message) &&
      error.message.length < 400;
    if (is_ours) return true;
    throw error;
  }
  checkTrue(header);
  return false;
}
