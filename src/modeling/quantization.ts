/** Weights in blocks or 8-bit floats at load: which type each matrix gets. */

import { toGguf } from "../gguf/names.ts";
import { chooseTypes, file_types, type FileType } from "../gguf/mix.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { dtype_of_stored, isBlocks, type WeightDType } from "../weights/layout.ts";
import type { WeightSpec } from "../weights/load.ts";

/**
 * What a whole model can be quantized to: a type of GGUF files, where each matrix gets what
 * llama.cpp would choose for it, or more bits around the state space (`gguf/mix.ts`); or "f8_e4m3",
 * which is what FP8 checkpoints hold: 8-bit floats with a scale for each row in all layers'
 * matrices, while embedding and head stay what they are.
 */
export type QuantizationType = Exclude<FileType, "f32" | "f16" | "bf16"> | "f8_e4m3";

/** HF's option of that name, with types by the names that files give them. */
export interface QuantizationConfig {
  readonly type: QuantizationType;
}

/** What there is. */
export const quantization_types = [...Object.keys(file_types), "f8_e4m3"]
  .filter((type) => !["f32", "f16", "bf16"].includes(type)) as readonly QuantizationType[];

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
  if (quantization_types.includes(config.type)) return config.type;
  throw new RangeError(
    `Expected quantization_config.type to be one of ${quantization_types.join(", ")} ` +
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
  if (type === "f8_e4m3") return toEights(checkpoint, specs);
  const gguf_of = (spec: WeightSpec) => toGguf(spec.name) ?? toGguf(inner + spec.name) ?? spec.name;
  const chosen = chooseTypes(
    type,
    [...specs.values()].map((spec) => ({ name: gguf_of(spec), shape: spec.shape })),
  );
  return new Map([...specs].map(([path, spec]) => {
    if (spec.dtype !== undefined) return [path, spec];
    const dtype: WeightDType = dtype_of_stored[chosen.get(gguf_of(spec))!];
    checkStored(type, checkpoint, spec);
    return [path, { ...spec, dtype }];
  }));
}

/** Matrices of layers become 8-bit floats, or stay what they are where they are stored as such. */
function toEights<Path>(
  checkpoint: Checkpoint,
  specs: ReadonlyMap<Path, WeightSpec>,
): Map<Path, WeightSpec> {
  return new Map([...specs].map(([path, spec]) => {
    if (spec.dtype !== undefined || !layer_matrix.test(spec.name)) return [path, spec];
    checkStored("f8_e4m3", checkpoint, spec);
    return [path, { ...spec, dtype: "float8_e4m3fn" }];
  }));
}
const layer_matrix = /\blayers\.\d+\..*_proj\.weight$/;

function checkStored(type: QuantizationType, checkpoint: Checkpoint, { name }: WeightSpec): void {
  const stored = checkpoint.has(name) && dtype_of_stored[checkpoint.get(name).dtype];
  if (!stored || !isBlocks(stored)) return;
  throw new RangeError(
    `Cannot quantize ${name} to ${type}: it is stored as ${stored}. ` +
      "Leave quantization_config out to run what is stored",
  );
}
