import { describe, it } from "node:test";
import { readFileSync } from "node:fs";
import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { TemplateError } from "../../src/tokenizer/mod.ts";
import { pythonFloat, strftime } from "../../src/tokenizer/template_values.ts";
import { defaultTokenizer, ownTokenizer } from "./support.ts";

const CHATML = readFileSync(new URL("templates/chatml.jinja", import.meta.url), "utf8");
const HI = [{ role: "user", content: "Hi" }];

/** Renders a template over a one-line chat. */
async function render(chat_template: string, variables: Record<string, unknown> = {}) {
  const tokenizer = await defaultTokenizer();
  return tokenizer.apply_chat_template(HI, { chat_template, tokenize: false, ...variables });
}

describe("apply_chat_template", () => {
  it("gives ids, a dictionary, tensors, or text", async () => {
    const tokenizer = await ownTokenizer({ chat_template: CHATML });
    const options = { add_generation_prompt: true } as const;
    const text = tokenizer.apply_chat_template(HI, { ...options, tokenize: false });
    assertMatch(text, /^<\|im_start\|>system\nYou.*<\|im_start\|>user\nHi.*assistant\n$/s);
    const ids = tokenizer.encode(text, { add_special_tokens: false });
    const encoding = tokenizer.apply_chat_template(HI, options);
    assertEquals(encoding, { input_ids: ids, attention_mask: ids.map(() => 1) });
    assertEquals(tokenizer.apply_chat_template(HI, { ...options, return_dict: false }), ids);
    const tensors = { ...options, return_tensors: "pt" } as const;
    assertEquals(tokenizer.apply_chat_template(HI, tensors).input_ids.shape, [1, ids.length]);
    const short = tokenizer.apply_chat_template(HI, {
      ...options,
      truncation: true,
      max_length: 5,
    });
    assertEquals(short.input_ids, ids.slice(0, 5));
  });

  it("takes several conversations at once", async () => {
    const tokenizer = await ownTokenizer({ chat_template: CHATML });
    const chats = [HI, [...HI, { role: "assistant", content: "Hello there" }]];
    const texts = tokenizer.apply_chat_template(chats, { tokenize: false });
    assertEquals(texts.length, 2);
    const { input_ids, attention_mask } = tokenizer.apply_chat_template(chats, {
      padding: true,
      tokenizer_kwargs: { padding_side: "left" },
    });
    assertEquals(input_ids[0].length, input_ids[1].length);
    assertEquals(attention_mask[0][0], 0);
    assertEquals(tokenizer.decode(input_ids[0], { skip_special_tokens: true }), texts[0]);
  });

  it("marks what the assistant said, padding and truncation included", async () => {
    const tokenizer = await defaultTokenizer();
    const said_by_assistant = "{% generation %}{{ m.content }}{% endgeneration %}";
    const chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}" +
      `{% else %}${said_by_assistant}{% endif %}{% endfor %}`;
    const chats = [
      [...HI, { role: "assistant", content: " a dog" }],
      [...HI, { role: "assistant", content: " a" }],
    ];
    const options = { chat_template, return_assistant_tokens_mask: true, padding: true } as const;
    const { input_ids, assistant_masks } = tokenizer.apply_chat_template(chats, options);
    assertEquals(assistant_masks![0].length, input_ids[0].length);
    const said = (row: number) => input_ids[row].filter((_, i) => assistant_masks![row][i] === 1);
    assertEquals([0, 1].map((row) => tokenizer.decode(said(row))), [" a dog", " a"]);
    const cut = { ...options, truncation: true, max_length: 3 } as const;
    assertEquals(tokenizer.apply_chat_template(chats, cut).assistant_masks![0].length, 3);
    assertEquals(
      tokenizer.apply_chat_template(chats, { ...options, return_tensors: "pt" }).assistant_masks!
        .shape,
      [2, input_ids[0].length],
    );
  });

  it("chooses among several templates", async () => {
    const templates = { default: "plain", tool_use: "tools", rag: "rag" };
    const tokenizer = await ownTokenizer({ chat_template: templates });
    const text = (options = {}) =>
      tokenizer.apply_chat_template(HI, { tokenize: false, ...options });
    assertEquals(text(), "plain");
    assertEquals(text({ tools: [{ type: "function" }] }), "tools");
    assertEquals(text({ chat_template: "rag" }), "rag");
    assertEquals(text({ chat_template: "{{ messages[0].content }}!" }), "Hi!");
    tokenizer.chat_template = { one: "1", two: "2" };
    assertThrows(() => text(), TypeError, "one, two");
  });

  it("hands other options and the special tokens to the template", async () => {
    const template = "{{ bos_token }}{% if enable_thinking %}think{% endif %}{{ name }}";
    const text = await render(template, { enable_thinking: true, name: "x" });
    assertEquals(text, "<|begin_of_text|>thinkx");
  });

  it("continues the last message", async () => {
    const tokenizer = await ownTokenizer({ chat_template: CHATML });
    const chat = [...HI, { role: "assistant", content: "Once upon a " }];
    const options = { tokenize: false, continue_final_message: true } as const;
    assertMatch(tokenizer.apply_chat_template(chat, options), /assistant\nOnce upon a$/);
    assertEquals(chat[1].content, "Once upon a "); // the caller's messages stay as they were
  });
});

describe("what templates can call", () => {
  it("tojson writes what Python writes", async () => {
    assertEquals(await render("{{ 2.0 | tojson }} {{ 2.0 }} {{ 2 | tojson }}"), "2.0 2.0 2");
    assertEquals(
      await render("{{ v | tojson }}", { v: { b: [1, 2.5, null, "é\n"] } }),
      '{"b": [1, 2.5, null, "é\\n"]}',
    );
    const sorted = "{{ v | tojson(sort_keys=true, separators=(',', ':')) }}";
    assertEquals(await render(sorted, { v: { b: 1, a: 2, B: 3 } }), '{"B":3,"a":2,"b":1}');
    assertEquals(await render("{{ v | tojson(true, 2) }}", { v: ["é"] }), '[\n  "\\u00e9"\n]');
    assertEquals(await render("{{ v | tojson(indent=0) }}", { v: [1, 2] }), "[\n1,\n2\n]");
  });

  it("floats look as in Python", () => {
    const floats: [number, string][] = [
      [2, "2.0"],
      [-0, "-0.0"],
      [0.1, "0.1"],
      [1e16, "1e+16"],
      [123456789012345680, "1.2345678901234568e+17"],
      [1e15, "1000000000000000.0"],
      [0.0001, "0.0001"],
      [0.00012345, "0.00012345"],
      [0.00001, "1e-05"],
      [1.5e-7, "1.5e-07"],
      [1e300, "1e+300"],
      [-2.5, "-2.5"],
      [NaN, "NaN"],
      [-Infinity, "-Infinity"],
    ];
    for (const [value, text] of floats) assertEquals(pythonFloat(value), text);
  });

  it("dates are English and local", async () => {
    const date = new Date(2024, 1, 3, 15, 4, 5);
    assertEquals(
      strftime(date, "%d %b %Y, %A %-d %B %y %j"),
      "03 Feb 2024, Saturday 3 February 24 034",
    );
    assertEquals(
      strftime(date, "%H:%M:%S %I %p %F %T %D %e %a %% %Q"),
      "15:04:05 03 PM 2024-02-03 15:04:05 02/03/24  3 Sat % %Q",
    );
    assertMatch(await render("{{ strftime_now('%Y-%m-%d') }}") as string, /^\d{4}-\d\d-\d\d$/);
  });

  it("a missing field is an empty text, and range counts", async () => {
    assertEquals(await render("[{{ messages[0].nothing | trim | upper }}]"), "[]");
    assertEquals(await render("{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}"), "321");
  });
});

describe("chats that cannot be", () => {
  const refuse = (
    name: string,
    chat: unknown,
    options: Record<string, unknown>,
    sentence: string,
  ) =>
    it(name, async () => {
      const tokenizer = await defaultTokenizer();
      // deno-lint-ignore no-explicit-any
      const act = () => tokenizer.apply_chat_template(chat as any, options);
      assertThrows(act, TypeError, sentence);
    });
  const chat_template = "{{ messages[0].content }}";
  refuse("no template", HI, {}, "has no chat template");
  refuse("no message", [], { chat_template }, "but found an empty list");
  refuse("no list", "Hi", { chat_template }, 'at least one message but found "Hi"');
  refuse(
    "a text as message",
    ["Hi"],
    { chat_template },
    'message 0 to be an object but found "Hi"',
  );
  refuse(
    "a slip",
    HI,
    { chat_template, add_generation_promt: true },
    'mean "add_generation_prompt"?',
  );
  refuse("masks of text", HI, {
    chat_template,
    tokenize: false,
    return_assistant_tokens_mask: true,
  }, "needs tokenize");
  refuse("two wishes", HI, {
    chat_template,
    add_generation_prompt: true,
    continue_final_message: true,
  }, "exclude each other");
  refuse(
    "nothing to continue",
    HI,
    { chat_template, continue_final_message: "thinking" },
    'have a "thinking"',
  );
  refuse("a field the template ignores", [{ role: "user", x: "y" }], {
    chat_template,
    continue_final_message: "x",
  }, "does not mention");

  it("a template that fails, refuses, or is none", async () => {
    const tokenizer = await defaultTokenizer();
    const act = (chat_template: string) => () =>
      tokenizer.apply_chat_template(HI, { chat_template });
    assertThrows(
      act("{{ raise_exception('no users') }}"),
      TemplateError,
      "refuses this conversation: no users",
    );
    assertThrows(act("{{ 1 | nope }}"), TemplateError, "The chat template failed: ");
    assertThrows(act("{% if %}"), SyntaxError, "cannot be parsed");
    const dropped = { chat_template: "content", continue_final_message: true };
    assertThrows(() => tokenizer.apply_chat_template(HI, dropped), TemplateError, "changes it");
  });
});
