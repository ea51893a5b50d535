#!/usr/bin/env bun
/** The command line: `./dev SUBCOMMAND` sets up what is missing and then starts this. */
import { Command, CommanderError } from "commander";
import process from "node:process";
import { exit_status, report, usageSentence } from "./errors.ts";
import { program_name } from "./place.ts";
import manifest from "../../deno.json" with { type: "json" };

const subcommands = [
  "generate",
  "chat",
  "perplexity",
  "quantize",
  "inspect",
  "doctor",
  "bench",
  "test",
  "build",
  "ok",
] as const;
type Subcommand = typeof subcommands[number];
/** Those that clean up before they end. */
const interruptible: readonly string[] = ["generate", "chat", "perplexity", "quantize"];

/**
 * Adds one subcommand. Each has a file of its own that is imported only when it is wanted: the
 * library need not be there for `--help` or `build`.
 */
async function add(name: Subcommand, program: Command, signal: AbortSignal): Promise<void> {
  switch (name) {
    case "generate":
      return (await import("./generate.ts")).addGenerate(program, signal);
    case "chat":
      return (await import("./chat.ts")).addChat(program, signal);
    case "perplexity":
      return (await import("./perplexity.ts")).addPerplexity(program, signal);
    case "quantize":
      return (await import("./quantize.ts")).addQuantize(program, signal);
    case "inspect":
      return (await import("./inspect.ts")).addInspect(program);
    case "doctor":
      return (await import("./doctor.ts")).addDoctor(program);
    case "bench":
      return (await import("./bench.ts")).addBench(program, signal);
    case "test":
      return (await import("./test.ts")).addTest(program);
    case "build":
      return (await import("./build.ts")).addBuild(program);
    case "ok":
      return (await import("./ok.ts")).addOk(program);
  }
}

function newProgram(): Command {
  const program = new Command(program_name);
  return program
    .description("Run IBM's Bamba language models on Bun and on Deno.")
    .version(manifest.version)
    .exitOverride()
    .configureOutput({
      outputError: (text, write) => write(`bamba: ${usageSentence(text)}\n`),
    });
}

async function run(args: string[], signal: AbortSignal): Promise<void> {
  const program = newProgram();
  const wanted = subcommands.find((name) => name === args[0]);
  for (const name of wanted ? [wanted] : subcommands) await add(name, program, signal);
  if (args.length === 0) {
    program.outputHelp({ error: true });
    throw new CommanderError(exit_status.usage, "bamba.noSubcommand", "no subcommand");
  }
  await program.parseAsync(args, { from: "user" });
}

const interrupt = new AbortController();
/** The exit status for the signal that came, if one did. */
let stopped: number | undefined;
function stop(status: number): void {
  // a second Ctrl-C does not wait for anything
  if (stopped !== undefined) process.exit(status);
  stopped = status;
  interrupt.abort();
}
process.on("SIGINT", () => stop(exit_status.interrupted));
// The others run tools that know nothing of this program's signals, or measure: they end at once.
if (interruptible.includes(process.argv[2])) {
  process.on("SIGTERM", () => stop(exit_status.terminated));
}
process.stdout.on("error", (error: Error & { code?: string }) => {
  // the reader has gone (`| head`): nobody is left to write for
  process.exit(error.code === "EPIPE" ? exit_status.broken_pipe : exit_status.failed);
});

try {
  await run(process.argv.slice(2), interrupt.signal);
  if (stopped !== undefined) process.exitCode = stopped;
} catch (error) {
  process.exitCode = report(error, stopped);
}
