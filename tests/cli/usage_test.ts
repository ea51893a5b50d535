import { describe, it } from "node:test";
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { cli } from "./support.ts";

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
];

describe("the command line's usage", () => {
  for (const name of subcommands) {
    it(`${name} --help tells its options`, async () => {
      const { code, stdout, stderr } = await cli([name, "--help"]);
      assertEquals(code, 0, stderr);
      assertStringIncludes(stdout, `Usage: ./dev ${name}`);
      assertStringIncludes(stdout, "--runtime");
      assertEquals(stderr, "");
    });
  }

  const wrong: [string, string[], RegExp][] = [
    ["an unknown option", ["generate", "--temprature", "1", "x"], /'--temprature'.*--temperature/],
    ["an unknown subcommand", ["generat", "x"], /'generat'.*generate/],
    ["a word for a number", ["generate", "--top-k", "many", "x"], /--top-k to be a number.*'many'/],
    ["a share above one", ["generate", "--top-p", "1.5", "x"], /from 0 to 1.*'1\.5'/],
    ["an unknown dtype", ["generate", "--dtype", "int3", "x"], /float32.*'int3'/],
    ["an unknown type at load", ["generate", "--quantize", "q3", "x"], /q4_k_m.*'q3'/],
    ["an unknown device", ["generate", "--device", "tpu", "x"], /cpu.*'tpu'/],
    ["no threads", ["generate", "--threads", "0", "x"], /at least 1.*'0'/],
    ["an option without its value", ["generate", "--model"], /model/],
    ["no prompt", ["generate"], /prompt/],
    ["no file to write", ["quantize", "models/bamba-wordnet-8m"], /out/],
    ["an unknown type", ["quantize", "--type", "q3", "a", "b.gguf"], /q4_k_m.*'q3'/],
    ["a file of another kind", ["quantize", "a", "b.bin"], /\.gguf.*'b\.bin'/],
    ["no file to show", ["inspect"], /file/],
    ["an unknown benchmark", ["bench", "decodr"], /'decodr'/],
    ["an unknown runner", ["test", "--only", "node"], /zig, bun, deno.*'node'/],
    ["too many arguments", ["doctor", "now"], /[Tt]oo many arguments/],
  ];
  for (const [what, args, words] of wrong) {
    it(`${what} is one sentence and exit status 2`, async () => {
      const { code, stdout, stderr } = await cli(args);
      assertEquals(code, 2, stderr);
      assertEquals(stdout, "");
      assertMatch(stderr, words);
      assertEquals(stderr.trim().split("\n").length, 1, stderr);
      assertStringIncludes(stderr, "bamba: ");
    });
  }

  it("a model that is not there is exit status 1 and named", async () => {
    const { code, stderr } = await cli(["generate", "--model", "models/nowhere", "x"]);
    assertEquals(code, 1);
    assertMatch(stderr, /^bamba: .*'models\/nowhere'.*\n$/);
  });

  it("a filter that matches no test is a failure", async () => {
    const { code, stdout, stderr } = await cli(["test", "no such test"]);
    assertEquals(code, 1);
    assertMatch(stdout, /^0 passed, 1 failed$/m);
    assertStringIncludes(stderr, "'no such test'");
  });

  it("shows all subcommands without arguments", async () => {
    const { code, stdout, stderr } = await cli([]);
    assertEquals(code, 2);
    assertEquals(stdout, "");
    for (const name of subcommands) assert(stderr.includes(name), name);
  });
});
