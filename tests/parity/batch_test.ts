/** Padded, packed, cached and chunked calls: the reference's numbers, and a lone row's bits. */

import { describe, it } from "node:test";
import { assert, assertEquals } from "@std/assert";
import { AutoModelForCausalLM, type BambaForCausalLM, type CallInputs } from "../../mod.ts";
import { exact_dtype, tolerances } from "../tolerance.ts";
import { assertClose, Goldens, modelFolder, tiny_models } from "./goldens.ts";

const tolerance = tolerances.float32;

async function logitsOf(model: BambaForCausalLM, inputs: CallInputs): Promise<Float32Array> {
  using output = await model.call({ use_cache: false, ...inputs });
  return await output.logits!.data() as Float32Array;
}

/** Rows of a frame's logits, one after another. */
function pick(logits: Float32Array, vocab: number, rows: readonly number[]): Float32Array {
  const out = new Float32Array(rows.length * vocab);
  for (const [i, row] of rows.entries()) {
    out.set(logits.subarray(row * vocab, (row + 1) * vocab), i * vocab);
  }
  return out;
}

function assertSameBits(what: string, a: Float32Array, b: Float32Array): void {
  assertEquals(a.length, b.length, what);
  const x = new Uint32Array(a.buffer, a.byteOffset, a.length);
  const y = new Uint32Array(b.buffer, b.byteOffset, b.length);
  const at = x.findIndex((bits, i) => bits !== y[i]);
  assert(at < 0, `${what}: number ${at} is ${a[at]} here and ${b[at]} there`);
}

for (const name of tiny_models) {
  const goldens = new Goldens(name);
  const folder = modelFolder(name);
  const load = (threads?: number) =>
    AutoModelForCausalLM.from_pretrained(folder, { dtype: exact_dtype, threads });
  const { padded, packed, loss, cache, prompts } = goldens.json;

  describe(name, () => {
    it("gives padded rows what each gives alone, on either side, to the bit", async () => {
      using model = await load();
      const vocab = model.config.vocab_size;
      const columns = padded.input_ids[0].length;
      const lengths: number[] = padded.row_lengths;
      const right = {
        input_ids: padded.input_ids.map((ids: number[], r: number) => [
          ...ids.slice(columns - lengths[r]),
          ...ids.slice(0, columns - lengths[r]),
        ]),
        attention_mask: lengths.map((n) =>
          Array.from({ length: columns }, (_, c) => Number(c < n))
        ),
      };
      const left_rows = lengths.flatMap((n, r) =>
        Array.from({ length: n }, (_, i) => r * columns + columns - n + i)
      );
      const right_rows = lengths.flatMap((n, r) =>
        Array.from({ length: n }, (_, i) => r * columns + i)
      );
      const { input_ids, attention_mask } = padded;
      const left = pick(await logitsOf(model, { input_ids, attention_mask }), vocab, left_rows);
      assertClose("padded.logits", left, goldens.tensor("padded.logits"), tolerance);
      assertSameBits("right", pick(await logitsOf(model, right), vocab, right_rows), left);
      let at = 0;
      for (const [r, n] of lengths.entries()) {
        const alone = await logitsOf(model, { input_ids: [input_ids[r].slice(columns - n)] });
        assertSameBits(`row ${r}`, alone, left.slice(at, at + n * vocab));
        at += n * vocab;
      }
      model.z_loss_coefficient = 0;
      using output = await model.call({ input_ids, attention_mask, labels: padded.labels });
      assertClose("loss", await output.loss!.data(), [padded.loss.value], tolerance);
    });

    it("gives packed documents what each gives alone, to the bit", async () => {
      using model = await load();
      model.z_loss_coefficient = packed.loss.z_loss_coefficient;
      const vocab = model.config.vocab_size;
      const { labels, ...inputs } = packed.collated;
      const logits = await logitsOf(model, inputs);
      assertClose("packed.logits", logits, goldens.tensor("packed.logits"), tolerance);
      let at = 0;
      for (const [d, ids] of packed.documents.entries()) {
        const alone = await logitsOf(model, { input_ids: [ids] });
        assertSameBits(`document ${d}`, alone, logits.slice(at, at + ids.length * vocab));
        at += ids.length * vocab;
      }
      const { input_ids, position_ids, seq_idx, cu_seq_lens_q } = inputs;
      for (const edges of [{ position_ids }, { seq_idx }, { cu_seq_lens_q }]) {
        const again = await logitsOf(model, { input_ids, ...edges });
        assertSameBits(Object.keys(edges)[0], again, logits);
      }
      using output = await model.call({ ...inputs, labels });
      assertClose("loss", await output.loss!.data(), [packed.loss.value], tolerance);
    });

    it("gives HF's losses", async () => {
      using model = await load();
      const { input_ids, labels, cases } = loss;
      for (const golden of cases) {
        model.z_loss_coefficient = golden.z_loss_coefficient;
        const { num_items_in_batch } = golden;
        const ignored = golden.name === "all_ignored"
          ? labels.map((row: number[]) => row.map(() => -100))
          : labels;
        using output = await model.call({ input_ids, labels: ignored, num_items_in_batch });
        const value = await output.loss!.item();
        if (golden.value === "NaN") assert(Number.isNaN(value), `${golden.name}: ${value}`);
        else assertClose(golden.name, [value], [golden.value], tolerance);
      }
    });

    it("continues a cache in parts of any size", async () => {
      using model = await load();
      const ids: number[] = cache.input_ids ?? prompts.long;
      const full = await logitsOf(model, { input_ids: [ids] });
      for (const { parts } of cache.cases) {
        const sizes = partSizes(parts, ids.length);
        let past_key_values;
        let at = 0;
        const pieces: number[] = [];
        for (const size of sizes) {
          const output = await model.call({
            input_ids: [ids.slice(at, at + size)],
            past_key_values,
          });
          pieces.push(...await output.logits!.data());
          output.logits!.dispose();
          past_key_values = output.past_key_values;
          at += size;
        }
        past_key_values!.dispose();
        assertClose(`parts ${parts}`, pieces, full, tolerance);
      }
    });

    it("leaves the reference's states in the cache", async () => {
      using model = await load();
      for (const golden of goldens.names("state.")) {
        const [, prompt, what, layer] = golden.split(".");
        using output = await model.call({ input_ids: [prompts[prompt]] });
        const index = Number(layer.slice("layer".length));
        const state = output.past_key_values!.layer(index);
        const key = { conv_state: "conv_states", ssm_state: "recurrent_states" }[what] ?? what;
        assertEquals(state[key].shape, goldens.shape(golden), golden);
        assertClose(golden, await state[key].data(), goldens.tensor(golden), tolerance);
      }
    });

    it("has the same bits whatever prefill_chunk_size and the threads", async () => {
      using one = await load(1);
      using three = await load(3);
      const input_ids = [longest(prompts)];
      const truth = await logitsOf(one, { input_ids });
      for (const prefill_chunk_size of [1, 64, 100, 128, 200]) {
        const chunked = await logitsOf(three, { input_ids, prefill_chunk_size });
        assertSameBits(`chunks of ${prefill_chunk_size}`, chunked, truth);
      }
    });

    it("gives a row the same bits where few rows have logits, and leaves the same states", async () => {
      using model = await load();
      const vocab = model.config.vocab_size;
      const input_ids = [longest(prompts)];
      const columns = input_ids[0].length;
      using all = await model.call({ input_ids });
      const truth = await all.logits!.data() as Float32Array;
      for (const kept of [[columns - 1], [0, columns - 2]]) {
        for (const prefill_chunk_size of [64, columns]) {
          const what = `positions ${kept} in chunks of ${prefill_chunk_size}`;
          const options = { logits_to_keep: kept, prefill_chunk_size };
          using few = await model.call({ input_ids, ...options });
          const found = await few.logits!.data() as Float32Array;
          assertSameBits(what, found, pick(truth, vocab, kept));
          for (const i of model.config.layers_block_type.keys()) {
            const theirs = all.past_key_values!.layer(i);
            for (const [name, state] of Object.entries(few.past_key_values!.layer(i))) {
              const [mine, whole] = [await state.data(), await theirs[name].data()];
              assertSameBits(`${name} of layer ${i}`, mine as Float32Array, whole as Float32Array);
            }
          }
        }
      }
    });

    it("gives attention weights that sum to one over the real keys", async () => {
      using model = await load();
      const { input_ids, attention_mask } = padded;
      using output = await model.call({ input_ids, attention_mask, output_attentions: true });
      const columns = input_ids[0].length;
      for (const weights of output.attentions!) {
        const [rows, heads, queries, keys] = weights.shape;
        assertEquals([rows, queries, keys], [input_ids.length, columns, columns]);
        const data = await weights.data();
        for (let i = 0; i < rows * heads * queries; i++) {
          const row = Math.floor(i / (heads * queries));
          const query = i % queries;
          const line = data.subarray(i * keys, (i + 1) * keys);
          const sum = [...line].reduce((a, b) => a + b, 0);
          assert(Math.abs(sum - attention_mask[row][query]) < 1e-5, `sum ${sum}`);
          const stray = [...line].findIndex((w, k) =>
            w !== 0 && (k > query || !attention_mask[row][k])
          );
          assert(stray < 0, `query ${query} looks at key ${stray}`);
        }
      }
    });
  });
}

function longest(prompts: Record<string, number[]>): number[] {
  return Object.values(prompts).reduce((a, b) => b.length > a.length ? b : a);
}

/** Sizes of the parts that the goldens describe: a list, or "3 then one by one". */
function partSizes(parts: number[] | string, total: number): number[] {
  if (typeof parts !== "string") return parts;
  const first = Number.parseInt(parts);
  return [first, ...new Array<number>(total - first).fill(1)];
}
