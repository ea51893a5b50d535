/** Writing files that appear under their name when they are whole. */

import { rmSync, statSync } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import process from "node:process";
import { explained } from "./explain.ts";

/** Files begun so far: two that are to have one name stay apart until they are whole. */
let begun = 0;

/**
 * Writes a file under another name beside its own, which it gets when `body` is done. Where
 * anything fails, or the process exits meanwhile, nothing is left behind, and a file that was there
 * before stays as it was.
 *
 * @param body writes the file's bytes in order by the function that it gets
 * @throws {TypeError} when the path is none, or that of a folder
 * @throws {Error} naming the path, when its folder is missing or read-only, or the disk is full
 * @throws what `body` throws, as it is
 */
export async function writeWhole(
  path: string,
  body: (write: (bytes: Uint8Array) => Promise<void>) => Promise<void>,
): Promise<void> {
  // Said now: a file may take minutes until it gets its name.
  if (typeof path !== "string" || path === "") {
    throw new TypeError(`Expected the path of a file to write but found ${JSON.stringify(path)}`);
  }
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) {
    throw new TypeError(`Expected the path of a file to write but found the folder "${path}"`);
  }
  const unfinished = `${path}.${process.pid}-${begun++}.part`;
  const refused = (error: unknown) => {
    throw explained(`Cannot write "${path}"`, error);
  };
  const file = await open(unfinished, "w").catch(refused);
  const write = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length;) {
      const { bytesWritten } = await file.write(bytes, at, bytes.length - at).catch(refused);
      at += bytesWritten;
    }
  };
  const forget = () => rmSync(unfinished, { force: true });
  process.once("exit", forget);
  try {
    await body(write);
    await file.close().catch(refused); // where some disks first say that they are full
    await rename(unfinished, path).catch(refused);
  } catch (error) {
    await file.close().catch(() => {});
    await rm(unfinished, { force: true });
    throw error;
  } finally {
    process.off("exit", forget);
  }
}
