/** The trained default model against the reference. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { assert, assertEquals } from "@std/assert";
import { AutoModelForCausalLM, AutoTokenizer, type CallInputs } from "../../mod.ts";
import { exact_dtype, tolerances } from "../tolerance.ts";
import { assertClose, Goldens, have_goldens, wordnet } from "./goldens.ts";

if (have_goldens) {
  const goldens = new Goldens("wordnet-8m");
  const { prompts, padded, packed, long, held_out } = goldens.json;
  const load = (dtype: "auto" | "float32" | "bfloat16" | "float16" = "auto") =>
    AutoModelForCausalLM.from_pretrained(wordnet, { dtype });
  const vocab = 4096;
  type Model = Awaited<ReturnType<typeof load>>;
  const logitsOf = async (model: Model, inputs: CallInputs) => {
    using output = await model.call({ use_cache: false, ...inputs });
    return await output.logits!.data();
  };

  describe("wordnet-8m", () => {
    it("gives the reference's first logits in every dtype", async () => {
      const limits = {
        auto: tolerances.bfloat16,
        float32: tolerances.float32,
        bfloat16: tolerances.bfloat16,
        float16: tolerances.rounded_float16,
      } as const;
      for (const [dtype, tolerance] of Object.entries(limits)) {
        using model = await load(dtype as keyof typeof limits);
        for (let i = 0; i < 8; i++) {
          const input_ids = [prompts[`text${i}`]];
          const logits = await logitsOf(model, { input_ids, logits_to_keep: 1 });
          assertClose(`${dtype} text${i}`, logits, goldens.tensor(`first.text${i}`), tolerance);
        }
      }
    });

    it("gives every layer's hidden states", async () => {
      using model = await load();
      const taps = Array.from({ length: 7 }, (_, i) => `layer${i}.out`);
      using output = await model.call({
        input_ids: [prompts.text3],
        output_hidden_states: true,
        taps,
      });
      const states = output.hidden_states!;
      const found = {
        "hidden.embed": states[0],
        "hidden.final_norm": states[states.length - 1],
        ...Object.fromEntries(taps.map((tap, i) => [`hidden.layer${i}`, output.taps![tap]])),
      };
      for (const [name, tensor] of Object.entries(found)) {
        assertClose(name, await tensor.data(), goldens.tensor(name), tolerances.bfloat16);
      }
    });

    it("gives padded and packed rows what they give alone", async () => {
      using model = await load();
      const { input_ids, attention_mask, row_lengths } = padded;
      const columns = input_ids[0].length;
      const logits = await logitsOf(model, { input_ids, attention_mask });
      const real = row_lengths.flatMap((n: number, r: number) => {
        const at = (r * columns + columns - n) * vocab;
        return [...logits.subarray(at, (r + 1) * columns * vocab)];
      });
      assertClose("padded.logits", real, goldens.tensor("padded.logits"), tolerances.bfloat16);

      using output = await model.call(packed.collated);
      assertClose("loss", [await output.loss!.item()], [packed.loss.value], tolerances.bfloat16);
      const all = await output.logits!.data();
      const ends = packed.collated.cu_seq_lens_q.slice(1).flatMap((
        end: number,
      ) => [...all.subarray((end - 1) * vocab, end * vocab)]);
      assertClose("ends", ends, goldens.tensor("packed.end_logits"), tolerances.bfloat16);
    });

    it("reads a long document", async () => {
      using model = await load(exact_dtype);
      const logits = await logitsOf(model, { input_ids: [prompts.long] });
      const tokens = prompts.long.length;
      const rows = Array.from(
        { length: tokens },
        (_, t) => logits.subarray(t * vocab, (t + 1) * vocab),
      );
      const tops = rows.map((row) => row.indexOf(Math.max(...row)));
      const clear = (t: number) => long.margins[t] > 1e-3;
      assertEquals(
        tops.filter((_, t) => clear(t)),
        long.top_ids.filter((_: number, t: number) => clear(t)),
      );
      const sums = rows.map((row) => {
        const top = Math.max(...row);
        return top + Math.log([...row].reduce((sum, x) => sum + Math.exp(x - top), 0));
      });
      assertClose(
        "last",
        rows[tokens - 1],
        goldens.tensor("long.last_logits"),
        tolerances.bfloat16,
      );
      assertClose("logsumexp", sums, goldens.tensor("long.logsumexp"), tolerances.bfloat16);
    });

    it("has the reference's loss on every held-out document", async () => {
      using model = await load(exact_dtype);
      const tokenizer = await AutoTokenizer.from_pretrained(wordnet);
      const file = JSON.parse(readFileSync(join(wordnet, "held_out.json"), "utf8"));
      const truth = goldens.tensor("held_out.nll");
      let nll = 0;
      let targets = 0;
      for (const [d, text] of (file.held_out as string[]).entries()) {
        const ids = [...tokenizer([text]).input_ids[0] as number[], tokenizer.eos_token_id!];
        using output = await model.call({ input_ids: [ids], labels: [ids], use_cache: false });
        const sum = await output.loss!.item() * (ids.length - 1);
        assert(Math.abs(sum - truth[d]) < 2e-3, `document ${d}: ${sum} instead of ${truth[d]}`);
        nll += sum;
        targets += ids.length - 1;
      }
      assertEquals(targets, held_out.targets);
      assert(Math.abs(nll / targets - held_out.loss) < 1e-4, `loss ${nll / targets}`);
    });
  });
}
