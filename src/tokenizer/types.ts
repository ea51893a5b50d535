/**
 * The shapes that go in and out of a tokenizer, under Hugging Face's names.
 *
 * @module
 */

/** A side of a row of tokens. */
export type Side = "left" | "right";

/**
 * `true` and `"longest"` pad to the longest row of the batch; `false` and `"do_not_pad"` do not
 * pad.
 */
export type Padding = boolean | "longest" | "max_length" | "do_not_pad";

/** `true` and `"longest_first"` shorten the longer text of a pair first. */
export type Truncation =
  | boolean
  | "longest_first"
  | "only_first"
  | "only_second"
  | "do_not_truncate";

/**
 * Token ids of a whole batch in one typed array, row after row: what `model.call` takes as well.
 */
export interface IntTensor {
  /** The values, `shape[0] * shape[1]` of them. */
  data: Int32Array;
  /** [batch, tokens]. */
  shape: [number, number];
}

/** A text, or the words of one text when `is_split_into_words` is set. */
export type Text = string | readonly string[];

/** One text, a batch of texts, or a batch of pairs. */
export type TextInput = Text | readonly Text[];

/** Options of padding alone, as `pad` takes them. */
export interface PadOptions {
  padding?: Padding;
  /** Length to pad to with `padding: "max_length"`, in tokens. */
  max_length?: number | null;
  /** Rounds the padded length up to a multiple of this many tokens. */
  pad_to_multiple_of?: number | null;
  /** Overrides `tokenizer.padding_side` for this call. */
  padding_side?: Side | null;
  return_attention_mask?: boolean | null;
  /** `"pt"`, `"np"` and `"ts"` all give an {@linkcode IntTensor}. */
  return_tensors?: "pt" | "np" | "ts" | null;
}

/** Options of a tokenizer call. */
export interface TokenizeOptions extends PadOptions {
  /** The second text of a pair, or one for each text of a batch. */
  text_pair?: TextInput | null;
  /** Whether the tokenizer adds its own special tokens, such as begin-of-text. Default true. */
  add_special_tokens?: boolean;
  truncation?: Truncation | null;
  /** Overrides `tokenizer.truncation_side` for this call. */
  truncation_side?: Side | null;
  /** Takes `["a", "text"]` as the words of one text instead of as a batch. */
  is_split_into_words?: boolean;
  /** Reads special tokens in the text as ordinary text. */
  split_special_tokens?: boolean | null;
  return_token_type_ids?: boolean | null;
  /** Adds `special_tokens_mask`: 1 at tokens that the tokenizer added. */
  return_special_tokens_mask?: boolean;
  /**
   * Adds `offset_mapping`: [start, end) of each token in UTF-16 units; byte-level tokenizers only.
   */
  return_offsets_mapping?: boolean;
  /** Adds `length`: tokens of each row, padding included. */
  return_length?: boolean;
}

/** Options of decoding. */
export interface DecodeOptions {
  /** Leaves special tokens out. Default false. */
  skip_special_tokens?: boolean;
  /** Removes spaces before punctuation; ignored for BPE tokenizers, which it would corrupt. */
  clean_up_tokenization_spaces?: boolean | null;
}

/** One row of token ids in any integer form. */
export type TokenIds =
  | number
  | bigint
  | readonly number[]
  | readonly bigint[]
  | Int32Array
  | Uint32Array
  | Int16Array
  | Uint16Array
  | Int8Array
  | Uint8Array
  | BigInt64Array
  | BigUint64Array;

/** Several rows of token ids. */
export type TokenIdRows = readonly TokenIds[] | { data: TokenIds; shape: readonly number[] };

/** What a call returns for one input: lists by default, tensors when asked. */
export type Encoding<T> = {
  input_ids: T;
  attention_mask: T;
  token_type_ids?: T;
  special_tokens_mask?: T;
  assistant_masks?: T;
  offset_mapping?: [number, number][] | [number, number][][];
  length?: number | number[];
};

/** The form of `input_ids` for an input and its options. */
export type EncodedAs<I, O> = O extends { return_tensors: string } ? IntTensor
  : I extends string ? number[]
  : O extends { is_split_into_words: true } ? (I extends readonly string[] ? number[] : number[][])
  : number[][];

/** An added token as tokenizer.json writes it. */
export interface AddedToken {
  content: string;
  single_word?: boolean;
  lstrip?: boolean;
  rstrip?: boolean;
  normalized?: boolean;
  special?: boolean;
}

/** An added token together with its id. */
export type AddedTokenEntry = AddedToken & { id: number };

/**
 * The values a tokenizer is made with: tokenizer_config.json, overridden by from_pretrained's
 * options.
 */
export interface TokenizerInit {
  name_or_path?: string;
  model_max_length?: number | null;
  padding_side?: Side;
  truncation_side?: Side;
  pad_token_type_id?: number;
  model_input_names?: string[];
  clean_up_tokenization_spaces?: boolean;
  clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output?: boolean;
  split_special_tokens?: boolean;
  add_bos_token?: boolean;
  add_eos_token?: boolean;
  chat_template?: string | Record<string, string> | null;
  bos_token?: string | AddedToken | null;
  eos_token?: string | AddedToken | null;
  unk_token?: string | AddedToken | null;
  sep_token?: string | AddedToken | null;
  pad_token?: string | AddedToken | null;
  cls_token?: string | AddedToken | null;
  mask_token?: string | AddedToken | null;
  extra_special_tokens?: (string | AddedToken)[] | Record<string, string | AddedToken>;
  additional_special_tokens?: (string | AddedToken)[];
}
