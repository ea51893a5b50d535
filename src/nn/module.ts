/** Modules: trees whose field paths are the checkpoint's keys. */

import { Tensor } from "../graph/tensor.ts";

/** The base of everything that holds weights. Fields that are tensors are its parameters. */
export abstract class Module {
  /**
   * Every parameter below this module with its path, in the order of the fields.
   *
   * @returns pairs like ["layers.0.mamba.in_proj.weight", Tensor]
   */
  *namedParameters(prefix = ""): Generator<[string, Tensor]> {
    for (const [path, owner, field] of this.walk(prefix)) {
      const tensor = owner[field];
      if (tensor.storage.space !== "constant") yield [path, tensor];
    }
  }

  /**
   * Replaces every parameter and constant for which `replace` gives a tensor.
   *
   * @param replace gets the path and the tensor that stands there
   */
  bind(replace: (path: string, tensor: Tensor) => Tensor | undefined): void {
    for (const [path, owner, field] of this.walk("")) {
      const tensor = replace(path, owner[field]);
      if (tensor) owner[field] = tensor;
    }
  }

  private *walk(prefix: string): Generator<[string, Record<string, Tensor>, string]> {
    const fields = this as unknown as Record<string, unknown>;
    for (const [name, value] of Object.entries(fields)) {
      const path = prefix ? `${prefix}.${name}` : name;
      if (value instanceof Tensor) yield [path, fields as Record<string, Tensor>, name];
      else if (value instanceof Module) yield* value.walk(path);
      else if (Array.isArray(value)) {
        for (const [i, item] of value.entries()) {
          if (item instanceof Module) yield* item.walk(`${path}.${i}`);
        }
      }
    }
  }
}
