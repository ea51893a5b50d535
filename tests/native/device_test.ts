import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import process from "node:process";
import { describe, it } from "node:test";
import { Device } from "../../src/device.ts";
import { loadNative } from "../../src/native/ffi.ts";
import { NativeError } from "../../src/native/error.ts";

describe("Device", () => {
  it("shares threads among those that ask for the same", async () => {
    using a = await Device.open("cpu", { threads: 1 });
    using b = await Device.open("cpu", { threads: 1 });
    using c = await Device.open("cpu", { threads: 2 });
    assertEquals(a.handle, b.handle);
    assertNotEquals(a.handle, c.handle);
    assertEquals([a.threads, c.threads, a.kind], [1, 2, "cpu"]);
    b.dispose();
    b.dispose();
    assertEquals(a.info().threads, 1);
    assert(b.disposed && !a.disposed);
    assertThrows(() => b.info(), TypeError, "Cannot use a Device after it was disposed");
  });

  it("has as many threads as physical cores unless told otherwise", async () => {
    using device = await Device.open("cpu");
    assertEquals(device.threads, (await loadNative()).info().physical_cores);
    using same = await Device.open("cpu", { threads: device.threads });
    assertEquals(same.handle, device.handle);
  });

  it("uses every level the machine has", async () => {
    const levels = ["portable", "v3", "v4", "v4_vnni", "v4_bf16"] as const;
    const { cpu_level, features, bf16_gain } = (await loadNative()).info();
    const has = (...names: string[]) => names.every((name) => features.includes(name));
    // A level that is slower than the one below it still runs when it is asked for.
    const slow = cpu_level === "v4_vnni" && has("avx512bf16");
    const best = levels.findIndex((level) => level === cpu_level) + (slow ? 1 : 0);
    assert(slow ? bf16_gain < 1.3 : cpu_level !== "v4_bf16" || bf16_gain >= 1.3);
    assertEquals(bf16_gain > 0, has("avx512", "avx512vnni", "avx512bf16"));
    for (const [i, level] of levels.entries()) {
      if (i <= best) {
        using device = await Device.open("cpu", { threads: 1, level });
        assertEquals(device.info().cpu_level, level);
      } else {
        console.log(`skipped: this machine has no level ${level}`);
        await assertRejects(() => Device.open("cpu", { threads: 1, level }), NativeError);
      }
    }
  });

  it("takes its level from BAMBA_CPU", async () => {
    const before = process.env.BAMBA_CPU;
    try {
      process.env.BAMBA_CPU = "portable";
      using device = await Device.open("cpu", { threads: 1 });
      assertEquals(device.info().cpu_level, "portable");
      process.env.BAMBA_CPU = "v9";
      await assertRejects(() => Device.open("cpu"), RangeError, "BAMBA_CPU to be one of auto");
    } finally {
      if (before === undefined) delete process.env.BAMBA_CPU;
      else process.env.BAMBA_CPU = before;
    }
  });

  it("names what it cannot open", async () => {
    await assertRejects(() => Device.open("gpu" as "cpu"), RangeError, 'found "gpu"');
    for (const threads of [0, -1, 1.5, NaN, 100000]) {
      await assertRejects(() => Device.open("cpu", { threads }), RangeError, `found ${threads}`);
    }
    const level = "v9" as "v3";
    await assertRejects(() => Device.open("cpu", { level }), RangeError, 'found "v9"');
    if ((await loadNative()).info().cuda_status !== 0) {
      await assertRejects(() => Device.open("cuda"), NativeError);
      using device = await Device.open("auto");
      assertEquals(device.kind, "cpu");
    }
  });

  it("measures rates above those of an abacus", { timeout: 60_000 }, async () => {
    using device = await Device.open("cpu");
    const { read_bytes_s, read_median_bytes_s, f32_flop_s, bf16_dot_op_s, int8_dot_op_s } =
      await device.measure();
    assert(read_bytes_s > 1e8 && read_bytes_s < 1e13, `${read_bytes_s} bytes/s`);
    assert(read_median_bytes_s > 0 && read_median_bytes_s < read_bytes_s * 1.5);
    assert(f32_flop_s > 1e8 && f32_flop_s < 1e15, `${f32_flop_s} flop/s`);
    assert(bf16_dot_op_s >= 0 && int8_dot_op_s > 1e8);
  });
});

describe("Buffer", () => {
  it("reads and writes any view, and knows its bounds", async () => {
    using device = await Device.open("cpu", { threads: 1 });
    using buffer = device.createBuffer(64);
    buffer.write(8, Float32Array.of(1.5, -2));
    const out = new Float32Array(3);
    buffer.read(4, out);
    assertEquals([...out], [0, 1.5, -2]);
    assertThrows(() => buffer.read(56, out), RangeError);
    assertThrows(() => buffer.write(64, new Uint8Array(1)), RangeError);
    for (const bytes of [0, -1, 0.5, NaN, 2 ** 60]) {
      assertThrows(() => device.createBuffer(bytes), RangeError, `found ${bytes} bytes`);
    }
  });

  it("is an error to use after dispose", async () => {
    using device = await Device.open("cpu", { threads: 1 });
    const buffer = device.createBuffer(64);
    const { n_buffers } = device.memoryUsage();
    buffer.dispose();
    buffer.dispose();
    assert(buffer.disposed);
    assertEquals(device.memoryUsage().n_buffers, n_buffers - 1);
    const byte = new Uint8Array(1);
    assertThrows(
      () => buffer.read(0, byte),
      TypeError,
      "Cannot use a Buffer after it was disposed",
    );
    assertThrows(
      () => buffer.write(0, byte),
      TypeError,
      "Cannot use a Buffer after it was disposed",
    );
    assertThrows(() => buffer.handle, Error, "after it was disposed");
  });
});
