/** GenerationConfig: HF's defaults, files, round trips, and what `generate` takes from it. */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { GenerationConfig } from "../../mod.ts";
import { folder, loadModel } from "./support.ts";

async function inFolder(body: (dir: string) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "bamba-generation-"));
  try {
    await body(dir);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

describe("GenerationConfig", () => {
  it("reads a model's file and keeps fields that steer nothing", async () => {
    const config = await GenerationConfig.from_pretrained(folder);
    assertEquals(config.fields.max_new_tokens, 64);
    assertEquals(config.fields.eos_token_id, 2);
    assertEquals(config.others.transformers_version, "5.17.0");
  });

  it("writes what it read", async () => {
    await inFolder(async (dir) => {
      const config = await GenerationConfig.from_pretrained(folder);
      await config.save_pretrained(dir);
      const again = await GenerationConfig.from_pretrained(dir);
      assertEquals(again.toJSON(), config.toJSON());
    });
  });

  it("has HF's defaults without a file, and lets calls override it", async () => {
    await inFolder(async (dir) => {
      const config = await GenerationConfig.from_pretrained(dir);
      const fields = config.resolve({ top_k: 7 });
      assertEquals([fields.max_length, fields.top_k, fields.num_beams], [20, 7, 1]);
      const given = new GenerationConfig({ max_new_tokens: 5 });
      assertEquals(given.resolve({}).max_new_tokens, 5);
      assertEquals(given.resolve({ max_length: 9 }).max_new_tokens, null);
    });
  });

  it("names files and fields that it cannot use", async () => {
    await inFolder(async (dir) => {
      writeFileSync(join(dir, "generation_config.json"), "{");
      const error = await assertRejects(() => GenerationConfig.from_pretrained(dir), TypeError);
      assertStringIncludes(error.message, "generation_config.json");
      writeFileSync(join(dir, "generation_config.json"), '{"temperature": -1}');
      await assertRejects(() => GenerationConfig.from_pretrained(dir), RangeError);
    });
    const unknown = { max_new_token: 1 } as object;
    assertStringIncludes(
      assertThrows(() => new GenerationConfig(unknown), TypeError).message,
      "max_new_tokens",
    );
  });

  it("steers generate when it is passed", async () => {
    using model = await loadModel();
    const generation_config = new GenerationConfig({ max_new_tokens: 3 });
    const [ids] = await model.generate({ input_ids: [[1, 67]], generation_config });
    assertEquals(ids.length, 5);
  });
});
