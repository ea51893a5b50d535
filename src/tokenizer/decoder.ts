/**
 * From tokens to text, one token at a time.
 *
 * A decoder of tokenizer.json becomes a chain of steps. A step takes a token and passes on what can
 * no longer change, so that decoding a whole list and decoding a stream are the same code and
 * cannot differ.
 *
 * @module
 */
import { ByteLevelStep } from "./byte_level.ts";
import type { Sink, Step } from "./step.ts";

/** A decoder as tokenizer.json describes it. */
export interface DecoderJson {
  type: string;
  // deno-lint-ignore no-explicit-any
  [field: string]: any;
}

type TokenMap = (token: string, first: boolean) => string;

/**
 * A step without memory: each token is rewritten by itself, knowing only whether it is the first.
 */
class MapStep implements Step {
  #first = true;
  constructor(private readonly map: TokenMap) {}
  push(token: string, out: Sink): void {
    const text = this.map(token, this.#first);
    this.#first = false;
    out(text);
  }
  end(): void {}
}

/** Waits for the end and rewrites the whole: for decoders that leave nothing final before it. */
class WholeStep implements Step {
  readonly #parts: string[] = [];
  constructor(private readonly map: (text: string) => string) {}
  push(token: string): void {
    this.#parts.push(token);
  }
  end(out: Sink): void {
    out(this.map(this.#parts.join("")));
  }
}

/**
 * `<0xE2>` tokens: a run of them is one UTF-8 text, or one U+FFFD for each byte if it is not valid.
 */
class ByteFallbackStep implements Step {
  #run: number[] = [];
  readonly #utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  push(token: string, out: Sink): void {
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(token);
    if (byte) {
      this.#run.push(parseInt(byte[1], 16));
      return;
    }
    this.end(out);
    out(token);
  }
  end(out: Sink): void {
    if (this.#run.length === 0) return;
    const run = Uint8Array.from(this.#run);
    this.#run = [];
    try {
      out(this.#utf8.decode(run));
    } catch {
      for (let i = 0; i < run.length; i++) out("\uFFFD");
    }
  }
}

/** Strips one character from both ends of a text that arrives in pieces. */
class StripFusedStep implements Step {
  #started = 0;
  #held = "";
  constructor(
    private readonly content: string,
    private readonly start: number,
    private readonly stop: number,
  ) {}
  push(piece: string, out: Sink): void {
    let text = piece;
    while (this.#started < this.start && text !== "") {
      if (!text.startsWith(this.content)) this.#started = this.start;
      else {
        text = text.slice(this.content.length);
        this.#started++;
      }
    }
    if (text === "") return;
    this.#held += text;
    let keep = this.#held.length;
    for (let n = 0; n < this.stop && this.#held.endsWith(this.content, keep); n++) {
      keep -= this.content.length;
    }
    out(this.#held.slice(0, keep));
    this.#held = this.#held.slice(keep);
  }
  end(): void {} // what is held is what is stripped
}

/** Holds each token until the next one shows that it is not the last. */
class SuffixStep implements Step {
  #held: string | undefined;
  constructor(private readonly suffix: string) {}
  push(token: string, out: Sink): void {
    if (this.#held !== undefined) out(this.#held.replaceAll(this.suffix, " "));
    this.#held = token;
  }
  end(out: Sink): void {
    if (this.#held !== undefined) out(this.#held.replaceAll(this.suffix, ""));
  }
}

function strip(token: string, content: string, start: number, stop: number): string {
  const characters = [...token];
  let from = 0;
  while (from < Math.min(start, characters.length) && characters[from] === content) from++;
  let to = characters.length;
  while (to > from && characters.length - to < stop && characters[to - 1] === content) to--;
  return characters.slice(from, to).join("");
}

// The order of these replacements is part of their meaning.
const WORDPIECE_CLEANUP: [string, string][] = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" do not", " don't"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

function replaceAll(text: string, pairs: readonly [string, string][]): string {
  for (const [from, to] of pairs) text = text.replaceAll(from, to);
  return text;
}

/** Removes the spaces that English word-piece tokenizers leave before punctuation. */
export function cleanUpTokenization(text: string): string {
  return replaceAll(text, WORDPIECE_CLEANUP.filter(([from]) => from !== " do not"));
}

/**
 * `cleanUpTokenization` over a stream. What ends in three characters that are no space is final:
 * every pattern has at most four characters and starts with a space, so none can reach across such
 * an edge.
 */
export class CleanUpStep implements Step {
  #held = "";
  push(piece: string, out: Sink): void {
    const from = this.#held.length;
    this.#held += piece;
    for (let end = this.#held.length; end > Math.max(from, 2); end--) {
      if (/^[^ ]{3}$/.test(this.#held.slice(end - 3, end))) {
        out(cleanUpTokenization(this.#held.slice(0, end)));
        this.#held = this.#held.slice(end);
        return;
      }
    }
  }
  end(out: Sink): void {
    if (this.#held !== "") out(cleanUpTokenization(this.#held));
    this.#held = "";
  }
}

function replace(json: DecoderJson): TokenMap {
  const { String: literal, Regex: regex } = json.pattern ?? {};
  const pattern = literal ?? new RegExp(regex, "gu");
  return (text) => text.replaceAll(pattern, () => json.content);
}

function metaspace(json: DecoderJson): TokenMap {
  const mark = json.replacement ?? json.str_rep ?? "\u2581";
  const scheme = json.prepend_scheme ?? (json.add_prefix_space === false ? "never" : "always");
  return (token, first) => token.replaceAll(mark, first && scheme !== "never" ? "" : " ");
}

function wordPiece(json: DecoderJson): TokenMap {
  const prefix: string = json.prefix ?? "##";
  return (token, first) => {
    let text = token;
    if (!first) text = token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
    return json.cleanup === false ? text : replaceAll(text, WORDPIECE_CLEANUP);
  };
}

function ctc(json: DecoderJson): TokenMap {
  let last: string | undefined;
  return (token) => {
    if (token === last) return "";
    last = token;
    const text = token.replaceAll(json.pad_token ?? "<pad>", "");
    if (json.cleanup === false) return text;
    return replaceAll(text, WORDPIECE_CLEANUP).replaceAll(json.word_delimiter_token ?? "|", " ");
  };
}

/** Applies a rewriting of tokens: to each of them, or to the one text that they have become. */
function mapStep(map: TokenMap, fused: boolean): Step {
  return fused ? new WholeStep((text) => map(text, true)) : new MapStep(map);
}

/** Steps of one decoder; `fused` says whether an earlier step has joined all tokens to one text. */
function stepsOf(json: DecoderJson, fused: boolean): { steps: Step[]; fused: boolean } {
  switch (json.type) {
    case "Sequence": {
      const steps: Step[] = [];
      for (const part of (json.decoders ?? []) as DecoderJson[]) {
        const made = stepsOf(part, fused);
        steps.push(...made.steps);
        fused = made.fused;
      }
      return { steps, fused };
    }
    case "ByteLevel":
      return { steps: [new ByteLevelStep()], fused: true };
    case "Fuse":
      return { steps: [], fused: true };
    case "ByteFallback":
      return { steps: [new ByteFallbackStep()], fused };
    case "Replace":
      return { steps: [mapStep(replace(json), fused)], fused };
    case "Strip": {
      const { content = " ", start = 0, stop = 0 } = json;
      const step = fused
        ? new StripFusedStep(content, start, stop)
        : new MapStep((token) => strip(token, content, start, stop));
      return { steps: [step], fused };
    }
    case "Metaspace":
      return { steps: [mapStep(metaspace(json), fused)], fused };
    case "WordPiece":
      return { steps: [mapStep(wordPiece(json), fused)], fused };
    case "CTC":
      return { steps: [mapStep(ctc(json), fused)], fused };
    case "BPEDecoder":
      return { steps: [new SuffixStep(json.suffix ?? "</w>")], fused };
    default:
      throw new TypeError(`Expected a decoder type that is known but found "${json.type}".`);
  }
}

/** A fresh chain of steps for a decoder; without a decoder, tokens are joined by spaces. */
export function createSteps(json: DecoderJson | null | undefined): Step[] {
  if (!json) return [new MapStep((token, first) => (first ? token : ` ${token}`))];
  return stepsOf(json, false).steps;
}

/** Runs tokens through a chain of steps. */
export class StepChain {
  #out = "";
  readonly #sinks: Sink[];
  constructor(private readonly steps: readonly Step[]) {
    this.#sinks = new Array(steps.length);
    let next: Sink = (text) => {
      this.#out += text;
    };
    for (let i = steps.length - 1; i >= 0; i--) {
      this.#sinks[i] = next;
      const sink = next;
      next = (text) => steps[i].push(text, sink);
    }
    this.push = next;
  }
  /** Feeds one token to the first step. */
  readonly push: Sink;
  /** Text that became final since the last call. */
  take(): string {
    const text = this.#out;
    this.#out = "";
    return text;
  }
  /** Ends every step in order. */
  end(): void {
    this.steps.forEach((step, i) => step.end(this.#sinks[i]));
  }
}
