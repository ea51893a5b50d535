/** Loading the model that a command line names. */
import process from "node:process";
import type { ModelFlags } from "./options.ts";
import { modelFolder } from "./place.ts";

/**
 * Loads tokenizer and model. On a terminal, stderr shows how far the weights are.
 *
 * @param signal stops the loading
 */
export async function loadModel(flags: ModelFlags, signal: AbortSignal) {
  const folder = modelFolder(flags.model);
  // only now: a wrong command line is answered without loading the library's code
  const { AutoModelForCausalLM, AutoTokenizer } = await import("../../mod.ts");
  const tokenizer = await AutoTokenizer.from_pretrained(folder);
  const show = process.stderr.isTTY;
  const model = await AutoModelForCausalLM.from_pretrained(folder, {
    dtype: flags.dtype,
    ...(flags.quantize ? { quantization_config: { type: flags.quantize } } : {}),
    batch_invariant: flags.batchInvariant,
    cache_dtype: flags.cacheDtype,
    state_dtype: flags.stateDtype,
    device: flags.device,
    threads: flags.threads,
    signal,
    ...(show ? { progress_callback: showProgress } : {}),
  });
  if (show) process.stderr.write("\r\x1b[K");
  return { tokenizer, model };
}

function showProgress({ loaded, total }: { loaded: number; total: number }): void {
  const percent = total ? Math.floor(100 * loaded / total) : 100;
  process.stderr.write(`\rloading ${percent} %`);
}
