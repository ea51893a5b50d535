/** `generate`: options, sampling, stopping, streams, and what each returns. */

import { describe, it } from "node:test";
import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import {
  type GenerateInputs,
  GenerationConfig,
  type LogitsProcessor,
  TextStreamer,
} from "../../mod.ts";
import { loadModel, loadTokenizer } from "./support.ts";

const tokenizer = await loadTokenizer();
const texts = ["a small dog is", "to run", "the opposite of hot"];
const one = { input_ids: tokenizer([texts[0]]).input_ids as number[][] };

describe("generate", () => {
  it("continues rows of any length together as alone", async () => {
    using model = await loadModel();
    for (const side of ["left", "right"] as const) {
      const batch = tokenizer(texts, { padding: true, padding_side: side });
      const columns = (batch.input_ids as number[][])[0].length;
      const together = await model.generate({ ...batch, max_new_tokens: 24 });
      for (const [r, text] of texts.entries()) {
        const alone = tokenizer([text]).input_ids as number[][];
        const [ids] = await model.generate({ input_ids: alone, max_new_tokens: 24 });
        const fresh = ids.slice(alone[0].length);
        const row = together[r].slice(columns);
        assertEquals(row.slice(0, fresh.length), fresh, `${side} ${text}`);
        assert(row.slice(fresh.length).every((id) => id === 0), "padded after its end");
      }
    }
  });

  it("draws the same ids from the same seed, whatever the threads", async () => {
    using two = await loadModel({ threads: 2 });
    using three = await loadModel({ threads: 3 });
    const options = { ...one, do_sample: true, temperature: 1.5, max_new_tokens: 40 };
    const truth = await two.generate({ ...options, seed: 7 });
    assertEquals(await two.generate({ ...options, seed: 7n }), truth);
    assertEquals(await three.generate({ ...options, seed: 7 }), truth);
    assertNotEquals(await two.generate({ ...options, seed: 8 }), truth);
    // These ids are the same on every runtime and machine with this arithmetic.
    const first = await two.generate({ ...options, seed: 1, top_k: 0, max_new_tokens: 4 });
    assertEquals(first[0].length, one.input_ids[0].length + 4);
  });

  it("takes custom processors the same way as its own plan", async () => {
    using model = await loadModel();
    const options = { ...one, do_sample: true, seed: 3, top_p: 0.9, max_new_tokens: 20 };
    const truth = await model.generate({ ...options, repetition_penalty: 1.2 });
    const same = await model.generate({
      ...options,
      repetition_penalty: 1.2,
      logits_processor: [() => {}],
    });
    assertEquals(same, truth);
    const only = await model.generate({
      ...one,
      max_new_tokens: 3,
      logits_processor: (_, scores) => {
        for (const row of scores) row.fill(-Infinity), row[77] = 0;
      },
    });
    assertEquals(only[0].slice(-3), [77, 77, 77]);
  });

  it("keeps sampled ids within top_k, top_p and min_p", async () => {
    using model = await loadModel();
    const greedy = await model.generate({ ...one, max_new_tokens: 20 });
    for (const narrow of [{ top_k: 1 }, { top_p: 1e-6 }, { min_p: 1 }, { temperature: 1e-4 }]) {
      const sampled = await model.generate({
        ...one,
        do_sample: true,
        max_new_tokens: 20,
        ...narrow,
      });
      assertEquals(sampled, greedy, JSON.stringify(narrow));
    }
  });

  it("draws beams: other texts by other seeds, the best where nothing else is left", async () => {
    using two = await loadModel({ threads: 2 });
    using three = await loadModel({ threads: 3 });
    const search = { ...one, num_beams: 3, num_return_sequences: 2, max_new_tokens: 8 };
    const options = { ...search, do_sample: true, temperature: 1.5 };
    const truth = await two.generate({ ...options, seed: 1 });
    assertEquals(await three.generate({ ...options, seed: 1 }), truth);
    const seeds = [
      truth,
      ...await Promise.all([2, 3].map((seed) => two.generate({ ...options, seed }))),
    ];
    assertEquals(new Set(seeds.map((rows) => JSON.stringify(rows))).size, 3);
    // So cold that the race is decided by the scores alone.
    const cold = await two.generate({ ...search, do_sample: true, temperature: 0.001, seed: 1 });
    const scaled: LogitsProcessor = (_, scores) =>
      scores.map((row) => row.map((x) => Math.fround(x / 0.001)));
    assertEquals(cold, await two.generate({ ...search, logits_processor: scaled }));
  });

  it("leaves a drawn beam one id to go on with beside each eos id", async () => {
    using model = await loadModel();
    for (const narrow of [{ top_k: 1 }, { top_k: 0, top_p: 1e-6 }, { top_k: 0, min_p: 1 }]) {
      const dict = await model.generate({
        ...one,
        ...narrow,
        num_beams: 2,
        do_sample: true,
        eos_token_id: [2, 3, 4],
        max_new_tokens: 1,
        return_dict_in_generate: true,
        output_scores: true,
      });
      dict.past_key_values.dispose();
      const scores = await dict.scores![0].data();
      assertEquals(scores.filter((x) => x > -Infinity).length, 2 * 4, JSON.stringify(narrow));
    }
  });

  it("adds 20 ids where no length is given, as HF does", async () => {
    using model = await loadModel();
    const generation_config = new GenerationConfig();
    for (const count of [1, 5, 40]) {
      const input_ids = [new Array<number>(count).fill(300)];
      const [ids] = await model.generate({ input_ids, generation_config });
      assertEquals(ids.length, count + 20);
    }
  });

  it("says so where no score is left to choose by", async () => {
    using model = await loadModel();
    const bad_words_ids = Array.from({ length: model.config.vocab_size }, (_, id) => [id]);
    const broken: LogitsProcessor = (_, scores) => scores.forEach((row) => row.fill(NaN));
    for (const nothing of [{ bad_words_ids }, { logits_processor: broken }]) {
      for (const options of [{}, { do_sample: true }, { num_beams: 2 }]) {
        const error = await assertRejects(
          () => model.generate({ ...one, ...nothing, ...options, eos_token_id: null }),
          RangeError,
        );
        assertStringIncludes(error.message, "only NaN or -inf in ");
      }
    }
  });

  it("lets processors and criteria do with their ids what they like", async () => {
    using model = await loadModel();
    for (const num_beams of [1, 2]) {
      const options = { ...one, num_beams, max_new_tokens: 6, eos_token_id: null };
      const truth = await model.generate(options);
      const spoil = (input_ids: number[][]) => input_ids.forEach((ids) => ids.splice(0, 2, 5));
      const spoilt = await model.generate({
        ...options,
        logits_processor: spoil,
        stopping_criteria: (input_ids) => (spoil(input_ids), false),
      });
      assertEquals(spoilt, truth);
    }
  });

  it("returns several samples of each row", async () => {
    using model = await loadModel();
    const batch = tokenizer(texts.slice(0, 2), { padding: true });
    const options = { ...batch, do_sample: true, seed: 5, max_new_tokens: 12 };
    const rows = await model.generate({ ...options, num_return_sequences: 3 });
    assertEquals(rows.length, 6);
    const heads = rows.map((ids) => ids.slice(0, (batch.input_ids as number[][])[0].length));
    assertEquals(heads[0], heads[2]);
    assertNotEquals(rows[0], rows[1]);
  });

  it("stops at texts, criteria and lengths", async () => {
    using model = await loadModel();
    const greedy = (await model.generate({ ...one, max_new_tokens: 30 }))[0];
    const text = tokenizer.decode(greedy, { skip_special_tokens: true });
    const stopped = await model.generate({
      ...one,
      max_new_tokens: 30,
      stop_strings: ["trained to"],
      tokenizer,
    });
    const cut = tokenizer.decode(stopped[0], { skip_special_tokens: true });
    assert(text.startsWith(cut) && cut.length < text.length, cut);
    assertStringIncludes(cut, "trained to");
    const length = one.input_ids[0].length;
    const counted = await model.generate({
      ...one,
      max_new_tokens: 30,
      stopping_criteria: (ids) => ids.map((row) => row.length >= length + 5),
    });
    assertEquals(counted[0], greedy.slice(0, length + 5));
    const short = await model.generate({ ...one, max_length: length + 2 });
    assertEquals(short[0], greedy.slice(0, length + 2));
  });

  it("continues a cache that a call returned", async () => {
    using model = await loadModel();
    const full = await model.generate({ ...one, max_new_tokens: 16 });
    const dict = await model.generate({
      ...one,
      max_new_tokens: 6,
      return_dict_in_generate: true,
      output_scores: true,
      output_logits: true,
    });
    assertEquals(dict.scores!.length, 6);
    assertEquals(dict.logits![0].shape, [1, model.config.vocab_size]);
    using cache = dict.past_key_values;
    assertEquals(cache.get_seq_length(), dict.sequences[0].length - 1);
    const rest = await model.generate({
      input_ids: dict.sequences,
      past_key_values: cache,
      max_new_tokens: 10,
    });
    assertEquals(rest, full);
  });

  it("feeds a streamer prompt and ids, and ends it", async () => {
    using model = await loadModel();
    const seen: (number[] | number[][])[] = [];
    let ended = 0;
    const streamer = {
      put: (ids: number[] | number[][]) => void seen.push(ids),
      end: () => ended++,
    };
    const [ids] = await model.generate({ ...one, max_new_tokens: 8, streamer });
    assertEquals(seen.flat(2), ids);
    assertEquals(ended, 1);
    const pieces: string[] = [];
    const printer = new TextStreamer(
      tokenizer,
      {
        skip_prompt: true,
        skip_special_tokens: true,
        callback_function: (text: string) => void pieces.push(text),
      } as ConstructorParameters<typeof TextStreamer>[1],
    );
    await model.generate({ ...one, max_new_tokens: 8, streamer: printer });
    const fresh = tokenizer.decode(ids.slice(one.input_ids[0].length));
    assertEquals(pieces.join("").trim(), fresh.trim());
  });

  it("streams text and ids that join to what generate gives", async () => {
    using model = await loadModel();
    const [ids] = await model.generate({ ...one, max_new_tokens: 30 });
    const prompt = one.input_ids[0].length;
    let text = "";
    for await (const piece of model.stream({ ...one, max_new_tokens: 30, tokenizer })) {
      text += piece;
    }
    assertEquals(text, tokenizer.decode(ids.slice(prompt), { skip_special_tokens: true }));
    const steps: number[] = [];
    for await (const step of model.stream({ ...one, max_new_tokens: 30 })) steps.push(...step);
    assertEquals(steps, ids.slice(prompt));
  });

  it("names unknown options, the nearest known one and impossible values", async () => {
    using model = await loadModel();
    const cases: [Record<string, unknown>, string][] = [
      [{ max_new_token: 3 }, 'did you mean "max_new_tokens"'],
      [{ temperatur: 1 }, 'did you mean "temperature"'],
      [{ temperature: 0 }, "temperature to be a number above 0 but found 0"],
      [{ top_p: 2 }, "top_p to be a number from 0 to 1 but found 2"],
      [{ max_new_tokens: 0 }, "max_new_tokens to be a whole number of 1 or more but found 0"],
      [{ max_length: 2 }, "max_length above the"],
      [{ num_return_sequences: 2 }, "num_return_sequences of at most num_beams"],
      [{ stop_strings: ["a"] }, "tokenizer with stop_strings"],
      [{ bad_words_ids: [[]] }, "bad_words_ids"],
      [{ eos_token_id: -1 }, "eos_token_id"],
      [{ seed: -1 }, "seed"],
      [{ do_sample: 1 }, "do_sample to be true or false"],
      [{ input_ids: [[1, 4096]] }, "0 to 4095 but found 4096 in row 0, column 1"],
      [{ input_ids: [[1, 2], [3]] }, "row 1 has 1"],
      [{ attention_mask: [[1, 0, 1, 1, 1]] }, "attention_mask"],
      [{ prefill_chunk_size: 0 }, "prefill_chunk_size"],
      [{ streamer: { put() {}, end() {} }, num_beams: 2 }, "no streamer with num_beams"],
      [{ streamer: { put() {} } }, "streamer to have put() and end()"],
      [{ tokenizer: {} }, "tokenizer to have decode()"],
      [{ signal: "now" }, 'an AbortSignal but found "now"'],
      [{ seed: "a" }, 'seed to be a whole number of 0 or more but found "a"'],
      [{ past_key_values: 3 }, "past_key_values that a call returned but found 3"],
      [{ logits_processor: [3] }, "logits_processor to be a function or a list but found 3"],
      [{ stopping_criteria: () => "no" }, "stopping_criteria 0 to answer true or false"],
      [{ stopping_criteria: () => [true, false] }, "found an array of 2"],
      [{ stopping_criteria: () => Promise.resolve(true) }, "found a Promise"],
      [{ num_beams: 2, do_sample: true, num_return_sequences: 3 }, "at most num_beams (2)"],
    ];
    for (const [options, sentence] of cases) {
      const inputs = { ...one, max_new_tokens: 2, ...options } as GenerateInputs;
      if ("max_length" in options) delete inputs.max_new_tokens;
      const error = await assertRejects(() => model.generate(inputs), Error);
      assertStringIncludes(error.message, sentence);
    }
  });
});
