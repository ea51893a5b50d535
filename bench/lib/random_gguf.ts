/** The random model of a shape as a GGUF file of a type, written once and kept in .tools/bench. */

import { existsSync } from "node:fs";
import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import process from "node:process";
import type { BenchWeights } from "../../src/cli/bench.ts";
import { Device } from "../../src/device.ts";
import { saveGguf } from "../../src/gguf/save.ts";
import { openCheckpoint } from "../../src/modeling/pretrained.ts";
import { AutoConfig } from "../../src/models/auto_config.ts";
import { preTokenizer, preTokenizerJson } from "../../src/gguf/pre_tokenizers.ts";
import { byteAlphabet } from "../../src/tokenizer/byte_level.ts";
import { randomModel } from "./random_model.ts";
import { findShape } from "./shapes.ts";

/** The tokens that every vocabulary here begins with: one a byte. */
const n_bytes = 256;

/** A made-up tokenizer: token n is token n / 256 - 1 and a byte, so that llama.cpp has merges. */
function tokenizerJson(vocab_size: number) {
  const symbols = byteAlphabet();
  const tokens = [...symbols];
  const merges: string[] = [];
  for (let n = 0; tokens.length < vocab_size; n++) {
    const [left, right] = [tokens[Math.floor(n / n_bytes)], symbols[n % n_bytes]];
    tokens.push(left + right);
    merges.push(`${left} ${right}`);
  }
  const vocab = Object.fromEntries(tokens.slice(0, vocab_size).map((token, id) => [token, id]));
  const bytes = { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true };
  return {
    version: "1.0",
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: preTokenizerJson(preTokenizer("gpt-2")),
    post_processor: null,
    decoder: bytes,
    model: { type: "BPE", vocab, merges },
  };
}

/** The folder of the made-up tokenizer, made now if it is not there. */
async function randomTokenizer(parent: string, vocab_size: number): Promise<string> {
  const folder = join(parent, `tokenizer-${vocab_size}`);
  if (existsSync(join(folder, "tokenizer_config.json"))) return folder;
  await mkdir(folder, { recursive: true });
  const config = { tokenizer_class: "PreTrainedTokenizerFast" };
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizerJson(vocab_size)));
  await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(config));
  return folder;
}

/**
 * The path of the file, which is written now if it is not there.
 *
 * @param name of a shape
 * @throws {RangeError} for an unknown shape
 */
export async function randomGguf(
  name: string,
  type: BenchWeights,
  signal: AbortSignal,
): Promise<string> {
  const folder = await randomModel(name, signal);
  const path = `${folder}-${type}.gguf`;
  if (existsSync(path)) return path;
  console.error(`Writing the random model ${name} as ${type} once, into .tools/bench.`);
  const unfinished = `${folder}-${type}.${process.pid}.gguf`;
  using device = await Device.open("cpu");
  try {
    const source = {
      checkpoint: openCheckpoint(folder),
      config: await AutoConfig.from_pretrained(folder),
      tokenizer: await randomTokenizer(dirname(folder), findShape(name).vocab_size),
      name: `random ${name}`,
      device,
    };
    await saveGguf(source, unfinished, { type, signal });
    await rename(unfinished, path);
  } finally {
    await rm(unfinished, { force: true });
  }
  return path;
}
