/**
 * What Hugging Face's own tokenizer answers (`make_hf_cases.py` wrote it down), repeated here.
 */
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { IncrementalDecoder, TextStreamer, type TokenizeOptions } from "../../src/tokenizer/mod.ts";
import { createSteps, type DecoderJson, StepChain } from "../../src/tokenizer/decoder.ts";
import { defaultTokenizer, ownTokenizer } from "./support.ts";

function read(name: string): string {
  return readFileSync(new URL(name, import.meta.url), "utf8");
}

const cases = JSON.parse(read("hf_cases.json")) as {
  calls: {
    text: string | string[];
    options: TokenizeOptions;
    truncation_side: "left" | "right";
    result: Record<string, unknown> & { error?: string };
  }[];
  decodes: { ids: number[]; decoded: string; skip: string; pieces: string[] }[];
  loads: {
    options: Record<string, unknown>;
    properties: Record<string, unknown>;
    probe: string;
    ids: number[];
    pair: number[];
    truncated: number[];
    skip: string;
    counts: [number, number];
  }[];
  steps: { decoder: DecoderJson; tokens: string[]; text: string }[];
  chats: {
    template: string;
    conversation: { role: string; content: string }[];
    options: Record<string, unknown>;
    text?: string;
    mask?: string;
    error?: string;
  }[];
};

describe("calls as Hugging Face answers them", () => {
  it("on random texts with random options", async () => {
    const tokenizer = await ownTokenizer({ model_max_length: 24 });
    let errors = 0;
    for (const { text, options, truncation_side, result } of cases.calls) {
      const call = () => tokenizer(text, { ...options, truncation_side });
      const name = JSON.stringify({ text, options, truncation_side });
      if (result.error !== undefined) {
        assertThrows(call, Error, "", name);
        errors++;
      } else {
        assertEquals<Record<string, unknown>>({ ...call() }, result, name);
      }
    }
    assert(errors > 5 && errors < cases.calls.length / 2, `${errors} errors`);
  });
});

describe("decoding as Hugging Face does it", () => {
  it("whole lists and streams of ids", async () => {
    const tokenizer = await defaultTokenizer();
    for (const { ids, decoded, skip } of cases.decodes) {
      assertEquals(tokenizer.decode(ids), decoded);
      assertEquals(tokenizer.decode(ids, { skip_special_tokens: true }), skip);
      const decoder = new IncrementalDecoder(tokenizer, { skip_special_tokens: true });
      assertEquals(ids.map((id) => decoder.push(id)).join("") + decoder.end(), skip);
    }
  });

  it("TextStreamer prints the same pieces", async () => {
    const tokenizer = await defaultTokenizer();
    for (const { ids, pieces, decoded } of cases.decodes) {
      const printed: string[] = [];
      const callback_function = (text: string) => void (text !== "" && printed.push(text));
      const streamer = new TextStreamer(tokenizer, { callback_function });
      for (const id of ids) streamer.put([[id]]);
      streamer.end();
      assertEquals(printed.join(""), decoded);
      // Hugging Face prints a line late when half a character stands behind its end.
      if (!/\n\uFFFD|\p{Ideo}\uFFFD/u.test(decoded)) assertEquals(printed, pieces);
    }
  });

  for (const { decoder, tokens, text } of cases.steps) {
    it(`${JSON.stringify(decoder).slice(0, 90)} of ${tokens.length} tokens`, () => {
      const chain = new StepChain(createSteps(decoder));
      let streamed = "";
      for (const token of tokens) {
        chain.push(token);
        streamed += chain.take();
        assert(text.startsWith(streamed), `${JSON.stringify(streamed)} was passed on too early`);
      }
      chain.end();
      assertEquals(streamed + chain.take(), text);
    });
  }
});

describe("loading with options as Hugging Face does", () => {
  for (const truth of cases.loads) {
    it(JSON.stringify(truth.options), async () => {
      const tokenizer = await ownTokenizer(truth.options);
      const properties = tokenizer as unknown as Record<string, unknown>;
      for (const [name, value] of Object.entries(truth.properties)) {
        assertEquals(properties[name], value, name);
      }
      assertEquals(tokenizer(truth.probe).input_ids, truth.ids);
      assertEquals(tokenizer(truth.probe, { text_pair: "b" }).input_ids, truth.pair);
      assertEquals(tokenizer(truth.probe, { truncation: true }).input_ids, truth.truncated);
      assertEquals(tokenizer.decode(truth.ids, { skip_special_tokens: true }), truth.skip);
      const counts = [false, true].map((pair) => tokenizer.num_special_tokens_to_add(pair));
      assertEquals(counts, truth.counts);
    });
  }
});

describe("chat templates as Hugging Face renders them", () => {
  for (const [i, truth] of cases.chats.entries()) {
    it(`${truth.template} ${i}`, async () => {
      const tokenizer = await defaultTokenizer();
      const chat_template = read(`templates/${truth.template}.jinja`);
      const options = { ...truth.options, chat_template };
      const render = () =>
        tokenizer.apply_chat_template(truth.conversation, { ...options, tokenize: false });
      if (truth.error !== undefined) {
        assertThrows(render, Error);
        return;
      }
      assertEquals(render(), truth.text);
      const ids = tokenizer(truth.text!, { add_special_tokens: false }).input_ids;
      assertEquals(tokenizer.apply_chat_template(truth.conversation, options).input_ids, ids);
      if (truth.mask === undefined) return;
      const masked = { ...options, return_assistant_tokens_mask: true };
      const { assistant_masks } = tokenizer.apply_chat_template(truth.conversation, masked);
      assertEquals(assistant_masks!.join(""), truth.mask);
    });
  }
});
