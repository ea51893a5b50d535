/** `./dev generate`: continue prompts and stream the text. */
import type { Command } from "commander";
import process from "node:process";
import { UsageError } from "./errors.ts";
import {
  addGeneration,
  addModel,
  generationArguments,
  type ModelFlags,
  wholeNumber,
} from "./options.ts";
import { loadModel } from "./load.ts";

interface GenerateFlags extends ModelFlags {
  returnFullText: boolean;
  numBeams?: number;
  numReturnSequences?: number;
}

/** All of stdin as text. */
export async function readStdin(): Promise<string> {
  const pieces: string[] = [];
  process.stdin.setEncoding("utf8");
  for await (const piece of process.stdin) pieces.push(String(piece));
  return pieces.join("");
}

/**
 * The prompts of a command line: its arguments, or each line of stdin where there are none or
 * where one is "-".
 *
 * @throws {UsageError} when there is no prompt at all
 */
export async function readPrompts(given: string[]): Promise<string[]> {
  const prompts: string[] = [];
  if (given.length === 0 && process.stdin.isTTY) {
    throw new UsageError("Expected a prompt as an argument or on stdin but found none.");
  }
  for (const prompt of given.length ? given : ["-"]) {
    if (prompt !== "-") prompts.push(prompt);
    else prompts.push(...(await readStdin()).split(/\r?\n/).filter((line) => line !== ""));
  }
  if (prompts.length === 0) {
    throw new UsageError("Expected a prompt as an argument or on stdin but found none.");
  }
  return prompts;
}

async function generate(given: string[], flags: GenerateFlags, signal: AbortSignal): Promise<void> {
  const prompts = await readPrompts(given);
  const { tokenizer, model } = await loadModel(flags, signal);
  using _model = model;
  const options = generationArguments(flags as unknown as Record<string, unknown>);
  const defaults = model.generation_config.resolve({});
  const { numBeams = defaults.num_beams, numReturnSequences = defaults.num_return_sequences } =
    flags;
  for (const prompt of prompts) {
    const inputs = { ...tokenizer([prompt]), ...options, tokenizer, signal };
    const start = flags.returnFullText ? prompt : "";
    if (numBeams === 1 && numReturnSequences === 1) {
      await writeStream(start, model.stream(inputs));
      continue;
    }
    // beams change their past, and several texts cannot be written at once: whole texts only
    for (const ids of await model.generate(inputs)) {
      const fresh = ids.slice(inputs.input_ids[0].length);
      process.stdout.write(`${start}${tokenizer.decode(fresh, { skip_special_tokens: true })}\n`);
    }
  }
}

/** Writes a text as it comes; nothing at all when it fails before its first piece. */
async function writeStream(start: string, pieces: AsyncIterable<string>): Promise<void> {
  let begun = false;
  try {
    for await (const piece of pieces) {
      process.stdout.write(begun ? piece : start + piece);
      begun = true;
    }
    if (!begun) process.stdout.write(start);
    begun = true;
  } finally {
    if (begun) process.stdout.write("\n"); // also after Ctrl-C
  }
}

/** Adds `generate` to the program. */
export function addGenerate(program: Command, signal: AbortSignal): void {
  const command = program.command("generate")
    .description("Continue each prompt and stream the text to stdout")
    .argument("[prompt...]", "what to continue; '-' or nothing: each line of stdin is a prompt");
  addGeneration(addModel(command))
    .option("--num-return-sequences <n>", "texts for each prompt", wholeNumber(1))
    .option("--no-return-full-text", "print the new text only, not the prompt before it")
    .addHelpText(
      "after",
      `
Options that are not given have the values of the model's generation_config.json.

Examples:
  ./dev generate "a small dog is"
  ./dev generate --do-sample --temperature 0.8 --top-p 0.95 --seed 7 "to run"
  ./dev generate --num-beams 4 --max-new-tokens 32 "a small dog is" "to run"
  echo "a small dog is" | ./dev generate --runtime deno`,
    )
    .action((given: string[], flags: GenerateFlags) => generate(given, flags, signal));
}
