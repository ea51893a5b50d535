//! What a CPU kernel sees of a command, and what it must provide. The executor runs a command in
//! one or more phases; a phase is a number of independent units that any thread may take, and all
//! threads meet between phases. Kernel files import only this file, `command.zig` and each other.

const command = @import("command");
pub const Op = command.Op;
pub const DType = command.DType;
pub const Operand = command.Operand;

/// The step buffer of the current run as plain pointers. Arrays that were not given are null, and
/// validation has made sure that no kernel of the plan needs them.
pub const Step = extern struct {
    n_tokens: u32,
    n_seqs: u32,
    n_logits: u32,
    max_pages: u32,
    history_capacity: u32,
    n_eos: u32,
    n_bad_ids: u32,
    pad_id: i32,
    ids: ?[*]i32,
    positions: ?[*]i32,
    seq_of_token: ?[*]u32,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    slots: ?[*]u32,
    pages: ?[*]u32,
    logit_rows: ?[*]u32,
    labels: ?[*]i32,
    sampling: ?[*]command.Sampling,
    sampled: ?[*]i32,
    history: ?[*]i32,
    history_len: ?[*]u32,
    eos_ids: ?[*]i32,
    bad_ids: ?[*]i32,
};

/// One command, resolved for one run. Operands are checked: shapes fit each other as `Op` says.
pub const Task = extern struct {
    op: Op,
    n_operands: u32,
    operands: [command.max_operands]Operand,
    /// Address of each operand's first element; null where absent. For state and kv operands the
    /// address within slot 0 or page 0.
    data: [command.max_operands]?[*]u8,
    attrs: [command.max_attrs]u32,
    step: *const Step,
    slot_bytes: u64,
    page_bytes: u64,
    /// Shared by all threads, at least `Kernel.workspace` bytes, 64-byte aligned.
    workspace: ?[*]u8,
    n_threads: u32,
    /// Rows in use of operands whose `rows` is not fixed: by `command.Rows`.
    capacity: [4]u32,

    pub fn has(t: *const Task, i: usize) bool {
        return i < t.n_operands and t.data[i] != null;
    }
    /// Rows of operand i in this run.
    pub fn rows(t: *const Task, i: usize) usize {
        return switch (t.operands[i].rows) {
            .fixed => t.operands[i].shape[0],
            .tokens => t.step.n_tokens,
            .seqs => t.step.n_seqs,
            .logits => t.step.n_logits,
        };
    }
    pub fn cols(t: *const Task, i: usize) usize {
        return t.operands[i].shape[1];
    }
    pub fn stride(t: *const Task, i: usize) usize {
        return t.operands[i].row_stride;
    }
    pub fn f32s(t: *const Task, i: usize) [*]f32 {
        return @ptrCast(@alignCast(t.data[i].?));
    }
    pub fn row(t: *const Task, i: usize, r: usize) [*]f32 {
        return t.f32s(i) + r * t.stride(i);
    }
    pub fn attrF(t: *const Task, i: usize) f32 {
        return @bitCast(t.attrs[i]);
    }
    /// A state operand of the sequence's slot.
    pub fn slot(t: *const Task, i: usize, seq: usize) [*]f32 {
        return @ptrCast(@alignCast(t.data[i].? + t.step.slots.?[seq] * t.slot_bytes));
    }
    /// A kv operand in the page that holds position `pos` of the sequence.
    pub fn page(t: *const Task, i: usize, seq: usize, pos: usize) [*]u8 {
        const p = t.step.pages.?[seq * t.step.max_pages + pos / command.page_tokens];
        return t.data[i].? + p * t.page_bytes;
    }
};

/// How the executor runs one operation. All functions must tolerate any run within the plan's
/// capacities, also zero rows.
pub const Kernel = extern struct {
    n_phases: u32 = 1,
    /// Independent units of a phase; a unit should be worth some microseconds.
    units: *const fn (t: *const Task, phase: u32) callconv(.c) u32,
    /// Does units [begin, end) of a phase. `scratch` is this thread's own, 64-byte aligned.
    run: *const fn (
        t: *const Task,
        phase: u32,
        begin: u32,
        end: u32,
        scratch: [*]u8,
    ) callconv(.c) void,
    /// Bytes of shared workspace / of scratch a thread needed at the plan's capacities
    /// (`capacity[rows]`, `n_threads`; the step is not there yet).
    workspace: ?*const fn (t: *const Task) callconv(.c) usize = null,
    scratch: ?*const fn (t: *const Task) callconv(.c) usize = null,
    /// Whether all phases of t but its last would leave in the workspace just what those of
    /// `before` left there: t then has none but its last.
    alike: ?*const fn (before: *const Task, t: *const Task) callconv(.c) bool = null,
};
