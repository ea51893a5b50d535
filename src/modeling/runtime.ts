/** A loaded model's native side: device, weights, cache layout and plans. */

import type { Buffer, Device } from "../device.ts";
import type { WeightSet } from "../weights/load.ts";
import type { CacheLayout } from "./cache_layout.ts";
import type { ForwardInputs, ForwardOutputs } from "./forward.ts";
import { PlanCache } from "./plans.ts";

/** What the runtime needs to know of a model. */
export interface RunnableModel {
  readonly config: {
    readonly vocab_size: number;
    readonly hidden_size: number;
    readonly use_cache?: boolean;
  };
  readonly z_loss_coefficient: number;
  forward(inputs: ForwardInputs): ForwardOutputs;
}

/** Owns everything native that a model uses. */
export class ModelRuntime {
  readonly plans: PlanCache;
  #disposed = false;

  /** @param has_head whether `forward` gives logits */
  constructor(
    readonly model: RunnableModel,
    readonly device: Device,
    readonly layout: CacheLayout,
    readonly weights: WeightSet,
    readonly constants: Buffer | undefined,
    readonly has_head: boolean,
    /** Whether no row's bits may depend on how many others there are. */
    readonly batch_invariant: boolean,
  ) {
    this.plans = new PlanCache(device, {
      config: model.config,
      layout,
      forward: (inputs) => model.forward(inputs),
    });
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.plans.dispose();
    this.weights.dispose();
    this.constants?.dispose();
    this.device.dispose();
  }
}
