/**
 * What chat templates can call, as they find it in Python: JSON and dates.
 *
 * @module
 */

/** A value inside a running template. */
export interface TemplateValue {
  type: string;
  // deno-lint-ignore no-explicit-any
  value: any;
}

/** Options of the `tojson` filter, as Python's `json.dumps` knows them. */
export interface JsonOptions {
  ensure_ascii?: boolean;
  indent?: number | string | null;
  separators?: [string, string] | null;
  sort_keys?: boolean;
}

/** A float as Python prints it: `2.0`, `1e+16`, `1e-07`, `NaN`. */
export function pythonFloat(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
  if (value === 0) return Object.is(value, -0) ? "-0.0" : "0.0";
  const [digits, exponent] = value.toExponential().split("e");
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    const padded = String(Math.abs(power)).padStart(2, "0");
    return `${digits}e${power < 0 ? "-" : "+"}${padded}`;
  }
  // Adding 0 as a decimal keeps the shortest digits that JavaScript has found.
  const plain = power < 0
    ? value.toFixed(digits.replace(/[-.]/g, "").length - 1 - power)
    : String(value);
  return plain.includes(".") ? plain : `${plain}.0`;
}

function jsonText(text: string, ascii: boolean): string {
  const quoted = JSON.stringify(text);
  if (!ascii) return quoted;
  return quoted.replace(
    /[\x7f-\uffff]/g,
    (unit) => "\\u" + unit.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}

/** By code points, as Python compares texts. */
function comparePoints(a: string, b: string): number {
  const left = [...a], right = [...b];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = left[i].codePointAt(0)! - right[i].codePointAt(0)!;
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}

/**
 * A template value as JSON, character for character as Hugging Face's `tojson` writes it.
 *
 * @throws {TypeError} for a value that JSON does not have
 */
export function toJson(value: TemplateValue, options: JsonOptions = {}, depth = 0): string {
  const { ensure_ascii = false, indent = null, sort_keys = false } = options;
  const [comma, colon] = options.separators ?? [indent === null ? ", " : ",", ": "];
  const step = typeof indent === "number" ? " ".repeat(Math.max(0, indent)) : indent ?? "";
  const wrap = (open: string, items: string[], close: string): string => {
    if (items.length === 0) return open + close;
    if (indent === null) return open + items.join(comma) + close;
    const inner = "\n" + step.repeat(depth + 1);
    return open + inner + items.join(comma + inner) + "\n" + step.repeat(depth) + close;
  };
  switch (value.type) {
    case "NullValue":
      return "null";
    case "BooleanValue":
      return String(value.value);
    case "IntegerValue":
      return BigInt(value.value).toString();
    case "FloatValue":
      return pythonFloat(value.value);
    case "StringValue":
      return jsonText(value.value, ensure_ascii);
    case "TupleValue":
    case "ArrayValue": {
      const items = (value.value as TemplateValue[]).map((item) =>
        toJson(item, options, depth + 1)
      );
      return wrap("[", items, "]");
    }
    case "KeywordArgumentsValue":
    case "ObjectValue": {
      const entries = [...(value.value as Map<string, TemplateValue>)];
      if (sort_keys) entries.sort(([a], [b]) => comparePoints(a, b));
      const items = entries.map(([key, item]) =>
        jsonText(key, ensure_ascii) + colon + toJson(item, options, depth + 1)
      );
      return wrap("{", items, "}");
    }
    default:
      throw new TypeError(`The chat template asks for the JSON of a value of type ${value.type}.`);
  }
}

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

function dayOfYear(date: Date): number {
  const midnight = (year: number, month: number, day: number) => Date.UTC(year, month, day);
  const today = midnight(date.getFullYear(), date.getMonth(), date.getDate());
  return (today - midnight(date.getFullYear(), 0, 1)) / 86_400_000 + 1;
}

/**
 * A local date by C's format letters, in English whatever the locale; an unknown letter stays as it
 * is.
 *
 * @param format such as `"%d %b %Y"`; `%-d` leaves out the leading zero
 */
export function strftime(date: Date, format: string): string {
  const hour12 = date.getHours() % 12 || 12;
  return format.replace(/%(-?)([A-Za-z%])/g, (whole: string, dash: string, letter: string) => {
    const pad = (n: number, width = 2) => dash ? String(n) : String(n).padStart(width, "0");
    switch (letter) {
      case "Y":
        return String(date.getFullYear());
      case "y":
        return pad(date.getFullYear() % 100);
      case "m":
        return pad(date.getMonth() + 1);
      case "d":
        return pad(date.getDate());
      case "e":
        return dash ? String(date.getDate()) : String(date.getDate()).padStart(2);
      case "j":
        return pad(dayOfYear(date), 3);
      case "H":
        return pad(date.getHours());
      case "I":
        return pad(hour12);
      case "M":
        return pad(date.getMinutes());
      case "S":
        return pad(date.getSeconds());
      case "f":
        return pad(date.getMilliseconds() * 1000, 6);
      case "p":
        return date.getHours() < 12 ? "AM" : "PM";
      case "a":
        return DAYS[date.getDay()].slice(0, 3);
      case "A":
        return DAYS[date.getDay()];
      case "b":
      case "h":
        return MONTHS[date.getMonth()].slice(0, 3);
      case "B":
        return MONTHS[date.getMonth()];
      case "F":
        return strftime(date, "%Y-%m-%d");
      case "T":
        return strftime(date, "%H:%M:%S");
      case "D":
        return strftime(date, "%m/%d/%y");
      case "%":
        return "%";
      default:
        return whole;
    }
  });
}
