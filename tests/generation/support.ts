/** The default model, loaded for one test file. */

import { fileURLToPath } from "node:url";
import { AutoModelForCausalLM, AutoTokenizer, type BambaForCausalLM } from "../../mod.ts";
import type { PretrainedOptions } from "../../src/modeling/pretrained.ts";
import { exact_dtype } from "../tolerance.ts";

/** Folder of the default model. */
export const folder = fileURLToPath(new URL("../../models/bamba-wordnet-8m", import.meta.url));

/** Loads the default model. */
export function loadModel(
  o: Omit<PretrainedOptions, "device"> = {},
): Promise<BambaForCausalLM> {
  return AutoModelForCausalLM.from_pretrained(folder, { dtype: exact_dtype, ...o });
}

/** Loads its tokenizer. */
export const loadTokenizer = () => AutoTokenizer.from_pretrained(folder);

/** A prompt of the default model: "a small dog is". */
export const dog = [[1, 67, 707, 1208, 268]];
