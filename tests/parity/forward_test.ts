/** Logits, every layer and every submodule against the reference, for each tiny model. */

import { describe, it } from "node:test";
import { assertEquals } from "@std/assert";
import { AutoModel, AutoModelForCausalLM, BambaForCausalLM } from "../../mod.ts";
import { exact_dtype, tolerances } from "../tolerance.ts";
import { assertClose, Goldens, modelFolder, readWeight, tiny_models } from "./goldens.ts";

const tolerance = tolerances.float32;

for (const name of tiny_models) {
  const goldens = new Goldens(name);
  const load = () =>
    AutoModelForCausalLM.from_pretrained(modelFolder(name), { dtype: exact_dtype });
  const ids37: number[] = goldens.json.prompts.len37;

  describe(name, () => {
    it("gives the reference's logits for prompts of every length", async () => {
      using model = await load();
      for (const golden of goldens.names("logits.")) {
        const ids: number[] = goldens.json.prompts[golden.slice("logits.".length)];
        using output = await model.call({ input_ids: [ids] });
        assertEquals(output.logits!.shape, [1, ids.length, model.config.vocab_size]);
        assertClose(golden, await output.logits!.data(), goldens.tensor(golden), tolerance);
      }
    });

    it("gives every hidden state in HF's order", async () => {
      using model = await load();
      const layers = model.config.num_hidden_layers;
      const last = `layer${layers - 1}.out`;
      using output = await model.call({
        input_ids: [ids37],
        output_hidden_states: true,
        taps: [last],
      });
      const names = ["embed", ...Array.from({ length: layers - 1 }, (_, i) => `layer${i}`)];
      const states = output.hidden_states!;
      assertEquals(states.length, layers + 1);
      for (const [i, hidden] of [...names, "final_norm"].entries()) {
        const truth = goldens.tensor(`hidden.${hidden}`);
        assertClose(`hidden.${hidden}`, await states[i].data(), truth, tolerance);
      }
      const raw = await output.taps![last].data();
      assertClose(last, raw, goldens.tensor(`hidden.layer${layers - 1}`), tolerance);
    });

    it("gives every submodule's output", async () => {
      using model = await load();
      await checkSubmodules(model, goldens, modelFolder(name), ids37);
    });

    it("keeps the logits that logits_to_keep names", async () => {
      using model = await load();
      const { prompt, cases } = goldens.json.logits_to_keep;
      const input_ids = [goldens.json.prompts[prompt]];
      for (const [golden, logits_to_keep] of Object.entries(cases)) {
        const keep = logits_to_keep as number | number[];
        using output = await model.call({ input_ids, logits_to_keep: keep });
        assertClose(golden, await output.logits!.data(), goldens.tensor(golden), tolerance);
      }
    });

    it("gives the last hidden state without a head", async () => {
      using model = await AutoModel.from_pretrained(modelFolder(name), { dtype: exact_dtype });
      using output = await model.call({ input_ids: [ids37] });
      const truth = goldens.tensor("hidden.final_norm");
      assertClose("final_norm", await output.last_hidden_state!.data(), truth, tolerance);
    });
  });
}

const same = ["in_proj", "conv", "ssd", "gated_norm", "attn", "mixer_in", "mlp_in"];

async function checkSubmodules(
  model: BambaForCausalLM,
  goldens: Goldens,
  folder: string,
  ids: number[],
): Promise<void> {
  const tensors = goldens.names("sub.");
  const layers = [...new Set(tensors.map((n) => n.split(".")[1]))];
  for (const layer of layers) {
    const index = Number(layer.slice("layer".length));
    const found = tensors.filter((n) => n.startsWith(`sub.${layer}.`)).map((n) => n.split(".")[2]);
    const direct = found.filter((n) => same.includes(n));
    const rotated = found.filter((n) => ["q", "k", "v"].includes(n));
    const before = index === 0 ? undefined : `layer${index - 1}.out`;
    const sums = [`${layer}.mixer_out`, `${layer}.out`, ...(before ? [before] : [])];
    const taps = [...direct, ...rotated].map((n) => `${layer}.${n}`);
    using output = await model.call({
      input_ids: [ids],
      output_hidden_states: true,
      taps: [...taps, ...sums],
    });
    const tap = async (name: string) => await output.taps![name].data();
    for (const name of direct) {
      const golden = `sub.${layer}.${name}`;
      assertClose(golden, await tap(`${layer}.${name}`), goldens.tensor(golden), tolerance);
    }
    for (const name of rotated) {
      const golden = `sub.${layer}.${name}`;
      const [heads, tokens, head_dim] = goldens.shape(golden);
      const truth = swapHeads(goldens.tensor(golden), heads, tokens, head_dim);
      assertClose(golden, await tap(`${layer}.${name}`), truth, tolerance);
    }
    // The residual is added inside the last product of each half: take it off again.
    const input = before ? await tap(before) : await output.hidden_states![0].data();
    const middle = await tap(`${layer}.mixer_out`);
    const end = await tap(`${layer}.out`);
    const mixer = found.includes("out_proj") ? "out_proj" : "o_proj";
    for (const [name, a, b] of [[mixer, middle, input], ["mlp", end, middle]] as const) {
      const golden = `sub.${layer}.${name}`;
      const difference = Float32Array.from(a, (x, i) => x - b[i]);
      assertClose(golden, difference, goldens.tensor(golden), 2 * tolerance);
    }
    if (found.includes("dt")) await checkDt(model, goldens, folder, ids, index);
  }
}

/** (heads, tokens, head_dim) to (tokens, heads * head_dim). */
function swapHeads(data: Float32Array, heads: number, tokens: number, head_dim: number) {
  const out = new Float32Array(data.length);
  for (let h = 0; h < heads; h++) {
    for (let t = 0; t < tokens; t++) {
      const from = (h * tokens + t) * head_dim;
      out.set(data.subarray(from, from + head_dim), (t * heads + h) * head_dim);
    }
  }
  return out;
}

/** dt lives inside the scan: its formula over in_proj's last columns must give the reference's. */
async function checkDt(
  model: BambaForCausalLM,
  goldens: Goldens,
  folder: string,
  ids: number[],
  layer: number,
) {
  const { mamba_n_heads: heads, time_step_limit: [low, high] } = model.config;
  const name = `layer${layer}.in_proj`;
  using output = await model.call({ input_ids: [ids], taps: [name] });
  const projected = await output.taps![name].data();
  const width = projected.length / ids.length;
  const bias = readWeight(folder, `model.layers.${layer}.mamba.dt_bias`);
  const dt = new Float32Array(ids.length * heads);
  for (let i = 0; i < dt.length; i++) {
    const h = i % heads;
    const x = projected[Math.floor(i / heads) * width + width - heads + h] + bias[h];
    dt[i] = Math.min(high, Math.max(low, x > 20 ? x : Math.log1p(Math.exp(x))));
  }
  assertClose(`layer${layer}.dt`, dt, goldens.tensor(`sub.layer${layer}.dt`), tolerance);
}
