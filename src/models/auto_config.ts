/** AutoConfig: the config class that a folder's model_type asks for. */

import { BambaConfig } from "./bamba_config.ts";
import { show } from "./config_fields.ts";
import { configPath, readConfigFile } from "./config_file.ts";

/** Config classes by model_type. */
const config_classes = { bamba: BambaConfig } as const;

/** A config of any known model. */
export type AnyConfig = InstanceType<(typeof config_classes)[keyof typeof config_classes]>;

/** HF's AutoConfig. */
export const AutoConfig = {
  /**
   * Reads config.json of a folder.
   *
   * @param overrides fields that replace those of the file
   * @throws {TypeError} when the folder holds another architecture, naming its model_type
   * @throws {Error} as `BambaConfig.from_pretrained`
   */
  async from_pretrained(
    dir: string,
    overrides: Readonly<Record<string, unknown>> = {},
  ): Promise<AnyConfig> {
    const path = configPath(dir);
    const { model_type } = readConfigFile(path);
    if (typeof model_type === "string" && Object.hasOwn(config_classes, model_type)) {
      const Config = config_classes[model_type as keyof typeof config_classes];
      return await Config.from_pretrained(dir, overrides);
    }
    const known = Object.keys(config_classes).join(", ");
    throw new TypeError(
      `Cannot read "${path}": expected model_type to be one of ${known} but found ` +
        show(model_type),
    );
  },
};
