/** A tokenizer's folder as metadata of a GGUF file. */

import { readFolder, type TokenizerFiles } from "../tokenizer/load.ts";
import type { PostProcessorJson } from "../tokenizer/post_processor.ts";
import type { AddedToken } from "../tokenizer/types.ts";
import { preTokenizerName } from "./pre_tokenizers.ts";
import { TokenType } from "./tokens.ts";
import type { MetadataBuilder } from "./values.ts";

/** Special tokens by GGUF's names of their ids. */
const special_names = {
  bos: "bos_token",
  eos: "eos_token",
  unknown: "unk_token",
  seperator: "sep_token", // as the format spells it
  padding: "pad_token",
  mask: "mask_token",
} as const;

const text = (token: string | AddedToken | null | undefined) =>
  typeof token === "object" ? token?.content : token;

/** Whether the post-processor puts a token first or last around a single text. */
function edges(json: PostProcessorJson | null): { first?: string; last?: string } {
  if (json === null) return {};
  if (json.type === "Sequence") {
    return Object.assign({}, ...(json.processors as PostProcessorJson[]).map(edges));
  }
  if (json.type !== "TemplateProcessing") return {};
  const name = (piece: { SpecialToken?: { id: string } } | undefined) => piece?.SpecialToken?.id;
  const single = json.single as { SpecialToken?: { id: string } }[];
  return { first: name(single[0]), last: name(single.at(-1)) };
}

/** Every token by its id; holes are named so that nothing reads them. */
function listTokens(files: TokenizerFiles, n: number): { tokens: string[]; types: number[] } {
  const { model, added_tokens } = files.json;
  const tokens = Array.from({ length: n }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(n).fill(TokenType.unused);
  const put = (id: number, token: string, type: number) => {
    if (id >= n) {
      throw new RangeError(
        `Expected ids of the tokenizer to be below vocab_size = ${n} but found ${id} ("${token}")`,
      );
    }
    tokens[id] = token;
    types[id] = type;
  };
  for (const [token, id] of Object.entries(model.vocab as Record<string, number>)) {
    put(id, token, TokenType.normal);
  }
  for (const { id, content, special } of added_tokens) {
    put(id, content, special ? TokenType.control : TokenType.user_defined);
  }
  return { tokens, types };
}

function addTemplates(builder: MetadataBuilder, template: unknown): void {
  if (typeof template === "string") builder.add("tokenizer.chat_template", "string", template);
  if (typeof template !== "object" || template === null) return;
  const { default: main, ...others } = template as Record<string, string>;
  builder.add("tokenizer.chat_template", "string", main);
  const names = Object.keys(others);
  if (names.length) builder.addArray("tokenizer.chat_templates", "string", names);
  for (const name of names) {
    builder.add(`tokenizer.chat_template.${name}`, "string", others[name]);
  }
}

/**
 * Adds the tokenizer of a folder in HF's layout.
 *
 * @param vocab_size rows of the embedding: as many tokens are written
 * @throws {RangeError} for a tokenizer that GGUF has no words for
 * @throws as `readFolder` when the folder holds no tokenizer
 */
export async function addTokenizer(
  builder: MetadataBuilder,
  folder: string,
  vocab_size: number,
): Promise<void> {
  const files = await readFolder(folder);
  const { json, init } = files;
  const type = json.model.type ?? "BPE";
  if (type !== "BPE" || json.normalizer !== null) {
    throw new RangeError(
      "Expected a byte-level BPE tokenizer without a normalizer, which GGUF has words for, " +
        `but found ${json.normalizer === null ? type : JSON.stringify(json.normalizer)}`,
    );
  }
  const pre = preTokenizerName(json.pre_tokenizer, json.model.ignore_merges === true);
  const { tokens, types } = listTokens(files, vocab_size);
  const merges = (json.model.merges as (string | string[])[]).map((merge) =>
    typeof merge === "string" ? merge : merge.join(" ")
  );
  builder
    .add("tokenizer.ggml.model", "string", "gpt2")
    .add("tokenizer.ggml.pre", "string", pre)
    .addArray("tokenizer.ggml.tokens", "string", tokens)
    .addArray("tokenizer.ggml.token_type", "i32", types)
    .addArray("tokenizer.ggml.merges", "string", merges);
  for (const [name, field] of Object.entries(special_names)) {
    const token = text(init[field]);
    const id = token == null ? -1 : tokens.indexOf(token);
    if (id >= 0) builder.add(`tokenizer.ggml.${name}_token_id`, "u32", id);
  }
  const { first, last } = edges(json.post_processor);
  builder
    .add(
      "tokenizer.ggml.add_bos_token",
      "bool",
      first !== undefined && first === text(init.bos_token),
    )
    .add(
      "tokenizer.ggml.add_eos_token",
      "bool",
      last !== undefined && last === text(init.eos_token),
    );
  addTemplates(builder, init.chat_template);
}
