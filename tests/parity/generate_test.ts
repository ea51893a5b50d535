/** Every greedy and beam case of the reference, token for token. */

import { describe, it } from "node:test";
import { assert, assertEquals } from "@std/assert";
import { AutoModelForCausalLM, AutoTokenizer, type GenerateInputs } from "../../mod.ts";
import { exact_dtype, tolerances } from "../tolerance.ts";
import {
  assertClose,
  Goldens,
  have_goldens,
  modelFolder,
  tiny_models,
  wordnet,
} from "./goldens.ts";

/** New ids up to and with the first eos. */
function untilEos(ids: number[], eos: readonly number[]): number[] {
  const end = ids.findIndex((id) => eos.includes(id));
  return end < 0 ? ids : ids.slice(0, end + 1);
}

const list = (x: number | number[] | null | undefined) => x == null ? [] : [x].flat();

for (const name of [...tiny_models, ...(have_goldens ? ["wordnet-8m"] : [])]) {
  const goldens = new Goldens(name);
  const folder = name === "wordnet-8m" ? wordnet : modelFolder(name);

  describe(`generate ${name}`, () => {
    for (const golden of goldens.json.generate.cases) {
      it(golden.name, async () => {
        using model = await AutoModelForCausalLM.from_pretrained(folder, { dtype: exact_dtype });
        const { kwargs, input_ids, attention_mask } = golden;
        const sequences = await model.generate({
          ...kwargs,
          input_ids,
          attention_mask,
          do_sample: false,
        });
        const eos = list(kwargs.eos_token_id ?? model.generation_config.fields.eos_token_id);
        const columns = input_ids[0].length;
        const fresh = sequences.map((ids) => untilEos(ids.slice(columns), eos));
        assertEquals(fresh, golden.new_ids);
        if (golden.sequences) assertEquals(sequences, golden.sequences);
        if (golden.sequences_scores) {
          const options: GenerateInputs = { ...kwargs, input_ids, attention_mask };
          const dict = await model.generate({
            ...options,
            return_dict_in_generate: true,
            output_scores: true,
          });
          dict.past_key_values.dispose();
          const scores = dict.sequences_scores!;
          assertClose("scores", scores, golden.sequences_scores, tolerances.float32);
        }
        if (golden.new_text) {
          const tokenizer = await AutoTokenizer.from_pretrained(folder);
          const texts = tokenizer.batch_decode(fresh, { skip_special_tokens: true });
          assertEquals(texts, golden.new_text);
        }
      });
    }

    it("gives the logits that chose each id", async () => {
      const golden = goldens.json.generate.cases.find((c: { name: string }) =>
        c.name === "greedy-2"
      );
      if (!goldens.has("generate.greedy-2.logits")) {
        assertEquals(name, "wordnet-8m");
        return;
      }
      using model = await AutoModelForCausalLM.from_pretrained(folder, { dtype: exact_dtype });
      const { kwargs, input_ids } = golden;
      const options: GenerateInputs = { ...kwargs, input_ids };
      const dict = await model.generate({
        ...options,
        return_dict_in_generate: true,
        output_logits: true,
        output_scores: true,
      });
      dict.past_key_values.dispose();
      const rows = await Promise.all(dict.logits!.map((t) => t.data()));
      const all = rows.flatMap((row) => [...row]);
      const truth = goldens.tensor("generate.greedy-2.logits");
      assertClose("logits", all, truth, tolerances.float32);
      assert(dict.scores!.length === rows.length, "one entry of scores a step");
    });
  });
}
