/** Writes a checkpoint as a GGUF file, straight from disk: a piece of a tensor at a time. */

import type { Buffer, Device } from "../device.ts";
import { Layout, LoadItem, Transform } from "../native/bindings.gen.ts";
import { packStructs } from "../native/struct.ts";
import { type Checkpoint, listNames, type TensorPlace } from "../weights/checkpoint.ts";
import { scaleFields } from "../weights/compressed.ts";
import { dtype_codes, dtype_of_stored, matrixShape, rowsBytes } from "../weights/layout.ts";
import { isGguf, readGgufParts } from "./checkpoint.ts";
import { addConfig, architecture, type ConfigToWrite } from "./config.ts";
import { tensorBytes } from "./format.ts";
import { checkFileType, chooseTypes, file_types } from "./mix.ts";
import { type Difference, namePairs } from "./names.ts";
import { addTokenizer } from "./tokenizer_write.ts";
import { MetadataBuilder } from "./values.ts";
import { type GgufTensorToWrite, writeGguf } from "./writer.ts";

/** How far writing got. */
export interface SaveProgress {
  readonly status: "progress" | "done";
  /** Path of the file. */
  readonly file: string;
  /** The tensor that was written last, and its type. */
  readonly tensor: string;
  readonly type: string;
  /** Bytes of tensors' data. */
  readonly saved: number;
  readonly total: number;
}

/** What a file is made of. */
export interface SaveSource {
  readonly checkpoint: Checkpoint;
  readonly config: ConfigToWrite;
  /** Folder in HF's layout, or GGUF file, whose tokenizer goes into the file; null for none. */
  readonly tokenizer: string | null;
  /** `general.name` */
  readonly name?: string;
  /** Its threads convert. */
  readonly device: Device;
}

/** Options of {@link saveGguf}. */
export interface SaveOptions {
  /** Of the whole file: f32, bf16, f16, q8_0, q4_0, q4_k_m, …; "auto" is bf16. */
  readonly type?: string;
  readonly progress_callback?: (progress: SaveProgress) => void;
  readonly signal?: AbortSignal;
}

/** A tensor on its way: where it comes from and what it becomes. */
interface Planned {
  readonly name: string;
  readonly shape: readonly number[];
  readonly place: TensorPlace;
  readonly difference: Difference;
}

/** Bytes that are converted at a time. */
const piece_bytes = 32 << 20;

/**
 * Writes a GGUF file that llama.cpp reads, too. It appears under its name when whole. That all
 * tensors of the layers are there, in the config's shapes, is for the caller to check.
 *
 * @param path of the file
 * @throws {RangeError} for an unknown type, or what the format has no place for
 * @throws {RangeError} naming tensors of the checkpoint that are missing, or are none of Bamba's
 */
export async function saveGguf(
  source: SaveSource,
  path: string,
  options: SaveOptions = {},
): Promise<void> {
  const type = checkFileType(options.type === "auto" ? "bf16" : options.type ?? "bf16");
  const { checkpoint, config, device } = source;
  const planned = plan(checkpoint, config);
  const types = chooseTypes(type, planned);
  const builder = new MetadataBuilder();
  builder
    .add("general.architecture", "string", architecture)
    .add("general.type", "string", "model")
    .add("general.name", "string", source.name)
    .add("general.file_type", "u32", file_types[type].id)
    .add("general.quantization_version", "u32", 2);
  addConfig(builder, config);
  await bringTokenizer(builder, source.tokenizer, config.vocab_size);

  const total = planned.reduce(
    (sum, { name, shape }) => sum + tensorBytes(types.get(name)!, shape),
    0,
  );
  using rooms = new Rooms(device);
  const tensors = planned.map((one): GgufTensorToWrite => {
    const type = types.get(one.name)!;
    const data = () => pieces(rooms, one, type, config, options.signal);
    return { name: one.name, type, shape: one.shape, data };
  });
  let saved = 0;
  await writeGguf(path, builder.metadata, tensors, ({ name, type, shape }) => {
    saved += tensorBytes(type, shape);
    const status = saved === total ? "done" : "progress";
    options.progress_callback?.({ status, file: path, tensor: name, type, saved, total });
  });
}

/** Memory of pieces, which all tensors use: fresh pages would cost as much as a copy. */
class Rooms implements Disposable {
  #buffer: Buffer;
  #turn = 0;
  readonly #rooms = [new Uint8Array(piece_bytes), new Uint8Array(piece_bytes)];

  constructor(readonly device: Device) {
    this.#buffer = device.createBuffer(piece_bytes);
  }

  /** Native memory of a piece. */
  buffer(bytes: number): Buffer {
    if (bytes > this.#buffer.byteLength) {
      this.#buffer.dispose();
      this.#buffer = this.device.createBuffer(bytes);
    }
    return this.#buffer;
  }

  /** What the buffer holds, in memory that is used again after the next one. */
  read(bytes: number): Uint8Array {
    const i = this.#turn++ % 2;
    if (bytes > this.#rooms[i].length) this.#rooms[i] = new Uint8Array(bytes);
    const piece = this.#rooms[i].subarray(0, bytes);
    this.#buffer.read(0, piece);
    return piece;
  }

  [Symbol.dispose](): void {
    this.#buffer.dispose();
  }
}

/** Every tensor of the file, in its order. */
function plan(checkpoint: Checkpoint, config: ConfigToWrite): Planned[] {
  // A checkpoint of the base model alone lacks the prefix.
  const prefix = checkpoint.has("model.embed_tokens.weight") ? "" : "model.";
  const used = new Set<string>();
  const planned: Planned[] = [];
  for (const { hf, gguf, difference } of namePairs(config.num_hidden_layers)) {
    const name = prefix && hf.startsWith(prefix) ? hf.slice(prefix.length) : hf;
    if (!checkpoint.has(name)) continue;
    used.add(name);
    if (name === "lm_head.weight" && config.tie_word_embeddings) continue;
    const place = checkpoint.get(name);
    planned.push({ name: gguf, shape: ggufShape(gguf, place.shape, config), place, difference });
  }
  const surplus = checkpoint.names.filter((name) => !used.has(name));
  if (surplus.length) {
    throw new RangeError(
      `GGUF has no names for ${surplus.length} tensors of "${checkpoint.path}": ` +
        listNames(surplus),
    );
  }
  // Without a head a file says that its embedding is one.
  const head = config.tie_word_embeddings ? [] : ["output.weight"];
  for (const needed of ["token_embd.weight", "output_norm.weight", ...head]) {
    if (!planned.some(({ name }) => name === needed)) {
      throw new RangeError(
        `Expected a tensor for ${needed} in "${checkpoint.path}" but found none`,
      );
    }
  }
  return planned;
}

function ggufShape(name: string, shape: readonly number[], config: ConfigToWrite): number[] {
  if (name.endsWith("ssm_conv1d.weight")) return [shape[0], shape[shape.length - 1]];
  if (/ssm_[ad]$/.test(name)) return [shape[0], 1];
  const { mamba_n_groups: groups } = config;
  return name.endsWith("ssm_norm.weight") ? [groups, shape[0] / groups] : [...shape];
}

/** What happens to the values on the way into the file. */
function transformOf({ difference, place }: Planned, config: ConfigToWrite) {
  // What comes from a GGUF file has its form already.
  if (difference === "none" || place.transform !== undefined) return { transform: Transform.none };
  if (difference === "decay") return { transform: Transform.negative_exp };
  return {
    transform: Transform.rope_to_pairs,
    head_rows: config.head_dim,
    rotary_rows: config.rotary_dim,
  };
}

/** The bytes of a tensor in its new type, in pieces of whole rows and heads. */
async function* pieces(
  rooms: Rooms,
  one: Planned,
  type: string,
  config: ConfigToWrite,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const { place } = one;
  const [from, to] = [dtype_of_stored[place.dtype], dtype_of_stored[type]];
  if (from === undefined) {
    throw new TypeError(`Cannot convert ${one.name}, which is stored as ${place.dtype}`);
  }
  const { device } = rooms;
  const { native } = device;
  const how = transformOf(one, config);
  const is_heads = how.head_rows !== undefined;
  const matrix = matrixShape(place.shape);
  // Rows of a bias go with the rows of its weight.
  const { rows, cols } = is_heads && place.shape.length === 1
    ? { rows: matrix.cols, cols: 1 }
    : matrix;
  const unit = how.head_rows ?? 1;
  const at_once = Math.max(1, Math.floor(piece_bytes / rowsBytes(unit, cols, to))) * unit;
  const buffer = rooms.buffer(rowsBytes(Math.min(rows, at_once), cols, to));
  const { handle: file } = native.openFile(place.file);
  const scales_file = place.scales ? native.openFile(place.scales.file).handle : 0;
  try {
    for (let row = 0; row < rows; row += at_once) {
      const n = Math.min(at_once, rows - row);
      const item = {
        file,
        buffer: buffer.handle,
        src_offset: place.offset + rowsBytes(row, cols, from),
        src_bytes: rowsBytes(n, cols, from),
        dst_offset: 0,
        src_dtype: dtype_codes[from],
        dst_dtype: dtype_codes[to],
        layout: Layout.row_major,
        rows: n,
        cols,
        ...how,
        ...scalesOf(place, row, n, scales_file),
      };
      const options = { kind: "load", device: device.handle } as const;
      await using job = native.startJob(options, packStructs(LoadItem, [item]));
      await job.finished(signal, () => {});
      yield rooms.read(rowsBytes(n, cols, to));
    }
  } finally {
    native.free(file);
    if (scales_file) native.free(scales_file);
  }
}

/** The scales of rows `row` to `row + n` of 8-bit floats. */
function scalesOf(place: TensorPlace, row: number, n: number, file: number) {
  if (!place.scales) return {};
  const fields = scaleFields(place, file, dtype_codes);
  if (fields.n_scales === 1) return fields;
  const bytes = place.scales.dtype === "F32" ? 4 : 2;
  return { ...fields, n_scales: n, scales_offset: place.scales.offset + row * bytes };
}

/** Takes the tokenizer of a folder, or that of another GGUF file as it is. */
async function bringTokenizer(
  builder: MetadataBuilder,
  from: string | null,
  vocab_size: number,
): Promise<void> {
  if (from === null) builder.add("tokenizer.ggml.model", "string", "none");
  else if (!isGguf(from)) await addTokenizer(builder, from, vocab_size);
  else {
    for (const [key, entry] of readGgufParts(from).header.metadata) {
      if (key.startsWith("tokenizer.")) builder.metadata.set(key, entry);
    }
  }
}
