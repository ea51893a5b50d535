/** Errors as the command line shows them: one sentence, and an exit status. */
import { CommanderError } from "commander";
import process from "node:process";

/** Exit statuses of the command line. */
export const exit_status = {
  ok: 0,
  failed: 1,
  usage: 2,
  interrupted: 130,
  broken_pipe: 141,
  terminated: 143,
};

/** A wrong command line: exit status 2. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** A run that ended badly and has already said why: exit status 1, no further words. */
export class SilentFailure extends Error {
  override name = "SilentFailure";
}

/** The message of anything thrown, on one line. */
export function sentence(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  const line = text.replace(/^error: /, "").replace(/\s*\n\s*/g, " ").trim();
  return /[.!?)]$/.test(line) ? line : `${line}.`;
}

/**
 * commander's words on a wrong command line as one sentence with the found value.
 *
 * @param text such as "error: unknown option '--topk'\n(Did you mean --top-k?)"
 */
export function usageSentence(text: string): string {
  const line = text.replace(/^error: /, "").trim().replace(/\s*\n\s*/g, " ");
  const value = /^option '(?:.*?)?(--[\w-]+).*?' argument '(.*)' is invalid\. (.*)$/
    .exec(line);
  if (!value) return sentence(line.charAt(0).toUpperCase() + line.slice(1));
  const [, option, found, reason] = value;
  const choices = /^Allowed choices are (.*)\.$/.exec(reason);
  if (choices) return `Expected ${option} to be one of ${choices[1]} but found '${found}'.`;
  return reason.replace(/^Expected /, `Expected ${option} to be `);
}

/** True for what an aborted signal makes of a running call. */
export function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}

/**
 * Says what went wrong on stderr and answers the exit status for it.
 *
 * @param error anything thrown by a subcommand
 * @param stopped the exit status for the signal that stopped the run, such as Ctrl-C's
 */
export function report(error: unknown, stopped?: number): number {
  // commander has printed its own words already
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : exit_status.usage;
  if (error instanceof SilentFailure) return exit_status.failed;
  if (stopped !== undefined && isAbort(error)) return stopped;
  console.error(`bamba: ${sentence(error)}`);
  if (process.env.BAMBA_DEBUG && error instanceof Error) console.error(error.stack);
  return error instanceof UsageError ? exit_status.usage : exit_status.failed;
}
