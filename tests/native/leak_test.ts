import { assertEquals, assertLess, assertMatch } from "@std/assert";
import process from "node:process";
import { it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Device } from "../../src/device.ts";

const leaked = 4;

/** Makes buffers and forgets them, in a frame of its own so that nothing on the stack keeps them. */
function forgetBuffers(device: Device): void {
  for (let i = 0; i < leaked; i++) device.createBuffer(1000 + i);
}

it("frees what was forgotten, and warns", { timeout: 60_000 }, async () => {
  using device = await Device.open("cpu", { threads: 1 });
  using kept = device.createBuffer(10);
  const { n_buffers } = device.memoryUsage();
  const warnings: string[] = [];
  const listen = ({ message }: Error) => warnings.push(message);
  process.on("warning", listen);
  forgetBuffers(device);
  assertEquals(device.memoryUsage().n_buffers, n_buffers + leaked);
  // There is no call for a collection that both runtimes have: garbage brings one about.
  let garbage: object[] = [];
  for (let i = 0; i < 2000 && device.memoryUsage().n_buffers === n_buffers + leaked; i++) {
    garbage = Array.from({ length: 100_000 }, () => ({ i }));
    await sleep(1);
  }
  await sleep(10);
  process.off("warning", listen);
  assertEquals(garbage.length, 100_000);
  assertLess(device.memoryUsage().n_buffers, n_buffers + leaked);
  assertMatch(warnings[0], /Leaked a Buffer of 100\d bytes: .*hold it with `using`/);
  kept.write(0, new Uint8Array(10));
});
