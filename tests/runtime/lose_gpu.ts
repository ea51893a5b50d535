/**
 * A program, for Bun: a foreign kernel in the same context writes where it must not, after which the GPU
 * is lost to this process. The library must say so, and everything else must go on.
 */

import process from "node:process";
import { assert, assertRejects } from "@std/assert";
import { AutoModelForCausalLM, Device } from "../../mod.ts";
import { folder } from "../generation/support.ts";

const { dlopen, ptr } = await import("bun:ffi");
const { symbols: cuda } = dlopen("libcuda.so.1", {
  cuDevicePrimaryCtxRetain: { args: ["ptr", "i32"], returns: "i32" },
  cuCtxSetCurrent: { args: ["u64"], returns: "i32" },
  cuModuleLoadData: { args: ["ptr", "ptr"], returns: "i32" },
  cuModuleGetFunction: { args: ["ptr", "u64", "ptr"], returns: "i32" },
  cuLaunchKernel: {
    args: ["u64", "u32", "u32", "u32", "u32", "u32", "u32", "u32", "u64", "u64", "u64"],
    returns: "i32",
  },
  cuCtxSynchronize: { args: [], returns: "i32" },
});

const text = (s: string) => new TextEncoder().encode(s + "\0");
const handle = () => new BigUint64Array(1);

/** Writes to address 16. @returns the driver's word on it */
function writeAstray(): number {
  const [context, module, kernel] = [handle(), handle(), handle()];
  const ptx = text(
    ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry astray()\n" +
      "{ .reg .b64 %a; .reg .b32 %v; mov.b64 %a, 16; mov.b32 %v, 1; st.global.b32 [%a], %v; ret; }",
  );
  const name = text("astray");
  const results = [
    cuda.cuDevicePrimaryCtxRetain(ptr(context), 0),
    cuda.cuCtxSetCurrent(context[0]),
    cuda.cuModuleLoadData(ptr(module), ptr(ptx)),
    cuda.cuModuleGetFunction(ptr(kernel), module[0], ptr(name)),
    cuda.cuLaunchKernel(kernel[0], 1, 1, 1, 1, 1, 1, 0, 0n, 0n, 0n),
  ];
  assert(results.every((result) => result === 0), `a kernel to start: ${results}`);
  return cuda.cuCtxSynchronize();
}

const prompt = { input_ids: [[1, 67, 707, 1208, 268]], max_new_tokens: 20, do_sample: false };
const model = await AutoModelForCausalLM.from_pretrained(folder, { device: "cuda" });
await model.generate(prompt);
const result = writeAstray();
assert(result !== 0, "an illegal write that the driver noticed");
for (let i = 0; i < 3; i++) {
  const error = await assertRejects(() => model.generate(prompt));
  assert(/GPU 0 failed .*illegal memory access/.test(String(error)), String(error));
}
model.dispose();
await assertRejects(async () => {
  using again = await AutoModelForCausalLM.from_pretrained(folder, { device: "cuda" });
  await again.generate(prompt);
});
using cpu = await AutoModelForCausalLM.from_pretrained(folder, { device: "cpu" });
const [ids] = await cpu.generate(prompt);
using device = await Device.open("cpu");
assert(ids.length > 5 && device.info().total_memory > 0, "a CPU that works");
console.log("the loss was told");
process.exit(0);
