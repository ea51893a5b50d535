/** Metadata by key and type: read with sentences for what is missing, written in order. */

import type { GgufArray, GgufValue, ItemTypeName, Metadata, ValueTypeName } from "./format.ts";

function show(value: GgufValue | undefined): string {
  if (value === undefined) return "nothing";
  if (typeof value === "object") return `an array of ${value.values.length} ${value.type}`;
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

/** Reads metadata of a file. */
export class Values {
  constructor(private readonly metadata: Metadata) {}

  get(key: string): GgufValue | undefined {
    return this.metadata.get(key)?.value;
  }

  /** @throws {TypeError} when it is there and no number */
  numberOr(key: string): number | undefined {
    return this.typed<number>(key, "number", "a number");
  }

  /** @throws {TypeError} when it is missing or no number */
  number(key: string): number {
    return this.numberOr(key) ?? this.missing(key);
  }

  /** @throws {TypeError} when it is there and no text */
  textOr(key: string): string | undefined {
    return this.typed<string>(key, "string", "a text");
  }

  text(key: string): string {
    return this.textOr(key) ?? this.missing(key);
  }

  /** @throws {TypeError} when it is there and neither true nor false */
  flagOr(key: string): boolean | undefined {
    return this.typed<boolean>(key, "boolean", "true or false");
  }

  /** @throws {TypeError} when it is there and no array of numbers */
  numbersOr(key: string): readonly number[] | undefined {
    return this.array<number>(key, "number", "numbers");
  }

  /** @throws {TypeError} when it is there and no array of texts */
  textsOr(key: string): readonly string[] | undefined {
    return this.array<string>(key, "string", "texts");
  }

  texts(key: string): readonly string[] {
    return this.textsOr(key) ?? this.missing(key);
  }

  private typed<T>(key: string, type: string, what: string): T | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === type) return value as T | undefined;
    throw new TypeError(`Expected ${key} of the metadata to be ${what} but found ${show(value)}`);
  }

  private array<T>(key: string, type: string, what: string): readonly T[] | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    const fits = typeof value === "object" && value.values.every((one) => typeof one === type);
    if (fits) return (value as GgufArray).values as readonly T[];
    throw new TypeError(
      `Expected ${key} of the metadata to be an array of ${what} but found ${show(value)}`,
    );
  }

  private missing(key: string): never {
    throw new TypeError(`Expected the metadata to have ${key} but found nothing`);
  }
}

/** Collects metadata to write; a value that is undefined is left out. */
export class MetadataBuilder {
  readonly metadata = new Map<string, { type: ValueTypeName; value: GgufValue }>();

  add(key: string, type: ItemTypeName, value: number | boolean | string | undefined | null): this {
    if (value !== undefined && value !== null) this.metadata.set(key, { type, value });
    return this;
  }

  addArray(key: string, type: ItemTypeName, values: GgufArray["values"] | undefined): this {
    if (values !== undefined) {
      this.metadata.set(key, { type: "array", value: { type, values } });
    }
    return this;
  }
}
