/** HF's `pipeline("text-generation")`: from text to text in one call. */

import { AutoModelForCausalLM } from "./auto.ts";
import type { GenerationMixin } from "./generation/mixin.ts";
import type { GenerateInputs } from "./generation/options.ts";
import type { PretrainedOptions } from "./modeling/pretrained.ts";
import { AutoTokenizer, type ChatMessage, type PreTrainedTokenizer } from "./tokenizer/mod.ts";

/** Options of `pipeline`: those of `from_pretrained`, or a tokenizer that is loaded already. */
export interface PipelineOptions extends PretrainedOptions {
  tokenizer?: PreTrainedTokenizer;
}

/** Options of a call: those of `generate`, and what to return. */
export interface TextGenerationOptions extends Omit<GenerateInputs, "input_ids" | "tokenizer"> {
  /** Return the prompt with the new text; true by default. */
  return_full_text?: boolean;
  /** Return ids instead of text. */
  return_tensors?: boolean;
  /** Run this many prompts at a time; all by default. */
  batch_size?: number;
  /** Whether the tokenizer adds its special tokens to the prompt; true by default. */
  add_special_tokens?: boolean;
  /** Cut prompts at the model's length; false by default. */
  truncation?: boolean;
}

/** One continuation: text, the conversation with the answer, or ids. */
export interface GeneratedText<T extends string | ChatMessage[] = string> {
  generated_text: T;
  generated_token_ids?: number[];
}

/** A text generation pipeline: call it with a prompt, a list of them, or a conversation. */
export interface TextGenerationPipeline {
  (text: string, options?: TextGenerationOptions): Promise<GeneratedText[]>;
  (texts: string[], options?: TextGenerationOptions): Promise<GeneratedText[][]>;
  (
    conversation: ChatMessage[],
    options?: TextGenerationOptions,
  ): Promise<GeneratedText<ChatMessage[]>[]>;
  readonly task: "text-generation";
  readonly model: GenerationMixin;
  readonly tokenizer: PreTrainedTokenizer;
  /** Frees the model, unless it was handed in. */
  dispose(): void;
  [Symbol.dispose](): void;
}

/**
 * Makes a pipeline.
 *
 * @param task "text-generation"
 * @param model a folder in HF's layout, or a loaded model with a `tokenizer` in the options
 * @example
 * ```ts
 * using pipe = await pipeline("text-generation", "models/bamba-wordnet-8m", { dtype: "auto" });
 * const [{ generated_text }] = await pipe("a small dog is");
 * ```
 * @throws {TypeError} for another task, or a loaded model without a tokenizer
 */
export async function pipeline(
  task: "text-generation",
  model: string | GenerationMixin,
  options: PipelineOptions = {},
): Promise<TextGenerationPipeline> {
  if (task !== "text-generation") {
    throw new TypeError(`Expected the task "text-generation" but found ${JSON.stringify(task)}`);
  }
  const { tokenizer: given, ...load } = options;
  if (typeof model !== "string" && !given) {
    throw new TypeError("Expected a tokenizer in the options with a loaded model");
  }
  const tokenizer = given ?? await AutoTokenizer.from_pretrained(model as string);
  const owned = typeof model === "string";
  const loaded = owned ? await AutoModelForCausalLM.from_pretrained(model, load) : model;
  const dispose = () => {
    if (owned) loaded.dispose();
  };
  const call = (input: string | string[] | ChatMessage[], o: TextGenerationOptions = {}) =>
    generateTexts(loaded, tokenizer, input, o);
  const members = { task, model: loaded, tokenizer, dispose, [Symbol.dispose]: dispose };
  return Object.assign(call, members) as TextGenerationPipeline;
}

async function generateTexts(
  model: GenerationMixin,
  tokenizer: PreTrainedTokenizer,
  input: string | string[] | ChatMessage[],
  options: TextGenerationOptions,
): Promise<unknown> {
  if (typeof input === "string") return (await run(model, tokenizer, [input], options))[0];
  if (!Array.isArray(input) || input.length === 0) {
    throw new TypeError("Expected a text, a list of texts or a conversation but found neither");
  }
  if (typeof input[0] === "object") {
    return await runChat(model, tokenizer, input as ChatMessage[], options);
  }
  const texts = input as string[];
  const size = options.batch_size ?? texts.length;
  if (!Number.isInteger(size) || size < 1) {
    throw new RangeError(`Expected batch_size of 1 or more but found ${size}`);
  }
  const results: GeneratedText[][] = [];
  for (let at = 0; at < texts.length; at += size) {
    results.push(...await run(model, tokenizer, texts.slice(at, at + size), options));
  }
  return results;
}

async function run(
  model: GenerationMixin,
  tokenizer: PreTrainedTokenizer,
  texts: string[],
  options: TextGenerationOptions,
): Promise<GeneratedText[][]> {
  const {
    return_full_text = true,
    return_tensors = false,
    batch_size: _,
    add_special_tokens = true,
    truncation = false,
    ...generate
  } = options;
  const inputs = tokenizer(texts, {
    padding: texts.length > 1,
    add_special_tokens,
    truncation,
  });
  const sequences = await model.generate({
    ...generate,
    return_dict_in_generate: false,
    input_ids: inputs.input_ids,
    attention_mask: inputs.attention_mask,
    tokenizer,
  });
  const copies = sequences.length / texts.length;
  const columns = inputs.input_ids[0].length;
  return texts.map((text, t) =>
    sequences.slice(t * copies, (t + 1) * copies).map((ids) => {
      const fresh = ids.slice(columns);
      const answer = tokenizer.decode(fresh, { skip_special_tokens: true });
      const generated_text = return_full_text ? text + answer : answer;
      return return_tensors ? { generated_text, generated_token_ids: ids } : { generated_text };
    })
  );
}

/** A conversation by the tokenizer's chat template; the answer becomes its last message. */
async function runChat(
  model: GenerationMixin,
  tokenizer: PreTrainedTokenizer,
  conversation: ChatMessage[],
  options: TextGenerationOptions,
): Promise<GeneratedText<ChatMessage[]>[]> {
  const text = tokenizer.apply_chat_template(conversation, {
    tokenize: false,
    add_generation_prompt: true,
  }) as string;
  const { return_full_text = true } = options;
  const [answers] = await run(model, tokenizer, [text], {
    ...options,
    add_special_tokens: false,
    return_full_text: false,
  });
  return answers.map(({ generated_text }) => {
    const answer = { role: "assistant", content: generated_text };
    return { generated_text: return_full_text ? [...conversation, answer] : [answer] };
  });
}
