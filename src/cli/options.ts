/** Options that several subcommands share, with Hugging Face's names in kebab case. */
import { type Command, InvalidArgumentError, Option } from "commander";
import type { DeviceName } from "../device.ts";
import { quantization_types, type QuantizationType } from "../modeling/quantization.ts";
import { default_model } from "./place.ts";

/** Options that say which model runs where. */
export interface ModelFlags {
  model: string;
  dtype: "auto" | "float32" | "bfloat16" | "float16";
  device: DeviceName;
  threads?: number;
  quantize?: QuantizationType;
  batchInvariant?: boolean;
  cacheDtype?: "float32" | "bfloat16" | "float16" | "q8_0";
  stateDtype?: "float32" | "bfloat16" | "float16";
}

function toNumber(text: string): number {
  const value = text.trim() === "" ? NaN : Number(text);
  if (!Number.isFinite(value)) {
    throw new InvalidArgumentError(`Expected a number but found '${text}'.`);
  }
  return value;
}

/** Reads a whole number of at least `min`. */
export function wholeNumber(min: number): (text: string) => number {
  return (text) => {
    const value = toNumber(text);
    if (!Number.isSafeInteger(value) || value < min) {
      throw new InvalidArgumentError(
        `Expected a whole number of at least ${min} but found '${text}'.`,
      );
    }
    return value;
  };
}

/** Reads a number within limits. */
export function numberBetween(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = toNumber(text);
    if (value < min || value > max) {
      const range = max === Infinity ? `of at least ${min}` : `from ${min} to ${max}`;
      throw new InvalidArgumentError(`Expected a number ${range} but found '${text}'.`);
    }
    return value;
  };
}

/** Reads the name of a device. */
export function deviceName(text: string): DeviceName {
  if (/^(auto|cpu|cuda(:\d{1,3})?)$/.test(text)) return text as DeviceName;
  throw new InvalidArgumentError(`Expected auto, cpu, cuda or cuda:N but found '${text}'.`);
}

/** Adds the option that `./dev` itself reads: --help shows it and a direct start takes it. */
export function addRuntime(command: Command): Command {
  return command.addOption(
    new Option("--runtime <name>", "JavaScript runtime to use").choices(["bun", "deno"])
      .default("bun"),
  );
}

/** Adds the options that say which model runs where. */
export function addModel(command: Command): Command {
  return addRuntime(command)
    .option("--model <path>", "folder in Hugging Face layout, or a .gguf file", default_model)
    .addOption(
      new Option("--dtype <name>", "dtype of the weights; auto: as stored")
        .choices(["auto", "float32", "bfloat16", "float16"]).default("auto"),
    )
    .addOption(
      new Option("--quantize <type>", "what matrices become while they load")
        .choices(quantization_types),
    )
    .addOption(
      new Option("--cache-dtype <name>", "what keys and values are kept as")
        .choices(["float32", "bfloat16", "float16", "q8_0"]),
    )
    .addOption(
      new Option("--state-dtype <name>", "what SSM states are kept as")
        .choices(["float32", "bfloat16", "float16"]),
    )
    .option("--device <name>", "auto, cpu, cuda or cuda:N", deviceName, "cpu")
    .option("--batch-invariant", "a row's bits never depend on its batch, on a GPU, too")
    .option("--threads <n>", "threads on the CPU (default: one a physical core)", wholeNumber(1));
}

/** Adds the options of `generate`; those not given keep generation_config.json's value. */
export function addGeneration(command: Command): Command {
  const fraction = numberBetween(0, 1);
  return command
    .option("--max-new-tokens <n>", "ids to generate at most", wholeNumber(1))
    .option("--max-length <n>", "ids of prompt and text together at most", wholeNumber(1))
    .option("--min-new-tokens <n>", "ids to generate before an end is allowed", wholeNumber(0))
    .option("--do-sample", "draw each id by its probability instead of taking the likeliest")
    .option(
      "--temperature <x>",
      "divide the logits by x (with --do-sample)",
      numberBetween(0, Infinity),
    )
    .option("--top-k <n>", "draw from the k likeliest ids", wholeNumber(0))
    .option("--top-p <x>", "draw from the likeliest ids that sum up to p", fraction)
    .option(
      "--min-p <x>",
      "draw from ids of at least p times the likeliest one's probability",
      fraction,
    )
    .option("--typical-p <x>", "draw from locally typical ids that sum up to p", fraction)
    .option(
      "--repetition-penalty <x>",
      "make ids that occurred less likely; 1 is off",
      numberBetween(0, Infinity),
    )
    .addOption(notNegated("--no-repeat-ngram-size <n>", "let no n-gram occur twice; 0 is off"))
    .option("--num-beams <n>", "beams of a beam search; 1 is off", wholeNumber(1))
    .option(
      "--length-penalty <x>",
      "exponent of the length in a beam's score",
      numberBetween(-Infinity, Infinity),
    )
    .option("--early-stopping", "stop a beam search as soon as enough texts have ended")
    .option(
      "--seed <n>",
      "seed of the random draws; the same seed gives the same text",
      wholeNumber(0),
    )
    .option("--stop-strings <text...>", "end the text where one of these appears")
    .option("--prefill-chunk-size <n>", "ids of the prompt that run at once", wholeNumber(1));
}

/** A whole number whose name begins with "no" without being a negation. */
function notNegated(flags: string, description: string): Option {
  const option = new Option(flags, description).argParser(wholeNumber(0));
  option.negate = false;
  return option;
}

const generation_flags = [
  "maxNewTokens",
  "maxLength",
  "minNewTokens",
  "doSample",
  "temperature",
  "topK",
  "topP",
  "minP",
  "typicalP",
  "repetitionPenalty",
  "noRepeatNgramSize",
  "numBeams",
  "numReturnSequences",
  "lengthPenalty",
  "earlyStopping",
  "seed",
  "stopStrings",
  "prefillChunkSize",
];

/** The options of `generate` among all that were given, with Hugging Face's snake_case names. */
export function generationArguments(flags: Record<string, unknown>): Record<string, unknown> {
  const given = generation_flags.filter((name) => flags[name] !== undefined);
  return Object.fromEntries(given.map((name) => [snakeCase(name), flags[name]]));
}

/** "maxNewTokens" as "max_new_tokens". */
export function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);
}
