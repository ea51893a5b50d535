/** What an opened library looks like, on either runtime. */

/** A function of the library. Numbers are u32; bytes stay where they are. */
export type NativeCall = (...args: (number | Uint8Array)[]) => number;

/** Signatures by symbol, as bindings.gen.ts lists them. */
export type CallTable = Readonly<
  Record<string, { readonly parameters: readonly string[]; readonly result: string }>
>;

/** An opened library. */
export interface OpenedLibrary {
  readonly call: Readonly<Record<string, NativeCall>>;
  /** `bamba_job_wait` off the main thread; absent where the runtime has no such calls (Bun). */
  readonly waitAsync?: (job: number, ms: number, out: Uint8Array, len: number) => Promise<number>;
  close(): void;
}
