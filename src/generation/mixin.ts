/** Gives a model with a head `generate` and `stream`. HF's GenerationMixin. */

import { isGguf } from "../gguf/checkpoint.ts";
import { Tensor } from "../graph/tensor.ts";
import type { HybridMambaAttentionDynamicCache } from "../modeling/cache.ts";
import { PreTrainedModel } from "../modeling/pretrained.ts";
import { IncrementalDecoder } from "../tokenizer/mod.ts";
import { beamSearch } from "./beam.ts";
import { GenerationConfig } from "./config.ts";
import { decodeSteps, type Recorded } from "./decode.ts";
import { type GenerateInputs, type ResolvedOptions, resolveOptions } from "./options.ts";
import { type Prompt, readPrompt } from "./prompt.ts";
import { type Scores, Session } from "./session.ts";

/** What `generate` gives with `return_dict_in_generate`. */
export interface GenerateOutput {
  /** Prompt and new ids of each row, padded with `pad_token_id` to one length. */
  sequences: number[][];
  /** Processed scores of each step, (rows, vocab_size), with `output_scores`. */
  scores?: Tensor[];
  /** Unprocessed logits of each step, (rows, vocab_size), with `output_logits`. */
  logits?: Tensor[];
  /** Beam search with `output_scores`: each sequence's score. */
  sequences_scores?: number[];
  /** Beam search with `output_scores`: the row each id came from. */
  beam_indices?: number[][];
  /**
   * Holds all ids of each row but its last; dispose of it. Rows that ended before the others cannot
   * be continued.
   */
  past_key_values: HybridMambaAttentionDynamicCache;
}

/** Steps that a stream's native job may be ahead of its reader. */
const stream_ring_steps = 8;

/** A model that can generate. */
export abstract class GenerationMixin extends PreTrainedModel {
  generation_config: GenerationConfig = new GenerationConfig();

  override get has_head(): boolean {
    return true;
  }

  protected override async afterLoad(dir: string): Promise<void> {
    this.generation_config = isGguf(dir) // which holds no generation_config.json
      ? GenerationConfig.from_model_config(this.config)
      : await GenerationConfig.from_pretrained(dir);
  }

  /**
   * Continues each row of `input_ids`.
   *
   * @returns prompt and new ids of every row, rows that end early padded with `pad_token_id`; HF's
   * dict with `return_dict_in_generate`
   * @throws {TypeError | RangeError} naming an unknown option, the nearest known one, or a value
   */
  generate(
    inputs?: GenerateInputs & { return_dict_in_generate?: false },
  ): Promise<number[][]>;
  generate(
    inputs: GenerateInputs & { return_dict_in_generate: true },
  ): Promise<GenerateOutput>;
  generate(inputs?: GenerateInputs): Promise<number[][] | GenerateOutput>;
  async generate(inputs: GenerateInputs = {}): Promise<number[][] | GenerateOutput> {
    const started = await this.#start("generate", inputs);
    const { session, options } = started;
    let failed = true;
    try {
      const output = options.num_beams > 1 ? await beams(started) : await rows(started);
      if (options.return_dict_in_generate) output.past_key_values = session.keepCache();
      failed = false;
      return options.return_dict_in_generate ? output : output.sequences;
    } finally {
      session.dispose(failed);
    }
  }

  /**
   * Generates step by step. With a `tokenizer` each value is text (of a batch of one), which never
   * shows half a character; without one it is the step's ids, one a row.
   *
   * Leaving the loop early stops the generation and frees its memory.
   */
  stream(inputs: GenerateInputs & { tokenizer: object }): AsyncGenerator<string, void, void>;
  stream(inputs: GenerateInputs): AsyncGenerator<number[], void, void>;
  stream(inputs: GenerateInputs): AsyncGenerator<string | number[], void, void> {
    return this.#stream(inputs);
  }

  async *#stream(inputs: GenerateInputs): AsyncGenerator<string | number[], void, void> {
    const started = await this.#start("stream", inputs);
    const { session, options, max_new_tokens, recorded } = started;
    const exact = inputs.past_key_values !== undefined;
    let failed = true;
    try {
      if (options.num_beams > 1) {
        throw new TypeError("Expected num_beams of 1 in stream(): beams change their past");
      }
      const decoder = inputs.tokenizer ? textDecoder(session, inputs) : undefined;
      const run = { max_new_tokens, ring_steps: stream_ring_steps, exact, recorded };
      for await (const ids of decodeSteps(session, run)) {
        const piece = decoder ? decoder.push(ids[0]) : ids;
        failed = exact ? false : failed;
        if (piece !== "") yield piece;
      }
      failed = false;
      const rest = decoder?.end();
      if (rest) yield rest;
    } finally {
      session.dispose(failed && !exact);
    }
  }

  async #start(where: string, inputs: GenerateInputs): Promise<Started> {
    const runtime = this.runtime;
    const options = resolveOptions(where, inputs, this.generation_config);
    inputs.signal?.throwIfAborted();
    const prompt = await readPrompt(options, this.config.vocab_size);
    const copies = options.num_beams > 1 ? options.num_beams : options.num_return_sequences;
    const expand = <T>(list: readonly T[]) =>
      list.flatMap((item) => new Array<T>(copies).fill(item));
    if (copies > 1 && inputs.past_key_values) {
      throw new RangeError(
        "Expected no past_key_values with num_beams or num_return_sequences above 1",
      );
    }
    const max_new_tokens = options.max_new_tokens ?? options.max_length - prompt.columns;
    if (max_new_tokens < 1) {
      throw new RangeError(
        `Expected max_length above the ${prompt.columns} ids of the input but found ` +
          `${options.max_length}: set max_new_tokens`,
      );
    }
    const session = new Session(runtime, options, expand(prompt.rows), prompt.columns);
    const recorded: Recorded = { scores: [], logits: [] };
    return { session, options, prompt, expand, max_new_tokens, recorded };
  }
}

interface Started {
  readonly session: Session;
  readonly options: ResolvedOptions;
  readonly prompt: Prompt;
  /** Repeats a row for each beam or returned sequence. */
  readonly expand: <T>(list: readonly T[]) => T[];
  readonly max_new_tokens: number;
  readonly recorded: Recorded;
}

function textDecoder(session: Session, inputs: GenerateInputs): IncrementalDecoder {
  if (session.rows.length !== 1) {
    throw new RangeError(
      `Expected one row for a stream of text but found ${session.rows.length}: leave out the ` +
        "tokenizer to get ids",
    );
  }
  const { skip_special_tokens = true } = inputs;
  // deno-lint-ignore no-explicit-any -- the decoder asks for its own tokenizer class
  return new IncrementalDecoder(inputs.tokenizer as any, { skip_special_tokens });
}

/** Greedy decoding and sampling. */
async function rows(started: Started): Promise<GenerateOutput> {
  const { session, options, prompt, expand, max_new_tokens, recorded } = started;
  const { streamer, past_key_values } = options.inputs;
  if (streamer && session.rows.length !== 1) {
    throw new RangeError(
      `Expected one row with a streamer but found ${session.rows.length}`,
    );
  }
  const sequences = expand(prompt.frame).map((ids) => [...ids]);
  streamer?.put([...sequences[0]]);
  const exact = past_key_values !== undefined && options.stop_strings !== null;
  const run = { max_new_tokens, ring_steps: streamer ? stream_ring_steps : 0, exact, recorded };
  for await (const ids of decodeSteps(session, run)) {
    for (const [r, id] of ids.entries()) sequences[r].push(id);
    streamer?.put([...ids]);
  }
  streamer?.end();
  return output(session, sequences, recorded);
}

async function beams(started: Started): Promise<GenerateOutput> {
  const { session, options, prompt, max_new_tokens, recorded } = started;
  const results = await beamSearch(session, max_new_tokens, recorded);
  const prompt_lengths = prompt.rows.map((ids) => ids.length);
  const flat = results.flatMap((list, p) =>
    list.map((result) => ({ ...result, row: p, new_ids: result.ids.slice(prompt_lengths[p]) }))
  );
  const longest = Math.max(...flat.map((result) => result.new_ids.length));
  const sequences = flat.map(({ row, new_ids }) => {
    const padding = new Array<number>(longest - new_ids.length).fill(options.pad_id);
    return [...prompt.frame[row], ...new_ids, ...padding];
  });
  const made = output(session, sequences, recorded);
  if (options.output_scores) {
    made.sequences_scores = flat.map((result) => result.score);
    made.beam_indices = flat.map(({ trail }) => [
      ...trail,
      ...new Array<number>(longest - trail.length).fill(-1),
    ]);
  }
  return made;
}

function output(session: Session, sequences: number[][], recorded: Recorded): GenerateOutput {
  const { options, cache } = session;
  const tensors = (steps: readonly Scores[]) =>
    steps.map((step) => {
      const data = new Float32Array(step.length * step[0].length);
      for (const [r, row] of step.entries()) data.set(row, r * row.length);
      return Tensor.from(data, [step.length, step[0].length]);
    });
  return {
    sequences,
    ...(options.output_scores ? { scores: tensors(recorded.scores) } : {}),
    ...(options.output_logits ? { logits: tensors(recorded.logits) } : {}),
    past_key_values: cache,
  };
}
