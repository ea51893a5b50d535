import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { Status } from "../../src/native/bindings.gen.ts";
import { NativeError } from "../../src/native/error.ts";
import { loadNative } from "../../src/native/ffi.ts";
import { withFolder } from "../weights/support.ts";

const native = await loadNative();

/** Asserts a stale handle's error. */
function assertStale(call: () => unknown): void {
  const error = assertThrows(call, NativeError);
  assertEquals((error as NativeError).code, Status.stale);
  assertMatch(error.message, /handle/i);
}

describe("Native", () => {
  it("tells about the machine", () => {
    const info = native.info();
    assert(info.physical_cores >= 1 && info.logical_cores >= info.physical_cores);
    assert(info.total_memory > 2 ** 28 && info.available_memory <= info.total_memory);
    const levels = ["portable", "v3", "v4", "v4_vnni", "v4_bf16"];
    assert(levels.includes(info.cpu_level), info.cpu_level);
    assert(info.cpu_name.length > 0);
    assertEquals(info.features.includes("avx2") || info.cpu_level === "portable", true);
  });

  it("reads, writes and copies buffers", () => {
    const device = native.openDevice({ kind: "cpu", threads: 1 });
    const [a, b] = [native.createBuffer(device, 1000), native.createBuffer(device, 500)];
    const zeros = new Uint8Array(500).fill(7);
    native.readBuffer(b, 0, zeros);
    assert(zeros.every((byte) => byte === 0));
    native.writeBuffer(a, 996, Uint8Array.of(1, 2, 3, 4));
    native.copyBuffer(a, b, [
      { srcOffset: 997, dstOffset: 0, bytes: 2 },
      { srcOffset: 999, dstOffset: 499, bytes: 1 },
    ]);
    native.copyBuffer(a, b, []);
    const out = new Uint8Array(3);
    native.readBuffer(b, 0, out);
    assertEquals([...out], [2, 3, 0]);
    native.readBuffer(b, 499, out.subarray(1, 2));
    assertEquals([...out], [2, 4, 0]);
    for (const handle of [a, b, device]) native.free(handle);
  });

  it("refuses spans that reach outside, with the sizes", () => {
    const device = native.openDevice({ kind: "cpu", threads: 1 });
    const buffer = native.createBuffer(device, 100);
    const other = native.createBuffer(device, 100);
    const eight = new Uint8Array(8);
    const span = { srcOffset: 0, dstOffset: 93, bytes: 8 };
    assertThrows(() => native.readBuffer(buffer, 93, eight), RangeError, "100");
    assertThrows(() => native.writeBuffer(buffer, 93, eight), RangeError, "100");
    assertThrows(() => native.readBuffer(buffer, 2 ** 53 - 9, eight), RangeError);
    assertThrows(() => native.copyBuffer(buffer, other, [span]), RangeError);
    const far = { srcOffset: 2 ** 52, dstOffset: 0, bytes: 2 ** 52 };
    assertThrows(() => native.copyBuffer(buffer, other, [far]), RangeError);
    assertThrows(() => native.readBuffer(buffer, -1, eight), RangeError, "found -1");
    assertThrows(() => native.readBuffer(buffer, 0.5, eight), RangeError, "found 0.5");
    for (const handle of [buffer, other, device]) native.free(handle);
  });

  it("knows stale handles and handles of another kind", () => {
    const device = native.openDevice({ kind: "cpu", threads: 1 });
    const buffer = native.createBuffer(device, 100);
    const byte = new Uint8Array(1);
    assertStale(() => native.readBuffer(device, 0, byte));
    assertStale(() => native.createBuffer(buffer, 1));
    assertStale(() => native.createPlan(buffer, byte));
    assertStale(() => native.startJob({ kind: "measure", device: buffer }));
    native.free(buffer);
    assertStale(() => native.readBuffer(buffer, 0, byte));
    assertStale(() => native.free(buffer));
    // The slot is used again; the old handle must not name the new buffer.
    const again = native.createBuffer(device, 100);
    assert(again !== buffer);
    assertStale(() => native.writeBuffer(buffer, 0, byte));
    for (const handle of [again, device]) native.free(handle);
    native.free(0);
    for (const handle of [1, 0xffff_ffff, 0x8000_0000, 12345678]) {
      assertStale(() => native.readBuffer(handle, 0, byte));
      assertStale(() => native.free(handle));
    }
  });

  it("refuses buffers that no machine has memory for", () => {
    const device = native.openDevice({ kind: "cpu", threads: 1 });
    const error = assertThrows(() => native.createBuffer(device, 2 ** 50), NativeError);
    assertEquals((error as NativeError).code, Status.memory);
    assertThrows(() => native.createBuffer(device, 2 ** 53), RangeError);
    assertThrows(() => native.createBuffer(device, -1), RangeError, "found -1");
    native.free(device);
  });

  it("opens files, and names those it cannot", () =>
    withFolder((folder) => {
      const path = join(folder, "é data");
      writeFileSync(path, Uint8Array.of(5, 6, 7));
      const { handle, bytes } = native.openFile(path);
      assertEquals(bytes, 3);
      const out = new Uint8Array(2);
      native.readBuffer(handle, 1, out);
      assertEquals([...out], [6, 7]);
      assertThrows(() => native.readBuffer(handle, 2, out), RangeError);
      assertThrows(() => native.writeBuffer(handle, 0, out));
      native.free(handle);
      for (const wrong of [join(folder, "nothing"), folder, "", "a\0b"]) {
        const error = assertThrows(() => native.openFile(wrong), Error);
        assert(error.message.length > 10, error.message);
      }
    }));

  it("refuses plans that are none", () => {
    const device = native.openDevice({ kind: "cpu", threads: 1 });
    for (const bytes of [0, 1, 63, 64, 1000]) {
      const error = assertThrows(() => native.createPlan(device, new Uint8Array(bytes)), Error);
      assert(error.message.length > 10, error.message);
    }
    native.free(device);
  });

  it("counts what it holds", () => {
    const before = native.info();
    const device = native.openDevice({ kind: "cpu", threads: 2 });
    const buffers = Array.from({ length: 10 }, () => native.createBuffer(device, 1 << 16));
    const during = native.info();
    assertEquals(during.n_buffers, before.n_buffers + 10);
    assert(during.allocated >= before.allocated + (10 << 16));
    for (const buffer of buffers) native.free(buffer);
    native.free(device);
    const after = native.info();
    assertEquals([after.n_buffers, after.allocated], [before.n_buffers, before.allocated]);
  });
});
