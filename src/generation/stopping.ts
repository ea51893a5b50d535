/** When a row has ended, besides at an eos id. */

import { describe } from "../modeling/inputs.ts";
import type { ResolvedOptions, StoppingCriterion, TextTokenizer } from "./options.ts";

/**
 * HF's StopStringCriteria: a row ends once one of the texts stands at its end, up to what the last
 * id added after it.
 */
export function stopStringCriterion(
  stops: readonly string[],
  tokenizer: TextTokenizer,
): StoppingCriterion {
  // An id gives at least one byte of text, a character has at most four.
  const tail_ids = 4 * Math.max(...stops.map((s) => s.length)) + 4;
  const text = (ids: number[]) => tokenizer.decode(ids, { skip_special_tokens: false });
  return (input_ids) =>
    input_ids.map((ids) => {
      const tail = ids.slice(-tail_ids);
      const now = text(tail);
      const before = text(tail.slice(0, -1));
      return stops.some((stop) => {
        const at = now.lastIndexOf(stop);
        return at >= 0 && at + stop.length > common(before, now);
      });
    });
}

/** How many characters two texts begin with alike. */
function common(a: string, b: string): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** One criterion's answer for each of `rows` rows. @throws {TypeError} for any other answer */
function answers(criterion: StoppingCriterion, input_ids: number[][], index: number): boolean[] {
  const answer: unknown = criterion(input_ids);
  const each = Array.isArray(answer) ? answer : input_ids.map(() => answer);
  if (each.length !== input_ids.length || each.some((x) => typeof x !== "boolean")) {
    throw new TypeError(
      `Expected stopping_criteria ${index} to answer true or false, for all rows or each of the ` +
        `${input_ids.length}, but found ${describe(answer)}`,
    );
  }
  return each;
}

/** All criteria of a generation's options, or undefined without any. */
export function stoppingCriteria(
  options: ResolvedOptions,
): ((input_ids: number[][]) => boolean[]) | undefined {
  const criteria = [...options.criteria];
  if (options.stops.length > 0) {
    criteria.push(stopStringCriterion(options.stops, options.inputs.tokenizer!));
  }
  if (criteria.length === 0) return undefined;
  return (input_ids) => {
    const all = criteria.map((criterion, i) => answers(criterion, input_ids, i));
    return input_ids.map((_, r) => all.some((ended) => ended[r]));
  };
}
