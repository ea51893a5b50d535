import { describe, it } from "node:test";
import { assert, assertEquals, assertThrows } from "@std/assert";
import type { TokenizeOptions } from "../../src/tokenizer/mod.ts";
import { defaultTokenizer, goldens, ownTokenizer } from "./support.ts";

describe("one text and a batch", () => {
  it("gives lists of numbers", async () => {
    const tokenizer = await defaultTokenizer();
    const one = tokenizer("a dog");
    assertEquals(one, { input_ids: [1, 67, 1696], attention_mask: [1, 1, 1] });
    const batch = tokenizer(["a dog", "a"]);
    assertEquals(batch.input_ids, [[1, 67, 1696], [1, 67]]);
    assertEquals(batch.attention_mask, [[1, 1, 1], [1, 1]]);
    assertEquals(tokenizer([]), { input_ids: [], attention_mask: [] });
    assertEquals(tokenizer([""]).input_ids, [[1]]);
  });

  it("gives pairs, from an option and from inner lists", async () => {
    const tokenizer = await defaultTokenizer();
    const pair = [1, 67, 1, 68];
    assertEquals(tokenizer("a", { text_pair: "b" }).input_ids, pair);
    assertEquals(tokenizer(["a"], { text_pair: ["b"] }).input_ids, [pair]);
    assertEquals(tokenizer([["a", "b"]]).input_ids, [pair]);
    assertEquals(tokenizer("a", { text_pair: "" }).input_ids, [1, 67]);
    const types = tokenizer("a", { text_pair: "b", return_token_type_ids: true }).token_type_ids;
    assertEquals(types, [0, 0, 1, 1]);
  });

  it("takes words that are split already", async () => {
    const tokenizer = await defaultTokenizer();
    const words = { is_split_into_words: true } as const;
    assertEquals(tokenizer(["a", " dog"], words).input_ids, [1, 67, 1696]);
    assertEquals(tokenizer([["a", " dog"], ["a"]], words).input_ids, [[1, 67, 1696], [1, 67]]);
    assertEquals(tokenizer.encode(["a", " dog"]), [1, 67, 1696]);
  });

  it("names what else it can return", async () => {
    const tokenizer = await defaultTokenizer();
    const encoding = tokenizer("é<|pad|>😀", {
      return_special_tokens_mask: true,
      return_offsets_mapping: true,
      return_length: true,
      return_attention_mask: false,
    });
    assertEquals(Object.keys(encoding).includes("attention_mask"), false);
    assertEquals(encoding.length, encoding.input_ids.length);
    assertEquals(encoding.special_tokens_mask![0], 1);
    const spans = encoding.offset_mapping as [number, number][];
    assertEquals(spans[0], [0, 0]);
    assertEquals(spans[1], [0, 1]); // é
    assertEquals(spans.at(-1), [8, 10]); // all tokens of an emoji span both its units
  });

  it("takes a text of very many tokens, and a batch of very many texts", async () => {
    const tokenizer = await defaultTokenizer();
    const text = " dog".repeat(200_000);
    const { input_ids } = tokenizer(text, { return_offsets_mapping: true });
    assertEquals(input_ids.length, 200_001);
    assertEquals(tokenizer.decode(input_ids, { skip_special_tokens: true }), text);
    const batch = tokenizer(new Array<string>(150_000).fill("a"), { padding: true });
    assertEquals(batch.input_ids.length, 150_000);
  });

  it("replaces half of a surrogate pair", async () => {
    const tokenizer = await defaultTokenizer();
    assertEquals(tokenizer("a\ud83d").input_ids, tokenizer("a\ufffd").input_ids);
  });
});

describe("padding and truncation", () => {
  it("pads a batch on either side", async () => {
    const truth = goldens("wordnet-8m")?.tokenizer.padded;
    const tokenizer = await ownTokenizer();
    assertEquals(tokenizer.padding_side, "right");
    if (truth) {
      const { texts, padding_side, input_ids, attention_mask } = truth;
      assertEquals(tokenizer(texts, { padding: true, padding_side }), {
        input_ids,
        attention_mask,
      });
      tokenizer.padding_side = "left";
      assertEquals(tokenizer(texts, { padding: true }), { input_ids, attention_mask });
    }
    const right = tokenizer(["a dog", "a"], { padding: true, padding_side: "right" });
    assertEquals(right.input_ids, [[1, 67, 1696], [1, 67, 0]]);
    assertEquals(right.attention_mask, [[1, 1, 1], [1, 1, 0]]);
  });

  it("truncates a text on either side and keeps begin-of-text", async () => {
    const tokenizer = await defaultTokenizer();
    const text = "a dog is";
    const whole = tokenizer(text).input_ids;
    const cut = (options: TokenizeOptions) => tokenizer(text, options).input_ids;
    assertEquals(cut({ max_length: 3 }), whole.slice(0, 3));
    assertEquals(cut({ max_length: 3, truncation_side: "left" }), [1, ...whole.slice(-2)]);
    assertEquals(cut({ max_length: 3, truncation: false }), whole);
    assertEquals(cut({ truncation: true }), whole); // 4096 tokens are the limit
  });

  it("pads encodings that exist", async () => {
    const tokenizer = await defaultTokenizer();
    const rows = [tokenizer("a dog"), tokenizer("a")];
    const padded = tokenizer.pad(rows);
    assertEquals(padded.input_ids, [[1, 67, 1696], [1, 67, 0]]);
    assertEquals(padded.attention_mask, [[1, 1, 1], [1, 1, 0]]);
    const left = tokenizer.pad({ input_ids: [[5], [6, 7]] }, {
      padding: "max_length",
      max_length: 3,
      padding_side: "left",
      return_tensors: "pt",
    });
    assertEquals(left.input_ids, {
      data: Int32Array.of(0, 0, 5, 0, 6, 7),
      shape: [2, 3] as [number, number],
    });
    assertThrows(() => tokenizer.pad({ ids: [1] }), TypeError, "input_ids but found only ids");
    assertThrows(
      () => tokenizer.pad({ input_ids: [[1], [2]], attention_mask: [[1]] }),
      RangeError,
      "attention_mask to have 2 rows but found 1",
    );
  });

  it("gives tensors of one typed array and a shape", async () => {
    const tokenizer = await defaultTokenizer();
    for (const return_tensors of ["pt", "np", "ts"] as const) {
      const { input_ids } = tokenizer(["a dog", "a"], { padding: true, return_tensors });
      assertEquals(input_ids.data, Int32Array.of(1, 67, 1696, 1, 67, 0));
      assertEquals(input_ids.shape, [2, 3]);
    }
    assertEquals(tokenizer("a", { return_tensors: "pt" }).input_ids.shape, [1, 2]);
    assertThrows(
      () => tokenizer(["a dog", "a"], { return_tensors: "pt" }),
      RangeError,
      "to have 3 tokens for a tensor but found one with 2. Use padding: true",
    );
  });
});

describe("special tokens and vocabulary", () => {
  it("are those of the files", async () => {
    const tokenizer = await defaultTokenizer();
    assertEquals(tokenizer.all_special_tokens, [
      "<|begin_of_text|>",
      "<|end_of_text|>",
      "<|pad|>",
    ]);
    assertEquals(tokenizer.all_special_ids, [1, 2, 0]);
    assertEquals([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id], [
      1,
      2,
      0,
    ]);
    assertEquals([tokenizer.unk_token, tokenizer.unk_token_id], [null, null]);
    assertEquals([tokenizer.vocab_size, tokenizer.length], [4096, 4096]);
    assertEquals(Object.keys(tokenizer.get_vocab()).length, 4096);
    assertEquals(tokenizer.model_max_length, 4096);
  });

  it("convert both ways", async () => {
    const tokenizer = await defaultTokenizer();
    assertEquals(tokenizer.tokenize("a dog"), ["a", "Ġdog"]);
    assertEquals(tokenizer.convert_tokens_to_ids("Ġdog"), 1696);
    assertEquals(tokenizer.convert_tokens_to_ids(["a", "no such token"]), [67, null]);
    assertEquals(tokenizer.convert_ids_to_tokens(1696), "Ġdog");
    assertEquals(tokenizer.convert_ids_to_tokens([1, 67]), ["<|begin_of_text|>", "a"]);
    const plain = tokenizer.convert_ids_to_tokens(Int32Array.of(1, 67), {
      skip_special_tokens: true,
    });
    assertEquals(plain, ["a"]);
    assertEquals(tokenizer.convert_tokens_to_string(["a", "Ġdog"]), "a dog");
  });

  it("can be set and added", async () => {
    const tokenizer = await ownTokenizer();
    tokenizer.pad_token = tokenizer.eos_token;
    assertEquals(tokenizer.pad_token_id, 2);
    tokenizer.pad_token_id = 0;
    assertEquals(tokenizer.pad_token, "<|pad|>");
    assertEquals(tokenizer.add_special_tokens({ sep_token: "<sep>" }), 1);
    assertEquals([tokenizer.sep_token_id, tokenizer.length, tokenizer.vocab_size], [
      4096,
      4097,
      4096,
    ]);
    assertEquals(tokenizer("a<sep>").input_ids, [1, 67, 4096]);
    assertEquals(tokenizer.decode([67, 4096], { skip_special_tokens: true }), "a");
    assertEquals(tokenizer.add_tokens(["<sep2>", "<sep2>"]), 1);
    assertEquals(tokenizer.decode([4097]), "<sep2>");
    tokenizer.add_bos_token = false;
    assertEquals(tokenizer("a").input_ids, [67]);
    tokenizer.add_eos_token = true;
    assertEquals(tokenizer("a").input_ids, [67, 2]);
    assertThrows(() => tokenizer.add_special_tokens({ pad: "x" }), TypeError, 'found "pad"');
  });
});

describe("decode", () => {
  it("takes ids in any form", async () => {
    const tokenizer = await defaultTokenizer();
    const ids = [67, 1696];
    assertEquals(tokenizer.decode(67), "a");
    assertEquals(tokenizer.decode(67n), "a");
    assertEquals(tokenizer.decode([]), "");
    for (const form of [ids, ids.map(BigInt), Int32Array.from(ids), Uint16Array.from(ids)]) {
      assertEquals(tokenizer.decode(form), "a dog");
    }
    assertEquals(tokenizer.decode(BigInt64Array.from(ids.map(BigInt))), "a dog");
    assertEquals(tokenizer.decode([ids, Int32Array.of(67)]), ["a dog", "a"]);
    assertEquals(tokenizer.decode({ data: Int32Array.from(ids), shape: [2, 1] }), ["a", " dog"]);
    assertEquals(tokenizer.batch_decode([ids, [67]]), ["a dog", "a"]);
    assertEquals(tokenizer.batch_decode([[], ids]), ["", "a dog"]);
    assertEquals(tokenizer.batch_decode([]), []);
    assertEquals(tokenizer.batch_decode(ids), ["a dog"]);
  });

  it("cleans up only where it does no harm", async () => {
    const tokenizer = await ownTokenizer();
    const ids = tokenizer("a dog , is n't .").input_ids;
    const options = { skip_special_tokens: true, clean_up_tokenization_spaces: true };
    assertEquals(tokenizer.decode(ids, options), "a dog , is n't .");
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = true;
    assertEquals(tokenizer.decode(ids, options), "a dog, isn't.");
  });
});

describe("bad input", () => {
  // deno-lint-ignore no-explicit-any
  const wrong = (value: unknown) => value as any;
  const refused: [string, (t: Awaited<ReturnType<typeof defaultTokenizer>>) => unknown, string][] =
    [
      ["no text", (t) => t(wrong(undefined)), "Expected text to be a text but found undefined."],
      ["a number", (t) => t(wrong(7)), "Expected text to be a text but found 7."],
      [
        "a number in a batch",
        (t) => t(wrong(["a", 7])),
        "Expected text[1] to be a text but found 7.",
      ],
      ["null in a batch", (t) => t(wrong([null])), "Expected text[0] to be a text but found null."],
      ["a pair of numbers", (t) => t(wrong([["a", 1]])), "text[0][1] to be a text but found 1"],
      [
        "one pair for a batch",
        (t) => t(["a"], { text_pair: "b" }),
        'a list like text but found "b"',
      ],
      ["too few pairs", (t) => t(["a", "b"], { text_pair: ["c"] }), "as text (2) but found 1"],
      ["an unknown option", (t) => t("a", wrong({ maxlength: 4 })), 'Did you mean "max_length"?'],
      ["an unknown padding", (t) => t("a", wrong({ padding: "left" })), 'but found "left"'],
      ["an unknown truncation", (t) => t("a", wrong({ truncation: "both" })), '"only_first"'],
      ["an unknown side", (t) => t("a", wrong({ padding_side: "up" })), '"right" but found "up"'],
      ["an unknown tensor", (t) => t("a", wrong({ return_tensors: "tf" })), 'but found "tf"'],
      ["a broken length", (t) => t("a", { max_length: 2.5 }), "at least 0 but found 2.5"],
      ["a negative length", (t) => t("a", { max_length: -1 }), "at least 0 but found -1"],
      ["a zero multiple", (t) => t("a", { padding: true, pad_to_multiple_of: 0 }), "found 0"],
      ["no room", (t) => t("a", { max_length: 0 }), "for the 1 special tokens but found 0"],
      [
        "no second text",
        (t) => t("a b c", { truncation: "only_second", max_length: 2 }),
        "text_pair",
      ],
      [
        "too short a second text",
        (t) => t("a dog is here", { text_pair: "b", truncation: "only_second", max_length: 4 }),
        "has only 1",
      ],
      [
        "a length that is no multiple",
        (t) => t("a", { truncation: true, padding: true, max_length: 5, pad_to_multiple_of: 2 }),
        "found 5",
      ],
      [
        "a broken id",
        (t) => t.decode([1.5]),
        "Expected a token id to be an integer but found 1.5.",
      ],
      ["an id too large", (t) => t.decode([4096]), "a token id from 0 to 4095 but found 4096."],
      ["an id below zero", (t) => t.decode(-1), "a token id from 0 to 4095 but found -1."],
      ["a large bigint", (t) => t.decode([2n ** 70n]), "but found 1180591620717411303424."],
      ["a text as an id", (t) => t.decode(wrong(["1"])), 'an integer but found "1"'],
      ["a text as ids", (t) => t.decode(wrong("1")), 'a list of numbers but found "1"'],
      ["null as ids", (t) => t.decode(wrong(null)), "a list of numbers but found null"],
      [
        "an unknown decode option",
        (t) => t.decode([1], wrong({ skip_special: true })),
        "skip_special_tokens",
      ],
      ["an id that is no token", (t) => t.convert_ids_to_tokens(9999), "found 9999"],
      ["a token that is no text", (t) => t.convert_tokens_to_ids(wrong([1])), "found 1"],
      [
        "a pad token that is no text",
        (t) => t.pad_token = wrong(0),
        "pad_token to be a text or null but found 0",
      ],
    ];
  for (const [name, act, sentence] of refused) {
    it(name, async () => {
      const tokenizer = await defaultTokenizer();
      const error = assertThrows(() => act(tokenizer), Error, sentence);
      assert(error instanceof TypeError || error instanceof RangeError, String(error));
      assert(/[.?]$/.test(error.message), `no sentence: ${error.message}`);
    });
  }

  it("padding without a pad token", async () => {
    const tokenizer = await ownTokenizer();
    tokenizer.pad_token = null;
    assertThrows(() => tokenizer(["a"], { padding: true }), TypeError, "has no pad token");
    tokenizer.pad_token = "<nowhere>";
    assertThrows(() => tokenizer(["a"], { padding: true }), TypeError, '"<nowhere>" is not in the');
  });
});
