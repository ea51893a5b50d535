/** The default model, loaded for one test file. */

import { fileURLToPath } from "node:url";
import { AutoModelForCausalLM, AutoTokenizer, type BambaForCausalLM } from "../../mod.ts";
import type { PretrainedOptions } from "../../src/modeling/pretrained.ts";
import { exact_dtype } from "../tolerance.ts";

/** Folder of the default model. */
export const folder = fileURLToPath(new URL("../../models/bamba-wordnet-8m", import.meta.url));

/** Loads the default model. */
export function loadModel(
  o: PretrainedOptions = {},
): Promise<BambaForCausalLM> {
  // What only the CPU runs is tested there.
  const on_cpu = o.quantization_config ?? o.cache_dtype ?? o.state_dtype;
  return AutoModelForCausalLM.from_pretrained(folder, {
    dtype: exact_dtype,
    ...(on_cpu === undefined ? {} : { device: "cpu" }),
    ...o,
  });
}

/** Loads its tokenizer. */
export const loadTokenizer = () => AutoTokenizer.from_pretrained(folder);

/** A prompt of the default model: "a small dog is". */
export const dog = [[1, 67, 707, 1208, 268]];
