/** A checkpoint of a given shape with random weights, written once and kept in .tools/bench. */

import { existsSync } from "node:fs";
import { mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { findShape, type Shape, sizesOf } from "./shapes.ts";

/** How a tensor's values are made. */
type Kind = "random" | "one" | "a_log" | "dt_bias";

interface Entry {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: Kind;
}

/** Not a multiple of any row, so that tiling the block repeats no row. */
const block_elements = 2 ** 22 - 3;
const weight_scale = 0.02;
const conv_kernel = 4;
/** Raised when what is written changes. */
const revision = 1;

function entriesOf(s: Shape): Entry[] {
  const { hidden_size: h, intermediate_size: ff, mamba_n_heads: heads } = s;
  const { inner, conv_dim, projection, kv } = sizesOf(s);
  const entries: Entry[] = [];
  const add = (name: string, shape: readonly number[], kind: Kind = "random") =>
    entries.push({ name, shape, kind });
  add("model.embed_tokens.weight", [s.vocab_size, h]);
  for (let i = 0; i < s.num_hidden_layers; i++) {
    const layer = `model.layers.${i}`;
    if (s.attn_layer_indices.includes(i)) {
      for (const [name, rows] of [["q", h], ["k", kv], ["v", kv], ["o", h]] as const) {
        add(`${layer}.self_attn.${name}_proj.weight`, [rows, h]);
      }
    } else {
      add(`${layer}.mamba.A_log`, [heads], "a_log");
      add(`${layer}.mamba.D`, [heads], "one");
      add(`${layer}.mamba.dt_bias`, [heads], "dt_bias");
      add(`${layer}.mamba.conv1d.weight`, [conv_dim, 1, conv_kernel]);
      add(`${layer}.mamba.conv1d.bias`, [conv_dim]);
      add(`${layer}.mamba.in_proj.weight`, [projection, h]);
      add(`${layer}.mamba.norm.weight`, [inner], "one");
      add(`${layer}.mamba.out_proj.weight`, [h, inner]);
    }
    add(`${layer}.feed_forward.gate_proj.weight`, [ff, h]);
    add(`${layer}.feed_forward.up_proj.weight`, [ff, h]);
    add(`${layer}.feed_forward.down_proj.weight`, [h, ff]);
    add(`${layer}.input_layernorm.weight`, [h], "one");
    add(`${layer}.pre_ff_layernorm.weight`, [h], "one");
  }
  add("model.final_layernorm.weight", [h], "one");
  if (!s.tie_word_embeddings) add("lm_head.weight", [s.vocab_size, h]);
  return entries;
}

/** f32 to bf16, to nearest even. */
function toBf16(x: number): number {
  const bits = new Uint32Array(new Float32Array([x]).buffer)[0];
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** Sums of uniform numbers from a fixed seed: near enough to a normal distribution. */
function randomBlock(): Uint16Array<ArrayBuffer> {
  const block = new Uint16Array(block_elements);
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  for (let i = 0; i < block.length; i++) {
    block[i] = toBf16(weight_scale * 2 * (uniform() + uniform() + uniform()));
  }
  return block;
}

function small(kind: Kind, n: number): Uint16Array<ArrayBuffer> {
  const value = (i: number) =>
    kind === "one" ? 1 : kind === "a_log" ? Math.log(1 + 15 * i / n) : -4.6 + 2.3 * i / n;
  return Uint16Array.from({ length: n }, (_, i) => toBf16(value(i)));
}

async function writeWeights(path: string, entries: readonly Entry[], signal: AbortSignal) {
  const elements = (e: Entry) => e.shape.reduce((a, b) => a * b, 1);
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let at = 0;
  for (const entry of entries) {
    const end = at + 2 * elements(entry);
    header[entry.name] = { dtype: "BF16", shape: entry.shape, data_offsets: [at, end] };
    at = end;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - text.length % 8) % 8);
  const length = new Uint8Array(8);
  new DataView(length.buffer).setUint32(0, text.length, true);
  const block = randomBlock();
  const file = await open(path, "w");
  try {
    await file.writeFile(length);
    await file.writeFile(new TextEncoder().encode(text));
    let phase = 0;
    for (const entry of entries) {
      if (entry.kind !== "random") {
        await file.writeFile(new Uint8Array(small(entry.kind, elements(entry)).buffer));
        continue;
      }
      for (let left = elements(entry); left > 0;) {
        signal.throwIfAborted();
        const n = Math.min(left, block.length - phase);
        await file.writeFile(new Uint8Array(block.buffer, 2 * phase, 2 * n));
        phase = (phase + n) % block.length;
        left -= n;
      }
    }
  } finally {
    await file.close();
  }
}

const benches = fileURLToPath(new URL("../../.tools/bench", import.meta.url));

/**
 * The folder of the model, made now if it is not there; the weights are bf16.
 *
 * @param name of a shape
 * @param parent folder in which the model's own is kept
 * @throws {RangeError} for an unknown shape
 */
export async function randomModel(
  name: string,
  signal: AbortSignal,
  parent = benches,
): Promise<string> {
  const shape = findShape(name);
  const folder = join(parent, `${name}-${revision}`);
  if (existsSync(folder)) return folder;
  const entries = entriesOf(shape);
  // Visible only when whole, and safe when two make it at once.
  const unfinished = `${folder}.${process.pid}`;
  try {
    await mkdir(unfinished, { recursive: true });
    if (parent === benches) {
      console.error(`Writing random weights of the shape ${name} once, into .tools/bench.`);
    }
    await writeWeights(join(unfinished, "model.safetensors"), entries, signal);
    const config = {
      architectures: ["BambaForCausalLM"],
      model_type: "bamba",
      ...shape,
      mamba_d_conv: conv_kernel,
      mamba_expand: 2,
      mamba_n_groups: 1,
      dtype: "bfloat16",
      bos_token_id: null,
      eos_token_id: null,
      pad_token_id: 0,
    };
    await writeFile(join(unfinished, "config.json"), JSON.stringify(config, null, 2));
    await rename(unfinished, folder).catch((error) => {
      if (!existsSync(folder)) throw error;
    });
  } finally {
    await rm(unfinished, { recursive: true, force: true });
  }
  return folder;
}
