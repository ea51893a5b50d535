/** The base of all models: loading, calling, freeing. HF's PreTrainedModel. */

import { basename, resolve } from "node:path";
import { Device, type DeviceName } from "../device.ts";
import { type DTypeName, Tensor } from "../graph/tensor.ts";
import { isGguf, openGguf } from "../gguf/checkpoint.ts";
import type { ConfigToWrite } from "../gguf/config.ts";
import { saveGguf, type SaveOptions } from "../gguf/save.ts";
import { environment } from "../native/library.ts";
import { Module } from "../nn/module.ts";
import type { Checkpoint } from "../weights/checkpoint.ts";
import { openSafetensors } from "../weights/compressed.ts";
import { matchWeights } from "../weights/match.ts";
import { loadWeights, type WeightSet, type WeightSpec } from "../weights/load.ts";
import {
  type CacheDTypes,
  checkCacheDTypes,
  defaultCacheDType,
  type LayerCacheSpec,
} from "./cache_dtypes.ts";
import { CacheLayout } from "./cache_layout.ts";
import { callModel } from "./call.ts";
import type { CallInputs } from "./call_inputs.ts";
import type { ForwardInputs, ForwardOutputs } from "./forward.ts";
import { checkFlags, checkOptions } from "./options.ts";
import { checkQuantization, type QuantizationConfig, quantizeSpecs } from "./quantization.ts";
import type { ModelOutput } from "./outputs.ts";
import { kindsOf, wantedWeights, weightTensor } from "./parameters.ts";
import { ModelRuntime, type RunnableModel } from "./runtime.ts";

/** Options of `from_pretrained`. */
export interface PretrainedOptions extends CacheDTypes {
  /** Dtype of the weights; "auto" keeps what the checkpoint stores. */
  dtype?: "auto" | "float32" | "bfloat16" | "float16";
  /** Quantizes the matrices while they load: `{ type: "q4_k_m" }`, `{ type: "f8_e4m3" }`. */
  quantization_config?: QuantizationConfig;
  /** "cpu", "cuda", "cuda:0" or "auto"; left out: what `BAMBA_DEVICE` says, else "cpu" */
  device?: string;
  /**
   * Gives each row the same bits whatever else is in its batch, on a GPU with bf16 weights, too,
   * where that takes time: README.md says how much. Elsewhere it is always so.
   */
  batch_invariant?: boolean;
  /** Native threads; one a physical core by default. */
  threads?: number;
  /** Called with `{ status: "progress", file, loaded, total }` while weights load. */
  progress_callback?: (progress: LoadProgress) => void;
  signal?: AbortSignal;
}

/** Options of `save_gguf`. */
export interface SaveGgufOptions extends SaveOptions {
  /** Folder or GGUF file whose tokenizer is written, by default the model's own; null for none. */
  readonly tokenizer?: string | null;
}

/** Opens a folder in HF's layout or a GGUF file. */
export function openCheckpoint(path: string): Checkpoint {
  return isGguf(path) ? openGguf(path) : openSafetensors(path);
}

/** What `progress_callback` gets; bytes. */
export interface LoadProgress {
  status: string;
  file: string;
  loaded: number;
  total: number;
}

const known = [
  "dtype",
  "quantization_config",
  "cache_dtype",
  "state_dtype",
  "device",
  "batch_invariant",
  "threads",
  "progress_callback",
  "signal",
];
const dtypes = ["auto", "float32", "bfloat16", "float16"];

/** What a config must tell about any model. */
export interface ModelConfig {
  readonly model_type: string;
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly tie_word_embeddings: boolean;
  readonly use_cache?: boolean;
  readonly bos_token_id?: number | null;
  readonly eos_token_id?: number | number[] | null;
  readonly pad_token_id?: number | null;
}

/** A model class with its config class, as `from_pretrained` needs it. */
export interface ModelClass<T extends PreTrainedModel> {
  // deno-lint-ignore no-explicit-any -- a static side cannot name the subclass's config
  new (config: any): T;
  readonly config_class: { from_pretrained(dir: string): Promise<ModelConfig> };
  /** Where the base model's weights stand in the checkpoint of a model with a head. */
  readonly base_model_prefix?: string;
  readonly _tied_weights_keys?: Readonly<Record<string, string>>;
}

/** A model with weights on a device. */
export abstract class PreTrainedModel extends Module implements RunnableModel {
  abstract readonly config: ModelConfig;
  z_loss_coefficient = 0;
  /** Folder or file that the model was loaded from. */
  name_or_path = "";
  /** The same, whatever the working directory is by now. */
  #path = "";
  #runtime: ModelRuntime | undefined;

  /** Records the model's definition over the tokens of a batch. */
  abstract forward(inputs: ForwardInputs): ForwardOutputs;

  /** What each layer keeps in the cache. */
  abstract cacheSpecs(): LayerCacheSpec[];

  /** Whether `forward` gives logits. */
  get has_head(): boolean {
    return false;
  }

  /**
   * Loads config and weights from a folder in HF's layout, or from a GGUF file.
   *
   * @param dir holds config.json and model.safetensors, or shards with their index; or is the path
   *   of a .gguf file, of any part where it is split
   * @throws {TypeError | RangeError} naming what is missing, surplus, misshapen or out of range
   */
  static async from_pretrained<T extends PreTrainedModel>(
    this: ModelClass<T>,
    dir: string,
    options: PretrainedOptions = {},
  ): Promise<T> {
    checkOptions("from_pretrained", options, known);
    const { dtype = "auto", signal } = options;
    if (!dtypes.includes(dtype)) {
      throw new RangeError(`Expected dtype to be one of ${dtypes.join(", ")} but found ${dtype}`);
    }
    checkFlags(options, ["batch_invariant"]);
    checkCacheDTypes(options);
    signal?.throwIfAborted();
    const config = await this.config_class.from_pretrained(dir);
    const model = new this(config);
    const checkpoint = openCheckpoint(dir);
    const name = options.device ?? environment("BAMBA_DEVICE") ?? "cpu";
    const device = await Device.open(name as DeviceName, { threads: options.threads });
    try {
      model.name_or_path = dir;
      model.#path = resolve(dir);
      await model.load(this, checkpoint, device, options);
      await model.afterLoad(dir);
    } catch (error) {
      device.dispose();
      throw error;
    }
    return model;
  }

  /** Runs a forward pass: HF's `model(**inputs)`. */
  async call(inputs: CallInputs): Promise<ModelOutput> {
    return await callModel(this.runtime, inputs);
  }

  /** @throws {TypeError} before loading and after dispose() */
  get runtime(): ModelRuntime {
    if (!this.#runtime) {
      throw new TypeError(
        "Cannot run a model without weights: load one with from_pretrained(folder)",
      );
    }
    if (this.#runtime.disposed) {
      throw new TypeError("Cannot use the model: it has been disposed of");
    }
    return this.#runtime;
  }

  get device(): Device {
    return this.runtime.device;
  }

  /** Dtype of the weight matrices, in a mix that of most of their numbers. */
  get dtype(): DTypeName {
    const sizes = new Map<DTypeName, number>();
    for (const { shape, dtype, size } of this.parameterTensors()) {
      if (shape.length === 2) sizes.set(dtype, (sizes.get(dtype) ?? 0) + size);
    }
    const [most] = [...sizes].sort(([, a], [, b]) => b - a);
    return most?.[0] ?? "float32";
  }

  /** Number of weights, tied ones counted once. */
  num_parameters(): number {
    return [...this.parameterTensors()].reduce((sum, tensor) => sum + tensor.size, 0);
  }

  /** HF's get_memory_footprint: bytes of the weights as they are held. */
  get_memory_footprint(): number {
    return this.runtime.weights.bytes;
  }

  /**
   * Writes the checkpoint that this model was loaded from, with config and tokenizer, as a GGUF
   * file that llama.cpp reads, too.
   *
   * @param path of the file, which appears when it is whole
   * @param options.type of the file: "bf16" by default, "f32", "f16", "q8_0", "q4_0", "q4_k_m", …
   * @throws {RangeError} for an unknown type, or what the format has no place for
   */
  async save_gguf(path: string, options: SaveGgufOptions = {}): Promise<void> {
    checkOptions("save_gguf", options, ["type", "tokenizer", "progress_callback", "signal"]);
    const { device } = this;
    const { tokenizer = this.#path, ...rest } = options;
    const checkpoint = openCheckpoint(this.#path);
    const config = this.config as unknown as ConfigToWrite;
    // The CPU converts: a GPU's weights lie in orders of their own.
    const cpu = device.kind === "cpu" ? undefined : await Device.open("cpu");
    try {
      const source = { checkpoint, config, tokenizer, device: cpu ?? device };
      await saveGguf({ ...source, name: basename(this.#path) }, path, rest);
    } finally {
      cpu?.dispose();
    }
  }

  /**
   * Compares a checkpoint with what this model would load of it.
   *
   * @throws {RangeError} naming the tensors that are missing, surplus or misshapen
   */
  checkCheckpoint(checkpoint: Checkpoint): void {
    const model_class = this.constructor as unknown as ModelClass<PreTrainedModel>;
    const { specs, ...options } = wantedWeights(this, model_class, checkpoint, "cpu");
    matchWeights(checkpoint, [...specs.values()], options);
  }

  /** HF's eval(): models here are always in evaluation mode. */
  eval(): this {
    return this;
  }

  /** HF's train(mode). @throws {TypeError} unless `mode` is false, which means eval() */
  train(mode = true): this {
    if (!mode) return this.eval();
    throw new TypeError("Cannot train a model: inference is all there is so far");
  }

  /** Frees weights and plans. Caches and results that are still held stay usable. */
  dispose(): void {
    this.#runtime?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** For what subclasses read beside the weights. */
  protected async afterLoad(_dir: string): Promise<void> {}

  /** Every weight, tied ones once. */
  private parameterTensors(): Set<Tensor> {
    return new Set([...this.namedParameters()].map(([, tensor]) => tensor));
  }

  private async load(
    model_class: ModelClass<PreTrainedModel>,
    checkpoint: Checkpoint,
    device: Device,
    options: PretrainedOptions,
  ): Promise<void> {
    const { dtype = "auto", quantization_config, progress_callback, signal } = options;
    const { tied, ignore, ...wanted } = wantedWeights(this, model_class, checkpoint, device.kind);
    let { specs } = wanted;
    if (quantization_config !== undefined) {
      const type = checkQuantization(quantization_config);
      specs = quantizeSpecs(type, checkpoint, specs, "model.");
    }
    const weights = await loadWeights(device, checkpoint, [...specs.values()], {
      dtype,
      tied,
      ignore,
      progress_callback,
      signal,
    });
    const constants = this.bindConstants(device);
    this.bindWeights(specs, weights, tied);
    const { half, blocks } = kindsOf(specs, weights);
    const states = this.cacheSpecs();
    // A GPU runs in bf16 where all matrices are that or less; everything else runs in f32.
    const activations = half && device.kind === "cuda" ? "bfloat16" : "float32";
    const products = device.info().cpu_level !== "portable";
    const usual = defaultCacheDType(states, device.kind, { half, blocks, products });
    const layout = new CacheLayout(states, device.kind, activations, {
      cache_dtype: options.cache_dtype ?? usual,
      state_dtype: options.state_dtype,
    });
    this.#runtime = new ModelRuntime(
      this,
      device,
      layout,
      weights,
      constants,
      this.has_head,
      options.batch_invariant === true,
    );
  }

  private bindWeights(
    specs: ReadonlyMap<string, WeightSpec>,
    weights: WeightSet,
    tied: Readonly<Record<string, string>>,
  ): void {
    const loaded = new Map<string, Tensor>();
    for (const [path, spec] of specs) {
      loaded.set(path, weightTensor(weights.weights.get(spec.name)!));
    }
    this.bind((path) => loaded.get(tied[path] ?? path));
  }

  private bindConstants(device: Device) {
    const tables: Float32Array[] = [];
    this.bind((_, tensor) => {
      if (tensor.storage.space === "constant") tables.push(tensor.storage.values);
      return undefined;
    });
    if (tables.length === 0) return undefined;
    const stride = 64;
    const offsets: number[] = [];
    let bytes = 0;
    for (const table of tables) {
      offsets.push(bytes);
      bytes += Math.ceil(table.byteLength / stride) * stride;
    }
    const buffer = device.createBuffer(bytes);
    let next = 0;
    this.bind((_, tensor) => {
      if (tensor.storage.space !== "constant") return undefined;
      const { values } = tensor.storage;
      const offset = offsets[next++];
      buffer.write(offset, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      const place = {
        space: "weight",
        layout: "row_major",
        buffer: buffer.handle,
        offset,
      } as const;
      return new Tensor(tensor.shape, "float32", place);
    });
    return buffer;
  }
}
