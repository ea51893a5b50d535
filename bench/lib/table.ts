/** Results as tables for people: a header wherever the columns change, a row a result. */

/** A result, as it is printed as JSON for programs. */
export type Line = Readonly<Record<string, unknown>>;

const prefixes = ["", "k", "M", "G", "T"];
/** Narrower columns would move from row to row. */
const column_min = 8;

/** A number in four digits, large ones with a prefix of their unit: 41.25G. */
function shown(x: number): string {
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

  /** The lines of a result; those of its parts, where it has some, stand below it. */
  rows(line: Line): string[] {
    const columns = Object.entries(line).filter(([, value]) =>
      value !== undefined && !isRecord(value)
    );
    const cells = columns.map(([name, value]) => {
      const text = cell(value);
      const width = Math.max(column_min, name.length, text.length);
      const is_text = typeof value === "string";
      return is_text
        ? [name.padEnd(width), text.padEnd(width)]
        : [name.padStart(width), text.padStart(width)];
    });
    const join = (which: 0 | 1) => cells.map((pair) => pair[which]).join("  ").trimEnd();
    const names = columns.map(([name]) => name).join();
    const rows = names === this.#header ? [] : [...(this.#header ? [""] : []), join(0)];
    this.#header = names;
    rows.push(join(1));
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
