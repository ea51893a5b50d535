import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, it } from "node:test";
import type { GgufArray } from "../../src/gguf/format.ts";
import { readGgufHeader } from "../../src/gguf/reader.ts";
import { preTokenizerName } from "../../src/gguf/pre_tokenizers.ts";
import { addTokenizer } from "../../src/gguf/tokenizer_write.ts";
import { MetadataBuilder } from "../../src/gguf/values.ts";
import { writeGguf } from "../../src/gguf/writer.ts";
import type { JsonValue } from "../../src/weights/json.ts";
import { AutoTokenizer } from "../../src/tokenizer/mod.ts";
import { model_folder, withFolder } from "../weights/support.ts";
import { tiny_path } from "./support.ts";

const texts = [
  "a small dog is",
  "Hello, world! It's 12345 dogs'",
  "  spaces\n\nand lines\t日本語 é \u{1f436}",
  "<|begin_of_text|>in the text<|end_of_text|>",
  "",
];

/** The tokenizer of a folder, by way of a GGUF file without tensors. */
async function through(folder: string, path: string, vocab_size: number) {
  const builder = new MetadataBuilder()
    .add("general.architecture", "string", "granitehybrid")
    .add("granitehybrid.context_length", "u32", 4096);
  await addTokenizer(builder, folder, vocab_size);
  await writeGguf(path, builder.metadata, []);
  return await AutoTokenizer.from_pretrained(path);
}

describe("a byte-level tokenizer in a GGUF file", () => {
  it("gives the ids and texts of the folder it came from", () =>
    withFolder(async (folder) => {
      const own = await AutoTokenizer.from_pretrained(model_folder);
      const back = await through(model_folder, join(folder, "t.gguf"), own.vocab_size);
      for (const text of texts) {
        const ids = own(text).input_ids;
        assertEquals(back(text).input_ids, ids, text);
        assertEquals(
          back(text, { text_pair: "b c" }).input_ids,
          own(text, { text_pair: "b c" }).input_ids,
        );
        assertEquals(back.decode(ids), own.decode(ids));
        for (const o of [{ add_special_tokens: false }, { split_special_tokens: true }]) {
          assertEquals(back(text, o).input_ids, own(text, o).input_ids);
        }
      }
      for (const name of ["bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"] as const) {
        assertEquals(back[name], own[name], name);
      }
      assertEquals(back.model_max_length, 4096);
      assertEquals(back.all_special_ids.toSorted(), own.all_special_ids.toSorted());
    }));

  it("keeps chat templates, added tokens and holes", () =>
    withFolder(async (folder) => {
      const from = join(folder, "from");
      cpSync(model_folder, from, { recursive: true, filter: (p) => !p.endsWith(".safetensors") });
      const path = join(from, "tokenizer.json");
      const json = JSON.parse(readFileSync(path, "utf8"));
      json.added_tokens.push({ id: 4100, content: "<tool>", special: false, normalized: false });
      writeFileSync(path, JSON.stringify(json));
      writeFileSync(join(from, "chat_template.jinja"), "{{ messages[0].content }}!");
      const templates = join(from, "additional_chat_templates");
      cpSync(join(from, "chat_template.jinja"), join(templates, "other.jinja"));
      const file = join(folder, "t.gguf");
      const back = await through(from, file, 4104);
      const own = await AutoTokenizer.from_pretrained(from);
      assertEquals(back("use <tool> now").input_ids, own("use <tool> now").input_ids);
      assert(back("use <tool> now").input_ids.includes(4100));
      const messages = [{ role: "user", content: "hi" }];
      assertEquals(back.apply_chat_template(messages, { tokenize: false }), "hi!");
      assertEquals(
        back.apply_chat_template(messages, { tokenize: false, chat_template: "other" }),
        "hi!",
      );
      const { metadata } = readGgufHeader(file);
      const types = metadata.get("tokenizer.ggml.token_type")!.value as GgufArray;
      assertEquals(types.values.slice(4096), [5, 5, 5, 5, 4, 5, 5, 5]);
      await assertRejects(
        () => addTokenizer(new MetadataBuilder(), from, 4100),
        RangeError,
        'below vocab_size = 4100 but found 4100 ("<tool>")',
      );
    }));

  it("is not written when GGUF has no words for it", async () => {
    const split = (Regex: string): JsonValue => ({
      type: "Sequence",
      pretokenizers: [{ type: "Split", pattern: { Regex } }, {
        type: "ByteLevel",
        use_regex: false,
      }],
    });
    assertEquals(preTokenizerName({ type: "ByteLevel", add_prefix_space: false }, false), "gpt-2");
    for (const json of [split("\\w+"), { type: "Metaspace" }, null] as JsonValue[]) {
      assertThrows(() => preTokenizerName(json, false), RangeError, "which GGUF has names for");
    }
    await withFolder(async (folder) => {
      const model = { type: "WordLevel", vocab: { a: 0 }, unk_token: "a" };
      writeFileSync(join(folder, "tokenizer.json"), JSON.stringify({ model, added_tokens: [] }));
      await assertRejects(
        () => addTokenizer(new MetadataBuilder(), folder, 8),
        RangeError,
        "byte-level BPE tokenizer without a normalizer, which GGUF has words for, but found WordLevel",
      );
    });
  });
});

describe("a SentencePiece tokenizer in a GGUF file", () => {
  let tokenizer: Awaited<ReturnType<typeof AutoTokenizer.from_pretrained>>;
  before(async () => {
    tokenizer = await AutoTokenizer.from_pretrained(tiny_path);
  });

  // As llama.cpp cuts them.
  const cases: [string, number[]][] = [
    ["dog", [268]],
    ["a bad dog", [265, 272, 268]],
    ["good  dog", [259, 263, 264, 264, 262, 259, 268]],
    ["é dog", [259, 198, 172, 268]],
    ["bado gad", [272, 264, 259, 263, 270]],
  ];
  for (const [text, ids] of cases) {
    it(`cuts ${JSON.stringify(text)} and puts it together again`, () => {
      assertEquals(tokenizer(text).input_ids, [1, ...ids]);
      assertEquals(tokenizer.decode([1, ...ids], { skip_special_tokens: true }), text);
    });
  }

  it("has its template and special tokens", () => {
    assertEquals([tokenizer.bos_token, tokenizer.eos_token], ["<s>", "</s>"]);
    const messages = [{ role: "user", content: "hi" }];
    assertEquals(tokenizer.apply_chat_template(messages, { tokenize: false }), "user: hi\n");
  });
});

describe("a GGUF file's tokenizer", () => {
  const wrong: [string, (b: MetadataBuilder) => MetadataBuilder, RegExp][] = [
    ["is missing", (b) => b, /tokenizer.ggml.model but found nothing/],
    ["is of another kind", (b) => b.add("tokenizer.ggml.model", "string", "bert"), /found "bert"/],
    [
      "has fewer types than tokens",
      (b) =>
        b.add("tokenizer.ggml.model", "string", "gpt2")
          .addArray("tokenizer.ggml.tokens", "string", ["a", "b"])
          .addArray("tokenizer.ggml.token_type", "i32", [1]),
      /each of 2 tokens but found 1/,
    ],
    [
      "has a merge of three",
      (b) =>
        b.add("tokenizer.ggml.model", "string", "gpt2")
          .addArray("tokenizer.ggml.tokens", "string", ["a"])
          .addArray("tokenizer.ggml.merges", "string", ["a b c"]),
      /two tokens each but found "a b c"/,
    ],
    [
      "has a token as long as a book",
      (b) =>
        b.add("tokenizer.ggml.model", "string", "llama")
          .addArray("tokenizer.ggml.tokens", "string", ["a", "b".repeat(1e6)])
          .addArray("tokenizer.ggml.scores", "f32", [0, 0]),
      /at most 1024 letters but token 1 has 1000000/,
    ],
    [
      "cuts text in an unknown way",
      (b) =>
        b.add("tokenizer.ggml.model", "string", "gpt2").add("tokenizer.ggml.pre", "string", "x")
          .addArray("tokenizer.ggml.tokens", "string", ["a"]),
      /tokenizer.ggml.pre to be one of .*llama-bpe.* but found "x"/,
    ],
  ];
  for (const [what, fill, words] of wrong) {
    it(`that ${what} is told with the path`, () =>
      withFolder(async (folder) => {
        const path = join(folder, "t.gguf");
        await writeGguf(path, fill(new MetadataBuilder()).metadata, []);
        const error = await assertRejects(() => AutoTokenizer.from_pretrained(path), Error);
        assertMatch(error.message, words);
        assert(error.message.startsWith(`Cannot load the tokenizer of "${path}": `), error.message);
      }));
  }
});
