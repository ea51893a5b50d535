import { describe, it } from "node:test";
import process from "node:process";
import { assert, assertEquals, assertLess, assertRejects, assertThrows } from "@std/assert";
import {
  IncrementalDecoder,
  type PreTrainedTokenizer,
  TextIteratorStreamer,
  TextStreamer,
} from "../../src/tokenizer/mod.ts";
import { incompleteSuffix } from "../../src/tokenizer/byte_level.ts";
import { CleanUpStep, cleanUpTokenization } from "../../src/tokenizer/decoder.ts";
import { defaultTokenizer, ownTokenizer, randomNumbers } from "./support.ts";

const TEXTS = [
  "a small dog is",
  "😀👩‍👧🇩🇪 emoji",
  "你好，世界 日本語 한국어",
  "naïve café – “quoted” … 𝔘𝔫𝔦",
  "\n\n two  spaces \t and\r\nlines\n",
];

/** Streams ids and checks on the way that no piece ends in half of a character. */
function stream(tokenizer: PreTrainedTokenizer, ids: number[], options = {}): string {
  const decoder = new IncrementalDecoder(tokenizer, options);
  let text = "";
  for (const id of ids) {
    const piece = decoder.push(id);
    assertEquals(piece, piece.toWellFormed());
    text += piece;
  }
  return text + decoder.end();
}

describe("IncrementalDecoder", () => {
  for (const text of TEXTS) {
    it(`never shows half of a character of ${JSON.stringify(text)}`, async () => {
      const tokenizer = await defaultTokenizer();
      const decoder = new IncrementalDecoder(tokenizer, { skip_special_tokens: true });
      let shown = "";
      for (const id of tokenizer(text).input_ids) {
        shown += decoder.push(id);
        assert(text.startsWith(shown), `${JSON.stringify(shown)} is no beginning`);
      }
      assertEquals(decoder.end(), ""); // a whole text leaves nothing behind
      assertEquals(shown, text);
    });
  }

  it("holds back the bytes of a character until it is whole", async () => {
    const tokenizer = await defaultTokenizer();
    const ids = tokenizer.encode("😀", { add_special_tokens: false });
    assert(ids.length > 1, "the emoji is one token");
    const decoder = new IncrementalDecoder(tokenizer);
    for (const id of ids.slice(0, -1)) assertEquals(decoder.push(id), "");
    assertEquals(decoder.push(ids.at(-1)!), "😀");
    decoder.push(ids[0]);
    assertEquals(decoder.end(), "\uFFFD");
    assertEquals(decoder.push(67), "a"); // and starts anew
    assertEquals(decoder.end(), "");
  });

  it("gives what decode gives, for any ids", async () => {
    const tokenizer = await defaultTokenizer();
    const random = randomNumbers(7);
    for (let round = 0; round < 400; round++) {
      const end = round % 2 ? tokenizer.length : 260; // below 260 most tokens are single bytes
      const ids = Array.from(
        { length: Math.floor(random() * 40) },
        () => Math.floor(random() * end),
      );
      for (const skip_special_tokens of [false, true]) {
        const whole = tokenizer.decode(ids, { skip_special_tokens });
        assertEquals(stream(tokenizer, ids, { skip_special_tokens }), whole);
        // And what the bytes of all tokens are as one UTF-8 text.
        const kept = ids.filter((id) => !(skip_special_tokens && id < 3));
        assertEquals(whole, decodedByBytes(tokenizer, kept));
      }
    }
  });

  it("works for a long text without decoding it again", async () => {
    const tokenizer = await defaultTokenizer();
    const ids = tokenizer.encode("a small dog is here 😀 ".repeat(2000));
    const decoder = new IncrementalDecoder(tokenizer);
    const time = (part: number[]) => {
      const start = process.cpuUsage().user;
      for (const id of part) decoder.push(id);
      return process.cpuUsage().user - start;
    };
    const quarter = Math.floor(ids.length / 4);
    time(ids.slice(0, quarter));
    const early = time(ids.slice(quarter, 2 * quarter));
    const late = time(ids.slice(3 * quarter));
    // In microseconds; a full decode for each token would be far above.
    assertLess(late, 8 * early + 50_000);
  });

  it("cleans up as the whole text would be", async () => {
    const tokenizer = await ownTokenizer();
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = true;
    const options = { clean_up_tokenization_spaces: true };
    const random = randomNumbers(11);
    const parts = [
      " ",
      ".",
      " n't",
      "n",
      "'t",
      " '",
      "'",
      " 's",
      " do not",
      " a",
      "bc",
      " ,",
      "!",
      " '",
      " 're",
    ];
    for (let round = 0; round < 300; round++) {
      const text = Array.from({ length: 12 }, () => parts[Math.floor(random() * parts.length)])
        .join("");
      const ids = tokenizer.encode(text, { add_special_tokens: false });
      assertEquals(stream(tokenizer, ids, options), cleanUpTokenization(text));
      const step = new CleanUpStep();
      let out = "";
      for (const unit of text) step.push(unit, (piece) => out += piece);
      step.end((piece) => out += piece);
      assertEquals(out, cleanUpTokenization(text));
    }
  });

  it("refuses ids that are none", async () => {
    const decoder = new IncrementalDecoder(await defaultTokenizer());
    assertThrows(() => decoder.push(4096), RangeError, "from 0 to 4095 but found 4096");
    assertThrows(() => decoder.push(0.5), TypeError, "an integer but found 0.5");
  });
});

const BYTE_OF = new Map<string, number>();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const shown = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  BYTE_OF.set(String.fromCodePoint(shown ? byte : next++), byte);
}

/** Slow twin: the bytes of all tokens in one list, read as UTF-8 once. */
function decodedByBytes(tokenizer: PreTrainedTokenizer, ids: number[]): string {
  const bytes = ids.flatMap((id) =>
    [...tokenizer.convert_ids_to_tokens(id)!].map((character) => BYTE_OF.get(character)!)
  );
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
}

describe("incompleteSuffix", () => {
  const cases: [number[], number][] = [
    [[], 0],
    [[0x61], 0],
    [[0xe4], 1],
    [[0xe4, 0xbd], 2],
    [[0xe4, 0xbd, 0xa0], 0],
    [[0xf0, 0x9f, 0x98], 3],
    [[0xf0, 0x8f], 0], // too small for four bytes
    [[0xe0, 0x9f], 0],
    [[0xed, 0xa0], 0], // a surrogate
    [[0xf4, 0x90], 0], // above U+10FFFF
    [[0xc1], 0],
    [[0xf5], 0],
    [[0x80, 0x80, 0x80], 0],
    [[0xe4, 0x61], 0],
  ];
  for (const [bytes, held] of cases) {
    it(bytes.map((byte) => byte.toString(16)).join(" ") || "nothing", () => {
      assertEquals(incompleteSuffix(Uint8Array.from(bytes)), held);
    });
  }
});

describe("TextStreamer", () => {
  it("prints whole words, lines and ideographs", async () => {
    const tokenizer = await defaultTokenizer();
    const printed: string[] = [];
    const streamer = new TextStreamer(tokenizer, {
      skip_prompt: true,
      skip_special_tokens: true,
      callback_function: (text) => printed.push(text),
    });
    for (let turn = 0; turn < 2; turn++) { // the second turn has a prompt of its own
      streamer.put({ data: Int32Array.from(tokenizer("prompt").input_ids), shape: [1, 3] });
      for (const id of tokenizer(" dogs run\n你 x").input_ids) streamer.put(BigInt(id));
      streamer.end();
      assertEquals(printed.join(""), " dogs run\n你 x");
      assert(printed.includes("dogs "), printed.join("|"));
      assert(printed.some((piece) => piece.endsWith("\n")), printed.join("|"));
      assert(printed.includes("你"), printed.join("|"));
      assertEquals(printed.at(-1), "x");
      printed.length = 0;
    }
  });

  it("can be overridden, and tells the end", async () => {
    const got: [string, boolean][] = [];
    class Own extends TextStreamer {
      override on_finalized_text(text: string, stream_end: boolean): void {
        got.push([text, stream_end]);
      }
    }
    const streamer = new Own(await defaultTokenizer());
    streamer.put([67]);
    streamer.end();
    assertEquals(got, [["a", true]]);
  });

  it("refuses several rows and unknown options", async () => {
    const tokenizer = await defaultTokenizer();
    const streamer = new TextStreamer(tokenizer);
    assertThrows(
      () => streamer.put([[1], [2]]),
      RangeError,
      "batch of 1 to stream as text but found 2",
    );
    const two = { data: Int32Array.of(1, 2), shape: [2, 1] };
    assertThrows(() => streamer.put(two), RangeError, "found 2 rows");
    // deno-lint-ignore no-explicit-any
    const options = { skipPrompt: true } as any;
    assertThrows(() => new TextStreamer(tokenizer, options), TypeError, '"skip_prompt"');
  });
});

describe("TextIteratorStreamer", () => {
  it("hands pieces to a loop while they come", async () => {
    const tokenizer = await defaultTokenizer();
    const streamer = new TextIteratorStreamer(tokenizer, {
      skip_prompt: true,
      skip_special_tokens: true,
    });
    const ids = tokenizer("a small dog is 😀 here").input_ids;
    streamer.put([[1, 67]]);
    const feed = (async () => {
      for (const id of ids) {
        await new Promise((resolve) => setTimeout(resolve, 1));
        streamer.put(id);
      }
      streamer.end();
    })();
    const pieces: string[] = [];
    for await (const piece of streamer) pieces.push(piece);
    await feed;
    assertEquals(pieces.join(""), "a small dog is 😀 here");
    assert(pieces.length > 3, `only ${pieces.length} pieces`);
    assert(!pieces.includes(""), "an empty piece");
  });

  it("ends each generation's loop", async () => {
    const streamer = new TextIteratorStreamer(await defaultTokenizer());
    for (const id of [67, 68]) {
      streamer.put(id);
      streamer.end();
    }
    for (const text of ["a", "b"]) {
      const pieces: string[] = [];
      for await (const piece of streamer) pieces.push(piece);
      assertEquals(pieces, [text]);
    }
  });

  it("throws when nothing comes, and what it was given to throw", async () => {
    const tokenizer = await defaultTokenizer();
    const late = new TextIteratorStreamer(tokenizer, { timeout: 0.02 });
    const loop = async (streamer: TextIteratorStreamer) => {
      for await (const _ of streamer); // only its end matters
    };
    await assertRejects(() => loop(late), Error, "No text came for 0.02 seconds.");
    const failing = new TextIteratorStreamer(tokenizer);
    setTimeout(() => failing.fail(new RangeError("the generation broke")), 5);
    await assertRejects(() => loop(failing), RangeError, "the generation broke");
    assertThrows(() => new TextIteratorStreamer(tokenizer, { timeout: 0 }), TypeError, "found 0");
  });
});
