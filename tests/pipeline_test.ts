/** The snippets of HF's Bamba page, word for word, and what else a pipeline takes. */

import { describe, it } from "node:test";
import { assertEquals, assertStringIncludes } from "@std/assert";
import { AutoModelForCausalLM, AutoTokenizer, pipeline } from "../mod.ts";
import { folder } from "./generation/support.ts";
import { exact_dtype } from "./tolerance.ts";

const answer =
  "a small dog is a kind of dog: a dog trained to guard property. It is a kind of dog.";

describe("HF's Bamba page", () => {
  it("runs the pipeline", async () => {
    const pipe = await pipeline("text-generation", folder, { dtype: "auto" });
    const result = await pipe("a small dog is");
    pipe.dispose();
    assertEquals(result, [{ generated_text: answer }]);
  });

  it("runs the Auto classes", async () => {
    const tokenizer = await AutoTokenizer.from_pretrained(folder);
    const model = await AutoModelForCausalLM.from_pretrained(folder, { dtype: "auto" });
    const inputs = tokenizer(["a small dog is", "to run"], { padding: true });
    const outputs = await model.generate({ ...inputs, max_new_tokens: 64 });
    model.dispose();
    assertEquals(tokenizer.batch_decode(outputs, { skip_special_tokens: true })[0], answer);
  });
});

describe("pipeline", () => {
  it("takes lists, and gives each prompt what it gets alone", async () => {
    using pipe = await pipeline("text-generation", folder, { dtype: exact_dtype });
    const texts = ["a small dog is", "to run", "the opposite of hot"];
    const together = await pipe(texts, { max_new_tokens: 16 });
    const pairs = await pipe(texts, { max_new_tokens: 16, batch_size: 2 });
    assertEquals(pairs, together);
    for (const [i, text] of texts.entries()) {
      assertEquals(await pipe(text, { max_new_tokens: 16 }), together[i]);
      assertStringIncludes(together[i][0].generated_text, text);
    }
  });

  it("returns only new text, and several samples, when asked", async () => {
    using pipe = await pipeline("text-generation", folder);
    const [fresh] = await pipe("a small dog is", { return_full_text: false });
    assertEquals(fresh.generated_text, answer.slice("a small dog is".length));
    const samples = await pipe("a small dog is", {
      do_sample: true,
      seed: 1,
      num_return_sequences: 3,
      max_new_tokens: 8,
    });
    assertEquals(samples.length, 3);
  });

  it("shares a loaded model and leaves it alone", async () => {
    const tokenizer = await AutoTokenizer.from_pretrained(folder);
    using model = await AutoModelForCausalLM.from_pretrained(folder);
    {
      using pipe = await pipeline("text-generation", model, { tokenizer });
      assertEquals((await pipe("a small dog is"))[0].generated_text, answer);
    }
    assertEquals((await model.generate({ input_ids: [[1, 67]], max_new_tokens: 1 }))[0].length, 3);
  });

  it("answers a conversation by the chat template", async () => {
    const tokenizer = await AutoTokenizer.from_pretrained(folder);
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    using model = await AutoModelForCausalLM.from_pretrained(folder);
    using pipe = await pipeline("text-generation", model, { tokenizer });
    const conversation = [{ role: "user", content: "a small dog is" }];
    const [{ generated_text }] = await pipe(conversation);
    assertEquals(generated_text, [
      ...conversation,
      { role: "assistant", content: answer.slice("a small dog is".length) },
    ]);
  });
});
