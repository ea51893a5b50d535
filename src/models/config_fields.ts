/** Checks of single config fields: each answers the value or throws with the found one. */

/** What kind of value a field holds; bounds are inclusive. */
export type FieldRule =
  | { readonly kind: "count"; readonly min: number; readonly max: number }
  | { readonly kind: "number"; readonly min: number; readonly max: number }
  | { readonly kind: "boolean" }
  | { readonly kind: "choice"; readonly choices: readonly string[] }
  | { readonly kind: "token" }
  | { readonly kind: "tokens" };

/** A rule with what stands in for a missing value; nullable fields may hold null. */
export type FieldSpec = FieldRule & { readonly default: unknown; readonly nullable?: boolean };

const tokens_max = 2 ** 24;

/** A found value for a sentence, cut where it is long. */
export function show(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "number") return String(value); // JSON would write Infinity as null
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

function isCount(value: unknown, min: number, max: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= min && value <= max;
}

/** What the rule asks for, as words of a sentence. */
function expectation(rule: FieldRule): string {
  switch (rule.kind) {
    case "count":
      return `an integer from ${rule.min} to ${rule.max}`;
    case "number":
      return `a number from ${rule.min} to ${rule.max}`;
    case "boolean":
      return "true or false";
    case "choice":
      return rule.choices.map(show).join(" or ");
    case "token":
      return "a token id";
    case "tokens":
      return "a token id or a list of them";
  }
}

function fits(rule: FieldRule, value: unknown): boolean {
  switch (rule.kind) {
    case "count":
      return isCount(value, rule.min, rule.max);
    case "number":
      return typeof value === "number" && value >= rule.min && value <= rule.max;
    case "boolean":
      return typeof value === "boolean";
    case "choice":
      return rule.choices.includes(value as string);
    case "token":
      return isCount(value, 0, tokens_max);
    case "tokens":
      return isCount(value, 0, tokens_max) ||
        Array.isArray(value) && value.every((id) => isCount(id, 0, tokens_max));
  }
}

/** Whether a value has at least the rule's type, so that only its size is wrong. */
function hasType(rule: FieldRule, value: unknown): boolean {
  if (rule.kind === "boolean") return false;
  if (rule.kind === "choice") return typeof value === "string";
  return typeof value === "number";
}

/**
 * The value of a field, or its default when the config does not have the field.
 *
 * @throws {TypeError} when the value has the wrong type
 * @throws {RangeError} when it has the right type but is out of range
 */
export function checkField(name: string, spec: FieldSpec, value: unknown): unknown {
  if (value === undefined) return spec.default;
  if (value === null && spec.nullable) return null;
  if (fits(spec, value)) return value;
  const message = `Expected ${name} of the config to be ${expectation(spec)}` +
    `${spec.nullable ? " or null" : ""} but found ${show(value)}`;
  throw hasType(spec, value) ? new RangeError(message) : new TypeError(message);
}
