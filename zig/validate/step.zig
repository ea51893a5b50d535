//! Checks of a step buffer against the plan it will run and the buffers of its job, for all the
//! steps of the job: what a decode job changes between steps is foreseen here.

const std = @import("std");
const command = @import("command");
const failure = @import("failure.zig");
const plan_file = @import("plan.zig");
const sampling = @import("sampling.zig");
const pages = @import("pages.zig");
const Failure = failure.Failure;
const Rejected = failure.Rejected;
const Needs = plan_file.Needs;
const PlanHeader = command.PlanHeader;
const StepHeader = command.StepHeader;
const StepField = command.StepField;

/// What a job brings besides the step buffer.
pub const Run = struct {
    /// Of the buffers given for states, pages and outputs; null where none is given.
    state_bytes: ?u64 = null,
    kv_bytes: ?u64 = null,
    output_bytes: ?u64 = null,
    n_steps: u32 = 1,
    /// Sampled ids feed the next step.
    decode: bool = false,
};

/// A step buffer under check. Numbers are read bytewise: the buffer may lie anywhere.
pub const View = struct {
    bytes: []const u8,
    header: StepHeader,
    plan: PlanHeader,
    needs: Needs,
    run: Run,
    gpa: std.mem.Allocator,
    f: *Failure,

    pub fn has(v: *const View, field: StepField) bool {
        return v.header.offsets[@intFromEnum(field)] != 0;
    }
    /// Entry i of an array that is given.
    pub fn u(v: *const View, field: StepField, i: usize) u32 {
        const at = v.header.offsets[@intFromEnum(field)] + 4 * i;
        return std.mem.readInt(u32, v.bytes[at..][0..4], .little);
    }
    pub fn int(v: *const View, field: StepField, i: usize) i32 {
        return @bitCast(v.u(field, i));
    }
    pub fn sampling(v: *const View, seq: usize) command.Sampling {
        const at = v.header.offsets[@intFromEnum(StepField.sampling)];
        const size = @sizeOf(command.Sampling);
        return std.mem.bytesToValue(command.Sampling, v.bytes[at + size * seq ..][0..size]);
    }
    /// Positions that sequence `seq` has after the job, at most.
    pub fn contextEnd(v: *const View, seq: usize) u64 {
        const tokens = v.u(.seq_start, seq + 1) - v.u(.seq_start, seq);
        return @as(u64, v.u(.past_len, seq)) + tokens + v.laterSteps();
    }
    /// Tokens that a decode job adds to each sequence after its first step.
    pub fn laterSteps(v: *const View) u64 {
        return if (v.run.decode) v.run.n_steps - 1 else 0;
    }
    pub fn isId(v: *const View, id: i32) bool {
        return id >= 0 and id < v.plan.vocab_size;
    }
};

/// Checks one step buffer; `plan` is what `validate.plan` gave.
pub fn step(
    gpa: std.mem.Allocator,
    bytes: []const u8,
    header: PlanHeader,
    needs: Needs,
    run: Run,
    f: *Failure,
) Rejected!void {
    if (bytes.len < @sizeOf(StepHeader)) return f.set(
        .invalid,
        "Expected a step buffer of at least {d} bytes but found {d}",
        .{ @sizeOf(StepHeader), bytes.len },
    );
    const v: View = .{
        .bytes = bytes,
        .header = std.mem.bytesToValue(StepHeader, bytes[0..@sizeOf(StepHeader)]),
        .plan = header,
        .needs = needs,
        .run = run,
        .gpa = gpa,
        .f = f,
    };
    try checkRun(&v);
    try checkCounts(&v);
    try checkFields(&v);
    try checkSequences(&v);
    try checkTokens(&v);
    try checkLogits(&v);
    try checkSlots(&v);
    if (needs.kv) try pages.check(&v);
    try sampling.check(&v);
}

fn checkRun(v: *const View) Rejected!void {
    const run = v.run;
    if (run.n_steps < 1 or run.n_steps > plan_file.rows_max) return v.f.set(
        .range,
        "Expected 1 to {d} steps but found {d}",
        .{ plan_file.rows_max, run.n_steps },
    );
    if (run.decode and !v.needs.samples) return v.f.set(
        .invalid,
        "Expected a plan that samples for a decode job but found one without sample",
        .{},
    );
    if (v.needs.output and (run.output_bytes orelse 0) < v.plan.output_bytes) return v.f.set(
        .range,
        "Expected an output buffer of {d} bytes but found {d}",
        .{ v.plan.output_bytes, run.output_bytes orelse 0 },
    );
    inline for (.{ "state", "kv" }) |name| {
        if (@field(v.needs, name) and @field(run, name ++ "_bytes") == null) return v.f.set(
            .invalid,
            "Expected a {s} buffer for this plan but found none",
            .{name},
        );
    }
}

fn checkCounts(v: *const View) Rejected!void {
    const h = v.header;
    if (h.magic != command.step_magic) return v.f.set(
        .invalid,
        "Expected a step buffer to start with {x} but found {x}",
        .{ command.step_magic, h.magic },
    );
    if (h.bytes != v.bytes.len) return v.f.set(
        .invalid,
        "Expected a step buffer of {d} bytes, as its header says, but found {d}",
        .{ h.bytes, v.bytes.len },
    );
    const counts = .{
        .{ "tokens", h.n_tokens, 1, v.plan.max_tokens },
        .{ "sequences", h.n_seqs, 1, v.plan.max_seqs },
        .{ "rows of logits", h.n_logits, 0, v.plan.max_logits },
        .{ "pages a sequence", h.max_pages, 0, plan_file.rows_max },
        .{ "ids of history", h.history_capacity, 0, plan_file.rows_max },
        .{ "eos ids", h.n_eos, 0, plan_file.rows_max },
        .{ "ids of bad words", h.n_bad_ids, 0, plan_file.rows_max },
    };
    inline for (counts) |c| if (c[1] < c[2] or c[1] > c[3]) return v.f.set(
        .range,
        "Expected {d} to {d} {s} in a step but found {d}",
        .{ c[2], c[3], c[0], c[1] },
    );
    const rows_alike = h.n_logits == h.n_seqs;
    if (v.needs.row_a_sequence and !rows_alike) return v.f.set(
        .range,
        "Expected one row of logits for each of {d} sequences but found {d}",
        .{ h.n_seqs, h.n_logits },
    );
    const one_token = v.needs.one_token or (v.run.decode and v.run.n_steps > 1);
    if (one_token and h.n_tokens != h.n_seqs) return v.f.set(
        .range,
        "Expected one token for each of {d} sequences but found {d}",
        .{ h.n_seqs, h.n_tokens },
    );
}

/// Bytes of an array.
fn fieldBytes(h: StepHeader, field: StepField) u64 {
    const seqs: u64 = h.n_seqs;
    return 4 * switch (field) {
        .ids, .positions, .seq_of_token => h.n_tokens,
        .seq_start => seqs + 1,
        .past_len, .slots, .sampled, .history_len => seqs,
        .pages => seqs * h.max_pages,
        .logit_rows, .labels => h.n_logits,
        .sampling => return seqs * @sizeOf(command.Sampling),
        .history => seqs * h.history_capacity,
        .eos_ids => h.n_eos,
        .bad_ids => h.n_bad_ids,
    };
}

const Array = struct {
    field: StepField,
    begin: u64,
    end: u64,
    fn before(_: void, a: Array, b: Array) bool {
        return a.begin < b.begin;
    }
};

/// Every array lies inside the buffer and beside all others: some are written.
fn checkFields(v: *const View) Rejected!void {
    var arrays: [command.n_step_fields]Array = undefined;
    var n: usize = 0;
    for (std.enums.values(StepField)) |field| {
        const at = v.header.offsets[@intFromEnum(field)];
        if (at == 0) {
            if (!required(v, field)) continue;
            return v.f.set(.invalid, "Expected {t} in the step buffer but found none", .{field});
        }
        const end = at + fieldBytes(v.header, field);
        if (at < @sizeOf(StepHeader) or at % 4 != 0 or end > v.bytes.len) return v.f.set(
            .range,
            "Expected {t} within bytes {d} to {d} of the step buffer, at a multiple of 4, " ++
                "but found {d} to {d}",
            .{ field, @sizeOf(StepHeader), v.bytes.len, at, end },
        );
        if (end == at) continue;
        arrays[n] = .{ .field = field, .begin = at, .end = end };
        n += 1;
    }
    std.mem.sort(Array, arrays[0..n], {}, Array.before);
    for (1..@max(1, n)) |i| if (arrays[i].begin < arrays[i - 1].end) return v.f.set(
        .invalid,
        "Expected {t} after {t} in the step buffer, from byte {d}, but found {d}",
        .{ arrays[i].field, arrays[i - 1].field, arrays[i - 1].end, arrays[i].begin },
    );
}

fn required(v: *const View, field: StepField) bool {
    return switch (field) {
        .seq_of_token, .seq_start, .past_len => true,
        // A decode job moves them on.
        .ids => v.needs.fields.contains(field) or v.laterSteps() > 0,
        .positions, .sampling, .sampled => v.needs.fields.contains(field) or v.run.decode,
        .history => v.has(.history_len) and v.header.history_capacity > 0,
        .history_len => v.has(.history),
        .eos_ids => v.header.n_eos > 0,
        .bad_ids => v.header.n_bad_ids > 0,
        else => v.needs.fields.contains(field),
    };
}

fn checkSequences(v: *const View) Rejected!void {
    const h = v.header;
    var token: u32 = v.u(.seq_start, 0);
    if (token != 0)
        return v.f.set(.invalid, "Expected seq_start to begin with 0 but found {d}", .{token});
    for (0..h.n_seqs) |s| {
        const end = v.u(.seq_start, s + 1);
        if (end <= token or end > h.n_tokens) return v.f.set(
            .range,
            "Expected sequence {d} to end between tokens {d} and {d} but found {d}",
            .{ s, token + 1, h.n_tokens, end },
        );
        while (token < end) : (token += 1) if (v.u(.seq_of_token, token) != s) return v.f.set(
            .invalid,
            "Expected token {d} to belong to sequence {d} but found {d}",
            .{ token, s, v.u(.seq_of_token, token) },
        );
        if (v.contextEnd(s) > plan_file.rows_max) return v.f.set(
            .range,
            "Expected sequence {d} to have at most {d} positions but found {d}",
            .{ s, plan_file.rows_max, v.contextEnd(s) },
        );
    }
    if (token != h.n_tokens) return v.f.set(
        .invalid,
        "Expected sequences for all {d} tokens but found {d}",
        .{ h.n_tokens, token },
    );
    const one = v.needs.one_token or v.laterSteps() > 0;
    // Counts are equal and no sequence is empty: each has exactly one token.
    std.debug.assert(!one or h.n_tokens == h.n_seqs);
}

fn checkTokens(v: *const View) Rejected!void {
    for (0..v.header.n_tokens) |t| {
        if (v.has(.ids) and !v.isId(v.int(.ids, t))) return v.f.set(
            .range,
            "Expected ids of at least 0 and below {d} but found {d} as token {d}",
            .{ v.plan.vocab_size, v.int(.ids, t), t },
        );
        if (!v.has(.positions)) continue;
        const found = v.int(.positions, t);
        if (found < 0 or @as(u64, @intCast(found)) + v.laterSteps() >= plan_file.rows_max)
            return v.f.set(
                .range,
                "Expected positions from 0 to {d} in {d} steps but found {d} at token {d}",
                .{ plan_file.rows_max - 1, v.run.n_steps, found, t },
            );
    }
}

fn checkLogits(v: *const View) Rejected!void {
    const ignored: i32 = -100;
    for (0..v.header.n_logits) |r| {
        if (v.has(.logit_rows)) try checkLogitRow(v, r, v.u(.logit_rows, r));
        if (!v.has(.labels)) continue;
        const label = v.int(.labels, r);
        if (label != ignored and !v.isId(label)) return v.f.set(
            .range,
            "Expected labels of at least 0 and below {d}, or -100, but found {d} at row {d}",
            .{ v.plan.vocab_size, label, r },
        );
    }
}

fn checkLogitRow(v: *const View, r: usize, token: u32) Rejected!void {
    if (token >= v.header.n_tokens) return v.f.set(
        .range,
        "Expected logit_rows below {d} tokens but found {d} at row {d}",
        .{ v.header.n_tokens, token, r },
    );
    if (v.needs.row_a_sequence and v.u(.seq_of_token, token) != r) return v.f.set(
        .invalid,
        "Expected row {d} of the logits to belong to sequence {d} but found {d}",
        .{ r, r, v.u(.seq_of_token, token) },
    );
}

fn checkSlots(v: *const View) Rejected!void {
    if (!v.needs.state) return;
    const n = v.header.n_seqs;
    const room = v.run.state_bytes.? / v.plan.slot_bytes;
    const sorted = v.gpa.alloc(u32, n) catch return v.f.memory(4 * @as(u64, n));
    defer v.gpa.free(sorted);
    for (sorted, 0..) |*slot, s| {
        slot.* = v.u(.slots, s);
        if (slot.* >= room) return v.f.set(
            .range,
            "Expected slots below {d}, for which there is room, but found {d} for sequence {d}",
            .{ room, slot.*, s },
        );
    }
    std.mem.sortUnstable(u32, sorted, {}, std.sort.asc(u32));
    for (1..n) |i| if (sorted[i] == sorted[i - 1]) return v.f.set(
        .invalid,
        "Expected every sequence to have a slot of its own but found slot {d} twice",
        .{sorted[i]},
    );
}
