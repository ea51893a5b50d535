/** Results as tables for people: a header wherever columns change or widen, a row a result. */

/** A result, as it is printed as JSON for programs. */
export type Line = Readonly<Record<string, unknown>>;

const prefixes = ["", "k", "M", "G", "T"];
/** Narrower columns would move from row to row. */
const column_min = 8;

/** A number in four digits, large ones with a prefix of their unit, 41.25G, small ones as 3.1e-7. */
function shown(x: number): string {
  if (x !== 0 && Math.abs(x) < 1e-4) return Number(x.toPrecision(3)).toExponential();
  const step = Math.min(prefixes.length - 1, Math.floor(Math.log10(Math.abs(x) || 1) / 3));
  if (step < 2) return String(Number.isInteger(x) ? x : Number(x.toPrecision(4)));
  return Number((x / 1000 ** step).toPrecision(4)) + prefixes[step];
}

function cell(value: unknown): string {
  if (typeof value === "number") return shown(value);
  if (!Array.isArray(value)) return String(value ?? "-");
  const numbers = value.filter((x) => typeof x === "number");
  if (numbers.length < value.length || numbers.length === 0) return value.join(",") || "-";
  return `${shown(Math.min(...numbers))}..${shown(Math.max(...numbers))}`;
}

const isRecord = (value: unknown): value is Line =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Prints one result after another. */
export class Table {
  #header = "";
  /** Of the columns under the header. */
  #widths: number[] = [];

  /** The lines of a result; those of its parts, where it has some, stand below it. */
  rows(line: Line): string[] {
    const columns = Object.entries(line).filter(([, value]) =>
      value !== undefined && !isRecord(value)
    );
    const texts = columns.map(([, value]) => cell(value));
    const names = columns.map(([name]) => name).join();
    const known = names === this.#header ? this.#widths : [];
    this.#widths = columns.map(([name], i) =>
      Math.max(column_min, name.length, texts[i].length, known[i] ?? 0)
    );
    const goes_on = known.length > 0 && this.#widths.every((width, i) => width === known[i]);
    const join = (words: readonly string[]) =>
      columns.map(([, value], i) =>
        typeof value === "string"
          ? words[i].padEnd(this.#widths[i])
          : words[i].padStart(this.#widths[i])
      ).join("  ").trimEnd();
    const rows = goes_on
      ? []
      : [...(this.#header ? [""] : []), join(columns.map(([name]) => name))];
    this.#header = names;
    rows.push(join(texts));
    for (const parts of Object.values(line).filter(isRecord)) {
      const width = Math.max(0, ...Object.keys(parts).map((name) => name.length));
      for (const [name, value] of Object.entries(parts)) {
        rows.push(`  ${name.padEnd(width)}  ${cell(value).padStart(column_min)}`);
      }
      this.#header = " "; // what follows wants its names again
    }
    return rows;
  }
}
