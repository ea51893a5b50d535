/** How text is cut before merges, under GGUF's names and as tokenizer.json spells it. */

import { quote } from "./format.ts";
import { isJsonObject, type JsonObject, type JsonValue } from "../weights/json.ts";

/** A named way of cutting text. */
interface PreTokenizer {
  /** `tokenizer.ggml.pre`, the first being the one that is written. */
  readonly names: readonly string[];
  /** The pattern of a Split before ByteLevel; undefined for ByteLevel's own. */
  readonly pattern: string | undefined;
  /** Whether a piece that is a token as a whole is taken before merges are tried. */
  readonly ignore_merges: boolean;
  /** Whether begin-of-text is added where a file does not say. */
  readonly add_bos: boolean;
}

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const word = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const rest = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const known: readonly PreTokenizer[] = [
  {
    names: ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
    pattern: `${contractions}|${word}|\\p{N}{1,3}|${rest}`,
    ignore_merges: true,
    add_bos: true,
  },
  {
    names: ["dbrx", "smaug-bpe"],
    pattern: `${contractions}|${word}|\\p{N}{1,3}|${rest}`,
    ignore_merges: false,
    add_bos: false,
  },
  {
    names: ["qwen2", "stablelm2"],
    pattern: `${contractions}|${word}|\\p{N}|${rest}`,
    ignore_merges: false,
    add_bos: false,
  },
  {
    names: ["gpt-2", "phi-2", "mpt", "olmo"],
    pattern: undefined,
    ignore_merges: false,
    add_bos: false,
  },
];

/** @throws {RangeError} for a way that is unknown here */
export function preTokenizer(name: string): PreTokenizer {
  const found = known.find(({ names }) => names.includes(name));
  if (found) return found;
  const all = known.flatMap(({ names }) => names).join(", ");
  throw new RangeError(`Expected tokenizer.ggml.pre to be one of ${all} but found ${quote(name)}`);
}

/** `pre_tokenizer` of tokenizer.json. */
export function preTokenizerJson({ pattern }: PreTokenizer): JsonObject {
  const bytes = (use_regex: boolean) => ({
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: true,
    use_regex,
  });
  if (pattern === undefined) return bytes(true);
  const split = {
    type: "Split",
    pattern: { Regex: pattern },
    behavior: "Isolated",
    invert: false,
  };
  return { type: "Sequence", pretokenizers: [split, bytes(false)] };
}

/**
 * GGUF's name for what a tokenizer.json does.
 *
 * @throws {RangeError} when no name stands for it
 */
export function preTokenizerName(json: JsonValue, ignore_merges: boolean): string {
  const stages = isJsonObject(json) && Array.isArray(json.pretokenizers)
    ? json.pretokenizers
    : [json];
  const bytes = stages.at(-1) ?? null;
  const is_bytes = isJsonObject(bytes) && bytes.type === "ByteLevel" && !bytes.add_prefix_space;
  const pattern = patternOf(stages.slice(0, -1));
  const own = isJsonObject(bytes) && bytes.use_regex !== false;
  const fits = known.filter((one) =>
    is_bytes && (one.pattern === undefined ? own && stages.length === 1 : pattern === one.pattern)
  );
  const found = fits.find((one) => one.ignore_merges === ignore_merges) ?? fits[0];
  if (found) return found.names[0];
  throw new RangeError(
    "Expected a byte-level tokenizer that cuts text as GPT-2's, Llama 3's or Qwen 2's does, " +
      `which GGUF has names for, but found ${JSON.stringify(json)?.slice(0, 120)}`,
  );
}

function patternOf(stages: readonly JsonValue[]): string | undefined {
  const [split] = stages;
  if (stages.length !== 1 || !isJsonObject(split) || split.type !== "Split") return undefined;
  const { pattern } = split;
  return isJsonObject(pattern) && typeof pattern.Regex === "string" ? pattern.Regex : undefined;
}
