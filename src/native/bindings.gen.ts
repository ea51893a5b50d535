// Printed by `zig build bindings` from zig/command.zig; do not edit.

/** Hash of all declarations of zig/command.zig, compared with the library's at load. */
export const abi_hash = 2202517421;

export const revision = 1;
export const max_operands = 12;
export const max_attrs = 12;
export const absent = 4294967295;
export const panel = 16;
export const page_tokens = 64;
export const bf16_channels = 256;
export const scan_chunk = 64;
export const Status = {
  ok: 0,
  invalid: -1,
  version: -2,
  memory: -3,
  stale: -4,
  range: -5,
  type: -6,
  io: -7,
  cancelled: -8,
  unsupported: -9,
  device_lost: -10,
} as const;

export const DType = {
  f32: 0,
  bf16: 1,
  f16: 2,
  i32: 3,
  q8_0: 4,
  q4_0: 5,
  q4_k: 6,
  q5_k: 7,
  q6_k: 8,
  f8_e4m3: 9,
} as const;

export const Space = {
  weight: 0,
  arena: 1,
  output: 2,
  state: 3,
  kv: 4,
  step: 5,
} as const;

export const Rows = {
  fixed: 0,
  tokens: 1,
  seqs: 2,
  logits: 3,
} as const;

export const Layout = {
  row_major: 0,
  panel: 1,
} as const;

export const Operand = {
  size: 56,
  fields: {
    space: { offset: 0, type: "u32" },
    dtype: { offset: 4, type: "u32" },
    rows: { offset: 8, type: "u32" },
    layout: { offset: 12, type: "u32" },
    rank: { offset: 16, type: "u32" },
    shape: { offset: 20, type: "u32", length: 4 },
    row_stride: { offset: 36, type: "u32" },
    buffer: { offset: 40, type: "u32" },
    reserved: { offset: 44, type: "u32" },
    offset: { offset: 48, type: "u64" },
  },
} as const;

export const Op = {
  embedding: 0,
  linear: 1,
  gather_rows: 2,
  rms_norm: 3,
  rms_norm_gated: 4,
  swiglu: 5,
  add: 6,
  mul: 7,
  silu: 8,
  rotary_embedding: 9,
  rope: 10,
  causal_conv1d: 11,
  causal_conv1d_update: 12,
  ssm_scan: 13,
  ssm_update: 14,
  kv_append: 15,
  attention: 16,
  attention_probs: 17,
  log_softmax: 18,
  logits_process: 19,
  logits_warp: 20,
  sample: 21,
  cross_entropy: 22,
} as const;

export const Command = {
  size: 104,
  fields: {
    op: { offset: 0, type: "u32" },
    n_operands: { offset: 4, type: "u32" },
    operands: { offset: 8, type: "u32", length: 12 },
    attrs: { offset: 56, type: "u32", length: 12 },
  },
} as const;

export const plan_magic = 1347240258;
export const PlanHeader = {
  size: 64,
  fields: {
    magic: { offset: 0, type: "u32" },
    abi: { offset: 4, type: "u32" },
    n_operands: { offset: 8, type: "u32" },
    n_commands: { offset: 12, type: "u32" },
    max_tokens: { offset: 16, type: "u32" },
    max_seqs: { offset: 20, type: "u32" },
    max_logits: { offset: 24, type: "u32" },
    vocab_size: { offset: 28, type: "u32" },
    arena_bytes: { offset: 32, type: "u64" },
    output_bytes: { offset: 40, type: "u64" },
    slot_bytes: { offset: 48, type: "u64" },
    page_bytes: { offset: 56, type: "u64" },
  },
} as const;

export const StepField = {
  ids: 0,
  positions: 1,
  seq_of_token: 2,
  seq_start: 3,
  past_len: 4,
  slots: 5,
  pages: 6,
  logit_rows: 7,
  labels: 8,
  sampling: 9,
  sampled: 10,
  history: 11,
  history_len: 12,
  eos_ids: 13,
  bad_ids: 14,
} as const;

export const n_step_fields = 15;
export const step_magic = 1398031696;
export const StepHeader = {
  size: 100,
  fields: {
    magic: { offset: 0, type: "u32" },
    bytes: { offset: 4, type: "u32" },
    n_tokens: { offset: 8, type: "u32" },
    n_seqs: { offset: 12, type: "u32" },
    n_logits: { offset: 16, type: "u32" },
    max_pages: { offset: 20, type: "u32" },
    history_capacity: { offset: 24, type: "u32" },
    n_eos: { offset: 28, type: "u32" },
    n_bad_ids: { offset: 32, type: "u32" },
    pad_id: { offset: 36, type: "i32" },
    offsets: { offset: 40, type: "u32", length: 15 },
  },
} as const;

export const Sampling = {
  size: 56,
  fields: {
    do_sample: { offset: 0, type: "u32" },
    top_k: { offset: 4, type: "u32" },
    temperature: { offset: 8, type: "f32" },
    top_p: { offset: 12, type: "f32" },
    min_p: { offset: 16, type: "f32" },
    typical_p: { offset: 20, type: "f32" },
    repetition_penalty: { offset: 24, type: "f32" },
    no_repeat_ngram_size: { offset: 28, type: "u32" },
    min_new_tokens: { offset: 32, type: "u32" },
    generated: { offset: 36, type: "u32" },
    seed_lo: { offset: 40, type: "u32" },
    seed_hi: { offset: 44, type: "u32" },
    stream: { offset: 48, type: "u32" },
    finished: { offset: 52, type: "u32" },
  },
} as const;

export const DeviceKind = {
  cpu: 0,
  cuda: 1,
} as const;

export const CpuLevel = {
  auto: 0,
  portable: 1,
  v3: 2,
  v4: 3,
  v4_vnni: 4,
  v4_bf16: 5,
} as const;

export const DeviceOptions = {
  size: 24,
  fields: {
    struct_size: { offset: 0, type: "u32" },
    abi: { offset: 4, type: "u32" },
    kind: { offset: 8, type: "u32" },
    ordinal: { offset: 12, type: "u32" },
    threads: { offset: 16, type: "u32" },
    level: { offset: 20, type: "u32" },
  },
} as const;

export const Info = {
  size: 664,
  fields: {
    struct_size: { offset: 0, type: "u32" },
    abi: { offset: 4, type: "u32" },
    cpu_level: { offset: 8, type: "u32" },
    physical_cores: { offset: 12, type: "u32" },
    logical_cores: { offset: 16, type: "u32" },
    threads: { offset: 20, type: "u32" },
    features: { offset: 24, type: "u32" },
    optimize_debug: { offset: 28, type: "u32" },
    total_memory: { offset: 32, type: "u64" },
    available_memory: { offset: 40, type: "u64" },
    allocated: { offset: 48, type: "u64" },
    mapped: { offset: 56, type: "u64" },
    n_buffers: { offset: 64, type: "u32" },
    n_plans: { offset: 68, type: "u32" },
    n_jobs: { offset: 72, type: "u32" },
    n_files: { offset: 76, type: "u32" },
    cuda_status: { offset: 80, type: "i32" },
    bf16_gain: { offset: 84, type: "u32" },
    cpu_name: { offset: 88, type: "u8", length: 64 },
    op_ns: { offset: 152, type: "u64", length: 64 },
  },
} as const;

export const LoadItem = {
  size: 88,
  fields: {
    file: { offset: 0, type: "u32" },
    buffer: { offset: 4, type: "u32" },
    src_offset: { offset: 8, type: "u64" },
    src_bytes: { offset: 16, type: "u64" },
    dst_offset: { offset: 24, type: "u64" },
    src_dtype: { offset: 32, type: "u32" },
    dst_dtype: { offset: 36, type: "u32" },
    layout: { offset: 40, type: "u32" },
    rows: { offset: 44, type: "u32" },
    cols: { offset: 48, type: "u32" },
    transform: { offset: 52, type: "u32" },
    head_rows: { offset: 56, type: "u32" },
    rotary_rows: { offset: 60, type: "u32" },
    scales_file: { offset: 64, type: "u32" },
    scales_dtype: { offset: 68, type: "u32" },
    n_scales: { offset: 72, type: "u32" },
    reserved: { offset: 76, type: "u32" },
    scales_offset: { offset: 80, type: "u64" },
  },
} as const;

export const Transform = {
  none: 0,
  rope_to_pairs: 1,
  rope_to_halves: 2,
  negative_exp: 3,
  log_negative: 4,
} as const;

export const JobKind = {
  run: 0,
  load: 1,
  measure: 2,
  profile: 3,
} as const;

export const JobOptions = {
  size: 56,
  fields: {
    struct_size: { offset: 0, type: "u32" },
    abi: { offset: 4, type: "u32" },
    kind: { offset: 8, type: "u32" },
    device: { offset: 12, type: "u32" },
    plan: { offset: 16, type: "u32" },
    state: { offset: 20, type: "u32" },
    kv: { offset: 24, type: "u32" },
    output: { offset: 28, type: "u32" },
    n_steps: { offset: 32, type: "u32" },
    ring_steps: { offset: 36, type: "u32" },
    decode: { offset: 40, type: "u32" },
    poison: { offset: 44, type: "u32" },
    batch_invariant: { offset: 48, type: "u32" },
    reserved: { offset: 52, type: "u32" },
  },
} as const;

export const JobState = {
  running: 0,
  done: 1,
  failed: 2,
  cancelled: 3,
} as const;

export const JobReport = {
  size: 32,
  fields: {
    state: { offset: 0, type: "u32" },
    status: { offset: 4, type: "i32" },
    n_values: { offset: 8, type: "u32" },
    reserved: { offset: 12, type: "u32" },
    done: { offset: 16, type: "u64" },
    total: { offset: 24, type: "u64" },
  },
} as const;

export const BufferOptions = {
  size: 24,
  fields: {
    struct_size: { offset: 0, type: "u32" },
    abi: { offset: 4, type: "u32" },
    device: { offset: 8, type: "u32" },
    flags: { offset: 12, type: "u32" },
    bytes: { offset: 16, type: "u64" },
  },
} as const;

export const Span = {
  size: 16,
  fields: {
    offset: { offset: 0, type: "u64" },
    bytes: { offset: 8, type: "u64" },
  },
} as const;

export const CopySpan = {
  size: 24,
  fields: {
    src_offset: { offset: 0, type: "u64" },
    dst_offset: { offset: 8, type: "u64" },
    bytes: { offset: 16, type: "u64" },
  },
} as const;

export const symbols = {
  bamba_abi: { parameters: [], result: "u32" },
  bamba_info: { parameters: ["u32", "buffer", "u32"], result: "i32" },
  bamba_device_open: { parameters: ["buffer", "u32", "buffer", "u32"], result: "i32" },
  bamba_buffer_create: { parameters: ["buffer", "u32", "buffer", "u32"], result: "i32" },
  bamba_buffer_read: { parameters: ["u32", "buffer", "u32", "buffer", "u32"], result: "i32" },
  bamba_buffer_write: { parameters: ["u32", "buffer", "u32", "buffer", "u32"], result: "i32" },
  bamba_buffer_copy: { parameters: ["u32", "u32", "buffer", "u32"], result: "i32" },
  bamba_file_open: { parameters: ["buffer", "u32", "buffer", "u32"], result: "i32" },
  bamba_plan_create: { parameters: ["u32", "buffer", "u32", "buffer", "u32"], result: "i32" },
  bamba_job_start: { parameters: ["buffer", "u32", "buffer", "u32", "buffer", "u32"], result: "i32" },
  bamba_job_wait: { parameters: ["u32", "u32", "buffer", "u32"], result: "i32" },
  bamba_job_cancel: { parameters: ["u32"], result: "i32" },
  bamba_free: { parameters: ["u32"], result: "i32" },
  bamba_error: { parameters: ["u32", "buffer", "u32"], result: "i32" },
} as const;
