/** Gives a model with a head `generate` and `stream`. HF's GenerationMixin. */

import { PreTrainedModel } from "../modeling/pretrained.ts";

/** A model that can generate. */
export abstract class GenerationMixin extends PreTrainedModel {
  override get has_head(): boolean {
    return true;
  }
}
