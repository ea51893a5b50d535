//! The contract between TypeScript and the library: every number, struct and rule that crosses the
//! boundary is declared here once. `bindings.zig` prints `src/native/bindings.gen.ts` from these
//! declarations by reflection, together with a hash of all of them, which both sides compare at
//! load.
//!
//! Vocabulary
//! - A *plan* is a list of commands over a table of operands, with every capacity fixed.
//! - A *run* executes a plan once. What changes from run to run is the *step buffer*.
//! - Tokens of all sequences lie one after another, without padding: row t of an activation belongs
//!   to sequence `seq_of_token[t]`; sequence s owns rows `seq_start[s] .. seq_start[s + 1]`.
//! - A *slot* holds one sequence's convolution and SSM states of all layers; a *page* holds
//!   `page_tokens` consecutive positions' keys and values of all attention layers.

/// Bumped by hand when the meaning of something changes without its declaration changing.
pub const revision: u32 = 1;

pub const max_operands = 12;
pub const max_attrs = 12;
/// An operand index that stands for "not given".
pub const absent: u32 = 0xffff_ffff;
/// Columns in a weight panel, and keys in a block of a K page.
pub const panel = 16;
/// Positions in one page of the key/value cache.
pub const page_tokens = 64;
/// Keys of so many channels are large: kept in bf16 beside weights of few bits, and multiplied so.
pub const bf16_channels = 256;
/// Tokens in one chunk of the SSM scan, counted from the start of a sequence. Cutting a prompt at
/// multiples of this leaves every bit of the result as it was.
pub const scan_chunk = 64;

/// What a call answers: 0 or more is success.
pub const Status = enum(i32) {
    ok = 0,
    /// An argument or a field of a struct has a value outside its range.
    invalid = -1,
    /// The other side was built from other declarations.
    version = -2,
    /// Memory could not be had.
    memory = -3,
    /// A handle that names nothing (any more), or a thing of another kind.
    stale = -4,
    /// An index, offset or length outside the thing it indexes.
    range = -5,
    /// A dtype, layout or device kind that does not fit.
    type = -6,
    /// The operating system refused a file.
    io = -7,
    /// The job was cancelled.
    cancelled = -8,
    /// Not available on this machine or in this build.
    unsupported = -9,
    /// The device stopped working.
    device_lost = -10,
};

/// The types behind `i32` are weights in blocks of 32 or 256 columns with their own scale, as GGUF
/// files hold them: `cpu/block.zig` defines each block. The last has 8 bits a weight (1 sign, 4
/// exponent, 3 fraction; NaN but no infinity) and one f32 scale a row, as FP8 checkpoints have it.
pub const DType = enum(u32) {
    f32 = 0,
    bf16 = 1,
    f16 = 2,
    i32 = 3,
    q8_0 = 4,
    q4_0 = 5,
    q4_k = 6,
    q5_k = 7,
    q6_k = 8,
    f8_e4m3 = 9,
};

/// Where an operand's bytes lie.
pub const Space = enum(u32) {
    /// A weight: `buffer` names a buffer or a mapped file, `offset` counts from its start.
    weight = 0,
    /// The plan's own scratch memory for activations.
    arena = 1,
    /// The output buffer given with the job.
    output = 2,
    /// The state buffer given with the job; `offset` counts from the start of each slot.
    state = 3,
    /// The key/value buffer given with the job; `offset` counts from the start of each page.
    kv = 4,
    /// An array of the step buffer: `offset` is a `StepField`.
    step = 5,
};

/// What the first dimension of an operand counts. The capacity stands in `shape[0]`; the number of
/// rows in use comes from the step buffer.
pub const Rows = enum(u32) { fixed = 0, tokens = 1, seqs = 2, logits = 3 };

/// How a matrix's elements are ordered.
pub const Layout = enum(u32) {
    /// Row after row; `row_stride` elements from one row to the next.
    row_major = 0,
    /// A weight (N, K) in panels of 16 output features, padded with zeros to whole panels:
    /// f32 and f16 as [N/16][K][16]; bf16 as [N/16][K/2][16][2] (K padded to even), so that one u32
    /// holds the two bf16 of neighbouring k: the even one in the low half. Blocks of 16 rows lie
    /// interleaved: see `cpu/block_panel.zig`. f8_e4m3 has in each panel the f32 scales of
    /// its 16 rows and then [K][16]; on a GPU the scales of all panels and then the rows.
    panel = 1,
};

/// One tensor that commands refer to by its index in the operand table.
pub const Operand = extern struct {
    space: Space,
    dtype: DType,
    rows: Rows,
    layout: Layout,
    /// 0 to 4; unused entries of `shape` are 1.
    rank: u32,
    shape: [4]u32,
    /// Elements from one row to the next (row_major, rank 2 and above): a column slice of a wider
    /// matrix has the wider matrix's stride.
    row_stride: u32,
    /// Handle of the buffer or file for `Space.weight`, else 0.
    buffer: u32,
    reserved: u32,
    /// Bytes; for `Space.step` a `StepField`.
    offset: u64,
};

/// The operations. Each line names its operands in order (`?` may be absent, the last ones are the
/// results) and then its attributes by index (`f` = bits of an f32). R is any row count; all
/// activations are f32 on the CPU. See each kernel file for the mathematics.
pub const Op = enum(u32) {
    /// ids:step[tokens], weight(V,H) row_major or panel -> out(tokens,H)
    embedding = 0,
    /// x(R,K), weight(N,K) panel, bias?(N) f32, residual?(R,N) -> out(R,N)
    linear = 1,
    /// x(tokens,H), rows:step[logits] -> out(logits,H)
    gather_rows = 2,
    /// x(R,H), weight(H) f32 -> out(R,H). attrs: 0 eps f
    rms_norm = 3,
    /// x(R,D), gate(R,D), weight(D) f32 -> out(R,D) = norm(x * silu(gate)). One RMS over the
    /// D / groups channels of each group. attrs: 0 eps f, 1 groups.
    rms_norm_gated = 4,
    /// gate(R,D), up(R,D) -> out(R,D) = silu(gate) * up
    swiglu = 5,
    /// a(R,D), b(R,D) -> out(R,D)
    add = 6,
    /// a(R,D), b(R,D) -> out(R,D)
    mul = 7,
    /// a(R,D) -> out(R,D)
    silu = 8,
    /// positions:step[tokens], inv_freq(F) f32 -> cos(tokens,F), sin(tokens,F). attrs: 0 scaling f
    rotary_embedding = 9,
    /// x(tokens,heads*head_dim), cos(tokens,F), sin(tokens,F) -> out. Rotates the first 2F of each
    /// head's channels (rotate-half), copies the rest. attrs: 0 heads, 1 head_dim
    rope = 10,
    /// x(tokens,C), weight(C,W) f32, bias?(C) f32, conv_state:state(W,C) f32 -> out(tokens,C).
    /// conv_state holds the last W inputs, the oldest first, zeros before the sequence's start:
    /// read when past_len > 0, always written. attrs: 0 activation (0 none, 1 silu)
    causal_conv1d = 11,
    /// The same, when every sequence has exactly one token.
    causal_conv1d_update = 12,
    /// x(tokens,H*P), dt(tokens,H), B(tokens,G*N), C(tokens,G*N), A_log(H) f32, D(H) f32,
    /// dt_bias(H) f32, ssm_state:state(H,N,P) f32, bf16 or f16 -> y(tokens,H*P).
    /// attrs: 0 heads, 1 head_dim P, 2 groups G, 3 state N, 4 dt_min f, 5 dt_max f
    ssm_scan = 13,
    /// The same, when every sequence has exactly one token.
    ssm_update = 14,
    /// k(tokens,KVH*hd), v(tokens,KVH*hd), k_pages:kv(KVH,page_tokens/16,hd,16),
    /// v_pages:kv(KVH,page_tokens,hd), both f32, bf16, f16 or, where hd is a multiple of 32, q8_0
    /// as `cpu/attention/q8.zig` lays it out. Writes positions past_len[s] + i of each sequence.
    /// attrs: 0 kv_heads, 1 head_dim
    kv_append = 15,
    /// q(tokens,NH*hd), k_pages, v_pages as above -> out(tokens,NH*hd). Causal, each sequence by
    /// itself. attrs: 0 heads, 1 kv_heads, 2 head_dim, 3 scale f
    attention = 16,
    /// q, k_pages -> out(tokens,NH*max_keys): softmax weights, zeros beyond a token's own position.
    /// attrs: as attention, 4 max_keys
    attention_probs = 17,
    /// x(R,V) -> out(R,V)
    log_softmax = 18,
    /// scores(logits,V) -> out(logits,V): repetition penalty, no-repeat n-grams, bad words, minimum
    /// length, in HF's order, by the sequence's `Sampling`. Row r belongs to sequence r.
    logits_process = 19,
    /// scores(logits,V) -> out(logits,V): temperature, top-k, top-p, min-p, typical-p.
    logits_warp = 20,
    /// scores(logits,V): writes sampled:step[seqs]: the largest (smallest index on a tie), or,
    /// where `do_sample`, a draw from softmax(scores).
    sample = 21,
    /// logits(logits,V), labels:step[logits] -> out(logits,2): for each row the negative log
    /// likelihood of its label (0 where the label is -100) and logsumexp(logits).
    cross_entropy = 22,
};

/// One command: an operation over operands of the table.
pub const Command = extern struct {
    op: Op,
    n_operands: u32,
    operands: [max_operands]u32,
    attrs: [max_attrs]u32,
};

pub const plan_magic: u32 = 0x504d4142; // "BAMP"

/// The start of a plan; `n_operands` Operands and then `n_commands` Commands follow it.
pub const PlanHeader = extern struct {
    magic: u32,
    abi: u32,
    n_operands: u32,
    n_commands: u32,
    max_tokens: u32,
    max_seqs: u32,
    max_logits: u32,
    /// Size of the vocabulary: ids in a step buffer are checked against it.
    vocab_size: u32,
    arena_bytes: u64,
    output_bytes: u64,
    /// Bytes of one slot and of one page (all layers); 0 where the plan uses none.
    slot_bytes: u64,
    page_bytes: u64,
};

/// The arrays of a step buffer.
pub const StepField = enum(u32) {
    /// i32[n_tokens]
    ids = 0,
    /// i32[n_tokens]: positions for the rotary embedding
    positions = 1,
    /// u32[n_tokens]
    seq_of_token = 2,
    /// u32[n_seqs + 1]
    seq_start = 3,
    /// u32[n_seqs]: tokens already in the cache
    past_len = 4,
    /// u32[n_seqs]
    slots = 5,
    /// u32[n_seqs * max_pages]
    pages = 6,
    /// u32[n_logits]: the rows whose logits are wanted
    logit_rows = 7,
    /// i32[n_logits]
    labels = 8,
    /// Sampling[n_seqs]
    sampling = 9,
    /// i32[n_seqs]: written by `sample`
    sampled = 10,
    /// i32[n_seqs * history_capacity]: every id of the sequence so far, prompt first
    history = 11,
    /// u32[n_seqs]: how many ids of history are in use
    history_len = 12,
    /// i32[n_eos]
    eos_ids = 13,
    /// i32[n_bad_ids]: banned id sequences, each ended by -1
    bad_ids = 14,
};
pub const n_step_fields = 15;

pub const step_magic: u32 = 0x53544550;

/// The start of a step buffer. `offsets[field]` counts bytes from the header's start, is a multiple
/// of 4, and is 0 where the field is not given.
pub const StepHeader = extern struct {
    magic: u32,
    bytes: u32,
    n_tokens: u32,
    n_seqs: u32,
    n_logits: u32,
    max_pages: u32,
    history_capacity: u32,
    n_eos: u32,
    n_bad_ids: u32,
    /// Fed to a sequence that has ended while others of its batch go on.
    pad_id: i32,
    offsets: [n_step_fields]u32,
};

/// How one sequence's next id is chosen. Neutral values switch a rule off.
pub const Sampling = extern struct {
    do_sample: u32,
    /// 0 = off
    top_k: u32,
    temperature: f32,
    /// 1 = off
    top_p: f32,
    /// 0 = off
    min_p: f32,
    /// 1 = off
    typical_p: f32,
    /// 1 = off
    repetition_penalty: f32,
    /// 0 = off
    no_repeat_ngram_size: u32,
    /// eos ids are banned until this many ids are generated
    min_new_tokens: u32,
    /// ids generated so far; counts up in a job of many steps
    generated: u32,
    seed_lo: u32,
    seed_hi: u32,
    /// Which random stream of the seed: the row's index in the caller's batch.
    stream: u32,
    /// Not 0: the sequence has ended; `pad_id` is fed and reported.
    finished: u32,
};

pub const DeviceKind = enum(u32) { cpu = 0, cuda = 1 };
/// CPU levels, weakest first. `auto` takes the best of the machine, which `v4_bf16` is only where
/// its products of bf16 are the fastest. The last two have AVX512 VNNI, and VNNI and BF16.
pub const CpuLevel = enum(u32) {
    auto = 0,
    portable = 1,
    v3 = 2,
    v4 = 3,
    v4_vnni = 4,
    v4_bf16 = 5,
};

pub const DeviceOptions = extern struct {
    struct_size: u32,
    abi: u32,
    kind: DeviceKind,
    ordinal: u32,
    /// 0 = one a physical core
    threads: u32,
    level: CpuLevel,
};

/// What `info` tells about the machine, or about one device.
pub const Info = extern struct {
    struct_size: u32,
    abi: u32,
    /// best CPU level this machine has / the level the device uses
    cpu_level: CpuLevel,
    physical_cores: u32,
    logical_cores: u32,
    threads: u32,
    /// bits: 0 avx2, 1 fma, 2 f16c, 3 avx512 (f bw cd dq vl), 4 avx512vnni, 5 avx512bf16,
    /// 6 amx_bf16, 7 amx_int8
    features: u32,
    optimize_debug: u32,
    total_memory: u64,
    available_memory: u64,
    /// bytes of native memory held by buffers, plans and mapped files (0: the whole library)
    allocated: u64,
    mapped: u64,
    n_buffers: u32,
    n_plans: u32,
    n_jobs: u32,
    n_files: u32,
    /// 0 usable, else a Status-like reason: -9 built without CUDA, -101 no driver, -103 no GPU
    cuda_status: i32,
    /// rate of vdpbf16ps against that of f32 multiply-adds, in thousandths; 0 where it is not there
    bf16_gain: u32,
    /// CPU brand string, zero-terminated
    cpu_name: [64]u8,
    /// nanoseconds that runs on the CPU have spent in each operation, by `Op`
    op_ns: [64]u64,
};

/// One tensor to bring from a file into a buffer. Weights in blocks may become f32, bf16 or f16,
/// and those may become blocks, also of another type. f8_e4m3 become panels of themselves, or
/// any other type; f32, bf16 and f16 may become them.
pub const LoadItem = extern struct {
    file: u32,
    buffer: u32,
    src_offset: u64,
    src_bytes: u64,
    dst_offset: u64,
    src_dtype: DType,
    dst_dtype: DType,
    layout: Layout,
    rows: u32,
    cols: u32,
    transform: Transform,
    /// Where rows are reordered: rows of one attention head, and how many of them rotate.
    head_rows: u32,
    rotary_rows: u32,
    /// Of f8_e4m3: the file with the rows' scales (0: all are 1), f32, bf16 or f16, one a row or
    /// one for all.
    scales_file: u32,
    scales_dtype: DType,
    n_scales: u32,
    reserved: u32,
    scales_offset: u64,
};

/// What happens to a tensor between file and buffer, besides its type and layout.
pub const Transform = enum(u32) {
    none = 0,
    /// The rotating rows of each head, from HF's two halves (i, rotary / 2 + i) to the neighbours
    /// (2 i, 2 i + 1) of GGUF files.
    rope_to_pairs = 1,
    /// And back.
    rope_to_halves = 2,
    /// A = -exp(A_log), f32 row_major.
    negative_exp = 3,
    /// A_log = ln(-A), f32 row_major.
    log_negative = 4,
};

pub const JobKind = enum(u32) {
    /// Runs `plan` `n_steps` times. `data` is the step buffer.
    run = 0,
    /// Fills buffers from files. `data` is LoadItem[].
    load = 1,
    /// Measures this machine with the device's threads, or a GPU: `data` is empty, the result is 7
    /// f64: read bandwidth (bytes/s) at best, f32 multiply-add rate (flop/s), bf16 dot rate, int8
    /// multiply-add rate (op/s), read bandwidth in the middle of all rounds, copy bandwidth (bytes
    /// read and written), bandwidth of the link to the GPU; 0 where it is not measured.
    measure = 2,
    /// Runs `plan` on a GPU with every launch timed by itself; `data` is the step buffer. An entry
    /// for each launch: its first command, how many commands it does, and nanoseconds.
    profile = 3,
};

pub const JobOptions = extern struct {
    struct_size: u32,
    abi: u32,
    kind: JobKind,
    device: u32,
    plan: u32,
    /// Buffers for Space.state, Space.kv and Space.output; 0 where the plan uses none.
    state: u32,
    kv: u32,
    output: u32,
    n_steps: u32,
    /// Steps that may wait to be fetched before the job pauses; 0 = n_steps
    ring_steps: u32,
    /// Not 0: the sampled ids feed the next step, sequences end at an eos id, and each step's ids
    /// go into the ring (n_seqs i32 a step, after an end `pad_id`).
    decode: u32,
    /// Fills the arena with NaN before each run (tests).
    poison: u32,
    /// Not 0: no row's bits may depend on how many others there are. On a CPU they never do.
    batch_invariant: u32,
    reserved: u32,
};

pub const JobState = enum(u32) { running = 0, done = 1, failed = 2, cancelled = 3 };

/// What `job_wait` writes; values (i32 ids of whole steps, or the measured f64) follow it.
pub const JobReport = extern struct {
    state: JobState,
    status: Status,
    /// i32 values that follow
    n_values: u32,
    /// Bytes loaded or steps done, and of how many
    reserved: u32,
    done: u64,
    total: u64,
};

pub const BufferOptions = extern struct {
    struct_size: u32,
    abi: u32,
    device: u32,
    /// bit 0: ask for huge pages
    flags: u32,
    bytes: u64,
};

/// A span of a buffer, for reading, writing and copying.
pub const Span = extern struct {
    offset: u64,
    bytes: u64,
};
pub const CopySpan = extern struct {
    src_offset: u64,
    dst_offset: u64,
    bytes: u64,
};

pub const Buf = [*]u8;

/// Every export. `out` buffers come with their length; handles are written as one u32.
pub const functions = struct {
    /// Hash of all declarations of this file.
    pub const bamba_abi = fn () callconv(.c) u32;
    /// info(device or 0, out Info, len)
    pub const bamba_info = fn (u32, Buf, u32) callconv(.c) i32;
    /// device_open(DeviceOptions, len, out handle, len)
    pub const bamba_device_open = fn (Buf, u32, Buf, u32) callconv(.c) i32;
    /// buffer_create(BufferOptions, len, out handle, len): zeroed
    pub const bamba_buffer_create = fn (Buf, u32, Buf, u32) callconv(.c) i32;
    /// buffer_read(buffer or file, Span, len, out, len)
    pub const bamba_buffer_read = fn (u32, Buf, u32, Buf, u32) callconv(.c) i32;
    /// buffer_write(buffer, Span, len, data, len)
    pub const bamba_buffer_write = fn (u32, Buf, u32, Buf, u32) callconv(.c) i32;
    /// buffer_copy(src, dst, CopySpan[], len)
    pub const bamba_buffer_copy = fn (u32, u32, Buf, u32) callconv(.c) i32;
    /// file_open(path utf-8, len, out {handle u32, pad u32, bytes u64}, len): maps it read-only
    pub const bamba_file_open = fn (Buf, u32, Buf, u32) callconv(.c) i32;
    /// plan_create(device, plan, len, out {handle u32, pad u32, bytes u64}, len)
    pub const bamba_plan_create = fn (u32, Buf, u32, Buf, u32) callconv(.c) i32;
    /// job_start(JobOptions, len, data, len, out handle, len): the data is copied
    pub const bamba_job_start = fn (Buf, u32, Buf, u32, Buf, u32) callconv(.c) i32;
    /// job_wait(job, timeout_ms, out JobReport + values, len)
    pub const bamba_job_wait = fn (u32, u32, Buf, u32) callconv(.c) i32;
    /// job_cancel(job)
    pub const bamba_job_cancel = fn (u32) callconv(.c) i32;
    /// free(handle of any kind): a job is cancelled and joined first; a buffer, file, plan or
    /// device in use by a running job lives until the job ends
    pub const bamba_free = fn (u32) callconv(.c) i32;
    /// error(handle of a job, or 0 for the last failed call of this library, out utf-8, len)
    /// -> bytes
    pub const bamba_error = fn (u32, Buf, u32) callconv(.c) i32;
};
