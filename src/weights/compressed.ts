/**
 * Checkpoints with 8-bit floats, as compressed-tensors lays them out: beside a module's `weight`
 * (F8_E4M3) stands its `weight_scale`, one number or one a row, and a weight means their product.
 * The tensors say which modules these are; config.json's `quantization_config` must be of a kind
 * that means just that. How activations were to be rounded (`input_scale`, and scales for an 8-bit
 * cache) is dropped: here they stay f32, which is closer to the weights that were rounded.
 */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Checkpoint, listNames, type TensorPlace } from "./checkpoint.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "./json.ts";
import { dtype_of_stored } from "./layout.ts";

const stored_type = "F8_E4M3";
const formats: readonly JsonValue[] = ["float-quantized", "naive-quantized", "dense"];
/** What speaks of activations, and of keys and values. */
const dropped = /\.(input_scale|output_scale|k_scale|v_scale|q_scale)$/;

/** Opens a folder in HF's layout; weights of 8-bit floats get their scales. */
export function openSafetensors(path: string): Checkpoint {
  const checkpoint = Checkpoint.open(path);
  const config = join(path, "config.json");
  if (existsSync(config)) {
    const fields = parseJson(readFileSync(config, "utf8"), { as_python: true });
    const found = isJsonObject(fields) ? fields.quantization_config : undefined;
    if (found !== undefined && found !== null) checkQuantizationConfig(found, config);
  }
  return attachScales(checkpoint);
}

/**
 * Checks that a `quantization_config` of a config.json is one that can be run as it is stored.
 *
 * @throws {TypeError} naming what it asks for
 */
export function checkQuantizationConfig(found: JsonValue, path: string): void {
  const expect = (what: string, value: JsonValue | undefined, known: readonly JsonValue[]) => {
    if (known.includes(value ?? null)) return;
    throw new TypeError(
      `Expected ${what} of "${path}" to be ${
        known.map((one) => JSON.stringify(one)).join(" or ")
      } ` +
        `but found ${JSON.stringify(value)}`,
    );
  };
  const object = (value: JsonValue | undefined): JsonObject => isJsonObject(value) ? value : {};
  const config = object(found);
  expect("quantization_config.quant_method", config.quant_method, ["compressed-tensors"]);
  expect("quantization_config.format", config.format, [...formats, null]);
  for (const [name, group] of Object.entries(object(config.config_groups))) {
    const at = `quantization_config.config_groups.${name}`;
    expect(`${at}.format`, object(group).format, [...formats, null]);
    const weights = object(object(group).weights);
    expect(`${at}.weights.type`, weights.type, ["float"]);
    expect(`${at}.weights.num_bits`, weights.num_bits, [8]);
    expect(`${at}.weights.strategy`, weights.strategy, ["channel", "tensor"]);
    expect(`${at}.weights.symmetric`, weights.symmetric, [true, null]);
  }
}

/**
 * The same checkpoint where weights of 8-bit floats have their scales, which are no tensors of
 * their own any more. Others stay as they are.
 *
 * @throws {RangeError} naming weights without a scale, and scales that do not fit
 */
export function attachScales(checkpoint: Checkpoint): Checkpoint {
  const eights = checkpoint.names.filter((name) => checkpoint.get(name).dtype === stored_type);
  if (eights.length === 0) return checkpoint;
  const places = new Map<string, TensorPlace>();
  for (const name of checkpoint.names) {
    if (!dropped.test(name)) places.set(name, checkpoint.get(name));
  }
  const missing: string[] = [];
  for (const name of eights) {
    const weight = checkpoint.get(name);
    const scales = places.get(`${name}_scale`);
    if (scales === undefined) {
      missing.push(name);
      continue;
    }
    checkScales(name, weight, scales);
    places.delete(`${name}_scale`);
    places.set(name, { ...weight, scales });
  }
  if (missing.length) {
    throw new RangeError(
      `Expected a scale for each tensor of ${stored_type} in "${checkpoint.path}" but ` +
        `${missing.length} have none: ${listNames(missing)}`,
    );
  }
  return Checkpoint.fromPlaces(checkpoint.path, checkpoint.files, places);
}

function checkScales(name: string, weight: TensorPlace, scales: TensorPlace): void {
  const { dtype, shape } = scales;
  if (!["F32", "BF16", "F16"].includes(dtype)) {
    throw new TypeError(
      `Expected ${name}_scale to be F32, BF16 or F16 but found ${dtype}`,
    );
  }
  const count = shape.reduce((a, b) => a * b, 1);
  const is_column = count === weight.shape[0] && (shape[0] ?? 1) === count;
  if (count === 1 || is_column) return;
  throw new RangeError(
    `Expected ${name}_scale to have one number or one for each of ${weight.shape[0]} rows ` +
      `but found shape [${shape}]`,
  );
}

/** What a load item says of a weight's scales; nothing where it has none. */
export function scaleFields(place: TensorPlace, file: number, dtypes: Record<string, number>) {
  if (place.scales === undefined) return {};
  const { dtype, shape, offset } = place.scales;
  return {
    scales_file: file,
    scales_dtype: dtypes[dtype_of_stored[dtype]],
    n_scales: shape.reduce((a, b) => a * b, 1),
    scales_offset: offset,
  };
}
