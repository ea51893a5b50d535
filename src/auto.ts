/** HF's Auto classes: the model class by config.json's model_type. */

import type { PreTrainedModel, PretrainedOptions } from "./modeling/pretrained.ts";
import { AutoConfig } from "./models/auto_config.ts";
import { BambaForCausalLM, BambaModel } from "./models/bamba.ts";

/** Model classes by model_type; a new model adds a line to each. */
const causal_lm_classes = { bamba: BambaForCausalLM } as const;
const model_classes = { bamba: BambaModel } as const;

async function pick<T>(classes: Readonly<Record<string, T>>, dir: string): Promise<T> {
  const { model_type } = await AutoConfig.from_pretrained(dir);
  const found = classes[model_type];
  if (found === undefined) {
    throw new TypeError(
      `Expected model_type to be one of ${Object.keys(classes).join(", ")} but found ` +
        `${model_type} in ${dir}`,
    );
  }
  return found;
}

/** Loads a model with a language modelling head. */
export class AutoModelForCausalLM {
  /** @param dir a folder in HF's layout @throws as the model's own from_pretrained does */
  static async from_pretrained(
    dir: string,
    options: PretrainedOptions = {},
  ): Promise<BambaForCausalLM> {
    return await (await pick(causal_lm_classes, dir)).from_pretrained(dir, options);
  }
}

/** Loads a model without a head: its result is `last_hidden_state`. */
export class AutoModel {
  /** @param dir a folder in HF's layout @throws as the model's own from_pretrained does */
  static async from_pretrained(
    dir: string,
    options: PretrainedOptions = {},
  ): Promise<PreTrainedModel> {
    return await (await pick(model_classes, dir)).from_pretrained(dir, options);
  }
}
