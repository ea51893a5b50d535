/** The library's functions with types: every failure is thrown in the library's own words. */

import {
  abi_hash,
  BufferOptions,
  CopySpan,
  CpuLevel,
  DeviceKind,
  DeviceOptions,
  Info as InfoStruct,
  Op,
  Span,
} from "./bindings.gen.ts";
import type { OpenedLibrary } from "./calls.ts";
import { NativeError, throwStatus } from "./error.ts";
import { type JobOptionsInit, NativeJob, packJobOptions } from "./job.ts";
import { packStruct, packStructs, readStruct } from "./struct.ts";

/** A kind of device. */
export type DeviceKindName = keyof typeof DeviceKind;
/** A level of CPU instructions, weakest first after `auto`. */
export type CpuLevelName = keyof typeof CpuLevel;

/** What the library tells about the machine or about one device. */
export interface Info {
  /** The best level of the machine, or the level the device uses. */
  cpu_level: CpuLevelName;
  cpu_name: string;
  physical_cores: number;
  logical_cores: number;
  /** Of the device; 0 for the machine. */
  threads: number;
  /** Instruction sets that matter here, by their usual names. */
  features: string[];
  /** The library was built without optimisation. */
  optimize_debug: boolean;
  total_memory: number;
  available_memory: number;
  /** Bytes held by buffers and plans, and bytes of mapped files. */
  allocated: number;
  mapped: number;
  n_buffers: number;
  n_plans: number;
  n_jobs: number;
  n_files: number;
  /** 0 usable, -9 built without CUDA, -101 no driver, -103 no GPU. */
  cuda_status: number;
  /** Rate of the CPU's bf16 multiply-adds against its f32 ones; 0 where it has none. */
  bf16_gain: number;
  /** Seconds that runs on the CPU have spent in each operation since the library was loaded. */
  op_s: Record<string, number>;
}

const feature_names = [
  "avx2",
  "fma",
  "f16c",
  "avx512",
  "avx512vnni",
  "avx512bf16",
  "amx_bf16",
  "amx_int8",
];
const huge_pages_flag = 1;
/** A runtime may refuse an empty array's address. */
const nothing = new Uint8Array(1);

/** The library of this process. */
export class Native {
  readonly path: string;
  private readonly library: OpenedLibrary;

  constructor(path: string, library: OpenedLibrary) {
    this.path = path;
    this.library = library;
  }

  /** @param device 0 or left out: the machine and the whole library */
  info(device = 0): Info {
    const out = new Uint8Array(InfoStruct.size);
    this.check(this.library.call.bamba_info(device, out, out.length));
    const raw = readStruct(InfoStruct, out);
    const end = raw.cpu_name.indexOf(0);
    const name = new Uint8Array(raw.cpu_name.slice(0, end < 0 ? undefined : end));
    const levels = Object.keys(CpuLevel) as CpuLevelName[];
    return {
      cpu_level: levels.find((level) => CpuLevel[level] === raw.cpu_level) ?? "auto",
      cpu_name: new TextDecoder().decode(name).trim(),
      physical_cores: raw.physical_cores,
      logical_cores: raw.logical_cores,
      threads: raw.threads,
      features: feature_names.filter((_, bit) => raw.features & (1 << bit)),
      optimize_debug: raw.optimize_debug !== 0,
      total_memory: raw.total_memory,
      available_memory: raw.available_memory,
      allocated: raw.allocated,
      mapped: raw.mapped,
      n_buffers: raw.n_buffers,
      n_plans: raw.n_plans,
      n_jobs: raw.n_jobs,
      n_files: raw.n_files,
      cuda_status: raw.cuda_status,
      bf16_gain: raw.bf16_gain / 1000,
      op_s: Object.fromEntries(
        Object.entries(Op).map(([name, op]) => [name, raw.op_ns[op] / 1e9]),
      ),
    };
  }

  /** @param o `threads` 0 or left out: one a physical core @returns a handle */
  openDevice(o: {
    kind: DeviceKindName;
    ordinal?: number;
    threads?: number;
    level?: CpuLevelName;
  }): number {
    const { kind, ordinal = 0, threads = 0, level = "auto" } = o;
    const options = packStruct(DeviceOptions, {
      struct_size: DeviceOptions.size,
      abi: abi_hash,
      kind: DeviceKind[kind],
      ordinal,
      threads,
      level: CpuLevel[level],
    });
    return this.handle((out) =>
      this.library.call.bamba_device_open(options, options.length, out, out.length)
    ).handle;
  }

  /** A buffer of zeros. @returns a handle */
  createBuffer(device: number, bytes: number, o: { hugePages?: boolean } = {}): number {
    const options = packStruct(BufferOptions, {
      struct_size: BufferOptions.size,
      abi: abi_hash,
      device,
      flags: o.hugePages ? huge_pages_flag : 0,
      bytes,
    });
    return this.handle((out) =>
      this.library.call.bamba_buffer_create(options, options.length, out, out.length)
    ).handle;
  }

  /** Fills `out` from byte `offset` of a buffer or mapped file. */
  readBuffer(handle: number, offset: number, out: Uint8Array): void {
    if (out.length === 0) return;
    const span = packStruct(Span, { offset, bytes: out.length });
    const { bamba_buffer_read } = this.library.call;
    this.check(bamba_buffer_read(handle, span, span.length, out, out.length));
  }

  /** Writes `data` at byte `offset` of a buffer. */
  writeBuffer(handle: number, offset: number, data: Uint8Array): void {
    if (data.length === 0) return;
    const span = packStruct(Span, { offset, bytes: data.length });
    const { bamba_buffer_write } = this.library.call;
    this.check(bamba_buffer_write(handle, span, span.length, data, data.length));
  }

  /** Copies spans from one buffer to another. */
  copyBuffer(
    src: number,
    dst: number,
    spans: readonly { srcOffset: number; dstOffset: number; bytes: number }[],
  ): void {
    if (spans.length === 0) return;
    const packed = packStructs(
      CopySpan,
      spans.map((s) => ({ src_offset: s.srcOffset, dst_offset: s.dstOffset, bytes: s.bytes })),
    );
    this.check(this.library.call.bamba_buffer_copy(src, dst, packed, packed.length));
  }

  /** Maps a file read-only. @returns its handle and size */
  openFile(path: string): { handle: number; bytes: number } {
    const name = new TextEncoder().encode(path);
    return this.handle((out) =>
      this.library.call.bamba_file_open(name, name.length, out, out.length)
    );
  }

  /** Checks and compiles a plan. @returns its handle and the memory it takes */
  createPlan(device: number, plan: Uint8Array): { handle: number; bytes: number } {
    return this.handle((out) =>
      this.library.call.bamba_plan_create(device, filled(plan), plan.length, out, out.length)
    );
  }

  /** Starts work on native threads; the data is copied. */
  startJob(options: JobOptionsInit, data: Uint8Array = new Uint8Array()): NativeJob {
    const packed = packJobOptions(options);
    const { bamba_job_start } = this.library.call;
    const { handle } = this.handle((out) =>
      bamba_job_start(packed, packed.length, filled(data), data.length, out, out.length)
    );
    return new NativeJob(this, this.library, handle);
  }

  /** Frees a handle of any kind; 0 is no handle and nothing happens. */
  free(handle: number): void {
    if (handle !== 0) this.check(this.library.call.bamba_free(handle));
  }

  /** The sentence of a failed job, or with 0 of the last failed call. */
  errorSentence(job = 0): string {
    const out = new Uint8Array(1024);
    const length = this.library.call.bamba_error(job, out, out.length);
    return length > 0 ? new TextDecoder().decode(out.subarray(0, Math.min(length, 1024))) : "";
  }

  /** @throws the library's sentence when `status` is negative */
  check(status: number): void {
    if (status < 0) throwStatus(status, this.errorSentence());
  }

  private handle(call: (out: Uint8Array) => number): { handle: number; bytes: number } {
    const out = new Uint8Array(16);
    this.check(call(out));
    const view = new DataView(out.buffer);
    const handle = view.getUint32(0, true);
    if (handle === 0) throw new NativeError(0, "The native library gave no handle");
    return {
      handle,
      bytes: view.getUint32(8, true) + view.getUint32(12, true) * 2 ** 32,
    };
  }
}

function filled(bytes: Uint8Array): Uint8Array {
  return bytes.length === 0 ? nothing : bytes;
}
