/** Devices and the memory they own. */

import { CpuLevel } from "./native/bindings.gen.ts";
import { loadNative } from "./native/ffi.ts";
import { watchLeak } from "./native/leak.ts";
import { environment } from "./native/library.ts";
import type { CpuLevelName, DeviceKindName, Info, Native } from "./native/native.ts";

/** How a device is named: `auto` takes CUDA where it is usable. */
export type DeviceName = "auto" | "cpu" | "cuda" | `cuda:${number}`;

/** Options of {@link Device.open}. */
export interface DeviceInit {
  /** Threads of the CPU; left out: one a physical core. */
  threads?: number;
  /** CPU instructions; left out: the best there are, or what `BAMBA_CPU` says. */
  level?: CpuLevelName;
}

/** Rates that {@link Device.measure} found; 0 where there is none, or it is not measured. */
export interface Measured {
  /** Bytes a second read from memory, in the best round and in the middle of all rounds. */
  read_bytes_s: number;
  read_median_bytes_s: number;
  /** Operations a second: a multiply-add counts as two. */
  f32_flop_s: number;
  /** Pairs of bf16 into f32, where the machine multiplies them fast. */
  bf16_dot_op_s: number;
  int8_dot_op_s: number;
  /** Bytes a second copied within memory, read and written ones counted, of a GPU. */
  copy_bytes_s: number;
  /** Bytes a second that the link brings to a GPU. */
  link_bytes_s: number;
}

/** In the library's order. */
const measured: readonly (keyof Measured)[] = [
  "read_bytes_s",
  "f32_flop_s",
  "bf16_dot_op_s",
  "int8_dot_op_s",
  "read_median_bytes_s",
  "copy_bytes_s",
  "link_bytes_s",
];

/** Native memory in bytes. */
export interface MemoryUsage {
  /** Held by buffers and plans of this device. */
  allocated: number;
  /** Mapped files; the system reads and drops their pages as needed. */
  mapped: number;
  n_buffers: number;
  n_plans: number;
  n_jobs: number;
  n_files: number;
}

/** One native device, used by every {@link Device} that asked for the same. */
interface Shared {
  readonly key: string;
  readonly handle: number;
  users: number;
}

const shared_devices = new Map<string, Shared>();
const threads_max = 1024;
const levels = Object.keys(CpuLevel) as CpuLevelName[];

function parseName(name: string): { kind: DeviceKindName; ordinal: number } {
  if (name === "cpu") return { kind: "cpu", ordinal: 0 };
  const cuda = /^cuda(?::(\d{1,3}))?$/.exec(name);
  if (cuda) return { kind: "cuda", ordinal: Number(cuda[1] ?? 0) };
  throw new RangeError(
    `Expected device to be auto, cpu, cuda or cuda:<number> but found ${JSON.stringify(name)}`,
  );
}

function chooseLevel(level: CpuLevelName | undefined): CpuLevelName {
  const found = level ?? environment("BAMBA_CPU") ?? "auto";
  if (levels.includes(found as CpuLevelName)) return found as CpuLevelName;
  const source = level === undefined ? "BAMBA_CPU" : "level";
  throw new RangeError(
    `Expected ${source} to be one of ${levels.join(", ")} but found ${JSON.stringify(found)}`,
  );
}

/** A CPU with its threads, or a GPU. */
export class Device {
  readonly kind: DeviceKindName;
  readonly ordinal: number;
  readonly threads: number;
  readonly native: Native;
  private readonly shared: Shared;
  private readonly unwatch: () => void;
  private is_disposed = false;

  private constructor(native: Native, shared: Shared, kind: DeviceKindName, ordinal: number) {
    this.native = native;
    this.shared = shared;
    this.kind = kind;
    this.ordinal = ordinal;
    this.threads = native.info(shared.handle).threads;
    this.unwatch = watchLeak(this, "a Device", () => release(native, shared));
  }

  /**
   * Opens a device. Those that ask for the same share its threads; each is disposed by itself.
   *
   * @throws {RangeError} for an unknown name or level, or an absurd number of threads
   * @throws {NativeError} when the machine has no such device
   */
  static async open(name: DeviceName = "auto", o: DeviceInit = {}): Promise<Device> {
    const native = await loadNative();
    const { threads: wanted, level } = o;
    if (
      wanted !== undefined && !(Number.isInteger(wanted) && wanted >= 1 && wanted <= threads_max)
    ) {
      throw new RangeError(
        `Expected threads to be an integer from 1 to ${threads_max} but found ${wanted}`,
      );
    }
    const machine = native.info();
    const chosen = name === "auto" ? (machine.cuda_status === 0 ? "cuda" : "cpu") : name;
    const { kind, ordinal } = parseName(chosen);
    const cpu_level = chooseLevel(level);
    const best = cpu_level === "auto" ? machine.cpu_level : cpu_level;
    // A GPU's threads only load weights: that is copying, for which every thread is good.
    const threads = wanted ??
      (kind === "cuda" ? machine.logical_cores : machine.physical_cores);
    const key = kind === "cpu" ? `cpu ${threads} ${best}` : `cuda ${ordinal}`;
    let shared = shared_devices.get(key);
    if (shared === undefined) {
      const handle = native.openDevice({ kind, ordinal, threads, level: cpu_level });
      shared = { key, handle, users: 0 };
      shared_devices.set(key, shared);
    }
    shared.users++;
    return new Device(native, shared, kind, ordinal);
  }

  /** The library's number of this device. @throws {TypeError} after dispose() */
  get handle(): number {
    if (this.is_disposed) throw new TypeError("Cannot use a Device after it was disposed");
    return this.shared.handle;
  }

  get disposed(): boolean {
    return this.is_disposed;
  }

  /** What is known of this device and its machine. */
  info(): Info {
    return this.native.info(this.handle);
  }

  /** Native memory of this device. */
  memoryUsage(): MemoryUsage {
    const { allocated, mapped, n_buffers, n_plans, n_jobs, n_files } = this.info();
    return { allocated, mapped, n_buffers, n_plans, n_jobs, n_files };
  }

  /**
   * A buffer of zeros.
   *
   * @throws {RangeError} unless `bytes` is a positive integer
   * @throws {NativeError} when there is too little memory
   */
  createBuffer(bytes: number, o: { hugePages?: boolean } = {}): Buffer {
    return new Buffer(this, bytes, o);
  }

  /** Measures the device for about a second: a CPU with all its threads, or a GPU. */
  async measure(signal?: AbortSignal): Promise<Measured> {
    await using job = this.native.startJob({ kind: "measure", device: this.handle });
    for (;;) {
      const { state, values } = await job.next(signal);
      if (state !== "running") throw new Error(`The measurement ended without a result: ${state}`);
      if (values.length < 2 * measured.length) continue;
      const rates = new Float64Array(values.buffer, 0, measured.length);
      return Object.fromEntries(measured.map((name, i) => [name, rates[i]])) as unknown as Measured;
    }
  }

  /** Gives the device back; its threads end with its last user. */
  dispose(): void {
    if (this.is_disposed) return;
    this.is_disposed = true;
    this.unwatch();
    release(this.native, this.shared);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function release(native: Native, shared: Shared): void {
  if (--shared.users > 0) return;
  shared_devices.delete(shared.key);
  native.free(shared.handle);
}

/** Memory of a device. */
export class Buffer {
  readonly device: Device;
  readonly byteLength: number;
  private readonly native: Native;
  private readonly unwatch: () => void;
  private live_handle: number;

  /** Use {@link Device.createBuffer}. */
  constructor(device: Device, bytes: number, o: { hugePages?: boolean }) {
    if (!Number.isSafeInteger(bytes) || bytes < 1) {
      throw new RangeError(`Expected a buffer of at least one byte but found ${bytes} bytes`);
    }
    const { native } = device;
    const handle = native.createBuffer(device.handle, bytes, o);
    this.device = device;
    this.native = native;
    this.byteLength = bytes;
    this.live_handle = handle;
    this.unwatch = watchLeak(this, `a Buffer of ${bytes} bytes`, () => native.free(handle));
  }

  /** The library's number of this buffer. @throws {Error} after dispose() */
  get handle(): number {
    if (this.live_handle === 0) throw new TypeError("Cannot use a Buffer after it was disposed");
    return this.live_handle;
  }

  get disposed(): boolean {
    return this.live_handle === 0;
  }

  /**
   * Fills `out` with the bytes from `offset` on.
   *
   * @throws {RangeError} when they reach beyond the end
   */
  read(offset: number, out: ArrayBufferView): void {
    this.native.readBuffer(this.handle, offset, bytesOf(out));
  }

  /**
   * Writes `data` at `offset`.
   *
   * @throws {RangeError} when it reaches beyond the end
   */
  write(offset: number, data: ArrayBufferView): void {
    this.native.writeBuffer(this.handle, offset, bytesOf(data));
  }

  /** Frees the memory; a job that still uses it keeps it until its end. */
  dispose(): void {
    if (this.live_handle === 0) return;
    const handle = this.live_handle;
    this.live_handle = 0;
    this.unwatch();
    this.native.free(handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
