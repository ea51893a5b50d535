/** What blocks cost: the loss on the default model's held-out documents, against its own weights'. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { assert } from "@std/assert";
import type { BambaForCausalLM } from "../../mod.ts";
import { fillBatches } from "../../src/cli/perplexity.ts";
import type { QuantizationConfig } from "../../src/modeling/quantization.ts";
import { folder, loadModel, loadTokenizer } from "../generation/support.ts";

/** That of the stored weights in nats a token, as parity/wordnet_test.ts holds it. */
const stored_loss = 1.18479;
/** How much more it may be. */
const more_max = {
  q8_0: 0.002,
  q6_k: 0.005,
  q5_k_m: 0.02,
  q4_k_m: 0.04,
  q4_0: 0.08,
} as const;

async function documents(): Promise<number[][]> {
  const tokenizer = await loadTokenizer();
  const { held_out } = JSON.parse(readFileSync(join(folder, "held_out.json"), "utf8"));
  return (tokenizer(held_out as string[]).input_ids as number[][])
    .map((ids) => [...ids, tokenizer.eos_token_id!]);
}

/** Mean loss over all targets: documents stand packed in rows of about 2048 ids. */
async function lossOf(model: BambaForCausalLM, texts: number[][]): Promise<number> {
  let [sum, targets] = [0, 0];
  for (const batch of fillBatches(texts, 2048)) {
    const n = batch.reduce((count, ids) => count + ids.length - 1, 0);
    using output = await model.call({
      input_ids: [batch.flat()],
      position_ids: [batch.flatMap((ids) => [...ids.keys()])],
      labels: [batch.flatMap(([, ...rest]) => [-100, ...rest])],
      use_cache: false,
    });
    sum += await output.loss!.item() * n;
    targets += n;
  }
  return sum / targets;
}

describe("the loss on held-out documents", () => {
  for (const [type, more] of Object.entries(more_max)) {
    it(`is at most ${more} above that of the stored weights in ${type}`, async () => {
      using model = await loadModel({ quantization_config: { type } as QuantizationConfig });
      const difference = await lossOf(model, await documents()) - stored_loss;
      assert(difference < more && difference > 0, `${difference} above`);
    });
  }
});
