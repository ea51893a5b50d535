/** What `cuda` means on a machine without driver, without GPU, or with a library built without. */

import { describe, it } from "node:test";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { Device, type DeviceName } from "../../src/device.ts";
import { loadNative } from "../../src/native/ffi.ts";

const { cuda_status } = (await loadNative()).info();
const sentences: Record<number, RegExp> = {
  [-9]: /library built with CUDA but found one built without: run \.\/dev build --cuda on/,
  [-101]: /Expected a CUDA GPU but found no NVIDIA driver: libcuda\.so\.1 is not there/,
  [-102]: /older than version 525/,
  [-103]: /shows no GPU/,
};

describe("device cuda", () => {
  it("opens, or says in one sentence why it does not", async () => {
    if (cuda_status === 0) {
      using device = await Device.open("cuda");
      const { cpu_name, total_memory, available_memory } = device.info();
      assertEquals([device.kind, device.ordinal], ["cuda", 0]);
      assert(cpu_name.length > 0 && total_memory > 2 ** 30, `${cpu_name} of ${total_memory} bytes`);
      assert(available_memory > 0 && available_memory <= total_memory, `${available_memory}`);
      return;
    }
    assert(cuda_status in sentences, `a status that means something but found ${cuda_status}`);
    const error = await assertRejects(() => Device.open("cuda"));
    assert(sentences[cuda_status].test(String(error)), String(error));
  });

  it("is what auto takes where it is usable, and the CPU elsewhere", async () => {
    using device = await Device.open("auto");
    assertEquals(device.kind, cuda_status === 0 ? "cuda" : "cpu");
  });

  it("leaves the CPU usable after it was refused", async () => {
    const name: DeviceName = "cuda:99";
    await assertRejects(() => Device.open(name));
    using device = await Device.open("cpu");
    using buffer = device.createBuffer(64);
    buffer.write(0, Float32Array.of(1, 2));
    const out = new Float32Array(2);
    buffer.read(0, out);
    assertEquals([...out], [1, 2]);
  });

  it("keeps what a buffer is given", async () => {
    if (cuda_status !== 0) return;
    using device = await Device.open("cuda");
    const before = device.memoryUsage().allocated;
    {
      using buffer = device.createBuffer(1 << 20);
      const data = Uint32Array.from({ length: 1 << 18 }, (_, i) => i * 2654435761);
      buffer.write(0, data);
      const out = new Uint32Array(data.length);
      buffer.read(0, out);
      assertEquals(out, data);
    }
    assertEquals(device.memoryUsage().allocated, before);
    const { total_memory } = device.info();
    const error = await assertRejects(() =>
      Promise.resolve().then(() => device.createBuffer(total_memory * 2))
    );
    assert(/of GPU memory for a buffer but found/.test(String(error)), String(error));
  });
});
