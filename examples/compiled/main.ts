/**
 * One file that runs anywhere: the program, the runtime and the native library together.
 *
 *     ./dev bun build --compile examples/compiled/main.ts --outfile bamba
 *     cd /some/empty/folder && ./bamba models/bamba-wordnet-8m "a small dog is"
 *
 * On Deno the same file runs with no more than `--allow-ffi=<library> --allow-read=<model>`, and
 * `deno compile` packs it up:
 *
 *     deno compile --include zig/zig-out/lib/libbamba.so --allow-ffi --allow-read \
 *       --output bamba examples/compiled/main.ts
 */
import process from "node:process";
import { AutoModelForCausalLM, AutoTokenizer, setLibraryPath } from "../../mod.ts";

if (process.versions.bun) {
  // A literal path: Bun embeds the file and unpacks it when the program runs. Deno finds the library
  // beside the code, where `--include` puts it.
  // @ts-ignore: type checkers know no .so files, and it may not be built yet
  const { default: library } = await import("../../zig/zig-out/lib/libbamba.so", {
    with: { type: "file" },
  });
  setLibraryPath(library);
}

const [model, ...words] = process.argv.slice(2);
if (!model) {
  console.error("usage: bamba MODEL [PROMPT]    (MODEL: a folder or a .gguf file)");
  process.exit(2);
}
const prompt = words.join(" ") || "a small dog is";
try {
  const tokenizer = await AutoTokenizer.from_pretrained(model);
  using loaded = await AutoModelForCausalLM.from_pretrained(model);
  process.stdout.write(prompt);
  const inputs = tokenizer([prompt]);
  for await (const piece of loaded.stream({ ...inputs, tokenizer })) process.stdout.write(piece);
  process.stdout.write("\n");
} catch (error) {
  console.error(`bamba: ${(error as Error).message}`);
  process.exitCode = 1;
}
