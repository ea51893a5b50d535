import { describe, it } from "node:test";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { assertEquals, assertRejects } from "@std/assert";
import { AutoTokenizer } from "../../src/tokenizer/mod.ts";
import { defaultTokenizer, MODEL, ownTokenizer } from "./support.ts";

/** Runs a test in a folder with the default tokenizer.json and whatever else it is given. */
async function inFolder(
  files: Record<string, string | object>,
  act: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "tokenizer "));
  try {
    copyFileSync(join(MODEL, "tokenizer.json"), join(folder, "tokenizer.json"));
    for (const [name, content] of Object.entries(files)) {
      mkdirSync(join(folder, name, ".."), { recursive: true });
      const text = typeof content === "string" ? content : JSON.stringify(content);
      writeFileSync(join(folder, name), text);
    }
    await act(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const load = AutoTokenizer.from_pretrained;

describe("AutoTokenizer.from_pretrained", () => {
  it("takes a path, a URL, and a folder with tokenizer.json alone", async () => {
    const byUrl = await load(pathToFileURL(MODEL));
    assertEquals(byUrl("a").input_ids, [1, 67]);
    await inFolder({}, async (folder) => {
      const tokenizer = await load(folder);
      assertEquals(tokenizer("a").input_ids, [1, 67]); // tokenizer.json itself adds begin-of-text
      assertEquals([tokenizer.bos_token, tokenizer.model_max_length], [null, 1e30]);
    });
  });

  it("reads special_tokens_map.json when the config lists no added tokens", async () => {
    const map = { eos_token: { content: "<|end_of_text|>" }, additional_special_tokens: ["<x>"] };
    await inFolder({ "special_tokens_map.json": map }, async (folder) => {
      const tokenizer = await load(folder, { pad_token: "<|pad|>" });
      assertEquals([tokenizer.eos_token_id, tokenizer.pad_token_id], [2, 0]);
      assertEquals(tokenizer.extra_special_tokens, ["<x>"]);
      assertEquals(tokenizer("<x>").input_ids, [1, 4096]);
    });
    const config = { added_tokens_decoder: {} };
    const files = { "special_tokens_map.json": map, "tokenizer_config.json": config };
    await inFolder(files, async (folder) => assertEquals((await load(folder)).eos_token, null));
  });

  it("reads chat templates wherever they are", async () => {
    const config = { "tokenizer_config.json": { chat_template: "config" } };
    const json = { "chat_template.json": { chat_template: "json" } };
    const jinja = { "chat_template.jinja": "jinja" };
    const more = { "additional_chat_templates/rag.jinja": "rag" };
    const named = { "tokenizer_config.json": { chat_template: [{ name: "a", template: "A" }] } };
    const cases: [Record<string, string | object>, unknown][] = [
      [config, "config"],
      [json, "json"],
      [{ ...json, ...config }, "config"],
      [{ ...config, ...jinja }, "jinja"],
      [{ ...config, ...jinja, ...more }, { default: "jinja", rag: "rag" }],
      [named, { a: "A" }],
      [{}, null],
    ];
    for (const [files, expected] of cases) {
      await inFolder(files, async (folder) => {
        assertEquals<unknown>((await load(folder)).chat_template, expected);
      });
    }
  });

  it("names what is missing or broken", async () => {
    await assertRejects(() => load("no/such/folder"), Error, "because it does not exist.");
    const file = join(MODEL, "config.json");
    await assertRejects(() => load(file), Error, "because it is no folder.");
    await inFolder({}, async (folder) => {
      rmSync(join(folder, "tokenizer.json"));
      await assertRejects(() => load(folder), Error, "because it has no tokenizer.json.");
    });
    const broken: [Record<string, string | object>, string][] = [
      [{ "tokenizer.json": "{" }, "tokenizer.json as JSON"],
      [{ "tokenizer.json": "[]" }, "to hold a JSON object but found an array of 0"],
      [{ "tokenizer.json": {} }, 'to have a "model" with a "vocab" but found none'],
      [{ "tokenizer_config.json": "nope" }, "tokenizer_config.json as JSON"],
      [{ "tokenizer_config.json": { bos_token: 7 } }, "bos_token to be a text but found 7"],
      [{ "tokenizer_config.json": { padding_side: "middle" } }, 'padding_side to be one of "left"'],
    ];
    for (const [files, sentence] of broken) {
      await inFolder(files, async (folder) => {
        await assertRejects(() => load(folder), Error, sentence);
      });
    }
    // deno-lint-ignore no-explicit-any
    const slip = { paddingside: "left" } as any;
    await assertRejects(() => load(MODEL, slip), TypeError, 'Did you mean "padding_side"?');
    // deno-lint-ignore no-explicit-any
    await assertRejects(() => load(7 as any), TypeError, "as a path but found 7");
  });
});

describe("save_pretrained", () => {
  it("writes what loads to the same tokenizer", async () => {
    const texts = ["a small dog is", "😀<|pad|><|im_start|> <new>"];
    const tokenizer = await ownTokenizer({
      padding_side: "left",
      chat_template: "{{ bos_token }}",
    });
    await inFolder({}, async (folder) => {
      const unchanged = await (await defaultTokenizer()).save_pretrained(join(folder, "copy"));
      assertEquals(unchanged.length, 3);
      const text = (from: string) => readFileSync(join(from, "tokenizer.json"), "utf8");
      assertEquals(text(join(folder, "copy")), text(MODEL));

      tokenizer.add_special_tokens({ sep_token: "<sep>", extra_special_tokens: ["<|im_start|>"] });
      tokenizer.add_tokens("<new>");
      tokenizer.add_eos_token = true;
      const paths = await tokenizer.save_pretrained(join(folder, "changed"));
      assertEquals(paths.map((path) => path.slice(folder.length + 9)), [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "chat_template.jinja",
      ]);
      const again = await load(join(folder, "changed"));
      for (
        const name of ["padding_side", "chat_template", "length", "all_special_tokens"] as const
      ) {
        assertEquals<unknown>(again[name], tokenizer[name], name);
      }
      assertEquals(again(texts).input_ids, tokenizer(texts).input_ids);
      assertEquals(again.get_vocab(), tokenizer.get_vocab());
    });
  });
});
