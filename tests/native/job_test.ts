import { assertEquals, assertGreater, assertLess, assertRejects } from "@std/assert";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { NativeError } from "../../src/native/error.ts";
import { columns, tinyPlan } from "./support.ts";

/** So many steps take minutes: a test that waits for them fails by its time. */
const endless = 2 ** 31;

describe("NativeJob", () => {
  it("runs a plan and counts its steps", async () => {
    using tiny = await tinyPlan();
    using output = tiny.createOutput();
    const { offset } = tiny.plan.inputs.get("x")!;
    const x = new Float32Array(64 * columns).fill(0.5);
    output.write(offset, x);
    await using job = tiny.start(3, output.handle);
    const seen: number[] = [];
    await job.finished(undefined, (done) => seen.push(done));
    assertEquals(seen.at(-1), 3);
    output.read(tiny.plan.outputs.get("y")!.offset, x);
    for (const y of x) assertLess(Math.abs(y - 1 / (1 + Math.exp(-1))), 1e-6);
    assertEquals((await job.next()).state, "done");
  });

  it("stops on abort with the signal's reason, and frees all", async () => {
    using tiny = await tinyPlan();
    using output = tiny.createOutput();
    const { n_jobs } = tiny.device.native.info();
    for (const delay_ms of [0, 1, 20]) {
      const job = tiny.start(endless, output.handle);
      const controller = new AbortController();
      const reason = new Error(`stop after ${delay_ms}`);
      setTimeout(() => controller.abort(reason), delay_ms);
      const begin = performance.now();
      assertEquals(await assertRejects(() => job.finished(controller.signal)), reason);
      assertLess(performance.now() - begin, 2000);
      await job.close();
    }
    const job = tiny.start(endless, output.handle);
    await assertRejects(() => job.next(AbortSignal.abort()), DOMException);
    await job.close();
    assertEquals(tiny.device.native.info().n_jobs, n_jobs);
  });

  it("tells a cancelled job from a finished one", async () => {
    using tiny = await tinyPlan();
    using output = tiny.createOutput();
    await using job = tiny.start(endless, output.handle);
    setTimeout(() => job.cancel(), 5);
    await assertRejects(() => job.finished(), NativeError, "cancelled");
    assertEquals((await job.next()).state, "cancelled");
    job.cancel();
  });

  it("may be disposed early, while it runs or is awaited", async () => {
    using tiny = await tinyPlan();
    using output = tiny.createOutput();
    const { n_jobs } = tiny.device.native.info();
    for (let i = 0; i < 20; i++) tiny.start(endless, output.handle)[Symbol.dispose]();
    const job = tiny.start(endless, output.handle);
    const awaited = assertRejects(() => job.finished(), Error, "disposed while it was awaited");
    await sleep(3);
    await job.close();
    await awaited;
    await assertRejects(() => job.next(), Error, "Cannot wait for a job that was disposed");
    await job.close();
    for (let i = 0; i < 500 && tiny.device.native.info().n_jobs > n_jobs; i++) await sleep(10);
    assertEquals(tiny.device.native.info().n_jobs, n_jobs);
  });

  it("outlives the buffer, the plan and the device it uses", async () => {
    const tiny = await tinyPlan();
    const output = tiny.createOutput();
    const { native } = tiny.device;
    const { n_buffers, n_plans } = native.info();
    const job = tiny.start(endless, output.handle);
    output.dispose();
    tiny[Symbol.dispose]();
    await sleep(20);
    assertEquals(await Promise.race([job.next(), sleep(20, "still running")]), "still running");
    await job.close();
    const after = native.info();
    assertEquals([after.n_buffers, after.n_plans], [n_buffers - 1, n_plans - 1]);
  });

  it("refuses a second wait at the same time", async () => {
    using tiny = await tinyPlan();
    using output = tiny.createOutput();
    await using job = tiny.start(endless, output.handle);
    const first = job.finished().catch(() => {});
    await assertRejects(() => job.next(), Error, "twice");
    await job.close();
    await first;
  });

  it("refuses step buffers and options that lie", async () => {
    using tiny = await tinyPlan();
    using output = tiny.createOutput();
    const { device, plan, step } = tiny;
    const start = (options: object, data: Uint8Array) =>
      device.native.startJob({
        kind: "run",
        device: device.handle,
        plan: plan.handle,
        output: output.handle,
        ...options,
      }, data);
    // Either the start or the first wait names what is wrong.
    const refused = async (options: object, data = step) => {
      const error = await assertRejects(async () => {
        await using job = start(options, data);
        await job.finished();
      });
      assertGreater(error.message.length, 10);
    };
    await refused({}, new Uint8Array());
    await refused({}, step.subarray(0, 50));
    await refused({}, new Uint8Array(step.length));
    await refused({ output: 0 });
    await refused({ plan: 0 });
    await refused({ plan: output.handle });
    await refused({ n_steps: 0 });
    using small = device.createBuffer(8);
    await refused({ output: small.handle });
  });

  it("leaves the event loop free", async () => {
    using tiny = await tinyPlan();
    using output = tiny.createOutput();
    await using job = tiny.start(endless, output.handle);
    const awaited = job.finished().catch(() => {});
    const gaps: number[] = [];
    let last = performance.now();
    const timer = setInterval(() => {
      const now = performance.now();
      gaps.push(now - last);
      last = now;
    }, 10);
    await sleep(600);
    clearInterval(timer);
    await job.close();
    await awaited;
    gaps.sort((a, b) => a - b);
    assertGreater(gaps.length, 15);
    assertLess(gaps[gaps.length >> 1], 30, `half of the timers of 10 ms came after ${gaps}`);
  });

  it("runs eight at once", async () => {
    using tiny = await tinyPlan(2);
    const runs = Array.from({ length: 8 }, async (_, i) => {
      using output = tiny.createOutput();
      const x = new Float32Array(64 * columns).fill(i);
      output.write(tiny.plan.inputs.get("x")!.offset, x);
      await using job = tiny.start(50, output.handle);
      await job.finished();
      output.read(tiny.plan.outputs.get("y")!.offset, x);
      return x[7];
    });
    for (const [i, y] of (await Promise.all(runs)).entries()) {
      assertLess(Math.abs(y - 2 * i / (1 + Math.exp(-2 * i))), 1e-5);
    }
  });
});
