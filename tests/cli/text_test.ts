import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { assert, assertAlmostEquals, assertEquals, assertStringIncludes } from "@std/assert";
import { whyLevel } from "../../src/cli/doctor.ts";
import type { CpuLevelName } from "../../src/native/native.ts";
import { withFolder } from "../weights/support.ts";
import { cli, root } from "./support.ts";

interface Case {
  name: string;
  text: string[];
  new_text: string[];
}

const goldens = join(
  process.env.BAMBA_GOLDENS ?? join(root, "../shared/goldens"),
  "wordnet-8m/goldens.json",
);
const has_goldens = existsSync(goldens);
if (!has_goldens) console.log(`skipping the reference texts: there is no ${goldens}`);
const cases: Case[] = has_goldens ? JSON.parse(readFileSync(goldens, "utf8")).generate.cases : [];

function golden(name: string): Case {
  const found = cases.find((one) => one.name === name);
  assert(found, `there is no case ${name}`);
  return found;
}

describe("generate", () => {
  const options = { skip: !has_goldens };

  it("continues a prompt as the reference does", options, async () => {
    const { text, new_text } = golden("greedy-1");
    const { code, stdout, stderr } = await cli(["generate", "--max-new-tokens", "32", ...text]);
    assertEquals(code, 0, stderr);
    assertEquals(stdout, `${text[0]}${new_text[0]}\n`);
    assertEquals(stderr, "");
  });

  it("takes each line of stdin as a prompt", options, async () => {
    const all = [golden("greedy-0"), golden("greedy-2")];
    const stdin = all.map(({ text }) => `${text[0]}\n`).join("");
    const { stdout } = await cli(["generate", "--max-new-tokens", "32"], { stdin });
    assertEquals(stdout, all.map(({ text, new_text }) => `${text[0]}${new_text[0]}\n`).join(""));
  });

  it("prints the texts of a beam search, best first", options, async () => {
    const { text, new_text } = golden("beam-4-1");
    const flags = ["--num-beams", "4", "--num-return-sequences", "4", "--max-new-tokens", "24"];
    const { code, stdout, stderr } = await cli(["generate", ...flags, ...text]);
    assertEquals(code, 0, stderr);
    assertEquals(stdout, new_text.map((fresh) => `${text[0]}${fresh}\n`).join(""));
  });

  it("finds the default model from any folder, and leaves the prompt out on demand", async () => {
    const place = { cwd: tmpdir() };
    const prompt = "a small dog is";
    const whole = await cli(["generate", prompt], place);
    assertEquals(whole.code, 0, whole.stderr);
    const fresh = await cli(["generate", "--no-return-full-text", prompt], place);
    assertEquals(prompt + fresh.stdout, whole.stdout);
    assert(fresh.stdout.length > 10, fresh.stdout);
  });

  it("draws the same text from the same seed, whatever the threads", async () => {
    const draw = (...more: string[]) =>
      cli(["generate", "--do-sample", "--temperature", "1.2", ...more, "to run"]);
    const first = await draw("--seed", "7", "--threads", "1");
    assertEquals((await draw("--seed", "7", "--threads", "2")).stdout, first.stdout);
    assert((await draw("--seed", "8")).stdout !== first.stdout);
  });

  it("ends at a stop string", async () => {
    const { stdout } = await cli(["generate", "a small dog is", "--stop-strings", "a", "dog"]);
    const fresh = stdout.slice("a small dog is".length);
    assert(/a|dog/.test(fresh) && fresh.length < 40, fresh);
  });

  for (const [signal, status] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
    it(`stops at ${signal} with exit status ${status}`, async () => {
      const many = ["--min-new-tokens", "20000", "--max-new-tokens", "20000"];
      const { code, stdout, stderr } = await cli(["generate", ...many, "a small dog is"], {
        interruptAfter: 60,
        signal,
      });
      assertEquals(code, status, stderr);
      assert(stdout.length >= 60 && stdout.length < 20000);
      assertEquals(stderr, "");
    });
  }
});

describe("perplexity", () => {
  it("is that of blocks where the model is quantized while it loads", () =>
    withFolder(async (folder) => {
      const file = join(folder, "text.txt");
      writeFileSync(file, "a small dog is a kind of dog");
      const losses: number[] = [];
      for (const more of [[], ["--quantize", "q4_0"]]) {
        const { code, stdout, stderr } = await cli([
          "perplexity",
          "--json",
          "--file",
          file,
          ...more,
        ]);
        assertEquals(code, 0, stderr);
        losses.push(JSON.parse(stdout).loss);
      }
      assert(losses[0] !== losses[1] && Math.abs(losses[0] - losses[1]) < 0.5, `${losses}`);
    }));

  it("is the model's known held-out loss", async () => {
    const { code, stdout, stderr } = await cli(["perplexity", "--json"]);
    assertEquals(code, 0, stderr);
    const result = JSON.parse(stdout);
    assertAlmostEquals(result.loss, 1.18479, 0.0001);
    assertAlmostEquals(result.perplexity, Math.exp(result.loss), 1e-9);
    assertEquals([result.documents, result.targets], [400, 17698]);
  });

  it("names a file that is not there, and one that holds no texts", async () => {
    const missing = await cli(["perplexity", "--file", "nowhere.json"]);
    assertEquals(missing.code, 2);
    assertStringIncludes(missing.stderr, "'nowhere.json'");
    const wrong = await cli(["perplexity", "--file", join(root, "deno.json")]);
    assertEquals(wrong.code, 1);
    assertStringIncludes(wrong.stderr, "array of strings");
  });
});

describe("chat", () => {
  it("answers each line and says that there is no template", async () => {
    const stdin = "a small dog is\n/reset\nto run\n/exit\nnever read\n";
    const { code, stdout, stderr } = await cli(["chat", "--max-new-tokens", "16"], { stdin });
    assertEquals(code, 0, stderr);
    assertStringIncludes(stderr, "no chat template");
    assertEquals(stdout.trimEnd().split("\n").length, 2, stdout);
  });
});

describe("doctor", () => {
  it("tells runtime, library, level and cores", async () => {
    const { code, stdout, stderr } = await cli(["doctor", "--json"]);
    assertEquals(code, 0, stderr);
    const found = JSON.parse(stdout);
    assertEquals(found.runtime.name, process.versions.bun ? "bun" : "deno");
    assertEquals(found.library.problem, undefined);
    assert(found.cores.physical >= 1 && found.cores.threads >= 1);
    assert(found.memory.total_bytes > found.memory.available_bytes);
    assertEquals(found.model.found, true);
  });

  it("says when a level is forced", async () => {
    const { stdout } = await cli(["doctor"], { env: { BAMBA_CPU: "portable" } });
    assertStringIncludes(stdout, "level portable: BAMBA_CPU=portable asks for it");
  });

  it("says why a level is the best", () => {
    const machine = (best: CpuLevelName, bf16_gain: number, ...more: string[]) => ({
      cpu_level: best,
      features: ["avx2", "fma", "f16c", "avx512", ...more],
      bf16_gain,
    });
    const both = ["avx512vnni", "avx512bf16"];
    const cases = [
      [machine("v4", 0), "v4", "but not VNNI"],
      [machine("v4_vnni", 0, "avx512vnni"), "v4_vnni", "but not BF16"],
      [machine("v4_vnni", 0.49, ...both), "v4_vnni", "has BF16 too, but its vdpbf16ps was timed"],
      [machine("v4_vnni", 0.49, ...both), "v4_vnni", "at 0.49 x the f32 multiply-adds"],
      [machine("v4_bf16", 1.99, ...both), "v4_bf16", "the best of all: this CPU has AVX-512"],
    ] as const;
    for (const [found, level, text] of cases) assertStringIncludes(whyLevel(level, found), text);
  });

  it("tells what is wrong with a library instead of stopping", async () => {
    const { code, stdout } = await cli(["doctor"], { env: { BAMBA_LIBRARY: "/nowhere.so" } });
    assertEquals(code, 1);
    assertStringIncludes(stdout, "/nowhere.so");
    assertStringIncludes(stdout, "runtime");
  });
});
