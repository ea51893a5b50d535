/**
 * Loading a tokenizer from its folder.
 *
 * @module
 */
import { isGguf } from "../gguf/checkpoint.ts";
import { readGgufTokenizer } from "../gguf/tokenizer_read.ts";
import { folderPath, readFolder } from "./load.ts";
import { checkNames } from "./options.ts";
import { SPECIAL_TOKEN_NAMES } from "./special_tokens.ts";
import { PreTrainedTokenizer } from "./tokenizer.ts";
import type { TokenizerInit } from "./types.ts";

const OPTION_NAMES = [
  "model_max_length",
  "padding_side",
  "truncation_side",
  "pad_token_type_id",
  "model_input_names",
  "clean_up_tokenization_spaces",
  "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
  "split_special_tokens",
  "add_bos_token",
  "add_eos_token",
  "chat_template",
  ...SPECIAL_TOKEN_NAMES,
  "extra_special_tokens",
  "additional_special_tokens",
];

/** Finds the tokenizer that a folder holds. */
export class AutoTokenizer {
  /**
   * Loads tokenizer.json and what lies beside it: tokenizer_config.json, special_tokens_map.json,
   * chat_template.jinja.
   *
   * @param folder path or file: URL of the folder, or of a .gguf file that holds a tokenizer
   * @param options override what tokenizer_config.json says
   * @throws {Error} when the folder or its tokenizer.json is missing
   * @throws {SyntaxError} when a file is no JSON
   * @throws {TypeError} for an unknown option, or a file that lacks what it must have
   *
   * @example
   * ```ts
   * const tokenizer = await AutoTokenizer.from_pretrained("models/bamba-wordnet-8m");
   * tokenizer(["a small dog is", "to run"], { padding: true }).input_ids;
   * ```
   */
  static async from_pretrained(
    folder: string | URL,
    options: TokenizerInit = {},
  ): Promise<PreTrainedTokenizer> {
    checkNames(options, OPTION_NAMES, "AutoTokenizer.from_pretrained");
    const path = folderPath(folder);
    const files = isGguf(path) ? readGgufTokenizer(path) : await readFolder(path);
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    return new PreTrainedTokenizer({
      ...files,
      init: { ...files.init, ...Object.fromEntries(given) },
    });
  }
}
