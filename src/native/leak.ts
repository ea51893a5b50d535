/** A backstop for native things that nobody freed. */

import process from "node:process";

interface Leak {
  readonly what: string;
  readonly free: () => void;
}

const registry = new FinalizationRegistry<Leak>(({ what, free }) => {
  process.emitWarning(
    `Leaked ${what}: it was garbage-collected without dispose(); hold it with \`using\``,
    { type: "NativeLeakWarning" },
  );
  try {
    free();
  } catch {
    // Its device or library is gone, and the memory with it.
  }
});

/**
 * Frees what `owner` holds, with a warning, should it be garbage-collected first.
 *
 * @param what the thing in the warning, like "a job"
 * @param free must not refer to `owner`
 * @returns ends the watch: to be called when the owner is disposed
 */
export function watchLeak(owner: object, what: string, free: () => void): () => void {
  const token = {};
  registry.register(owner, { what, free }, token);
  return () => void registry.unregister(token);
}
