/** The tokenizer in a GGUF file's metadata, as the files of a tokenizer's folder. */

import type { TokenizerJson } from "../tokenizer/backend.ts";
import type { TokenizerFiles } from "../tokenizer/load.ts";
import type { PostProcessorJson } from "../tokenizer/post_processor.ts";
import type { AddedTokenEntry } from "../tokenizer/types.ts";
import { explain } from "../weights/explain.ts";
import { readGgufParts } from "./checkpoint.ts";
import { quote } from "./format.ts";
import { preTokenizer, preTokenizerJson } from "./pre_tokenizers.ts";
import { sentencePieceJson } from "./sentence_pieces.ts";
import { type GgufTokens, readTokens, TokenType } from "./tokens.ts";
import { Values } from "./values.ts";

/** The vocabulary of a byte-level model: added tokens behind all others are no part of it. */
function vocabulary({ tokens, types, added }: GgufTokens): Record<string, number> {
  let end = tokens.length;
  const outside = new Set(added.map(({ id }) => id));
  while (end > 0 && (outside.has(end - 1) || types[end - 1] === TokenType.unused)) end--;
  const vocab: [string, number][] = [];
  for (let id = 0; id < end; id++) {
    if (types[id] !== TokenType.unused) vocab.push([tokens[id], id]);
  }
  return Object.fromEntries(vocab);
}

function byteLevelJson(values: Values, found: GgufTokens): TokenizerJson {
  const pre = preTokenizer(values.textOr("tokenizer.ggml.pre") ?? "gpt-2");
  const merges = values.texts("tokenizer.ggml.merges").map((merge) => {
    const [left, right, ...more] = merge.split(" ");
    if (left && right && more.length === 0) return [left, right];
    throw new RangeError(
      `Expected tokenizer.ggml.merges to hold two tokens each but found ${quote(merge)}`,
    );
  });
  const bytes = { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true };
  return {
    added_tokens: [...found.added],
    normalizer: null,
    pre_tokenizer: preTokenizerJson(pre),
    post_processor: null,
    decoder: bytes,
    model: {
      type: "BPE",
      unk_token: null,
      ignore_merges: pre.ignore_merges,
      byte_fallback: false,
      vocab: vocabulary(found),
      merges,
    },
  };
}

/** Puts begin-of-text before and end-of-text behind a text, as the file asks for. */
function postProcessor(
  before: AddedTokenEntry | undefined,
  after: AddedTokenEntry | undefined,
): PostProcessorJson | null {
  const given = [before, after].filter((token) => token !== undefined);
  if (given.length === 0) return null;
  const around = (id: string, type_id: number) => [
    ...(before ? [{ SpecialToken: { id: before.content, type_id } }] : []),
    { Sequence: { id, type_id } },
    ...(after ? [{ SpecialToken: { id: after.content, type_id } }] : []),
  ];
  return {
    type: "TemplateProcessing",
    single: around("A", 0),
    pair: [...around("A", 0), ...around("B", 1)],
    special_tokens: Object.fromEntries(
      given.map(({ id, content }) => [content, { id: content, ids: [id], tokens: [content] }]),
    ),
  };
}

/** The main template, and others by their names. */
function chatTemplates(values: Values): string | Record<string, string> | null {
  const main = values.textOr("tokenizer.chat_template");
  const others: Record<string, string> = {};
  for (const name of values.textsOr("tokenizer.chat_templates") ?? []) {
    const text = values.textOr(`tokenizer.chat_template.${name}`);
    if (text !== undefined) others[name] = text;
  }
  if (Object.keys(others).length === 0) return main ?? null;
  return { ...(main === undefined ? {} : { default: main }), ...others };
}

/**
 * The tokenizer of a GGUF file.
 *
 * @throws {TypeError | RangeError} when the file has none, or one of a kind that is not supported
 */
export function readGgufTokenizer(path: string): TokenizerFiles {
  const { header } = readGgufParts(path);
  const values = new Values(header.metadata);
  return explain(`Cannot load the tokenizer of "${path}"`, () => tokenizerFiles(path, values));
}

function tokenizerFiles(path: string, values: Values): TokenizerFiles {
  const kind = values.text("tokenizer.ggml.model");
  if (kind !== "gpt2" && kind !== "llama") {
    throw new RangeError(
      `Expected tokenizer.ggml.model to be "gpt2" or "llama" but found ${quote(kind)}`,
    );
  }
  const found = readTokens(values);
  const special = (name: string) => {
    const id = values.numberOr(`tokenizer.ggml.${name}_token_id`);
    if (id === undefined) return undefined;
    if (found.tokens[id] !== undefined) return found.added.find((one) => one.id === id) ?? make(id);
    throw new RangeError(
      `Expected tokenizer.ggml.${name}_token_id to be below ${found.tokens.length} but found ${id}`,
    );
  };
  const make = (id: number): AddedTokenEntry => ({ id, content: found.tokens[id], special: true });
  const json = kind === "gpt2" ? byteLevelJson(values, found) : sentencePieceJson(values, found);
  const pre = values.textOr("tokenizer.ggml.pre");
  const add_bos = values.flagOr("tokenizer.ggml.add_bos_token") ??
    (kind === "llama" || (pre !== undefined && preTokenizer(pre).add_bos));
  const [bos, eos] = [special("bos"), special("eos")];
  const add_eos = values.flagOr("tokenizer.ggml.add_eos_token") ?? false;
  json.post_processor = postProcessor(add_bos ? bos : undefined, add_eos ? eos : undefined);
  const init = {
    name_or_path: path,
    model_max_length: values.numberOr(`${values.textOr("general.architecture")}.context_length`),
    clean_up_tokenization_spaces: false,
    model_input_names: ["input_ids", "attention_mask"],
    bos_token: bos?.content ?? null,
    eos_token: eos?.content ?? null,
    unk_token: special("unknown")?.content ?? null,
    pad_token: special("padding")?.content ?? null,
    chat_template: chatTemplates(values),
  };
  return { jsonText: JSON.stringify({ version: "1.0", ...json }), json, init, addedTokens: [] };
}
