import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { abi_hash, Status } from "../../src/native/bindings.gen.ts";
import { NativeError, throwStatus } from "../../src/native/error.ts";
import { loadNative, openNative } from "../../src/native/ffi.ts";
import { copyToCache, findLibrary } from "../../src/native/library.ts";
import { withFolder } from "../weights/support.ts";

/** Sets an environment variable while `body` runs. */
async function withEnvironment(name: string, value: string, body: () => unknown): Promise<void> {
  const before = process.env[name];
  process.env[name] = value;
  try {
    await body();
  } finally {
    if (before === undefined) delete process.env[name];
    else process.env[name] = before;
  }
}

/** Whether this runtime may load libraries other than the one the tests are given. */
function mayLoad(path: string): boolean {
  // deno-lint-ignore no-explicit-any
  const deno = (globalThis as any).Deno;
  const state = deno?.permissions.querySync({ name: "ffi", path }).state ?? "granted";
  if (state !== "granted") console.log(`skipped: loading ${path} is not permitted`);
  return state === "granted";
}

describe("the native library", () => {
  it("is loaded once", async () => {
    assert(await loadNative() === await loadNative());
    assertEquals((await loadNative()).path, findLibrary());
  });

  it("of other sources is refused with what to do", async () => {
    const error = await assertRejects(
      () => openNative(findLibrary(), (abi_hash ^ 1) >>> 0),
      NativeError,
      "was built from other sources than this TypeScript code: run ./dev build",
    );
    assertEquals((error as NativeError).code, Status.version);
    assertStringIncludes(error.message, findLibrary());
  });

  it("is named when BAMBA_LIBRARY names nothing", () =>
    withEnvironment("BAMBA_LIBRARY", "/no/such/library.so", () => {
      assertThrows(
        findLibrary,
        Error,
        'BAMBA_LIBRARY to name a file but found "/no/such/library.so"',
      );
    }));

  it("is named when the file is no library", () =>
    withFolder(async (folder) => {
      const path = join(folder, "libbamba.so");
      writeFileSync(path, "no library");
      if (!mayLoad(path)) return;
      await assertRejects(() => openNative(path), NativeError, `Cannot load the native library at`);
      await withEnvironment("BAMBA_LIBRARY", path, () => assertEquals(findLibrary(), path));
    }));

  it("is named when it is somebody else's", async () => {
    const debian = `/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu`;
    const folders = [debian, "/lib64", "/usr/lib64", "/usr/lib"];
    const other = folders.map((folder) => join(folder, "libm.so.6")).find((p) => existsSync(p));
    if (other === undefined) return console.log("skipped: there is no libm.so.6");
    if (!mayLoad(other)) return;
    await assertRejects(() => openNative(other), NativeError, "is not Bamba's native library");
  });

  it("is copied to the cache folder where the temporary folder does not do", () =>
    withFolder(async (folder) => {
      await withEnvironment("XDG_CACHE_HOME", folder, async () => {
        const copy = copyToCache(findLibrary());
        assertEquals(copyToCache(findLibrary()), copy);
        assert(copy.startsWith(join(folder, "bamba")));
        assertEquals(statSync(dirname(copy)).mode & 0o777, 0o700);
        assertEquals(statSync(copy).mode & 0o777, 0o700);
        assert(readFileSync(copy).equals(readFileSync(findLibrary())));
        if (!mayLoad(copy)) return;
        assert((await openNative(copy)).info().physical_cores >= 1);
      });
    }));
});

describe("throwStatus", () => {
  it("throws the closest class with the library's words", () => {
    assertThrows(() => throwStatus(Status.invalid, "x is 3"), RangeError, "x is 3");
    assertThrows(() => throwStatus(Status.range, "x is 3"), RangeError, "x is 3");
    assertThrows(() => throwStatus(Status.type, "x is bf16"), TypeError, "x is bf16");
    const error = assertThrows(() => throwStatus(Status.stale, ""), NativeError, "status stale");
    assertEquals((error as NativeError).code, Status.stale);
  });
});
