/** A GGUF file, whole or split, as a checkpoint: the same tensors under HF's names. */

import { existsSync } from "node:fs";
import { Checkpoint, type TensorPlace, type TensorTransform } from "../weights/checkpoint.ts";
import { explain } from "../weights/explain.ts";
import { firstBytes } from "../weights/safetensors.ts";
import { configFields, rotaryShape } from "./config.ts";
import type { Metadata } from "./format.ts";
import { fromGguf } from "./names.ts";
import { type GgufHeader, type GgufTensor, readGgufHeader } from "./reader.ts";
import { Values } from "./values.ts";

/** Whether a path names a GGUF file: by its suffix or, under any other name, by its first bytes. */
export function isGguf(path: string): boolean {
  if (/\.gguf$/i.test(path)) return true;
  return new TextDecoder().decode(firstBytes(path, 4)) === "GGUF";
}

/** Paths of all parts of a split file, given any of them. */
function partPaths(path: string, count: number): string[] {
  if (count <= 1) return [path];
  const found = /^(.*)-(\d{5})-of-(\d{5})(\.gguf)$/i.exec(path);
  if (found === null || Number(found[3]) !== count) {
    throw new RangeError(
      `Expected a file of ${count} parts to be named like "…-00001-of-` +
        `${String(count).padStart(5, "0")}.gguf" but found "${path}"`,
    );
  }
  const [, stem, , total, ending] = found;
  return Array.from(
    { length: count },
    (_, i) => `${stem}-${String(i + 1).padStart(5, "0")}-of-${total}${ending}`,
  );
}

/** The header of a file with the tensors of all parts, and where each lies. */
export interface GgufParts {
  /** Of the first part, which has the metadata; its tensors are those of all parts. */
  readonly header: GgufHeader;
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
  /** Path of each tensor's file. */
  readonly file_of: ReadonlyMap<string, string>;
}

const parts_max = 10_000;

function partCount(metadata: Metadata): number {
  const count = new Values(metadata).numberOr("split.count") ?? 1;
  if (Number.isInteger(count) && count >= 0 && count <= parts_max) return count;
  throw new RangeError(`expected split.count to be at most ${parts_max} but found ${count}`);
}

/**
 * Reads the headers of a file and of the other parts where it is split.
 *
 * @param path of the file, or of any of its parts
 * @throws as `readGgufHeader`; {Error} when a part is missing
 */
export function readGgufParts(path: string): GgufParts {
  const opened = readGgufHeader(path);
  const count = explain(`Cannot read "${path}" as GGUF`, () => partCount(opened.metadata));
  const paths = partPaths(path, count);
  const missing = paths.find((part) => !existsSync(part));
  if (missing) {
    throw new Error(`Expected all ${count} parts of "${path}" but "${missing}" is missing`);
  }
  let header = opened;
  const tensors = new Map<string, GgufTensor>();
  const file_of = new Map<string, string>();
  const files: { path: string; bytes: number }[] = [];
  for (const [i, part] of paths.entries()) {
    const found = part === path ? opened : readGgufHeader(part);
    if (i === 0) header = found;
    files.push({ path: part, bytes: found.fileBytes });
    for (const [name, tensor] of found.tensors) {
      if (tensors.has(name)) {
        throw new RangeError(`Tensor "${name}" stands in "${file_of.get(name)}" and in "${part}"`);
      }
      tensors.set(name, tensor);
      file_of.set(name, part);
    }
  }
  return { header: { ...header, tensors }, files, file_of };
}

/**
 * HF's config fields of a file's model.
 *
 * @throws {TypeError | RangeError} naming what is missing or no Bamba
 */
export function readGgufFields(path: string): Record<string, unknown> {
  const { header } = readGgufParts(path);
  return explain(`Cannot read "${path}"`, () => configFields(header));
}

/** HF's shape of a tensor: the same numbers, fewer or more dimensions of extent 1. */
function hfShape(name: string, shape: readonly number[]): number[] {
  if (name.endsWith("conv1d.weight") && shape.length === 2) return [shape[0], 1, shape[1]];
  const is_vector = /\.(A_log|D|dt_bias|norm\.weight)$/.test(name);
  return is_vector ? [shape.reduce((a, b) => a * b, 1)] : [...shape];
}

/**
 * Opens a file as a checkpoint: what a model's weights are loaded from.
 *
 * @throws as {@link readGgufParts}, {@link readGgufFields}
 */
export function openGguf(path: string): Checkpoint {
  const { header, files, file_of } = readGgufParts(path);
  const rope = explain(`Cannot read "${path}"`, () => {
    configFields(header); // a model that is no Bamba is told here, not by the names of its tensors
    return rotaryShape(new Values(header.metadata));
  });
  const transforms: Record<string, TensorTransform | undefined> = {
    rope: { kind: "rope_to_halves", head_rows: rope.head_dim, rotary_rows: rope.rotary_dim },
    decay: { kind: "log_negative", head_rows: 0, rotary_rows: 0 },
  };
  const places = new Map<string, TensorPlace>();
  for (const [name, tensor] of header.tensors) {
    const pair = fromGguf(name);
    // A name that is none of Bamba's stays, so that it is told as surplus.
    const hf = pair?.hf ?? name;
    places.set(hf, {
      file: file_of.get(name)!,
      dtype: tensor.type,
      shape: hfShape(hf, tensor.shape),
      offset: tensor.offset,
      bytes: tensor.bytes,
      transform: pair && transforms[pair.difference],
    });
  }
  return Checkpoint.fromPlaces(path, files, places);
}
