/** Names of Bamba's tensors in GGUF (arch granitehybrid) and in HF's checkpoints. */

/**
 * What GGUF files hold another way than HF's: rows of q and k with the two members of a rotating
 * pair beside each other, and A instead of its logarithm.
 */
export type Difference = "none" | "rope" | "decay";

/** A tensor under both names. */
export interface NamePair {
  /** With {} for the layer. */
  readonly hf: string;
  readonly gguf: string;
  readonly difference: Difference;
}

const pair = (hf: string, gguf: string, difference: Difference = "none"): NamePair => ({
  hf,
  gguf,
  difference,
});

/** A projection's weight and bias. */
const both = (hf: string, gguf: string, difference: Difference = "none"): NamePair[] =>
  ["weight", "bias"].map((part) => pair(`${hf}.${part}`, `${gguf}.${part}`, difference));

const in_layer = (pairs: NamePair[]): NamePair[] =>
  pairs.map(({ hf, gguf, difference }) =>
    pair(`model.layers.{}.${hf}`, `blk.{}.${gguf}`, difference)
  );

/** In the order in which files have them: the embedding, one layer after another, the head. */
const before_layers = [pair("model.embed_tokens.weight", "token_embd.weight")];
const of_layer = in_layer([
  pair("input_layernorm.weight", "attn_norm.weight"),
  ...both("self_attn.q_proj", "attn_q", "rope"),
  ...both("self_attn.k_proj", "attn_k", "rope"),
  ...both("self_attn.v_proj", "attn_v"),
  ...both("self_attn.o_proj", "attn_output"),
  ...both("mamba.in_proj", "ssm_in"),
  ...both("mamba.conv1d", "ssm_conv1d"),
  pair("mamba.dt_bias", "ssm_dt.bias"),
  pair("mamba.A_log", "ssm_a", "decay"),
  pair("mamba.D", "ssm_d"),
  pair("mamba.norm.weight", "ssm_norm.weight"),
  ...both("mamba.out_proj", "ssm_out"),
  pair("pre_ff_layernorm.weight", "ffn_norm.weight"),
  ...both("feed_forward.gate_proj", "ffn_gate"),
  ...both("feed_forward.up_proj", "ffn_up"),
  ...both("feed_forward.down_proj", "ffn_down"),
]);
const after_layers = [
  pair("model.final_layernorm.weight", "output_norm.weight"),
  pair("lm_head.weight", "output.weight"),
];

const by_gguf = new Map(
  [...before_layers, ...of_layer, ...after_layers].map((found) => [found.gguf, found]),
);

const by_hf = new Map(
  [...before_layers, ...of_layer, ...after_layers].map((found) => [found.hf, found]),
);

/** Every pair of a model with so many layers, in the order of a file. */
export function namePairs(num_hidden_layers: number): NamePair[] {
  const layers = Array.from(
    { length: num_hidden_layers },
    (_, i) =>
      of_layer.map(({ hf, gguf, difference }) =>
        pair(hf.replace("{}", `${i}`), gguf.replace("{}", `${i}`), difference)
      ),
  );
  return [...before_layers, ...layers.flat(), ...after_layers];
}

/** GGUF's name for a tensor of HF's, or undefined where there is none. */
export function toGguf(name: string): string | undefined {
  const layer = /^model\.layers\.(\d{1,5})\./.exec(name)?.[1] ?? "";
  return by_hf.get(name.replace(/^model\.layers\.\d+\./, "model.layers.{}."))?.gguf
    .replace("{}", layer);
}

/** HF's name for a tensor of a file, or undefined where it is none of Bamba's. */
export function fromGguf(name: string): NamePair | undefined {
  const layer = /^blk\.(\d{1,5})\./.exec(name)?.[1];
  const found = by_gguf.get(layer === undefined ? name : name.replace(/^blk\.\d+\./, "blk.{}."));
  if (found === undefined || layer === undefined) return found;
  return pair(found.hf.replace("{}", layer), name, found.difference);
}
