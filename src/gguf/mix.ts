/**
 * Which type each tensor gets: the choices of llama.cpp for a whole file's type, and more bits for
 * the projections around the state space, which suffer most. Of wordnet-8m's loss over bf16's,
 * 0.072 with llama.cpp's choices for q4_k_m, a third came from ssm_out and a third from ssm_in.
 */

import { tensor_types } from "./format.ts";

/** Types of files by our names, with `general.file_type` and the type of most matrices. */
export const file_types = {
  f32: { id: 0, most: "F32" },
  f16: { id: 1, most: "F16" },
  bf16: { id: 32, most: "BF16" },
  q8_0: { id: 7, most: "Q8_0" },
  q4_0: { id: 2, most: "Q4_0" },
  q4_k_s: { id: 14, most: "Q4_K" },
  q4_k_m: { id: 15, most: "Q4_K" },
  q5_k_s: { id: 16, most: "Q5_K" },
  q5_k_m: { id: 17, most: "Q5_K" },
  q6_k: { id: 18, most: "Q6_K" },
} as const;

/** The type of a whole file. */
export type FileType = keyof typeof file_types;

/** A tensor whose type is to be chosen. */
export interface Candidate {
  /** GGUF's name. */
  readonly name: string;
  /** As the file will have it: rows first, columns last. */
  readonly shape: readonly number[];
}

/** @throws {RangeError} naming the known types */
export function checkFileType(type: string): FileType {
  if (Object.hasOwn(file_types, type)) return type as FileType;
  throw new RangeError(
    `Expected type to be one of ${Object.keys(file_types).join(", ")} but found "${type}"`,
  );
}

/** Layers at both ends and every third between them get more bits. */
function getsMoreBits(i: number, n: number): boolean {
  const eighth = Math.floor(n / 8);
  return i < eighth || i >= Math.floor(7 * n / 8) || (i - eighth) % 3 === 2;
}

/** Types of the projections around the state space, where they are not those of most matrices. */
const around_state: Readonly<Partial<Record<FileType, readonly [string, string][]>>> = {
  q4_0: [["ssm_out.weight", "Q6_K"]],
  q4_k_m: [["ssm_out.weight", "Q6_K"], ["ssm_in.weight", "Q5_K"]],
  q5_k_m: [["ssm_out.weight", "Q6_K"]],
  q6_k: [["ssm_out.weight", "Q8_0"]],
};

/** Whether a tensor is a matrix of a projection or table: all others stay f32. */
function isMatrix({ name, shape }: Candidate): boolean {
  const small = /_norm\.weight$|ssm_conv1d/.test(name);
  return shape.length === 2 && name.endsWith(".weight") && !small;
}

/** The nearest type whose blocks fit a row; more bits rather than fewer. */
function fitting(type: string, columns: number): string {
  if (columns % tensor_types[type].columns === 0) return type;
  return columns % tensor_types.Q8_0.columns === 0 ? "Q8_0" : "F16";
}

/**
 * The type of each tensor by name.
 *
 * @param tensors of a whole model, in the file's order
 */
export function chooseTypes(
  file_type: FileType,
  tensors: readonly Candidate[],
): Map<string, string> {
  const { most } = file_types[file_type];
  const is_tied = !tensors.some(({ name }) => name === "output.weight");
  const attn_v = tensors.filter(({ name }) => name.endsWith("attn_v.weight"));
  const ffn_down = tensors.filter(({ name }) => name.endsWith("ffn_down.weight"));
  const is_mix = file_type === "q4_k_m" || file_type === "q5_k_m";

  const choose = (tensor: Candidate): string => {
    const { name, shape } = tensor;
    if (!isMatrix(tensor)) return "F32";
    const columns = shape[1];
    if (tensor_types[most].columns === 1) return most;
    const is_head = name === "output.weight" || is_tied && name === "token_embd.weight";
    if (is_head) return fitting(most === "Q8_0" ? most : "Q6_K", columns);
    for (const list of [attn_v, ffn_down]) {
      const i = list.indexOf(tensor);
      if (i < 0) continue;
      if (is_mix && getsMoreBits(i, list.length)) return fitting("Q6_K", columns);
      const early = list === attn_v ? 4 : Math.floor(list.length / 8);
      if (file_type === "q4_k_s" && i < early) return fitting("Q5_K", columns);
    }
    const of_state = around_state[file_type]?.find(([part]) => name.endsWith(part));
    return fitting(of_state?.[1] ?? most, columns);
  };
  return new Map(tensors.map((tensor) => [tensor.name, choose(tensor)]));
}
