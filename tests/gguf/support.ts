/** What the tests of GGUF files share: fixtures, and files saved from the default model. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Device } from "../../src/device.ts";
import { isGguf } from "../../src/gguf/checkpoint.ts";
import { saveGguf, type SaveOptions } from "../../src/gguf/save.ts";
import { openCheckpoint } from "../../src/modeling/pretrained.ts";
import { AutoConfig } from "../../src/models/auto_config.ts";

/** A file that Python's `gguf` wrote: see fixtures/make_fixtures.py. */
export const tiny_path = fileURLToPath(new URL("fixtures/tiny.gguf", import.meta.url));

/** Saves a folder or file as a GGUF file. */
export async function save(from: string, to: string, options: SaveOptions): Promise<void> {
  using device = await Device.open("cpu", { threads: 2 });
  const config = await AutoConfig.from_pretrained(from);
  const checkpoint = openCheckpoint(from);
  const has_tokenizer = isGguf(from) || existsSync(join(from, "tokenizer.json"));
  const tokenizer = has_tokenizer ? from : null;
  await saveGguf({ checkpoint, config, device, tokenizer, name: "test" }, to, options);
}
