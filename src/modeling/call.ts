/** `model.call({...})`: HF's `model(**inputs)` over recorded plans. */

import { scan_chunk } from "../native/bindings.gen.ts";
import type { DeviceKindName } from "../native/native.ts";
import { cutIntoRuns, type Piece } from "./batch.ts";
import { checkCall } from "./call_arguments.ts";
import type { CallInputs, CheckedCall } from "./call_inputs.ts";
import { ModelOutput } from "./outputs.ts";
import { type PlanRequest, runCapacity } from "./plans.ts";
import { Results } from "./results.ts";
import { narrow, type SharedBuffer } from "./rows.ts";
import { startRun } from "./run.ts";
import type { ModelRuntime } from "./runtime.ts";

/** A GPU is busy enough only with more tokens at a time. */
const chunk_defaults: Record<DeviceKindName, number> = { cpu: 512, cuda: 2048 };

/** Tokens run at once: `size` rounded up to whole scan chunks. @throws {RangeError} below 1 */
export function prefillChunk(
  size: number | undefined,
  { kind }: { readonly kind: DeviceKindName },
): number {
  size ??= chunk_defaults[kind];
  if (!Number.isInteger(size) || size < 1) {
    throw new RangeError(`Expected prefill_chunk_size of 1 or more but found ${size}`);
  }
  return Math.ceil(size / scan_chunk) * scan_chunk;
}

/**
 * Runs a forward pass.
 *
 * @throws {TypeError | RangeError} in sentences that name the argument and the value found
 */
export async function callModel(runtime: ModelRuntime, inputs: CallInputs): Promise<ModelOutput> {
  const call = await checkCall(runtime, inputs);
  const { cache, batch } = call;
  const given = inputs.past_key_values !== undefined;
  const results = new Results(runtime, call);
  cache.acquire();
  try {
    const counts = batch.sequences.map((s) => s.count);
    cache.reserve(counts.map((n, s) => call.past[s] + n));
    const chunk = prefillChunk(inputs.prefill_chunk_size, runtime.device);
    for (const pieces of cutIntoRuns(counts, call.past, chunk, scan_chunk)) {
      await runPieces(runtime, call, pieces, results);
    }
  } catch (error) {
    results.discard();
    if (!given || results.started) cache.dispose();
    throw error;
  } finally {
    cache.release();
  }
  for (const [s, { count }] of batch.sequences.entries()) cache.lengths[s] += count;
  const use_cache = inputs.use_cache ?? runtime.model.config.use_cache ?? true;
  const fields = await results.fields();
  if (given || (use_cache && !batch.packed)) fields.past_key_values = cache;
  else cache.dispose();
  return new ModelOutput(fields);
}

async function runPieces(
  runtime: ModelRuntime,
  call: CheckedCall,
  pieces: readonly Piece[],
  results: Results,
): Promise<void> {
  const { inputs, cache } = call;
  const sequences = pieces.map((piece) => results.sequence(piece));
  const logits = sequences.reduce((sum, s) => sum + s.logit_rows.length, 0);
  const sizes = runCapacity(pieces, logits, runtime.batch_invariant);
  const request: PlanRequest = { ...results.request, ...sizes };
  const plan = runtime.plans.get(request);
  const fill = call.embeds
    ? (shared: SharedBuffer) => {
      const place = plan.inputs.get("inputs_embeds")!;
      shared.buffer.write(place.offset, narrow(results.embedRows(pieces), place.dtype));
    }
    : undefined;
  const { job, shared } = startRun(runtime, { plan, cache, sequences, fill });
  results.started = true;
  try {
    await job.finished(inputs.signal);
  } catch (error) {
    shared?.settle();
    throw error;
  } finally {
    job[Symbol.dispose]();
  }
  if (shared) results.add(shared, plan.outputs, pieces, sequences);
}
