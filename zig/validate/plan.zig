//! Checks of a plan's header and operand table; `ops.zig` goes on with the commands.

const std = @import("std");
const command = @import("command");
const block = @import("../cpu/block.zig");
const panel = @import("../cpu/panel.zig");
const failure = @import("failure.zig");
const ops = @import("ops.zig");
const overlap = @import("overlap.zig");
const Failure = failure.Failure;
const Rejected = failure.Rejected;
const Operand = command.Operand;
const Command = command.Command;
const PlanHeader = command.PlanHeader;
const StepField = command.StepField;

/// Entries of a plan's tables, at most.
pub const table_max = 1 << 16;
/// Rows, positions, columns of the vocabulary, at most.
pub const rows_max = 1 << 24;
/// Bytes of an arena, an output buffer, a slot or a page, at most.
const bytes_max = 1 << 44;

/// Answers how large the things are that a plan only names.
pub const Resolver = struct {
    context: ?*anyopaque = null,
    /// What the plan will run on: layouts and dtypes differ.
    device: command.DeviceKind = .cpu,
    /// Bytes of the buffer or mapped file with this handle; null where it names none.
    weightBytes: *const fn (context: ?*anyopaque, handle: u32) ?u64,
};

/// What a plan asks of each step buffer and job.
pub const Needs = struct {
    /// Arrays of the step buffer that some command reads or writes.
    fields: std.EnumSet(StepField) = .initEmpty(),
    state: bool = false,
    kv: bool = false,
    output: bool = false,
    /// Some command works on sequences of exactly one token.
    one_token: bool = false,
    /// Row r of the logits belongs to sequence r.
    row_a_sequence: bool = false,
    /// Some command applies penalties and bans, for which histories may be needed.
    processes: bool = false,
    /// Ids are sampled.
    samples: bool = false,
};

/// A checked plan; the tables are views of its bytes.
pub const Plan = struct {
    header: PlanHeader,
    operands: []align(1) const Operand,
    commands: []align(1) const Command,
    needs: Needs,
    device: command.DeviceKind,
};

/// Checks a whole plan.
pub fn plan(
    gpa: std.mem.Allocator,
    bytes: []const u8,
    abi: u32,
    resolver: Resolver,
    f: *Failure,
) Rejected!Plan {
    if (bytes.len < @sizeOf(PlanHeader)) return f.set(
        .invalid,
        "Expected a plan of at least {d} bytes but found {d}",
        .{ @sizeOf(PlanHeader), bytes.len },
    );
    const header = std.mem.bytesToValue(PlanHeader, bytes[0..@sizeOf(PlanHeader)]);
    try checkHeader(header, bytes.len, abi, f);
    const operand_bytes = header.n_operands * @sizeOf(Operand);
    const operands_at = bytes[@sizeOf(PlanHeader)..][0..operand_bytes];
    const commands_at = bytes[@sizeOf(PlanHeader) + operand_bytes ..];
    for (0..header.n_operands) |i| {
        const at = operands_at[i * @sizeOf(Operand) ..][0..@sizeOf(Operand)];
        const o = try failure.readStruct(Operand, at, "operand", i, f);
        try checkOperand(header, o, i, resolver, f);
    }
    var checked: Plan = .{
        .header = header,
        .operands = std.mem.bytesAsSlice(Operand, operands_at),
        .commands = &.{},
        .needs = .{},
        .device = resolver.device,
    };
    try overlap.states(gpa, checked.operands, f);
    for (0..header.n_commands) |i| {
        const at = commands_at[i * @sizeOf(Command) ..][0..@sizeOf(Command)];
        const c = try failure.readStruct(Command, at, "command", i, f);
        try ops.check(&checked, c, i, f);
    }
    checked.commands = std.mem.bytesAsSlice(Command, commands_at);
    return checked;
}

fn checkHeader(h: PlanHeader, len: usize, abi: u32, f: *Failure) Rejected!void {
    if (h.magic != command.plan_magic) return f.set(
        .invalid,
        "Expected a plan to start with {x} but found {x}",
        .{ command.plan_magic, h.magic },
    );
    if (h.abi != abi) return f.set(
        .version,
        "Expected a plan for ABI {x} but found one for {x}",
        .{ abi, h.abi },
    );
    try most(h.n_operands, table_max, "operands in a plan", f);
    try most(h.n_commands, table_max, "commands in a plan", f);
    const want = @sizeOf(PlanHeader) + @as(u64, h.n_operands) * @sizeOf(Operand) +
        @as(u64, h.n_commands) * @sizeOf(Command);
    if (len != want) return f.set(
        .invalid,
        "Expected a plan of {d} operands and {d} commands to have {d} bytes but found {d}",
        .{ h.n_operands, h.n_commands, want, len },
    );
    try most(h.max_tokens, rows_max, "tokens in a plan", f);
    try most(h.max_seqs, rows_max, "sequences in a plan", f);
    try most(h.max_logits, rows_max, "rows of logits in a plan", f);
    try most(h.vocab_size, rows_max, "ids in a vocabulary", f);
    inline for (.{ "arena_bytes", "output_bytes", "slot_bytes", "page_bytes" }) |name| {
        const found: u64 = @field(h, name);
        if (found > bytes_max or found % 4 != 0) return f.set(
            .range,
            "Expected {s} of a plan to be a multiple of 4 up to {d} but found {d}",
            .{ name, @as(u64, bytes_max), found },
        );
    }
}

fn most(found: u64, limit: u64, what: []const u8, f: *Failure) Rejected!void {
    if (found <= limit) return;
    return f.set(.range, "Expected at most {d} {s} but found {d}", .{ limit, what, found });
}

/// Bytes from an operand's first element to its last one's end. No overflow: every factor fits 32
/// bits, so products of three fit 128.
pub fn extent(o: Operand) u128 {
    if (block.is(o.dtype) and o.space == .kv)
        return inner(o) * o.shape[0] / block.columns(o.dtype) * block.bytes(o.dtype);
    if (block.is(o.dtype)) {
        const rows: u128 = std.mem.alignForward(u64, o.shape[0], rowsTogether(o));
        return rows * block.rowBytes(o.dtype, o.shape[1]);
    }
    if (o.dtype == .f8_e4m3) {
        const panels: u128 = (@as(u128, o.shape[0]) + command.panel - 1) / command.panel;
        return panels * panel.panelBytes(o.dtype, o.shape[1]);
    }
    const size: u128 = if (o.dtype == .bf16 or o.dtype == .f16) 2 else 4;
    if (o.layout == .panel) {
        const panels: u128 = (@as(u128, o.shape[0]) + command.panel - 1) / command.panel;
        const k: u128 = o.shape[1];
        return panels * command.panel * size * if (o.dtype == .bf16) (k + 1) / 2 * 2 else k;
    }
    if (o.rank < 2) return o.shape[0] * size;
    return ((@as(u128, o.shape[0]) - 1) * o.row_stride + inner(o)) * size;
}

fn rowsTogether(o: Operand) u64 {
    return if (o.layout == .panel) command.panel else 1;
}

/// Elements of one row.
fn inner(o: Operand) u128 {
    return @as(u128, o.shape[1]) * o.shape[2] * o.shape[3];
}

/// Blocks hold whole rows of matrices, and those of 8 bits whole heads of keys or values.
fn checkBlocks(o: Operand, i: usize, f: *Failure) Rejected!void {
    if (o.space == .kv) return checkPageBlocks(o, i, f);
    if (o.space != .weight or o.rank != 2 or o.rows != .fixed) return f.set(
        .type,
        "Expected {t} of operand {d} to be a weight of rank 2 but found rank {d} in space {t}",
        .{ o.dtype, i, o.rank, o.space },
    );
    const columns = block.columns(o.dtype);
    if (o.shape[1] % columns != 0) return f.set(
        .range,
        "Expected columns of operand {d} to be a multiple of {d} as {t} needs but found {d}",
        .{ i, columns, o.dtype, o.shape[1] },
    );
    if (o.row_stride != o.shape[1]) return f.set(
        .range,
        "Expected rows of operand {d} to be {d} elements apart but found {d}",
        .{ i, o.shape[1], o.row_stride },
    );
}

/// `cpu/attention/q8.zig` says how they lie.
fn checkPageBlocks(o: Operand, i: usize, f: *Failure) Rejected!void {
    if (o.dtype != .q8_0) return f.set(
        .type,
        "Expected operand {d} in space kv to be f32, bf16, f16 or q8_0 but found {t}",
        .{ i, o.dtype },
    );
    // Both layouts have the channels as their third dimension.
    if (o.rank < 3 or o.shape[2] % block.short != 0) return f.set(
        .range,
        "Expected channels of operand {d} to be a multiple of {d} as {t} needs but found {d}",
        .{ i, block.short, o.dtype, o.shape[2] },
    );
}

fn checkOperand(
    h: PlanHeader,
    o: Operand,
    i: usize,
    resolver: Resolver,
    f: *Failure,
) Rejected!void {
    try checkShape(h, o, i, f);
    if (block.is(o.dtype)) try checkBlocks(o, i, f);
    if (o.dtype == .f8_e4m3 and o.layout != .panel) return f.set(
        .type,
        "Expected {t} of operand {d} to be a weight in panels but found {t} in space {t}",
        .{ o.dtype, i, o.layout, o.space },
    );
    const is_float = o.dtype != .i32;
    if (is_float != (o.space != .step)) return f.set(
        .type,
        "Expected operand {d} in space {t} to have another dtype than {t}",
        .{ i, o.space, o.dtype },
    );
    if (o.layout == .panel and (o.space != .weight or o.rank != 2)) return f.set(
        .type,
        "Expected only a weight of rank 2 in panels but found operand {d} of rank {d} in space {t}",
        .{ i, o.rank, o.space },
    );
    if (o.space != .weight and o.buffer != 0) return f.set(
        .invalid,
        "Expected operand {d} in space {t} to name no buffer but found {d}",
        .{ i, o.space, o.buffer },
    );
    if (o.space == .step) return checkStepOperand(o, i, f);
    const room: u64 = switch (o.space) {
        .weight => resolver.weightBytes(resolver.context, o.buffer) orelse return f.set(
            .stale,
            "Expected operand {d} to name a buffer or file but found handle {d}",
            .{ i, o.buffer },
        ),
        .arena => h.arena_bytes,
        .output => h.output_bytes,
        .state => h.slot_bytes,
        .kv => h.page_bytes,
        .step => unreachable,
    };
    const end = extent(o) + o.offset;
    if (end > room) return f.set(
        .range,
        "Expected operand {d} to end within the {d} bytes of its {t} but found {d}",
        .{ i, room, o.space, end },
    );
}

fn checkShape(h: PlanHeader, o: Operand, i: usize, f: *Failure) Rejected!void {
    if (o.rank < 1 or o.rank > 4) return f.set(
        .invalid,
        "Expected operand {d} to have rank 1 to 4 but found {d}",
        .{ i, o.rank },
    );
    for (o.shape, 0..) |n, axis| {
        const outside = axis >= o.rank;
        if (n < 1 or (outside and n != 1)) return f.set(
            .invalid,
            "Expected dimension {d} of operand {d} to be {s} but found {d}",
            .{ axis, i, if (outside) "1" else "at least 1", n },
        );
    }
    const capacity: u32 = switch (o.rows) {
        .fixed => o.shape[0],
        .tokens => h.max_tokens,
        .seqs => h.max_seqs,
        .logits => h.max_logits,
    };
    if (o.shape[0] != capacity) return f.set(
        .range,
        "Expected operand {d} to have the plan's {d} {t} as rows but found {d}",
        .{ i, capacity, o.rows, o.shape[0] },
    );
    // Kernels count units in 32 bits.
    const elements = inner(o) * o.shape[0];
    if (elements > std.math.maxInt(u32)) return f.set(
        .range,
        "Expected operand {d} to have less than 2^32 elements but found {d}",
        .{ i, elements },
    );
    if (o.rank > 1 and o.row_stride < inner(o)) return f.set(
        .range,
        "Expected rows of operand {d} to be at least {d} elements apart but found {d}",
        .{ i, inner(o), o.row_stride },
    );
}

fn checkStepOperand(o: Operand, i: usize, f: *Failure) Rejected!void {
    if (o.offset >= command.n_step_fields) return f.set(
        .range,
        "Expected operand {d} to name one of {d} arrays of the step but found {d}",
        .{ i, command.n_step_fields, o.offset },
    );
    if (o.rank != 1) return f.set(
        .type,
        "Expected operand {d}, an array of the step, to have rank 1 but found {d}",
        .{ i, o.rank },
    );
}
