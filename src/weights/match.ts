/** Compares what a model asks for with what a checkpoint has. */

import { closeSync, openSync, readSync } from "node:fs";
import { type Checkpoint, listNames, type TensorPlace } from "./checkpoint.ts";
import { dtype_of_stored, type WeightDType, type WeightLayout } from "./layout.ts";

/** A weight that a model asks for. */
export interface WeightSpec {
  /** Key in the checkpoint. */
  readonly name: string;
  readonly shape: readonly number[];
  readonly layout: WeightLayout;
  /** May stay in the mapped file when its dtype is kept. */
  readonly keepMapped?: boolean;
  /** Holds it in this dtype whatever is stored and asked for. */
  readonly dtype?: WeightDType;
}

/** What is allowed besides an exact match. */
export interface MatchOptions {
  /** Names that stand for another weight; where the checkpoint has both, they must be equal. */
  readonly tied?: Readonly<Record<string, string>>;
  /** Whether a tensor that no spec names may be there all the same. */
  readonly ignore?: (name: string) => boolean;
}

/** A spec with its tensor. */
export interface Match {
  readonly spec: WeightSpec;
  readonly place: TensorPlace;
  readonly stored: WeightDType;
}

const compared_bytes = 1 << 16;
const samples_max = 256;

/**
 * Finds the tensor of every spec. Specs of tied names are left out: their source stands for them.
 *
 * @throws {RangeError} naming every tensor that is missing, misshapen, surplus, of a dtype that
 *   cannot be loaded, or unequal to what it is tied to
 */
export function matchWeights(
  checkpoint: Checkpoint,
  specs: readonly WeightSpec[],
  { tied = {}, ignore = () => false }: MatchOptions,
): Match[] {
  const missing: string[] = [];
  const misshapen: string[] = [];
  const dtypes: string[] = [];
  const matches: Match[] = [];
  const wanted = new Set<string>(Object.keys(tied));
  for (const spec of specs) {
    if (Object.hasOwn(tied, spec.name)) continue;
    if (wanted.has(spec.name)) throw new RangeError(`Expected one spec for weight ${spec.name}`);
    wanted.add(spec.name);
    if (!checkpoint.has(spec.name)) {
      missing.push(spec.name);
      continue;
    }
    const place = checkpoint.get(spec.name);
    const { dtype, shape } = place;
    const stored = dtype_of_stored[dtype];
    if (shape.length !== spec.shape.length || shape.some((n, i) => n !== spec.shape[i])) {
      misshapen.push(`${spec.name} has shape [${shape}] instead of [${spec.shape}]`);
    } else if (stored === undefined) {
      dtypes.push(`${spec.name} has ${dtype}`);
    } else matches.push({ spec, place, stored });
  }
  const surplus = checkpoint.names.filter((name) => !wanted.has(name) && !ignore(name));
  const complaints = [
    missing.length && `${missing.length} missing: ${listNames(missing)}`,
    surplus.length && `${surplus.length} surplus: ${listNames(surplus)}`,
    misshapen.length && `${misshapen.length} misshapen: ${listNames(misshapen)}`,
    dtypes.length && `${dtypes.length} of a type that cannot be loaded: ${listNames(dtypes)}`,
  ].filter((complaint) => complaint);
  if (complaints.length) {
    throw new RangeError(
      `The tensors of "${checkpoint.path}" do not fit the model: ${complaints.join("; ")}`,
    );
  }
  for (const [alias, source] of Object.entries(tied)) checkTied(checkpoint, alias, source);
  return matches;
}

/** A tied weight that is stored all the same must not say something else. */
function checkTied(checkpoint: Checkpoint, alias: string, source: string): void {
  if (!checkpoint.has(alias) || !checkpoint.has(source)) return;
  const [a, b] = [checkpoint.get(alias), checkpoint.get(source)];
  if (a.dtype === b.dtype && a.bytes === b.bytes && sameBytes(a, b)) return;
  throw new RangeError(
    `Tensor ${alias} of "${checkpoint.path}" differs from ${source} to which it is tied: ` +
      "set tie_word_embeddings to false to use both",
  );
}

/** Compares two tensors: large ones by samples, spread evenly. */
function sameBytes(a: TensorPlace, b: TensorPlace): boolean {
  const file_a = openSync(a.file, "r");
  const file_b = openSync(b.file, "r");
  try {
    const step = Math.max(compared_bytes, Math.ceil(a.bytes / samples_max));
    for (let at = 0; at < a.bytes; at += step) {
      const length = Math.min(compared_bytes, a.bytes - at);
      const [x, y] = [new Uint8Array(length), new Uint8Array(length)];
      readSync(file_a, x, 0, length, a.offset + at);
      readSync(file_b, y, 0, length, b.offset + at);
      if (x.some((byte, i) => byte !== y[i])) return false;
    }
    return true;
  } finally {
    closeSync(file_a);
    closeSync(file_b);
  }
}
