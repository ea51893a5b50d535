/**
 * Tokenizers: text to token ids and back, chat templates, and text that streams.
 *
 * @example
 * ```ts
 * import { AutoTokenizer } from "./src/tokenizer/mod.ts";
 *
 * const tokenizer = await AutoTokenizer.from_pretrained("models/bamba-wordnet-8m");
 * const inputs = tokenizer(["a small dog is", "to run"], { padding: true });
 * tokenizer.batch_decode(inputs.input_ids, { skip_special_tokens: true });
 * ```
 *
 * @module
 */
export { AutoTokenizer } from "./auto.ts";
export { PreTrainedTokenizer } from "./tokenizer.ts";
export { type DecodingTokenizer, IncrementalDecoder } from "./stream.ts";
export {
  BaseStreamer,
  TextIteratorStreamer,
  type TextIteratorStreamerOptions,
  TextStreamer,
  type TextStreamerOptions,
} from "./streamers.ts";
export { type ChatMessage, TemplateError } from "./chat_template.ts";
export type { ChatTemplateOptions } from "./chat.ts";
export type {
  AddedToken,
  DecodeOptions,
  Encoding,
  IntTensor,
  Padding,
  PadOptions,
  Side,
  TextInput,
  TokenIdRows,
  TokenIds,
  TokenizeOptions,
  TokenizerInit,
  Truncation,
} from "./types.ts";
