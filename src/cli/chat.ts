/** `./dev chat`: talk with a model in the terminal. */
import type { Command } from "commander";
import process from "node:process";
import { createInterface } from "node:readline";
import type { ChatMessage } from "../../mod.ts";
import { isAbort } from "./errors.ts";
import { addGeneration, addModel, generationArguments, type ModelFlags } from "./options.ts";
import { loadModel } from "./load.ts";

interface ChatFlags extends ModelFlags {
  system?: string;
}

const welcome = "Type a message; /reset forgets what was said, /exit or Ctrl-D ends.";

async function chat(flags: ChatFlags, signal: AbortSignal): Promise<void> {
  const { tokenizer, model } = await loadModel(flags, signal);
  using _model = model;
  const options = generationArguments(flags as unknown as Record<string, unknown>);
  const templated = Boolean(tokenizer.chat_template);
  if (!templated) {
    console.error("This model has no chat template: it continues your text as it stands.");
  }
  console.error(welcome);

  const start: ChatMessage[] = flags.system ? [{ role: "system", content: flags.system }] : [];
  let messages = [...start];
  const lines = createInterface({ input: process.stdin, output: process.stderr, prompt: "> " });
  let turn: AbortController | undefined;
  // Ctrl-C stops an answer; where there is none, it ends the chat
  lines.on("SIGINT", () => turn ? turn.abort() : lines.close());
  signal.addEventListener("abort", () => turn ? turn.abort() : lines.close());

  let open = true; // stdin may end while answers to its lines are still to be made
  lines.on("close", () => open = false);
  const prompt = () => open && lines.prompt();

  prompt();
  for await (const line of lines) {
    if (line === "/exit") break;
    if (line === "/reset") messages = [...start];
    else if (line.trim() !== "") {
      messages.push({ role: "user", content: line });
      const inputs = templated
        ? tokenizer([asText(tokenizer.apply_chat_template(messages, {
          tokenize: false,
          add_generation_prompt: true,
        }))], { add_special_tokens: false })
        : tokenizer([messages.map((message) => message.content).join("\n")]);
      turn = new AbortController();
      let answer = "";
      try {
        const text = model.stream({ ...inputs, ...options, tokenizer, signal: turn.signal });
        for await (const piece of text) {
          answer += piece;
          process.stdout.write(piece);
        }
      } catch (error) {
        if (!isAbort(error)) throw error;
      }
      turn = undefined;
      process.stdout.write("\n");
      if (signal.aborted) break;
      messages.push({ role: "assistant", content: answer });
    }
    prompt();
  }
  lines.close();
}

function asText(text: unknown): string {
  if (typeof text !== "string") throw new TypeError("Expected the chat template to give a text.");
  return text;
}

/** Adds `chat` to the program. */
export function addChat(program: Command, signal: AbortSignal): void {
  const command = program.command("chat")
    .description("Talk with a model: several turns, answers streamed");
  addGeneration(addModel(command))
    .option("--system <text>", "what the model is told before the first message")
    .addHelpText(
      "after",
      `
A model without a chat template continues the text as it stands.

Examples:
  ./dev chat
  ./dev chat --do-sample --temperature 0.7 --max-new-tokens 200`,
    )
    .action((flags: ChatFlags) => chat(flags, signal));
}
