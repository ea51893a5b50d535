/**
 * Do others read what is written here? wordnet-8m is saved as GGUF files: Python's `gguf` reads
 * each field by field and gives every tensor the values that it has here, bit for bit; llama.cpp
 * continues 22 prompts greedily. Texts may part where its rounded activations decide a near tie:
 * `margin_max` is how far our logits of the two tokens lie apart then. The peers are found in the
 * folder that BAMBA_PEERS names: `venv` with gguf, and node-llama-cpp.
 */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { AutoTokenizer } from "../src/tokenizer/mod.ts";
import type { BenchOptions } from "../src/cli/bench.ts";
import { root } from "../src/cli/place.ts";
import { readGgufParts } from "../src/gguf/checkpoint.ts";
import type { GgufValue } from "../src/gguf/format.ts";
import type { FileType } from "../src/gguf/mix.ts";
import { BambaForCausalLM } from "../src/models/bamba.ts";
import { printLine, rounded } from "./lib/line.ts";
import { findNodeLlama, findPython, Peer, type PeerProgram } from "./lib/peers.ts";
import { prompts } from "./lib/prompts.ts";

const folder = fileURLToPath(new URL("../models/bamba-wordnet-8m", import.meta.url));
const types: readonly FileType[] = ["f32", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"];
/** Those whose texts are compared, too; of the latter two also unpacked to f32. */
const spoken: readonly FileType[] = ["f32", "bf16", "q8_0", "q4_k_m"];
const new_tokens = 40;

/** What read_gguf.py prints. */
interface Read {
  readonly fields: Record<string, { types: string[]; value: unknown }>;
  readonly tensors: {
    name: string;
    type: string;
    shape: number[];
    offset: number;
    bytes: number;
    values: string;
  }[];
}

/** Types of metadata under Python's names. */
const type_names: Readonly<Record<string, string>> = {
  u8: "uint8",
  i8: "int8",
  u16: "uint16",
  i16: "int16",
  u32: "uint32",
  i32: "int32",
  u64: "uint64",
  i64: "int64",
  f32: "float32",
  f64: "float64",
};

function expectSame(what: string, found: unknown, here: unknown): void {
  const [a, b] = [JSON.stringify(found), JSON.stringify(here)];
  if (a !== b) {
    throw new Error(
      `Expected Python's gguf to find ${b?.slice(0, 200)} in ${what} but it found ` +
        `${a?.slice(0, 200)}`,
    );
  }
}

/** Compares all of a file. @param unpacked the same file as f32, written here */
function compareFields(python: string, path: string, unpacked: string) {
  const script = join(root, "bench", "peers", "read_gguf.py");
  const options = { encoding: "utf8", maxBuffer: 2 ** 28 } as const;
  const read: Read = JSON.parse(execFileSync(python, [script, path], options));
  const { header } = readGgufParts(path);
  expectSame("the list of fields", Object.keys(read.fields), [...header.metadata.keys()]);
  const named = (type: string) => type_names[type] ?? type;
  for (const [key, { type, value }] of header.metadata) {
    const array = typeof value === "object" ? value : undefined;
    expectSame(key, read.fields[key], {
      types: array ? ["array", named(array.type)] : [named(type)],
      value: array ? array.values : value as GgufValue,
    });
  }
  const values = readGgufParts(unpacked).header.tensors;
  const bytes = readFileSync(unpacked);
  const here = [...header.tensors].map(([name, { type, shape, offset, bytes: size }]) => {
    const at = values.get(name)!;
    const hash = createHash("sha256").update(bytes.subarray(at.offset, at.offset + at.bytes));
    return { name, type, shape, offset, bytes: size, values: hash.digest("hex") };
  });
  expectSame("the number of tensors", read.tensors.length, here.length);
  for (const [i, tensor] of here.entries()) expectSame(tensor.name, read.tensors[i], tensor);
  return { fields: Object.keys(read.fields).length, tensors: here.length };
}

/** Where two texts part; undefined where neither does before its end. */
function partsAt(a: readonly number[], b: readonly number[]): number | undefined {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i++) if (a[i] !== b[i]) return i;
  return undefined;
}

/** How far apart our logits of two tokens are behind a text. */
async function marginOf(model: BambaForCausalLM, text: number[], a: number, b: number) {
  using out = await model.call({ input_ids: [text], logits_to_keep: 1 });
  const logits = await out.logits!.data() as Float32Array;
  return Math.abs(logits[a] - logits[b]);
}

/** Lets llama.cpp and us continue every prompt. */
async function compareTexts(program: PeerProgram, path: string, options: BenchOptions) {
  const tokenizer = await AutoTokenizer.from_pretrained(folder);
  using model = await BambaForCausalLM.from_pretrained(path, { device: "cpu" });
  using peer = await Peer.open(program);
  let same = 0;
  const margins: number[] = [];
  for (const prompt of prompts) {
    options.signal.throwIfAborted();
    const ids = [...tokenizer(prompt).input_ids as number[]];
    const input_ids = [ids];
    const wanted = { input_ids, max_new_tokens: new_tokens, eos_token_id: null };
    const ours = ((await model.generate(wanted))[0] as number[]).slice(ids.length);
    const { tokens } = await peer.turn(ids, new_tokens - 1);
    const at = partsAt(ours, tokens);
    if (at === undefined) same++;
    else {
      const text = [...ids, ...ours.slice(0, at)];
      margins.push(await marginOf(model, text, ours[at], tokens[at]));
    }
  }
  return { prompts: prompts.length, same, margin_max: rounded(Math.max(0, ...margins), 3) };
}

/** Compares every type and prints what was the same. @throws {Error} naming what was not */
export async function run(options: BenchOptions): Promise<void> {
  const llama = findNodeLlama();
  const python = findPython("Python's gguf", ["gguf", "numpy"]);
  if (!llama && !python) return;
  const temporary = mkdtempSync(join(tmpdir(), "bamba-gguf-"));
  const { signal } = options;
  try {
    using model = await BambaForCausalLM.from_pretrained(folder, { device: "cpu" });
    for (const type of types) {
      const path = join(temporary, `${type}.gguf`);
      const unpacked = join(temporary, `${type}-unpacked.gguf`);
      await model.save_gguf(path, { type, signal });
      {
        using packed = await BambaForCausalLM.from_pretrained(path, { device: "cpu" });
        await packed.save_gguf(unpacked, { type: "f32", signal });
      }
      if (python) {
        const counts = compareFields(python, path, unpacked);
        await printLine(options, { bench: "gguf read", type, ...counts, same_bits: true });
      }
      if (!llama || !spoken.includes(type)) continue;
      for (const one of type[0] === "q" ? [path, unpacked] : [path]) {
        const found = await compareTexts(llama(one, 2), one, options);
        const as = one === path ? type : `${type} unpacked`;
        await printLine(options, { bench: "gguf texts", type: as, ...found });
      }
    }
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}
