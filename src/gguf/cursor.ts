/** Reads numbers and texts one after another from a file, in pieces, never beyond its end. */

import { value_bytes, type ValueTypeName } from "./format.ts";

/** Fills `into` from byte `at` of the file on; answers how many bytes it got, 0 at the end. */
export type ReadBytes = (at: number, into: Uint8Array) => number;

/** Types of single numbers. */
type NumberType = Exclude<ValueTypeName, "array" | "string" | "bool">;

const piece_bytes = 1 << 16;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A place in a file that moves on with every read. */
export class Cursor {
  /** Bytes from the file's start. */
  at = 0;
  private piece: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  private view = new DataView(this.piece.buffer);
  /** Where in the file the piece starts. */
  private begin = 0;

  constructor(private readonly read: ReadBytes, private readonly fileBytes: number) {}

  /** @param what names the value for the sentence */
  u32(what: string): number {
    return this.number("u32", what);
  }

  /** @throws {RangeError} at the file's end, or for an integer beyond 2^53 */
  number(type: NumberType, what: string): number {
    const at = this.need(value_bytes[type], what);
    const { view } = this;
    switch (type) {
      case "u8":
        return view.getUint8(at);
      case "i8":
        return view.getInt8(at);
      case "u16":
        return view.getUint16(at, true);
      case "i16":
        return view.getInt16(at, true);
      case "u32":
        return view.getUint32(at, true);
      case "i32":
        return view.getInt32(at, true);
      case "f32":
        return view.getFloat32(at, true);
      case "f64":
        return view.getFloat64(at, true);
      case "u64":
      case "i64": {
        const high = type === "u64" ? view.getUint32(at + 4, true) : view.getInt32(at + 4, true);
        const value = high * 2 ** 32 + view.getUint32(at, true);
        if (Number.isSafeInteger(value)) return value;
        throw new RangeError(`expected ${what} to be below 2^53 but found more`);
      }
    }
  }

  /** How many things follow. @param bytes that each takes at least */
  count(what: string, bytes: number): number {
    const n = this.number("u64", `the number of ${what}`);
    const room = this.fileBytes - this.at;
    if (n * bytes > room) {
      throw new RangeError(
        `expected at most ${Math.floor(room / bytes)} ${what} in the ${room} bytes that are left ` +
          `but found ${n}: is it truncated?`,
      );
    }
    return n;
  }

  /** A text behind its length in bytes. @throws {SyntaxError} when it is not UTF-8 */
  string(what: string, bytes_max: number): string {
    const n = this.number("u64", `the length of ${what}`);
    if (n > bytes_max) {
      throw new RangeError(`expected ${what} to have at most ${bytes_max} bytes but found ${n}`);
    }
    const at = this.need(n, what);
    try {
      return decoder.decode(this.piece.subarray(at, at + n));
    } catch {
      throw new SyntaxError(`${what} is not UTF-8`);
    }
  }

  /** Moves over n bytes. @returns where they are in the piece, which holds all of them */
  private need(n: number, what: string): number {
    if (n > this.fileBytes - this.at) {
      throw new RangeError(`the file ends inside ${what}: is it truncated?`);
    }
    if (this.at + n > this.begin + this.piece.length) this.fetch(n);
    const found = this.at - this.begin;
    this.at += n;
    return found;
  }

  private fetch(n: number): void {
    const wanted = Math.min(Math.max(n, piece_bytes), this.fileBytes - this.at);
    const piece = new Uint8Array(wanted);
    for (let got = 0; got < wanted;) {
      const more = this.read(this.at + got, piece.subarray(got));
      if (more === 0) throw new RangeError("the file ended while it was read");
      got += more;
    }
    this.piece = piece;
    this.view = new DataView(piece.buffer);
    this.begin = this.at;
  }
}
