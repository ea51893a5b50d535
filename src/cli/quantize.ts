/** `./dev quantize`: a model as a GGUF file, in any of its types. */
import { type Command, InvalidArgumentError } from "commander";
import { existsSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import process from "node:process";
import { file_types } from "../gguf/mix.ts";
import type { SaveProgress } from "../gguf/save.ts";
import { UsageError } from "./errors.ts";
import { addRuntime, wholeNumber } from "./options.ts";

interface Flags {
  type: string;
  /** false: none is written. */
  tokenizer?: string | false;
  name?: string;
  threads?: number;
  force?: boolean;
}

/** Reads the name of a file's type in either case. */
function typeName(text: string): string {
  const found = text.toLowerCase();
  if (Object.hasOwn(file_types, found)) return found;
  throw new InvalidArgumentError(
    `Expected one of ${Object.keys(file_types).join(", ")} but found '${text}'.`,
  );
}

/** One line that changes, of a terminal. */
function showProgress({ saved, total, tensor, type }: SaveProgress): void {
  const percent = Math.floor(100 * saved / total);
  process.stderr.write(`\r\x1b[K${String(percent).padStart(3)} %  ${tensor} ${type}`);
}

/** A line for each tenth, for logs. */
function tellProgress(): (progress: SaveProgress) => void {
  let told = 0;
  return ({ saved, total, tensor, type }) => {
    const tenths = Math.floor(10 * saved / total);
    if (tenths <= told) return;
    told = tenths;
    process.stderr.write(`${String(10 * tenths).padStart(3)} %  ${tensor} ${type}\n`);
  };
}

async function quantize(
  input: string,
  output: string,
  flags: Flags,
  signal: AbortSignal,
): Promise<void> {
  if (!/\.gguf$/i.test(output)) {
    throw new UsageError(`Expected OUT to end in .gguf but found '${output}'`);
  }
  if (!flags.force && statSync(output, { throwIfNoEntry: false })) {
    throw new Error(`'${output}' is there already: --force writes over it`);
  }
  // only now: a wrong command line is answered without loading the library's code
  const { AutoConfig, BambaForCausalLM, BambaModel, Device } = await import("../../mod.ts");
  const { isGguf } = await import("../gguf/checkpoint.ts");
  const { saveGguf } = await import("../gguf/save.ts");
  const { openCheckpoint } = await import("../modeling/pretrained.ts");
  const config = await AutoConfig.from_pretrained(input);
  const checkpoint = openCheckpoint(input);
  const has_head = checkpoint.has("model.embed_tokens.weight");
  new (has_head ? BambaForCausalLM : BambaModel)(config).checkCheckpoint(checkpoint);
  const has_tokenizer = isGguf(input) || existsSync(join(input, "tokenizer.json"));
  if (flags.tokenizer === undefined && !has_tokenizer) {
    throw new Error(
      `'${input}' has no tokenizer.json: name a folder with one by --tokenizer, or write none ` +
        "by --no-tokenizer",
    );
  }
  using device = await Device.open("cpu", { threads: flags.threads });
  const show = process.stderr.isTTY;
  const started = performance.now();
  const source = {
    checkpoint,
    config,
    device,
    tokenizer: flags.tokenizer === false ? null : flags.tokenizer ?? input,
    name: flags.name ?? basename(input).replace(/\.gguf$/i, ""),
  };
  await saveGguf(source, output, {
    type: flags.type,
    signal,
    progress_callback: show ? showProgress : tellProgress(),
  });
  if (show) process.stderr.write("\r\x1b[K");
  const bytes = (path: string) => statSync(path).size;
  const before = checkpoint.files.reduce((sum, { path }) => sum + bytes(path), 0);
  const mib = (n: number) => (n / 2 ** 20).toFixed(1);
  const seconds = (performance.now() - started) / 1e3;
  console.log(
    `${output}: ${flags.type}, ${mib(before)} MiB became ${mib(bytes(output))} MiB ` +
      `in ${seconds.toFixed(1)} s`,
  );
}

/** Adds `quantize` to the program. */
export function addQuantize(program: Command, signal: AbortSignal): void {
  const command = program.command("quantize")
    .description("Write a model as a GGUF file, which llama.cpp reads, too")
    .argument("<in>", "folder in Hugging Face layout, or a .gguf file")
    .argument("<out>", "the .gguf file to write");
  addRuntime(command)
    .option("--type <name>", Object.keys(file_types).join(", "), typeName, "q4_k_m")
    .option("--tokenizer <folder>", "folder or .gguf file with the tokenizer (default: <in>)")
    .option("--no-tokenizer", "write none: llama.cpp's tools refuse such a file")
    .option("--name <text>", "the model's name (default: that of <in>)")
    .option("--threads <n>", "threads (default: one a physical core)", wholeNumber(1))
    .option("--force", "write over a file that is there")
    .action((input: string, output: string, flags: Flags) =>
      quantize(input, output, flags, signal)
    );
}
