/**
 * Checkpoints: tensors by HF's names. Those in HF's layout (one safetensors file, or shards with
 * their index) are opened here; other formats say where their tensors lie.
 */

import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { explain, printable } from "./explain.ts";
import { isJsonObject, parseJson } from "./json.ts";
import { looksLikeSafetensors, readSafetensorsHeader } from "./safetensors.ts";

/** How a stored tensor differs from HF's: undone while it is loaded. */
export interface TensorTransform {
  /** `Transform` in zig/command.zig */
  readonly kind: "rope_to_pairs" | "rope_to_halves" | "negative_exp" | "log_negative";
  /** Rows of an attention head, and how many of them rotate; 0 where that means nothing. */
  readonly head_rows: number;
  readonly rotary_rows: number;
}

/** Where a tensor's bytes lie. */
export interface TensorPlace {
  /** Path of its file. */
  readonly file: string;
  /** As in the file: F32, BF16, Q4_K, … */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Bytes from the file's start. */
  readonly offset: number;
  readonly bytes: number;
  readonly transform?: TensorTransform;
  /** Factors of its rows, or one for all, where its numbers are 8-bit floats. */
  readonly scales?: TensorPlace;
}

/** One file of a checkpoint. */
export interface CheckpointFile {
  readonly path: string;
  readonly bytes: number;
}

const single_name = "model.safetensors";
const index_name = "model.safetensors.index.json";
const shown_max = 10;

/** At most ten names, and how many more there are. */
export function listNames(names: readonly string[]): string {
  const rest = names.length - shown_max;
  return names.slice(0, shown_max).map(printable).join(", ") +
    (rest > 0 ? ` and ${rest} more` : "");
}

/** The tensors of a checkpoint by name. Only headers are read; weights stay in the files. */
export class Checkpoint {
  /** As it was opened. */
  readonly path: string;
  readonly files: readonly CheckpointFile[];
  private readonly places: ReadonlyMap<string, TensorPlace>;

  private constructor(
    path: string,
    files: readonly CheckpointFile[],
    places: ReadonlyMap<string, TensorPlace>,
  ) {
    this.path = path;
    this.files = files;
    this.places = places;
  }

  /**
   * Reads the headers of all files and checks them against the index.
   *
   * @param path a folder with model.safetensors or model.safetensors.index.json, or one such file
   * @throws {Error} when there is no checkpoint, a shard is missing, or index and shards disagree
   * @throws as {@link readSafetensorsHeader}
   */
  static open(path: string): Checkpoint {
    if (path.endsWith(".safetensors")) return Checkpoint.fromFiles(path, [path]);
    if (path.endsWith(".index.json")) return Checkpoint.fromIndex(path, path);
    const found = statSync(path, { throwIfNoEntry: false });
    if (!found?.isDirectory()) {
      if (looksLikeSafetensors(path)) return Checkpoint.fromFiles(path, [path]);
      throw new Error(
        "Expected a folder with a checkpoint, or a .safetensors or .gguf file, but found " +
          `${found ? "another file" : "nothing"} at "${path}"`,
      );
    }
    const [single, index] = [join(path, single_name), join(path, index_name)];
    if (existsSync(single)) return Checkpoint.fromFiles(path, [single]);
    if (existsSync(index)) return Checkpoint.fromIndex(path, index);
    throw new Error(`Expected ${single_name} or ${index_name} in "${path}" but found neither`);
  }

  /** A checkpoint of another format. @param path as it was opened @param places by HF's names */
  static fromPlaces(
    path: string,
    files: readonly CheckpointFile[],
    places: ReadonlyMap<string, TensorPlace>,
  ): Checkpoint {
    return new Checkpoint(path, files, places);
  }

  /** Every tensor's name, sorted. */
  get names(): string[] {
    return [...this.places.keys()].sort();
  }

  /** @throws {RangeError} when there is no tensor of this name */
  get(name: string): TensorPlace {
    const place = this.places.get(name);
    if (place === undefined) {
      throw new RangeError(`Expected a tensor "${name}" in "${this.path}" but found none`);
    }
    return place;
  }

  has(name: string): boolean {
    return this.places.has(name);
  }

  private static fromFiles(path: string, paths: readonly string[]): Checkpoint {
    const files: CheckpointFile[] = [];
    const places = new Map<string, TensorPlace>();
    for (const file of paths) {
      const { tensors, dataOffset, fileBytes } = readSafetensorsHeader(file);
      files.push({ path: file, bytes: fileBytes });
      for (const [name, { dtype, shape, begin, end }] of tensors) {
        const twin = places.get(name);
        if (twin) {
          throw new RangeError(`Tensor "${name}" stands in "${twin.file}" and in "${file}"`);
        }
        places.set(name, { file, dtype, shape, offset: dataOffset + begin, bytes: end - begin });
      }
    }
    return new Checkpoint(path, files, places);
  }

  private static fromIndex(path: string, index: string): Checkpoint {
    const folder = dirname(index);
    const weight_map = readIndex(index);
    const shards = [...new Set(weight_map.values())].sort();
    const missing = shards.filter((name) => !existsSync(join(folder, name)));
    if (missing.length) {
      throw new Error(
        `Expected every shard of "${index}" but ${listNames(missing)} ` +
          `${missing.length === 1 ? "is" : "are"} missing`,
      );
    }
    const checkpoint = Checkpoint.fromFiles(path, shards.map((name) => join(folder, name)));
    const complaints: string[] = [];
    for (const [name, shard] of weight_map) {
      const found = checkpoint.places.get(name)?.file;
      if (found === undefined) complaints.push(`${name} is not in ${shard}`);
      else if (found !== join(folder, shard)) {
        complaints.push(`${name} is in ${found}, not ${shard}`);
      }
    }
    for (const [name, { file }] of checkpoint.places) {
      if (!weight_map.has(name)) complaints.push(`${name} of ${file} is not in the index`);
    }
    if (complaints.length) {
      throw new RangeError(
        `The index "${index}" and its shards disagree: ${listNames(complaints)}`,
      );
    }
    return checkpoint;
  }
}

/** The weight_map of an index: the shard of each tensor. */
function readIndex(path: string): Map<string, string> {
  const index = explain(`Cannot read "${path}"`, () => parseJson(readFileSync(path, "utf8")));
  const map = isJsonObject(index) ? index.weight_map : undefined;
  if (!isJsonObject(map) || Object.keys(map).length === 0) {
    throw new TypeError(`Expected "${path}" to have a weight_map from tensors to files`);
  }
  for (const [name, shard] of Object.entries(map)) {
    // Shards lie beside the index: a path that leads elsewhere is no checkpoint's.
    if (typeof shard !== "string" || !/^[^/\\\0]+\.safetensors$/.test(shard)) {
      throw new TypeError(
        `Expected weight_map of "${path}" to give a file name for ${name} ` +
          `but found ${JSON.stringify(shard)}`,
      );
    }
  }
  return new Map(Object.entries(map as Record<string, string>));
}
