/**
 * `apply_chat_template`: a conversation, rendered and encoded.
 *
 * @module
 */
import { type ChatMessage, renderChat, type RenderOptions } from "./chat_template.ts";
import { type AnyEncoding, encodeBatch, type EncodingTokenizer } from "./encode.ts";
import { nearestName, show } from "./options.ts";
import { toTensor } from "./padding.ts";
import type { Padding, TokenizeOptions, Truncation } from "./types.ts";

/** Options of `apply_chat_template`; any other name is handed to the template. */
export interface ChatTemplateOptions {
  tools?: readonly object[] | null;
  documents?: readonly object[] | null;
  /** A template, or the name of one of the tokenizer's. */
  chat_template?: string | null;
  add_generation_prompt?: boolean;
  continue_final_message?: boolean | string;
  /** Default true. */
  tokenize?: boolean;
  padding?: Padding;
  truncation?: Truncation;
  max_length?: number | null;
  return_tensors?: "pt" | "np" | "ts" | null;
  /** Default true: `{ input_ids, attention_mask }`; false gives the ids alone. */
  return_dict?: boolean;
  /** Adds `assistant_masks`: 1 where the template says that the assistant spoke. */
  return_assistant_tokens_mask?: boolean;
  /** Further options of the call that encodes the text. */
  tokenizer_kwargs?: TokenizeOptions | null;
  [variable: string]: unknown;
}

const OPTION_NAMES = [
  "tools",
  "documents",
  "chat_template",
  "add_generation_prompt",
  "continue_final_message",
  "tokenize",
  "padding",
  "truncation",
  "max_length",
  "return_tensors",
  "return_dict",
  "return_assistant_tokens_mask",
  "tokenizer_kwargs",
];

/** What this file needs of a tokenizer. */
export interface ChatTokenizer extends EncodingTokenizer {
  chat_template: string | Record<string, string> | null;
  special_tokens_map: Record<string, string>;
}

/**
 * The template to use.
 *
 * @param asked a template, or the name of one
 * @throws {TypeError} when there is none
 */
function chooseTemplate(tokenizer: ChatTokenizer, asked: string | null, tools: unknown): string {
  const own = tokenizer.chat_template;
  if (typeof own === "object" && own !== null) {
    if (asked !== null) return own[asked] ?? asked;
    const chosen = (tools ? own.tool_use : undefined) ?? own.default;
    if (chosen !== undefined) return chosen;
    throw new TypeError(
      "This tokenizer has several chat templates and none is the default. Choose one by " +
        `chat_template: ${Object.keys(own).sort().join(", ")}.`,
    );
  }
  const template = asked ?? own;
  if (template !== null) return template;
  throw new TypeError(
    "This tokenizer has no chat template. Give one with the option chat_template, or set " +
      "tokenizer.chat_template.",
  );
}

/** Refuses a name that is one slip away from an option and that the template does not read. */
function checkVariables(names: readonly string[], template: string): void {
  for (const name of names) {
    const [nearest, distance] = nearestName(name, OPTION_NAMES);
    if (distance <= 2 && !template.includes(name)) {
      throw new TypeError(
        `Neither apply_chat_template nor the template knows "${name}". Did you mean "${nearest}"?`,
      );
    }
  }
}

/** Marks the tokens that lie in what the assistant said. */
function assistantMask(spans: [number, number][], generated: [number, number][]): number[] {
  return spans.map(([start, end]) =>
    generated.some(([from, to]) => start < to && end > from && end > start) ? 1 : 0
  );
}

type Conversation = readonly ChatMessage[];

/** The work of `apply_chat_template`. */
export function applyChatTemplate(
  tokenizer: ChatTokenizer,
  conversation: Conversation | readonly Conversation[],
  options: ChatTemplateOptions,
): string | string[] | AnyEncoding | AnyEncoding["input_ids"] {
  const {
    tools = null,
    documents = null,
    chat_template = null,
    add_generation_prompt = false,
    continue_final_message = false,
    tokenize = true,
    padding = false,
    truncation = false,
    max_length = null,
    return_tensors = null,
    return_dict = true,
    return_assistant_tokens_mask: masked = false,
    tokenizer_kwargs,
    ...variables
  } = options;
  if (!Array.isArray(conversation) || conversation.length === 0) {
    const found = Array.isArray(conversation) ? "an empty list" : show(conversation);
    throw new TypeError(`Expected a conversation with at least one message but found ${found}.`);
  }
  if (masked && !(tokenize && return_dict)) {
    throw new TypeError("return_assistant_tokens_mask needs tokenize and return_dict to be true.");
  }
  if (continue_final_message && add_generation_prompt) {
    throw new TypeError(
      "continue_final_message and add_generation_prompt exclude each other: one continues the " +
        "last message, the other begins a new one.",
    );
  }
  if (continue_final_message && masked) {
    throw new TypeError(
      "continue_final_message and return_assistant_tokens_mask exclude each other.",
    );
  }
  const template = chooseTemplate(tokenizer, chat_template, tools);
  checkVariables(Object.keys(variables), template);
  const batched = Array.isArray(conversation[0]);
  const chats = (batched ? conversation : [conversation]) as Conversation[];
  const render: RenderOptions = {
    tools,
    documents,
    add_generation_prompt,
    continue_final_message,
    variables: { ...tokenizer.special_tokens_map, ...variables },
    track_generation: masked,
  };
  const rendered = chats.map((chat) => renderChat(template, chat, render));
  const texts = rendered.map((chat) => chat.text);
  if (!tokenize) return batched ? texts : texts[0];

  const call: TokenizeOptions = {
    padding,
    truncation,
    max_length,
    add_special_tokens: false,
    return_tensors,
    ...tokenizer_kwargs,
    ...(masked ? { return_offsets_mapping: true } : {}),
  };
  const encoding = encodeBatch(tokenizer, batched ? texts : texts[0], call);
  if (!return_dict) return encoding.input_ids;
  if (masked) {
    const { offset_mapping, ...rest } = encoding;
    const spans = (batched ? offset_mapping : [offset_mapping]) as [number, number][][];
    const masks = spans.map((row, i) => assistantMask(row, rendered[i].generated));
    const assistant_masks = return_tensors
      ? toTensor(masks, "assistant_masks")
      : batched
      ? masks
      : masks[0];
    return { ...rest, assistant_masks };
  }
  return encoding;
}
