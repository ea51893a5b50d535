/** Brings a checkpoint's weights into native memory; they never enter JavaScript. */

import type { Device } from "../device.ts";
import { Layout, LoadItem, Status, Transform } from "../native/bindings.gen.ts";
import { NativeError } from "../native/error.ts";
import { watchLeak } from "../native/leak.ts";
import type { Native } from "../native/native.ts";
import { packStructs } from "../native/struct.ts";
import type { Checkpoint, CheckpointFile } from "./checkpoint.ts";
import { scaleFields } from "./compressed.ts";
import {
  alignWeight,
  dtype_codes,
  isRunnable,
  layoutBytes,
  layoutOn,
  matrixShape,
  type WeightDType,
  type WeightLayout,
} from "./layout.ts";
import { type Match, type MatchOptions, matchWeights, type WeightSpec } from "./match.ts";

export type { WeightDType, WeightLayout, WeightSpec };

/** A weight in native memory. */
export interface LoadedWeight {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: WeightDType;
  readonly layout: WeightLayout;
  /** Handle of the buffer or mapped file, and where in it the weight starts. */
  readonly buffer: number;
  readonly offset: number;
  readonly bytes: number;
}

/** How far loading got; bytes of one file's tensors. */
export interface LoadProgress {
  status: "progress" | "done";
  /** Path of the file. */
  file: string;
  loaded: number;
  total: number;
}

/** Options of {@link loadWeights}. */
export interface LoadOptions extends MatchOptions {
  /** "auto" keeps what is stored. */
  readonly dtype: "auto" | WeightDType;
  readonly progress_callback?: (progress: LoadProgress) => void;
  readonly signal?: AbortSignal;
}

/** A weight with its place in the packed buffer; `offset` is undefined where it stays mapped. */
interface Placed extends Match {
  readonly dtype: WeightDType;
  readonly bytes: number;
  readonly offset: number | undefined;
}

/** Weights by name, owned together. */
export class WeightSet {
  /** By the names of the specs; a tied name gives the weight it is tied to. */
  readonly weights: ReadonlyMap<string, LoadedWeight>;
  /** Bytes of the weights as they are held, tied ones counted once. */
  readonly bytes: number;
  private readonly native: Native;
  private readonly handles: number[];
  private readonly unwatch: () => void;

  /** @param handles what the weights lie in: freed by dispose() */
  constructor(
    native: Native,
    weights: ReadonlyMap<string, LoadedWeight>,
    handles: readonly number[],
  ) {
    this.native = native;
    this.weights = weights;
    this.bytes = [...new Set(weights.values())].reduce((sum, { bytes }) => sum + bytes, 0);
    const owned = [...handles];
    this.handles = owned;
    this.unwatch = watchLeak(this, `weights of ${this.bytes} bytes`, () => freeAll(native, owned));
  }

  get disposed(): boolean {
    return this.handles.length === 0;
  }

  /** Frees the weights; a job that still uses them keeps them until its end. */
  dispose(): void {
    this.unwatch();
    freeAll(this.native, this.handles);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function freeAll(native: Native, handles: number[]): void {
  for (const handle of handles.splice(0)) native.free(handle);
}

/**
 * Loads exactly the weights that `specs` name: matrices are packed into one buffer in the layout
 * that kernels want, what may stay in its file stays there.
 *
 * @throws {RangeError} naming the tensors that are missing, surplus or misshapen
 * @throws {NativeError} when there is too little memory, with the numbers
 */
export async function loadWeights(
  device: Device,
  checkpoint: Checkpoint,
  specs: readonly WeightSpec[],
  options: LoadOptions,
): Promise<WeightSet> {
  const { tied = {}, signal } = options;
  signal?.throwIfAborted();
  const { placed, packed_bytes } = place(
    device,
    matchWeights(checkpoint, specs, options),
    options.dtype,
  );
  checkMemory(device, packed_bytes);
  const { native } = device;
  const buffer = packed_bytes > 0
    ? native.createBuffer(device.handle, packed_bytes, { hugePages: true })
    : 0;
  const handles = [buffer];
  try {
    const weights = new Map<string, LoadedWeight>();
    for (const file of checkpoint.files) {
      const tensors = placed.filter((weight) => weight.place.file === file.path);
      if (tensors.length === 0) continue;
      const mapped = openMapped(native, file);
      handles.push(mapped);
      const others = openScaleFiles(native, checkpoint, file, tensors);
      try {
        const files = new Map([...others, [file.path, mapped]]);
        await loadFile(device, files, buffer, file, tensors, options);
      } finally {
        freeAll(native, [...others.values()]);
      }
      for (const weight of tensors) weights.set(weight.spec.name, loaded(weight, mapped, buffer));
      if (tensors.every(({ offset }) => offset !== undefined)) {
        handles.pop();
        native.free(mapped);
      }
    }
    for (const [alias, source] of Object.entries(tied)) {
      const weight = weights.get(source);
      if (weight) weights.set(alias, weight);
    }
    return new WeightSet(native, weights, handles.filter((handle) => handle !== 0));
  } catch (error) {
    freeAll(native, handles.filter((handle) => handle !== 0));
    throw error;
  }
}

/** Chooses each weight's dtype and its offset in one packed buffer. */
function place(
  device: Device,
  matches: readonly Match[],
  wanted: "auto" | WeightDType,
): { placed: Placed[]; packed_bytes: number } {
  let end = 0;
  const placed = matches.map((match): Placed => {
    const { stored } = match;
    const dtype = match.spec.dtype ?? (wanted === "auto" ? stored : wanted);
    checkRunnable(device, match.spec, dtype);
    const spec = { ...match.spec, layout: layoutOn(device.kind, dtype, match.spec.layout) };
    const bytes = layoutBytes(spec.shape, dtype, spec.layout);
    const is_aligned = match.place.offset % (dtype === "float32" ? 4 : 2) === 0;
    const is_same = dtype === stored && match.place.transform === undefined;
    if (spec.keepMapped && spec.layout === "row_major" && is_same && is_aligned) {
      return { ...match, spec, dtype, bytes, offset: undefined };
    }
    const offset = alignWeight(end);
    end = offset + bytes;
    return { ...match, spec, dtype, bytes, offset };
  });
  return { placed, packed_bytes: alignWeight(end) };
}

/** @throws {TypeError} naming a weight that no kernel of the device takes */
function checkRunnable(device: Device, spec: WeightSpec, dtype: WeightDType): void {
  const { name, shape, layout } = spec;
  // 8-bit floats run as panels only: their scales lie there.
  const fits = dtype !== "float8_e4m3fn" || layout === "panel";
  if (isRunnable(device.kind, dtype, shape) && fits) return;
  throw new TypeError(
    `Cannot run ${name} as ${dtype} on ${device.kind} with rows of ${shape.at(-1)}: give dtype ` +
      '"bfloat16" or "float32" to unpack all weights while they are loaded',
  );
}

function loaded({ spec, place, dtype, bytes, offset }: Placed, mapped: number, buffer: number) {
  const { name, shape, layout } = spec;
  return offset === undefined
    ? { name, shape, dtype, layout, buffer: mapped, offset: place.offset, bytes }
    : { name, shape, dtype, layout, buffer, offset, bytes };
}

function checkMemory(device: Device, bytes: number): void {
  const { available_memory } = device.info();
  if (bytes <= available_memory) return;
  const gib = (n: number) => (n / 2 ** 30).toFixed(2);
  throw new NativeError(
    Status.memory,
    `The weights need ${gib(bytes)} GiB of memory but only ${
      gib(available_memory)
    } GiB are available`,
  );
}

/** Files with scales of a file's tensors that are others than itself, by their paths. */
function openScaleFiles(
  native: Native,
  checkpoint: Checkpoint,
  file: CheckpointFile,
  tensors: readonly Placed[],
): Map<string, number> {
  const paths = new Set(tensors.map(({ place }) => place.scales?.file ?? file.path));
  paths.delete(file.path);
  const others = checkpoint.files.filter(({ path }) => paths.has(path));
  return new Map(others.map((other) => [other.path, openMapped(native, other)]));
}

function openMapped(native: Native, file: CheckpointFile): number {
  const { handle, bytes } = native.openFile(file.path);
  if (bytes === file.bytes) return handle;
  native.free(handle);
  throw new RangeError(
    `Expected "${file.path}" to have ${file.bytes} bytes but found ${bytes}: ` +
      "was it changed while it was loaded?",
  );
}

/** Rows and columns of an item, and what happens to them on the way. */
function itemShape({ shape }: WeightSpec, { transform }: Match["place"]) {
  const { rows, cols } = matrixShape(shape);
  if (transform === undefined) return { rows, cols, transform: Transform.none };
  const { kind, head_rows, rotary_rows } = transform;
  // A bias is reordered as the rows of its weight are.
  const [r, c] = shape.length === 1 ? [cols, 1] : [rows, cols];
  return { rows: r, cols: c, transform: Transform[kind], head_rows, rotary_rows };
}

/** Fills the buffer from one file on native threads. @param files handles by path */
async function loadFile(
  device: Device,
  files: ReadonlyMap<string, number>,
  buffer: number,
  file: CheckpointFile,
  tensors: readonly Placed[],
  { progress_callback, signal }: LoadOptions,
): Promise<void> {
  const total = tensors.reduce((sum, { place }) => sum + place.bytes, 0);
  const packed = tensors.filter(({ offset, bytes }) => offset !== undefined && bytes > 0);
  const items = packed.map(({ spec, place, stored, dtype, offset }) => ({
    file: files.get(file.path)!,
    buffer,
    src_offset: place.offset,
    src_bytes: place.bytes,
    dst_offset: offset!,
    src_dtype: dtype_codes[stored],
    dst_dtype: dtype_codes[dtype],
    layout: Layout[spec.layout],
    ...itemShape(spec, place),
    ...scaleFields(place, files.get(place.scales?.file ?? file.path)!, dtype_codes),
  }));
  const tell = (status: LoadProgress["status"], bytes: number) =>
    progress_callback?.({ status, file: file.path, loaded: Math.min(bytes, total), total });
  tell("progress", 0);
  if (items.length > 0) {
    await using job = device.native.startJob(
      { kind: "load", device: device.handle },
      packStructs(LoadItem, items),
    );
    await job.finished(signal, (done) => tell("progress", done));
  }
  tell("done", total);
}
