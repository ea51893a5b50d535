/** Makes FP8 checkpoints of the default model: what IBM publishes for Bamba, but smaller. */

import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeFloats, encodeFloats } from "../../src/models/config_file.ts";
import type { JsonObject } from "../../src/weights/json.ts";
import { Checkpoint } from "../../src/weights/checkpoint.ts";
import { type TensorToWrite, writeSafetensors } from "../../src/weights/safetensors.ts";
import { model_folder } from "./support.ts";

/** Value of each byte that is no NaN: sign, 4 bits of exponent, 3 of fraction. */
export const eight_values = Float32Array.from({ length: 256 }, (_, byte) => {
  const [exponent, fraction] = [byte >> 3 & 15, byte & 7];
  const size = exponent ? (1 + fraction / 8) * 2 ** (exponent - 7) : fraction / 512;
  return byte & 128 ? -size : size;
});

/** The byte of the value nearest to x, the even one of two. */
export function toEight(x: number): number {
  const size = Math.abs(x);
  let [low, high] = [0, 126];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (eight_values[middle] < size) low = middle + 1;
    else high = middle;
  }
  const below = Math.max(0, low - 1);
  const [a, b] = [size - eight_values[below], eight_values[low] - size];
  const byte = a < b || (a === b && below % 2 === 0) ? below : low;
  return byte | (x < 0 ? 128 : 0);
}

/** How scales are given. */
export interface EightOptions {
  readonly strategy: "channel" | "tensor";
  /** Of the scales, as files name it. */
  readonly scales: "F32" | "BF16";
  /** Puts the scales into a shard of their own. */
  readonly sharded?: boolean;
}

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);

function toBf16(x: number): number {
  float[0] = x;
  return (bits[0] + 0x7fff + (bits[0] >>> 16 & 1)) >>> 16;
}
function fromBf16(half: number): number {
  bits[0] = half << 16;
  return float[0];
}

const linear = /\.(in_proj|out_proj|[qkvo]_proj|gate_proj|up_proj|down_proj)\.weight$/;

/**
 * Writes two folders: one whose linear layers are 8-bit floats with scales, one with the same
 * values as f32.
 */
export async function writeEights(eights: string, exact: string, o: EightOptions): Promise<void> {
  const checkpoint = Checkpoint.open(model_folder);
  const stored: [string, TensorToWrite][] = [];
  const scaled: [string, TensorToWrite][] = [];
  const unpacked: [string, TensorToWrite][] = [];
  for (const name of checkpoint.names) {
    const { dtype, shape, offset, bytes, file } = checkpoint.get(name);
    // a copy: a view would be one of the whole file
    const data = Uint8Array.from(readFileSync(file).subarray(offset, offset + bytes));
    if (!linear.test(name)) {
      stored.push([name, { dtype, shape, data }]);
      unpacked.push([name, { dtype, shape, data }]);
      continue;
    }
    const values = Float32Array.from(new Uint16Array(data.buffer), fromBf16);
    const [rows, cols] = shape;
    const largest = new Float32Array(o.strategy === "channel" ? rows : 1);
    for (const [i, x] of values.entries()) {
      const at = o.strategy === "channel" ? Math.floor(i / cols) : 0;
      largest[at] = Math.max(largest[at], Math.abs(x));
    }
    const halves = Uint16Array.from(largest, (x) => toBf16(x / 448));
    const scales = o.scales === "F32" ? largest.map((x) => x / 448) : Float32Array.from(
      halves,
      fromBf16,
    );
    const scaleOf = (i: number) => scales[o.strategy === "channel" ? Math.floor(i / cols) : 0];
    const numbers = Uint8Array.from(values, (x, i) => toEight(x / scaleOf(i)));
    stored.push([name, { dtype: "F8_E4M3", shape, data: numbers }]);
    scaled.push([`${name}_scale`, {
      dtype: o.scales,
      shape: o.strategy === "channel" ? [rows, 1] : [1],
      data: o.scales === "F32" ? scales : halves,
    }]);
    const input = name.replace(/weight$/, "input_scale");
    scaled.push([input, { dtype: "BF16", shape: [1], data: Uint16Array.of(toBf16(0.01)) }]);
    const product = Float32Array.from(numbers, (byte, i) => eight_values[byte] * scaleOf(i));
    unpacked.push([name, { dtype: "F32", shape, data: product }]);
  }
  await writeSafetensors(join(exact, "model.safetensors"), unpacked);
  if (o.sharded) {
    const shards = { "a.safetensors": stored, "b.safetensors": scaled };
    const weight_map: Record<string, string> = {};
    for (const [file, tensors] of Object.entries(shards)) {
      await writeSafetensors(join(eights, file), tensors);
      for (const [name] of tensors) weight_map[name] = file;
    }
    writeFileSync(join(eights, "model.safetensors.index.json"), JSON.stringify({ weight_map }));
  } else await writeSafetensors(join(eights, "model.safetensors"), [...stored, ...scaled]);
  for (const name of ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]) {
    for (const to of [eights, exact]) copyFileSync(join(model_folder, name), join(to, name));
  }
  copyFileSync(join(model_folder, "config.json"), join(exact, "config.json"));
  writeConfig(eights, quantizationConfig(o.strategy));
}

/** Writes the default model's config.json with a quantization_config. */
export function writeConfig(folder: string, quantization_config: JsonObject): void {
  const fields = JSON.parse(readFileSync(join(model_folder, "config.json"), "utf8"));
  const config = { ...decodeFloats(fields) as JsonObject, quantization_config };
  writeFileSync(join(folder, "config.json"), JSON.stringify(encodeFloats(config)));
}

/** As llm-compressor writes it for linear layers with activations rounded at run time. */
export function quantizationConfig(strategy: string): JsonObject {
  const common = { num_bits: 8, type: "float", symmetric: true, group_size: null };
  return {
    quant_method: "compressed-tensors",
    format: "float-quantized",
    quantization_status: "compressed",
    kv_cache_scheme: null,
    ignore: ["lm_head"],
    config_groups: {
      group_0: {
        targets: ["Linear"],
        weights: { ...common, strategy, dynamic: false, observer: "minmax" },
        input_activations: { ...common, strategy: "token", dynamic: true },
        output_activations: null,
      },
    },
  };
}
