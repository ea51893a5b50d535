/** Errors that begin with what could not be done. */

const kinds = [RangeError, SyntaxError, TypeError];

/**
 * An error of the same class whose message begins with what could not be done.
 *
 * @param what such as `Cannot read "model.gguf"`
 */
export function explained(what: string, error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const Kind = kinds.find((kind) => error instanceof kind) ?? Error;
  return new Kind(`${what}: ${error.message}`, { cause: error });
}

/** A name from a file for a sentence or a terminal: no control character comes through. */
export function printable(name: string): string {
  return JSON.stringify(name).slice(1, -1);
}

/** Runs `body`; what it throws begins with what could not be done, as {@link explained} says. */
export function explain<T>(what: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw explained(what, error);
  }
}
