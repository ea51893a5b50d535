/**
 * Chat templates: from a conversation to the text that a model was trained on.
 *
 * @module
 */
import { Environment, Interpreter, Template } from "@huggingface/jinja";
import { show } from "./options.ts";
import { type JsonOptions, strftime, type TemplateValue, toJson } from "./template_values.ts";

/** One message; `content` is a text, or a list of parts for templates that take them. */
export interface ChatMessage {
  role: string;
  content?: string | Record<string, unknown>[] | null;
  [field: string]: unknown;
}

/** What a template is rendered with. */
export interface RenderOptions {
  tools?: readonly object[] | null;
  documents?: readonly object[] | null;
  add_generation_prompt?: boolean;
  /** `true` continues `content`; a name continues that field of the last message. */
  continue_final_message?: boolean | string;
  /** Special tokens and whatever else the template reads. */
  variables?: Record<string, unknown>;
  /** Also reports where the text inside of `{% generation %}` lies. */
  track_generation?: boolean;
}

/** A rendered conversation. */
export interface RenderedChat {
  text: string;
  /** [start, end) of what the assistant said, in UTF-16 units. */
  generated: [number, number][];
}

// Mark the two ends of a generation block in the rendered text; a conversation may not contain
// them.
const OPEN = "\uFDD0\uE0C1", CLOSE = "\uFDD0\uE0C2";
const GENERATION_TAG = /\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g;

/**
 * Compiled templates, so that a chat of many turns parses its template once. A handful is enough: a
 * program uses one or two.
 */
const compiled = new Map<string, Template>();

function compile(source: string): Template {
  let template = compiled.get(source);
  if (!template) {
    try {
      template = new Template(source);
    } catch (error) {
      throw new SyntaxError(`The chat template cannot be parsed: ${(error as Error).message}`, {
        cause: error,
      });
    }
    if (compiled.size >= 8) compiled.delete(compiled.keys().next().value!);
    compiled.set(source, template);
  }
  return template;
}

/**
 * Puts a mark that survives rendering in place of each generation tag, keeping its white space
 * control.
 */
function markGeneration(source: string): string {
  return source.replace(
    GENERATION_TAG,
    (_, left: string, end: string | undefined, right: string) => {
      const mark = end ? CLOSE : OPEN;
      return `{%${left} if true %}{{ "${mark}" }}{% endif ${right}%}`;
    },
  );
}

/** Takes the marks out of a rendered text. */
function takeMarks(marked: string): RenderedChat {
  const generated: [number, number][] = [];
  let text = "", start = 0;
  for (const part of marked.split(/(\uFDD0[\uE0C1\uE0C2])/)) {
    if (part === OPEN) start = text.length;
    else if (part === CLOSE) generated.push([start, text.length]);
    else text += part;
  }
  return { text, generated };
}

/** Arguments of `tojson` by position, as Hugging Face's filter takes them. */
const JSON_ARGUMENTS = ["ensure_ascii", "indent", "separators", "sort_keys"] as const;

/** Filters that take a field which a message lacks as an empty text. */
const TEXT_FILTERS = new Set([
  "capitalize",
  "indent",
  "length",
  "lower",
  "replace",
  "string",
  "title",
  "trim",
  "upper",
]);

// deno-lint-ignore no-explicit-any
type Internals = any;

/**
 * An interpreter whose filters do what Python's do. The package's own `tojson` writes the float 2.0
 * as 2, sorts keys by locale and knows no positional arguments; its text filters refuse what is not
 * defined.
 */
function createInterpreter(environment: Environment): Interpreter {
  const interpreter: Internals = new Interpreter(environment);
  const original = interpreter.applyFilter.bind(interpreter);
  const text = (value: string): TemplateValue => new Environment().set("json", value);
  const plain = (value: TemplateValue): unknown =>
    Array.isArray(value.value) ? value.value.map(plain) : value.value;
  interpreter.applyFilter = (operand: TemplateValue, filter: Internals, scope: Environment) => {
    const call = filter.type === "CallExpression";
    const name = (call ? filter.callee : filter).value;
    if (operand.type === "UndefinedValue" && TEXT_FILTERS.has(name)) operand = text("");
    if (name !== "tojson") return original(operand, filter, scope);
    const options: Record<string, unknown> = {};
    if (call) {
      const [positional, named] = interpreter.evaluateArguments(filter.args, scope);
      positional.forEach((value: TemplateValue, i: number) => {
        options[JSON_ARGUMENTS[i]] = plain(value);
      });
      for (const [name, value] of named) options[name] = plain(value);
    }
    return text(toJson(operand, options as JsonOptions));
  };
  return interpreter;
}

function run(template: Template, variables: Record<string, unknown>): string {
  const environment = new Environment();
  const globals: Record<string, unknown> = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range: pythonRange,
    strftime_now: (format: string) => strftime(new Date(), format),
    raise_exception: (message: unknown) => {
      throw new TemplateError(`The chat template refuses this conversation: ${message}`);
    },
  };
  for (const [name, value] of Object.entries({ ...globals, ...variables })) {
    if (value !== undefined) environment.set(name, value);
  }
  try {
    return (createInterpreter(environment).run(template.parsed) as TemplateValue).value;
  } catch (error) {
    if (error instanceof TemplateError) throw error;
    throw new TemplateError(`The chat template failed: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** A template that cannot be rendered, or that refuses a conversation by `raise_exception`. */
export class TemplateError extends Error {
  override name = "TemplateError";
}

function pythonRange(start: number, stop?: number, step = 1): number[] {
  if (stop === undefined) [start, stop] = [0, start];
  if (step === 0) throw new RangeError("Expected the step of range() not to be 0.");
  const list: number[] = [];
  for (let i = start; step > 0 ? i < stop : i > stop; i += step) list.push(i);
  return list;
}

// Names under which a message's reasoning is passed; templates read the first, some the second.
const REASONING = ["reasoning_content", "thinking", "reasoning"];

/**
 * A copy of a message without its empty fields, with the reasoning under each name templates read.
 */
function plainMessage(message: ChatMessage, index: number): ChatMessage {
  if (typeof message !== "object" || message === null || Array.isArray(message)) {
    throw new TypeError(`Expected message ${index} to be an object but found ${show(message)}.`);
  }
  const kept = Object.entries(message).filter(([, value]) => value !== null && value !== undefined);
  const plain = Object.fromEntries(kept) as ChatMessage;
  const name = REASONING.find((field) => field in plain);
  if (name === undefined) return plain;
  return { thinking: plain[name], ...plain, reasoning_content: plain[name] };
}

const CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG ";

/** Marks the end of the last message, so that the rendered text can be cut there. */
function tagFinal(messages: ChatMessage[], field: string, source: string): string {
  const last = { ...messages[messages.length - 1] };
  messages[messages.length - 1] = last;
  const value = last[field];
  if (value === undefined) {
    throw new TypeError(
      `Expected the last message to have a "${field}" to continue but found none.`,
    );
  }
  const fields = REASONING.includes(field)
    ? REASONING.filter((name) => last[name] === value)
    : [field];
  if (!fields.some((name) => source.includes(name))) {
    throw new TypeError(
      `Cannot continue "${field}" because the chat template does not mention that field.`,
    );
  }
  if (Array.isArray(value)) {
    const at = value.findLastIndex((part) => "text" in part);
    if (at < 0) throw new TypeError("The last message has no text part that could be continued.");
    last[field] = value.with(at, { ...value[at], text: value[at].text + CONTINUE_TAG });
    return value[at].text;
  }
  for (const name of fields) last[name] = last[name] + CONTINUE_TAG;
  return String(value);
}

function cutAtTag(text: string, final: string): string {
  const at = text.lastIndexOf(CONTINUE_TAG.trim());
  if (at < 0 || !text.includes(final.trim())) {
    throw new TemplateError(
      "Cannot continue the last message because the chat template changes it: it is not in the " +
        `rendered text ${JSON.stringify(text)}.`,
    );
  }
  // A template that trims the message has also trimmed the blank of the tag.
  return text.startsWith(CONTINUE_TAG, at) ? text.slice(0, at) : text.slice(0, at).trimEnd();
}

/**
 * Renders one conversation.
 *
 * @param source the template, in Jinja
 * @throws {SyntaxError} when the template cannot be parsed
 * @throws {TemplateError} when it fails, or refuses the conversation
 * @throws {TypeError} when the conversation is no list of messages
 */
export function renderChat(
  source: string,
  conversation: readonly ChatMessage[],
  options: RenderOptions = {},
): RenderedChat {
  const messages = conversation.map(plainMessage);
  const { continue_final_message: continued = false, track_generation = false } = options;
  const field = continued === true ? "content" : continued;
  const final = field ? tagFinal(messages, field, source) : "";
  const text = run(compile(track_generation ? markGeneration(source) : source), {
    ...options.variables,
    messages,
    tools: options.tools ?? null,
    documents: options.documents ?? null,
    add_generation_prompt: options.add_generation_prompt ?? false,
  });
  if (field) return { text: cutAtTag(text, final), generated: [] };
  return track_generation ? takeMarks(text) : { text, generated: [] };
}
