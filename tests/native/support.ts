/** A device and a long run of a tiny plan, for the tests of this folder. */

import { Device } from "../../src/device.ts";
import { Graph } from "../../src/graph/graph.ts";
import { Plan } from "../../src/graph/plan.ts";
import { encodeStep } from "../../src/graph/step.ts";
import { add, silu } from "../../src/ops/elementwise.ts";

/** A plan y = silu(x + x) over rows of this many columns. */
export const columns = 256;
const tokens = 64;

/** A device with a compiled plan and what its runs need. */
export interface TinyPlan {
  readonly device: Device;
  readonly plan: Plan;
  /** Starts a job that runs the plan `n_steps` times; x is the output buffer's first region. */
  start(n_steps: number, output: number): ReturnType<Device["native"]["startJob"]>;
  /** A buffer for x and y. */
  createOutput(): ReturnType<Device["createBuffer"]>;
  /** The step buffer of one run. */
  readonly step: Uint8Array;
  [Symbol.dispose](): void;
}

/** Compiles the tiny plan on a CPU device. */
export async function tinyPlan(threads = 1): Promise<TinyPlan> {
  const device = await Device.open("cpu", { threads });
  const graph = new Graph({ capacity: { tokens, seqs: 1, logits: 1 } });
  const x = graph.input("x", "tokens", columns);
  graph.output("y", silu(add(x, x)));
  const plan = Plan.create(device, graph, { slot_bytes: 0, page_bytes: 0, vocab_size: 10 });
  const count = { length: tokens };
  const step = encodeStep({
    positions: Array.from(count, (_, i) => i),
    seq_of_token: new Array(tokens).fill(0),
    seq_start: [0, tokens],
    past_len: [0],
    slots: [0],
    pages: [0],
    logit_rows: [tokens - 1],
  }, { max_pages: 1 });
  return {
    device,
    plan,
    step,
    createOutput: () => device.createBuffer(plan.external_bytes),
    start: (n_steps, output) =>
      device.native.startJob(
        { kind: "run", device: device.handle, plan: plan.handle, output, n_steps },
        step,
      ),
    [Symbol.dispose]() {
      plan.dispose();
      device.dispose();
    },
  };
}
