import { describe, it } from "node:test";
import { assertEquals, assertGreater } from "@std/assert";
import { IncrementalDecoder } from "../../src/tokenizer/mod.ts";
import { defaultTokenizer, goldens } from "./support.ts";

interface TextCase {
  text: string;
  ids: number[];
  ids_plain: number[];
  decoded: string;
  decoded_skip_special: string;
}

interface IdCase {
  ids: number[];
  decoded: string;
  decoded_skip_special?: string;
}

const truth = goldens("wordnet-8m")?.tokenizer as
  | { texts: TextCase[]; decode_only: IdCase[]; vocab_size: number }
  | undefined;

describe("goldens of the tokenizer", { skip: truth === undefined }, () => {
  const { texts, decode_only, vocab_size } = truth ?? { texts: [], decode_only: [], vocab_size: 0 };

  it("has cases", async () => {
    assertGreater(texts.length, 50);
    assertGreater(decode_only.length, 5);
    assertEquals((await defaultTokenizer()).length, vocab_size);
  });

  for (const [i, truth] of texts.entries()) {
    it(`text ${i}: ${JSON.stringify(truth.text).slice(0, 60)}`, async () => {
      const tokenizer = await defaultTokenizer();
      assertEquals(tokenizer(truth.text).input_ids, truth.ids);
      assertEquals(tokenizer.encode(truth.text), truth.ids);
      assertEquals(tokenizer.encode(truth.text, { add_special_tokens: false }), truth.ids_plain);
      assertEquals(tokenizer.decode(truth.ids), truth.decoded);
      const plain = tokenizer.decode(truth.ids, { skip_special_tokens: true });
      assertEquals(plain, truth.decoded_skip_special);
    });
  }

  for (const [i, truth] of decode_only.entries()) {
    it(`ids ${i} that no text gave`, async () => {
      const tokenizer = await defaultTokenizer();
      assertEquals(tokenizer.decode(truth.ids), truth.decoded);
      const skip = { skip_special_tokens: true };
      if (truth.decoded_skip_special !== undefined) {
        assertEquals(tokenizer.decode(truth.ids, skip), truth.decoded_skip_special);
      }
      const stream = new IncrementalDecoder(tokenizer);
      const pieces = truth.ids.map((id) => stream.push(id));
      assertEquals(pieces.join("") + stream.end(), truth.decoded);
    });
  }

  it("encodes all texts as one batch", async () => {
    const { input_ids } = (await defaultTokenizer())(texts.map((truth) => truth.text));
    assertEquals(input_ids, texts.map((truth) => truth.ids));
  });
});
