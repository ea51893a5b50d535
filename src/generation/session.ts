/** A generation's native side: the cache, prefill, and the plans that choose ids. */

import type { SamplingFields } from "../graph/step.ts";
import { scan_chunk } from "../native/bindings.gen.ts";
import { cutIntoRuns } from "../modeling/batch.ts";
import { HybridMambaAttentionDynamicCache } from "../modeling/cache.ts";
import { prefillChunk } from "../modeling/call.ts";
import { bucket, type Kept, runCapacity, type TailOp } from "../modeling/plans.ts";
import { readRows } from "../modeling/rows.ts";
import { rising, type RunSequence, type StartedRun, startRun } from "../modeling/run.ts";
import type { ModelRuntime } from "../modeling/runtime.ts";
import type { ResolvedOptions } from "./options.ts";

/** One row of a running generation. */
export interface Row {
  /** Prompt and new ids, without padding. */
  readonly ids: number[];
  /** How many of them are the prompt's. */
  readonly prompt: number;
  finished: boolean;
}

/** Scores of all rows, (rows, vocab_size). */
export type Scores = Float32Array[];

/** Rows, cache and plans of one generation. Dispose of it when done. */
export class Session {
  readonly cache: HybridMambaAttentionDynamicCache;
  readonly rows: Row[];
  readonly #owns_cache: boolean;
  readonly #min_new_tokens: number;
  #kept = false;

  /**
   * @param prompts ids of each row
   * @param columns length of the caller's rows, padding included: what `min_length` counts
   * @throws {RangeError} when past_key_values does not fit the rows
   */
  constructor(
    readonly runtime: ModelRuntime,
    readonly options: ResolvedOptions,
    prompts: readonly (readonly number[])[],
    columns: number,
  ) {
    const { min_new_tokens, min_length } = options;
    this.#min_new_tokens = Math.max(0, min_new_tokens ?? 0, min_length - columns);
    this.rows = prompts.map((ids) => ({ ids: [...ids], prompt: ids.length, finished: false }));
    const given = options.inputs.past_key_values;
    this.#owns_cache = given === undefined;
    this.cache = given ??
      new HybridMambaAttentionDynamicCache(runtime.device, runtime.layout, prompts.length);
    if (given) this.#checkGiven(given);
    this.cache.acquire();
  }

  /** Each row's ids so far, for functions of the caller: copies, which they may change. */
  get input_ids(): number[][] {
    return this.rows.map((row) => [...row.ids]);
  }

  /** Whether penalties or bans apply before custom processors. */
  get processes(): boolean {
    const { repetition_penalty, no_repeat_ngram_size, bad_words_ids } = this.options;
    return repetition_penalty !== 1 || no_repeat_ngram_size > 0 || !!bad_words_ids?.length ||
      (this.#min_new_tokens > 0 && this.options.eos_ids.length > 0);
  }

  /** Whether temperature, top-k and their kin apply. */
  get warps(): boolean {
    return this.options.do_sample;
  }

  /**
   * Runs the prompts through the model.
   *
   * @param chooses let the last run choose each row's next id, where all rows end in it
   * @returns the chosen ids, or else the logits after each row's last id
   */
  async prefill(
    signal?: AbortSignal,
    chooses = false,
  ): Promise<{ scores: Scores; ids?: number[] }> {
    const { runtime, cache } = this;
    const past = [...cache.lengths];
    const counts = this.rows.map((row, r) => row.ids.length - past[r]);
    cache.reserve(this.rows.map((row) => row.ids.length));
    const scores: Scores = [];
    const chunk = prefillChunk(this.options.inputs.prefill_chunk_size, runtime.device);
    for (const pieces of cutIntoRuns(counts, past, chunk, scan_chunk)) {
      const last = pieces.map((p) => p.begin + p.count === counts[p.sequence]);
      const finished = last.filter(Boolean).length;
      const ids: number[] | undefined = chooses && finished === this.rows.length ? [] : undefined;
      const sequences = pieces.map((piece, i): RunSequence => {
        const start = past[piece.sequence] + piece.begin;
        return {
          row: piece.sequence,
          past: start,
          ids: this.rows[piece.sequence].ids.slice(start, start + piece.count),
          positions: rising(start, piece.count),
          logit_rows: last[i] ? [piece.count - 1] : [],
          sampling: ids && this.#sampling(this.rows[piece.sequence], piece.sequence),
          history: ids && this.processes ? this.rows[piece.sequence].ids : undefined,
        };
      });
      const plan = runtime.plans.get({
        ...runCapacity(pieces, finished, runtime.batch_invariant),
        ...(ids ? { tail: this.choosingTail() } : { keep: ["logits"] }),
      });
      const run = startRun(runtime, {
        plan,
        cache,
        sequences,
        sample: ids !== undefined,
        ...(ids ? this.#rules() : {}),
      });
      const rows = await this.#finish(run, "logits", plan.outputs, finished, signal, ids);
      let next = 0;
      for (const [i, piece] of pieces.entries()) {
        if (last[i]) scores[piece.sequence] = rows[next++];
        cache.lengths[piece.sequence] += piece.count;
      }
      if (ids) {
        const by_row: number[] = [];
        for (const [i, { sequence }] of pieces.entries()) by_row[sequence] = ids[i];
        return { scores: [], ids: by_row };
      }
    }
    return { scores };
  }

  /** Feeds each row's last id. @returns logits (or what `tail` makes of them) after it */
  async step(tail: readonly TailOp[] = [], signal?: AbortSignal): Promise<Scores> {
    const { runtime, cache } = this;
    cache.reserve(cache.lengths.map((n) => n + 1));
    const plan = runtime.plans.get({
      capacity: this.#capacity(),
      decode: true,
      tail,
      keep: ["scores"],
    });
    const sequences = this.#sequences(tail.includes("logits_process"));
    const run = startRun(runtime, { plan, cache, sequences, ...this.#rules() });
    const rows = await this.#finish(run, "scores", plan.outputs, this.rows.length, signal);
    for (const [r, row] of this.rows.entries()) if (!row.finished) cache.lengths[r]++;
    return rows;
  }

  /** Starts a job that decodes `n_steps` ids a row without coming back here. */
  decode(n_steps: number, ring_steps: number): StartedRun {
    const { runtime, cache } = this;
    cache.reserve(cache.lengths.map((n) => n + n_steps));
    const plan = runtime.plans.get({
      capacity: this.#capacity(),
      decode: true,
      tail: this.choosingTail(),
    });
    return startRun(runtime, {
      plan,
      cache,
      sequences: this.#sequences(this.processes),
      n_steps,
      ring_steps,
      sample: true,
      ...this.#rules(),
    });
  }

  /** What stands between logits and the chosen id. */
  choosingTail(): TailOp[] {
    const tail: TailOp[] = [];
    if (this.processes) tail.push("logits_process");
    if (this.warps) tail.push("logits_warp");
    return [...tail, "sample"];
  }

  /**
   * Applies `tail` to scores; with "sample" in it, also chooses each row's next id.
   *
   * @param changes of the options' rules, for this time
   */
  async transform(
    scores: Scores,
    tail: readonly TailOp[],
    signal?: AbortSignal,
    changes: Partial<SamplingFields> = {},
  ): Promise<{ scores: Scores; ids: number[] }> {
    const { runtime, cache } = this;
    const keep: Kept[] = ["scores"];
    const plan = runtime.plans.get({ capacity: this.#capacity(), source: "scores", tail, keep });
    const sample = tail.includes("sample");
    const run = startRun(runtime, {
      plan,
      cache,
      sequences: this.#sequences(tail.includes("logits_process"), changes),
      sample,
      ...this.#rules(),
      fill: (shared) => {
        const place = plan.inputs.get("scores")!;
        for (const [r, row] of scores.entries()) {
          const bytes = new Uint8Array(row.buffer, row.byteOffset, row.byteLength);
          shared.buffer.write(place.offset + r * place.row_bytes, bytes);
        }
      },
    });
    const ids: number[] = [];
    const rows = await this.#finish(run, "scores", plan.outputs, this.rows.length, signal, ids);
    return { scores: rows, ids };
  }

  /** Leaves the cache to the caller, who asked for it. */
  keepCache(): HybridMambaAttentionDynamicCache {
    this.#kept = true;
    return this.cache;
  }

  /** @param failed the cache may be torn: a run was stopped in its middle */
  dispose(failed = false): void {
    this.cache.release();
    if (failed || (this.#owns_cache && !this.#kept)) this.cache.dispose();
  }

  async #finish(
    { job, shared }: StartedRun,
    name: string,
    places: ReadonlyMap<string, Parameters<typeof readRows>[0]["place"]>,
    count: number,
    signal: AbortSignal | undefined,
    sampled?: number[],
  ): Promise<Scores> {
    try {
      for (;;) {
        const { state, values } = await job.next(signal);
        sampled?.push(...values);
        if (state === "done") break;
        if (state === "cancelled") signal?.throwIfAborted();
      }
      const place = places.get(name);
      if (place === undefined) return [];
      const targets = new Array<number>(count).fill(0);
      const all = readRows({ shared: shared!, place, targets });
      return targets.map((_, r) => all.subarray(r * place.columns, (r + 1) * place.columns));
    } finally {
      shared?.settle();
      await job.close();
    }
  }

  #capacity() {
    const rows = bucket(this.rows.length);
    return { tokens: rows, seqs: rows, logits: rows };
  }

  /** Every row with its last id. */
  #sequences(history: boolean, changes: Partial<SamplingFields> = {}): RunSequence[] {
    return this.rows.map((row, r) => ({
      row: r,
      past: this.cache.lengths[r],
      ids: [row.ids[row.ids.length - 1]],
      positions: [this.cache.lengths[r]],
      logit_rows: [0],
      sampling: { ...this.#sampling(row, r), ...changes },
      history: history ? row.ids : undefined,
    }));
  }

  #rules() {
    const { eos_ids, bad_words_ids, pad_id } = this.options;
    return { eos_ids, bad_words_ids: bad_words_ids ?? undefined, pad_id };
  }

  #sampling(row: Row, stream: number): SamplingFields {
    const { options } = this;
    return {
      do_sample: Number(options.do_sample),
      top_k: options.top_k && Math.max(options.top_k, options.min_tokens_to_keep),
      temperature: options.temperature,
      top_p: options.top_p,
      min_p: options.min_p ?? 0,
      typical_p: options.typical_p,
      repetition_penalty: options.repetition_penalty,
      no_repeat_ngram_size: options.no_repeat_ngram_size,
      min_new_tokens: this.#min_new_tokens,
      generated: row.ids.length - row.prompt,
      seed_lo: options.seed_words[0],
      seed_hi: options.seed_words[1],
      stream,
      finished: Number(row.finished),
    };
  }

  #checkGiven(cache: HybridMambaAttentionDynamicCache): void {
    cache.checkFits(this.runtime.layout);
    if (cache.batch_size !== this.rows.length) {
      throw new RangeError(
        `Expected past_key_values for ${this.rows.length} rows but found one for ` +
          `${cache.batch_size}`,
      );
    }
    for (const [r, row] of this.rows.entries()) {
      if (cache.lengths[r] >= row.ids.length) {
        throw new RangeError(
          `Expected input_ids row ${r} to go on after the ${cache.lengths[r]} tokens of ` +
            `past_key_values but found ${row.ids.length} in all`,
        );
      }
    }
  }
}
