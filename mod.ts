/**
 * Bamba for Bun and Deno: IBM's hybrid of Mamba2 and attention layers, with HF transformers' names,
 * on a native library with CPU SIMD kernels.
 *
 * @example
 * ```ts
 * import { pipeline } from "./mod.ts";
 *
 * using pipe = await pipeline("text-generation", "models/bamba-wordnet-8m", { dtype: "auto" });
 * const [{ generated_text }] = await pipe("a small dog is");
 * console.log(generated_text);
 * ```
 *
 * @module
 */

export { AutoModel, AutoModelForCausalLM } from "./src/auto.ts";
export { AutoConfig } from "./src/models/auto_config.ts";
export { BambaForCausalLM, BambaModel } from "./src/models/bamba.ts";
export { BambaConfig } from "./src/models/bamba_config.ts";
export { HybridMambaAttentionDynamicCache } from "./src/modeling/cache.ts";
export { type CallInputs } from "./src/modeling/call_inputs.ts";
export { type MatrixInput, type ShapedArray } from "./src/modeling/inputs.ts";
export { ModelOutput } from "./src/modeling/outputs.ts";
export {
  PreTrainedModel,
  type PretrainedOptions,
  type SaveGgufOptions,
} from "./src/modeling/pretrained.ts";
export { GenerationConfig, type GenerationFields } from "./src/generation/config.ts";
export { type GenerateOutput, GenerationMixin } from "./src/generation/mixin.ts";
export {
  type GenerateInputs,
  type LogitsProcessor,
  type StoppingCriterion,
  type Streamer,
} from "./src/generation/options.ts";
export {
  type GeneratedText,
  pipeline,
  type PipelineOptions,
  type TextGenerationOptions,
  type TextGenerationPipeline,
} from "./src/pipeline.ts";
export { Tensor } from "./src/graph/tensor.ts";
export * from "./src/tokenizer/mod.ts";
export { Buffer, Device } from "./src/device.ts";
export { NativeError } from "./src/native/error.ts";
export { setLibraryPath } from "./src/native/library.ts";
