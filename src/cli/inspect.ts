/** `./dev inspect`: what a safetensors or GGUF file holds. */
import type { Command } from "commander";
import { isGguf, readGgufParts } from "../gguf/checkpoint.ts";
import { type GgufValue, type Metadata, tensor_types } from "../gguf/format.ts";
import { Checkpoint } from "../weights/checkpoint.ts";
import { printable } from "../weights/explain.ts";
import { readSafetensorsHeader } from "../weights/safetensors.ts";
import { addRuntime, wholeNumber } from "./options.ts";

/** One tensor of a file. */
interface Listed {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
  /** Bytes from its file's start. */
  readonly offset: number;
  readonly bytes: number;
}

/** What `--json` prints; the text form shows the same. */
interface Inspection {
  path: string;
  format: "GGUF" | "safetensors";
  version?: number;
  files: { path: string; bytes: number }[];
  metadata: Record<string, unknown>;
  tensors: Listed[];
  /** Numbers of weights, and bits that each takes. */
  weights: number;
  bits_per_weight: number;
  types: Record<string, { tensors: number; weights: number; bytes: number }>;
}

const elements = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** A value of metadata as plain JSON; an array of GGUF keeps its values only. */
function plain(value: GgufValue): unknown {
  return typeof value === "object" ? value.values : value;
}

function fromMetadata(metadata: Metadata): Record<string, unknown> {
  return Object.fromEntries([...metadata].map(([key, { value }]) => [key, plain(value)]));
}

function summarize(
  tensors: readonly Listed[],
): Pick<Inspection, "weights" | "bits_per_weight" | "types"> {
  const types: Inspection["types"] = {};
  let [weights, bytes] = [0, 0];
  // Scales beside 8-bit floats are bits of those weights, as they are inside blocks.
  const has_scales = tensors.some(({ type }) => type.startsWith("F8_"));
  for (const tensor of tensors) {
    const n = has_scales && tensor.name.endsWith("_scale") ? 0 : elements(tensor.shape);
    const of_type = types[tensor.type] ??= { tensors: 0, weights: 0, bytes: 0 };
    of_type.tensors++;
    of_type.weights += n;
    of_type.bytes += tensor.bytes;
    weights += n;
    bytes += tensor.bytes;
  }
  return { weights, bits_per_weight: weights ? bytes * 8 / weights : 0, types };
}

function inspectGguf(path: string): Inspection {
  const { header, files } = readGgufParts(path);
  const tensors = [...header.tensors].map(([name, tensor]): Listed => ({ name, ...tensor }));
  return {
    path,
    format: "GGUF",
    version: header.version,
    files: [...files],
    metadata: fromMetadata(header.metadata),
    tensors,
    ...summarize(tensors),
  };
}

function inspectSafetensors(path: string): Inspection {
  const checkpoint = Checkpoint.open(path);
  const tensors = checkpoint.names.map((name): Listed => {
    const { dtype, shape, offset, bytes } = checkpoint.get(name);
    return { name, type: dtype, shape, offset, bytes };
  });
  const metadata = checkpoint.files.map(({ path }) => readSafetensorsHeader(path).metadata);
  return {
    path,
    format: "safetensors",
    files: [...checkpoint.files],
    metadata: Object.assign({}, ...metadata),
    tensors,
    ...summarize(tensors),
  };
}

/** A value on one line, cut where it is long. */
function short(value: unknown): string {
  const cut = (text: string) => text.length > 70 ? `${text.slice(0, 70)}…` : text;
  if (!Array.isArray(value)) return cut(JSON.stringify(value) ?? String(value));
  const shown = JSON.stringify(value.slice(0, 6)).slice(0, -1);
  return value.length > 6 ? `${cut(shown)}, … (${value.length})]` : cut(JSON.stringify(value));
}

function print(found: Inspection, tensors_max: number): void {
  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(2)} MiB`;
  const version = found.version === undefined ? "" : ` version ${found.version}`;
  console.log(`${found.path}: ${found.format}${version}`);
  for (const { path, bytes } of found.files) console.log(`  ${path}: ${mib(bytes)}`);
  const keys = Object.keys(found.metadata);
  if (keys.length) console.log("\nmetadata");
  for (const key of keys) console.log(`  ${printable(key)} = ${short(found.metadata[key])}`);
  console.log(`\n${found.tensors.length} tensors`);
  const shown = found.tensors.slice(0, tensors_max)
    .map((tensor) => ({ ...tensor, name: printable(tensor.name) }));
  const width = Math.max(0, ...shown.map(({ name }) => name.length));
  const type_width = Math.max(0, ...Object.keys(found.types).map((type) => type.length));
  for (const { name, type, shape, bytes } of shown) {
    const size = `[${shape.join(", ")}]`.padEnd(18);
    console.log(`  ${name.padEnd(width)}  ${type.padEnd(type_width)} ${size} ${mib(bytes)}`);
  }
  const rest = found.tensors.length - tensors_max;
  if (rest > 0) console.log(`  and ${rest} more`);
  console.log("\ntypes");
  for (const [type, { tensors, weights, bytes }] of Object.entries(found.types)) {
    const block = tensor_types[type];
    const bits = block ? block.bytes * 8 / block.columns : bytes * 8 / weights;
    const of = `${tensors} tensors, ${weights} weights of ${bits} bits, ${mib(bytes)}`;
    console.log(`  ${type.padEnd(type_width)} ${of}`);
  }
  console.log(`\n${found.weights} weights, ${found.bits_per_weight.toFixed(3)} bits a weight`);
}

function inspect(path: string, flags: { json?: boolean; tensors: number }): void {
  const found = isGguf(path) ? inspectGguf(path) : inspectSafetensors(path);
  if (flags.json) console.log(JSON.stringify(found));
  else print(found, flags.tensors);
}

/** Adds `inspect` to the program. */
export function addInspect(program: Command): void {
  const command = program.command("inspect")
    .description("Show what a safetensors or GGUF file holds")
    .argument("<file>", ".gguf or .safetensors file, or a folder in Hugging Face layout");
  addRuntime(command)
    .option("--tensors <n>", "tensors to list at most", wholeNumber(0), 1000)
    .option("--json", "one JSON object: also what the text cuts short")
    .action(inspect);
}
