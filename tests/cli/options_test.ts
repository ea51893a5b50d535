import { describe, it } from "node:test";
import { Command } from "commander";
import { assertEquals } from "@std/assert";
import { addGeneration, generationArguments } from "../../src/cli/options.ts";

function parse(...args: string[]): Record<string, unknown> {
  const command = addGeneration(new Command()).exitOverride();
  return generationArguments(command.parse(args, { from: "user" }).opts());
}

describe("the options of generate", () => {
  it("passes on nothing that was not given", () => {
    assertEquals(parse(), {});
  });
  it("has Hugging Face's names and number types", () => {
    assertEquals(
      parse("--max-new-tokens", "8", "--do-sample", "--temperature", "0.5", "--seed", "7"),
      { max_new_tokens: 8, do_sample: true, temperature: 0.5, seed: 7 },
    );
  });
  it("takes no_repeat_ngram_size as a number, not as a negation", () => {
    assertEquals(parse("--no-repeat-ngram-size", "3"), { no_repeat_ngram_size: 3 });
  });
  it("collects stop strings", () => {
    assertEquals(parse("--stop-strings", "a b", "c", "--early-stopping"), {
      early_stopping: true,
      stop_strings: ["a b", "c"],
    });
  });
});
