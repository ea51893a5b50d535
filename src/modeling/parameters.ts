/** Between a model's parameters and the weights that are loaded for them. */

import { type LayoutName, Tensor } from "../graph/tensor.ts";
import { panel } from "../native/bindings.gen.ts";
import type { DeviceKindName } from "../native/native.ts";
import { Linear } from "../nn/layers.ts";
import type { Module } from "../nn/module.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { isBlocks, layoutBytes } from "../weights/layout.ts";
import type { LoadedWeight, WeightSet, WeightSpec } from "../weights/load.ts";

/** Of all matrices: whether they are bf16, in blocks or 8-bit floats; of the layers': blocks. */
export function kindsOf(
  specs: ReadonlyMap<string, WeightSpec>,
  { weights }: WeightSet,
): { half: boolean; blocks: boolean } {
  // Those that are f32 whatever is stored say nothing of the others.
  const matrices = [...specs]
    .filter(([, { shape, dtype }]) => shape.length === 2 && dtype !== "float32")
    .map(([path, { name }]) => ({ path, dtype: weights.get(name)!.dtype }));
  const half = matrices.every(({ dtype }) =>
    dtype === "bfloat16" || dtype === "float8_e4m3fn" || isBlocks(dtype)
  );
  const inside = matrices.filter(({ path }) => path.includes("layers."));
  return { half, blocks: inside.every(({ dtype }) => isBlocks(dtype)) };
}

/** What a model loads from a checkpoint: each parameter's weight, and what else may be there. */
export interface WantedWeights {
  readonly specs: Map<string, WeightSpec>;
  readonly tied: Readonly<Record<string, string>>;
  readonly ignore: (name: string) => boolean;
}

/** The weights that a model, of a class with these statics, wants of a checkpoint. */
export function wantedWeights(
  model: Module & { readonly config: { readonly tie_word_embeddings: boolean } },
  { base_model_prefix, _tied_weights_keys = {} }: {
    readonly base_model_prefix?: string;
    readonly _tied_weights_keys?: Readonly<Record<string, string>>;
  },
  checkpoint: Checkpoint,
  device: DeviceKindName,
): WantedWeights {
  const tied = model.config.tie_word_embeddings ? _tied_weights_keys : {};
  // A checkpoint of a model with a head: the head's own tensors are of no use to the base model.
  const inside = base_model_prefix !== undefined &&
    checkpoint.names.some((name) => name.startsWith(`${base_model_prefix}.`));
  const prefix = inside ? `${base_model_prefix}.` : "";
  const specs = weightSpecs(model, tied, prefix, device);
  return { specs, tied, ignore: (name) => !name.startsWith(prefix) };
}

/** What to load for each parameter path. A tied table is loaded once, as the head's panels. */
function weightSpecs(
  model: Module,
  tied: Readonly<Record<string, string>>,
  prefix: string,
  device: DeviceKindName,
): Map<string, WeightSpec> {
  const sources = new Set(Object.values(tied));
  const specs = new Map<string, WeightSpec>();
  for (const [path, tensor] of model.namedParameters()) {
    if (path in tied) continue;
    if (tensor.storage.space !== "parameter") continue;
    const on_cpu = device === "cpu";
    const layout: LayoutName = sources.has(path) ? "panel" : tensor.storage.layout;
    specs.set(path, {
      name: prefix + path,
      shape: [...tensor.shape],
      layout,
      keepMapped: on_cpu && layout === "row_major" && !tensor.storage.keep_f32,
      dtype: tensor.storage.keep_f32 ? "float32" : undefined,
    });
  }
  return specs;
}

/** A weight in native memory as a graph knows it. */
export function weightTensor(weight: LoadedWeight): Tensor {
  const { shape, dtype, layout, buffer, offset } = weight;
  return new Tensor(shape, dtype, { space: "weight", layout, buffer, offset });
}

/**
 * A loaded layer without bias as several that share its weights, with so many outputs each;
 * undefined where those of one do not lie together: scales of 8-bit floats may lie in front of all.
 */
export function linearParts(
  { weight, bias }: Linear,
  sizes: readonly number[],
): Linear[] | undefined {
  const { storage, dtype, shape: [, cols] } = weight;
  if (storage.space !== "weight" || bias) return undefined;
  if (dtype === "float8_e4m3fn" || dtype === "int32") return undefined;
  const parts: Linear[] = [];
  let begin = 0;
  for (const size of sizes) {
    if (begin % panel !== 0) return undefined;
    const offset = storage.offset + layoutBytes([begin, cols], dtype, storage.layout);
    const part = new Linear(cols, size);
    part.weight = new Tensor([size, cols], dtype, { ...storage, offset });
    parts.push(part);
    begin += size;
  }
  return parts;
}
