/** Weights in blocks at load: which type each matrix gets. */

import { toGguf } from "../gguf/names.ts";
import { chooseTypes, file_types, type FileType } from "../gguf/mix.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { dtype_of_stored, isBlocks, type WeightDType } from "../weights/layout.ts";
import type { WeightSpec } from "../weights/load.ts";

/** What a whole model can be quantized to; each matrix gets what llama.cpp would choose for it. */
export type QuantizationType = Exclude<FileType, "f32" | "f16" | "bf16">;

/** HF's option of that name, with GGUF's types. */
export interface QuantizationConfig {
  readonly type: QuantizationType;
}

const types = Object.keys(file_types).filter((type) => !["f32", "f16", "bf16"].includes(type));

/**
 * @throws {TypeError} unless it is an object with a type and nothing else
 * @throws {RangeError} naming the types there are
 */
export function checkQuantization(config: QuantizationConfig): QuantizationType {
  const keys = typeof config === "object" && config !== null ? Object.keys(config) : [];
  if (keys.length !== 1 || keys[0] !== "type") {
    throw new TypeError(
      `Expected quantization_config to be { type } but found ${JSON.stringify(config)}`,
    );
  }
  if (types.includes(config.type)) return config.type;
  throw new RangeError(
    `Expected quantization_config.type to be one of ${types.join(", ")} ` +
      `but found ${JSON.stringify(config.type)}`,
  );
}

/**
 * Gives every matrix its dtype.
 *
 * @param specs of all weights of a model
 * @param inner what HF's names start with where the model is one without its head: "model."
 * @throws {RangeError} when the checkpoint is quantized already, which would lose twice
 */
export function quantizeSpecs<Path>(
  type: QuantizationType,
  checkpoint: Checkpoint,
  specs: ReadonlyMap<Path, WeightSpec>,
  inner: string,
): Map<Path, WeightSpec> {
  const gguf_of = (spec: WeightSpec) => toGguf(spec.name) ?? toGguf(inner + spec.name) ?? spec.name;
  const chosen = chooseTypes(
    type,
    [...specs.values()].map((spec) => ({ name: gguf_of(spec), shape: spec.shape })),
  );
  return new Map([...specs].map(([path, spec]) => {
    if (spec.dtype !== undefined) return [path, spec];
    const dtype: WeightDType = dtype_of_stored[chosen.get(gguf_of(spec))!];
    const stored = checkpoint.has(spec.name) && dtype_of_stored[checkpoint.get(spec.name).dtype];
    if (stored && isBlocks(stored)) {
      throw new RangeError(
        `Cannot quantize ${spec.name} to ${type}: it is stored as ${stored}. ` +
          "Leave quantization_config out to run what is stored",
      );
    }
    return [path, { ...spec, dtype }];
  }));
}
