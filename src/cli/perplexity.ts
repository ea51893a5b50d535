/** `./dev perplexity`: how well a model predicts held-out text. */
import type { Command } from "commander";
import { existsSync, readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { UsageError } from "./errors.ts";
import { addModel, type ModelFlags, wholeNumber } from "./options.ts";
import { modelFolder } from "./place.ts";
import { loadModel } from "./load.ts";

interface PerplexityFlags extends ModelFlags {
  file?: string;
  batchTokens: number;
  window: number;
  json: boolean;
}

/** Ids whose successors are predicted; the first id is only context. */
type Window = number[];

/**
 * Reads documents: a JSON array of strings, a JSON object with such an array as its field
 * `held_out`, or any other file as one document.
 *
 * @throws {RangeError} when a JSON file holds something else
 */
export function readDocuments(file: string): string[] {
  const text = readFileSync(file, "utf8");
  if (!file.endsWith(".json")) return [text];
  let value = JSON.parse(text);
  if (value !== null && typeof value === "object" && "held_out" in value) value = value.held_out;
  if (!Array.isArray(value) || !value.every((one) => typeof one === "string")) {
    throw new RangeError(
      `Expected ${basename(file)} to hold an array of strings, alone or as "held_out".`,
    );
  }
  return value;
}

/**
 * Cuts a document into windows that share one id, so that each id but the first is predicted once.
 *
 * @param ids the document, (ids)
 * @param length ids of a window at most
 */
export function cutWindows(ids: number[], length: number): Window[] {
  const windows: Window[] = [];
  for (let at = 0; at + 1 < ids.length; at += length - 1) windows.push(ids.slice(at, at + length));
  return windows;
}

/** Fills batches in order of length, so that rows of a batch are of like length. */
export function fillBatches(windows: Window[], tokens: number): Window[][] {
  const batches: Window[][] = [];
  let batch: Window[] = [], used = 0;
  for (const window of [...windows].sort((a, b) => a.length - b.length)) {
    if (batch.length && used + window.length > tokens) {
      batches.push(batch);
      batch = [];
      used = 0;
    }
    batch.push(window);
    used += window.length;
  }
  if (batch.length) batches.push(batch);
  return batches;
}

async function perplexity(flags: PerplexityFlags, signal: AbortSignal): Promise<void> {
  const file = flags.file ? resolve(flags.file) : join(modelFolder(flags.model), "held_out.json");
  if (!existsSync(file)) {
    throw new UsageError(
      flags.file
        ? `Expected --file to be a file but '${flags.file}' does not exist.`
        : `The model '${flags.model}' has no held_out.json: name a text with --file.`,
    );
  }
  const documents = readDocuments(file);
  const { tokenizer, model } = await loadModel(flags, signal);
  using _model = model;
  const eos = tokenizer.eos_token_id;
  const windows = documents.flatMap((text) => {
    const ids = tokenizer([text]).input_ids[0];
    return cutWindows(eos === undefined || eos === null ? ids : [...ids, eos], flags.window);
  });
  if (windows.length === 0) throw new RangeError(`${basename(file)} has no text to predict.`);

  let nll = 0, targets = 0;
  for (const batch of fillBatches(windows, flags.batchTokens)) {
    if (signal.aborted) break;
    const length = Math.max(...batch.map((ids) => ids.length));
    const pad = (
      ids: number[],
      value: number,
    ) => [...ids, ...new Array<number>(length - ids.length).fill(value)];
    using output = await model.call({
      input_ids: batch.map((ids) => pad(ids, 0)),
      attention_mask: batch.map((ids) => pad(ids.map(() => 1), 0)),
      labels: batch.map((ids) => pad(ids, -100)),
      use_cache: false,
    });
    const count = batch.reduce((all, ids) => all + ids.length - 1, 0);
    nll += (await output.loss!.data())[0] * count;
    targets += count;
  }
  if (signal.aborted) return;
  const loss = nll / targets;
  const result = { loss, perplexity: Math.exp(loss), targets, documents: documents.length };
  if (flags.json) {
    console.log(JSON.stringify({ model: flags.model, file: basename(file), ...result }));
  } else console.log(`loss ${loss.toFixed(5)}\nperplexity ${result.perplexity.toFixed(4)}`);
}

/** Adds `perplexity` to the program. */
export function addPerplexity(program: Command, signal: AbortSignal): void {
  const command = program.command("perplexity")
    .description("Print the mean loss (nats a token) and perplexity of held-out documents");
  addModel(command)
    .option(
      "--file <file>",
      "documents: JSON strings, or a text (default: the model's held_out.json)",
    )
    .option("--window <n>", "ids of a document that are seen at once", wholeNumber(2), 2048)
    .option(
      "--batch-tokens <n>",
      "ids in one batch; does not change the result",
      wholeNumber(1),
      2048,
    )
    .option("--json", "print one JSON line", false)
    .addHelpText(
      "after",
      `
Each document is scored alone, from its first token to its end token.

Examples:
  ./dev perplexity
  ./dev perplexity --file notes.txt --dtype float32 --json`,
    )
    .action((flags: PerplexityFlags) => perplexity(flags, signal));
}
