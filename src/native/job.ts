/** Work on native threads, awaited without blocking the event loop. */

import { setImmediate } from "node:timers";
import { abi_hash, JobKind, JobOptions, JobReport, JobState, Status } from "./bindings.gen.ts";
import type { OpenedLibrary } from "./calls.ts";
import { NativeError, throwStatus } from "./error.ts";
import { watchLeak } from "./leak.ts";
import { packStruct, readStruct } from "./struct.ts";

/** `JobOptions` of zig/command.zig; what is left out is 0, `n_steps` 1. */
export interface JobOptionsInit {
  kind: keyof typeof JobKind;
  device: number;
  plan?: number;
  /** Buffers for the plan's state, key/value and output operands. */
  state?: number;
  kv?: number;
  output?: number;
  n_steps?: number;
  /** Steps that may wait to be fetched before the job pauses. */
  ring_steps?: number;
  /** Sampled ids feed the next step and come as values. */
  decode?: boolean;
  /** Fills the arena with NaN before each run. */
  poison?: boolean;
  /** No row's bits may depend on how many others there are. */
  batch_invariant?: boolean;
}

/** What {@link NativeJob.next} gives. */
export interface JobProgress {
  state: "running" | "done" | "cancelled";
  /** Ids of whole steps; for a measurement the bytes of its f64. */
  values: Int32Array<ArrayBuffer>;
  /** Steps done, or bytes loaded, and of how many. */
  done: number;
  total: number;
}

/** What a job asks of the library's typed side. */
export interface JobOwner {
  /** @throws in the library's words, for any status but success */
  check(status: number): void;
  errorSentence(job: number): string;
  free(handle: number): void;
}

const values_capacity = 4096;
/** How long one wait off the main thread lasts at most; progress is seen this often. */
const wait_ms_max = 100;
/** Between two looks at a job where the runtime cannot wait off the main thread. */
const poll_ms = 1;
/**
 * A job's first waits are on the main thread and this short: most runs of a small model end within
 * them, sooner than a timer or another thread would tell.
 */
const short_wait_ms = 1;
const short_waits = 2;
/** Timers and I/O get their turn at least this often, however many short waits there are. */
const turn_ms = 4;
let last_turn_ms = 0;

/** Packs job options. @throws {RangeError} when a number does not fit */
export function packJobOptions(o: JobOptionsInit): Uint8Array<ArrayBuffer> {
  const { kind, decode = false, poison = false, batch_invariant = false, n_steps = 1, ...rest } = o;
  return packStruct(JobOptions, {
    struct_size: JobOptions.size,
    abi: abi_hash,
    kind: JobKind[kind],
    n_steps,
    decode: Number(decode),
    poison: Number(poison),
    batch_invariant: Number(batch_invariant),
    ...rest,
  });
}

/** A running job. Free it with `using`, `await using` or {@link NativeJob.close}. */
export class NativeJob {
  private readonly native: JobOwner;
  private readonly library: OpenedLibrary;
  private readonly handle: number;
  private readonly out = new Uint8Array(JobReport.size + 4 * values_capacity);
  private readonly unwatch: () => void;
  private ended = false;
  private short_waits = short_waits;
  /** The wait that is under way: never two at a time, and none while the handle is freed. */
  private waiting: Promise<JobProgress> | undefined;
  private closing: Promise<void> | undefined;

  constructor(native: JobOwner, library: OpenedLibrary, handle: number) {
    this.native = native;
    this.library = library;
    this.handle = handle;
    this.unwatch = watchLeak(this, "a job", () => native.free(handle));
  }

  /**
   * Waits for the next values or the end without blocking the event loop.
   *
   * @param signal cancels the job when aborted; its reason is thrown once the job has stopped
   * @throws the job's sentence when it failed
   */
  async next(signal?: AbortSignal): Promise<JobProgress> {
    for (;;) {
      const progress = await this.step(signal);
      if (progress.values.length > 0 || progress.state !== "running") return progress;
    }
  }

  /**
   * Waits for the end and drops the values.
   *
   * @param onProgress called when more is done: steps or bytes
   * @throws the job's sentence when it failed, the signal's reason when it was aborted
   * @throws {NativeError} with `cancelled` when it was cancelled otherwise
   */
  async finished(
    signal?: AbortSignal,
    onProgress?: (done: number, total: number) => void,
  ): Promise<void> {
    for (let seen = -1;;) {
      const { state, done, total } = await this.step(signal);
      if (done !== seen) onProgress?.(done, total);
      seen = done;
      if (state === "done") return;
      if (state === "cancelled") throw new NativeError(Status.cancelled, "The job was cancelled");
    }
  }

  /** Asks the job to stop; it does so after the command of its plan that it is at. */
  cancel(): void {
    if (!this.ended) this.native.check(this.library.call.bamba_job_cancel(this.handle));
  }

  /** Cancels a running job and frees it once it has stopped. @returns when it is freed */
  close(): Promise<void> {
    return this.closing ??= this.stop();
  }

  /** As {@link NativeJob.close}; a job that has ended is freed at once, another one soon. */
  [Symbol.dispose](): void {
    this.close().catch(() => {}); // nobody awaits it: how the job ended is of no interest any more
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** One wait; after an abort as many as it takes until the job has stopped. */
  private async step(signal?: AbortSignal): Promise<JobProgress> {
    if (this.closing) throw new Error("Cannot wait for a job that was disposed");
    if (this.waiting) throw new Error("Cannot wait twice for a job at the same time");
    const abort = () => this.cancel();
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
    try {
      for (;;) {
        const progress = await this.wait();
        if (this.closing) throw new Error("The job was disposed while it was awaited");
        if (!signal?.aborted) return progress;
        if (progress.state !== "running") throw signal.reason;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  private async wait(): Promise<JobProgress> {
    this.waiting = this.poll();
    try {
      return await this.waiting;
    } finally {
      this.waiting = undefined;
    }
  }

  private async poll(): Promise<JobProgress> {
    const { out, handle, library: { call, waitAsync } } = this;
    if (this.short_waits > 0) {
      this.short_waits--;
      await eventLoopTurn();
      this.native.check(call.bamba_job_wait(handle, short_wait_ms, out, out.length));
      return this.report();
    }
    if (waitAsync) {
      this.native.check(await waitAsync(handle, wait_ms_max, out, out.length));
      return this.report();
    }
    this.native.check(call.bamba_job_wait(handle, 0, out, out.length));
    const progress = this.report();
    const idle = progress.state === "running" && progress.values.length === 0;
    if (idle) await new Promise((resolve) => setTimeout(resolve, poll_ms));
    return progress;
  }

  private report(): JobProgress {
    const { state, status, n_values, done, total } = readStruct(JobReport, this.out);
    this.ended = state !== JobState.running;
    if (state === JobState.failed) throwStatus(status, this.native.errorSentence(this.handle));
    const values = new Int32Array(
      this.out.slice(JobReport.size, JobReport.size + 4 * n_values).buffer,
    );
    // A job that has ended may hold more values than fitted: its end shows when none is left.
    const name = n_values > 0 || state === JobState.running
      ? "running"
      : state === JobState.done
      ? "done"
      : "cancelled";
    return { state: name, values, done, total };
  }

  private async stop(): Promise<void> {
    this.unwatch();
    try {
      this.cancel();
      await this.waiting?.catch(() => {});
      while (!this.ended) await this.poll();
    } finally {
      this.native.free(this.handle);
    }
  }
}

async function eventLoopTurn(): Promise<void> {
  if (performance.now() - last_turn_ms < turn_ms) return;
  await new Promise((resolve) => setImmediate(resolve));
  last_turn_ms = performance.now();
}
