//! Checks of commands: which operands each operation has (`signatures`, the table that mirrors the
//! comments of `command.Op`), and how their shapes and attributes fit each other
//! (`fit.zig`).

const std = @import("std");
const block = @import("../cpu/block.zig");
const command = @import("command");
const failure = @import("failure.zig");
const device = @import("device.zig");
const fit = @import("fit.zig");
const overlap = @import("overlap.zig");
const Plan = @import("plan.zig").Plan;
const Failure = failure.Failure;
const Rejected = failure.Rejected;
const Operand = command.Operand;
const Command = command.Command;
const StepField = command.StepField;

/// What an operation does with an operand, and what the operand must be.
pub const Role = union(enum) {
    /// Activation (rows, columns), read: f32, on a GPU also bf16.
    in,
    /// The same, written.
    out,
    /// Activation or nothing.
    in_optional,
    /// f32 weight (n).
    vector,
    vector_optional,
    /// Weight (N, K), in panels for the CPU and in rows for a GPU, unless it is in blocks or e4m3.
    panels,
    /// Weight (V, H) in rows or panels; for a GPU as `panels`.
    table,
    /// f32 weight (C, W) without gaps.
    taps,
    /// Place in a slot, of this rank: f32, and of rank 3 also bf16 or f16.
    state: u32,
    /// Place in a page, of this rank.
    kv: u32,
    /// Array of the step, with its dtype and rows as `stepRows` says.
    step: StepField,

    fn optional(r: Role) bool {
        return r == .in_optional or r == .vector_optional;
    }
};

pub const Slot = struct { name: []const u8, role: Role };
fn slot(comptime name: []const u8, comptime role: Role) Slot {
    return .{ .name = name, .role = role };
}

const conv = [_]Slot{
    slot("x", .in),
    slot("weight", .taps),
    slot("bias", .vector_optional),
    slot("conv_state", .{ .state = 2 }),
    slot("out", .out),
};
const ssm = [_]Slot{
    slot("x", .in),
    slot("dt", .in),
    slot("B", .in),
    slot("C", .in),
    slot("A_log", .vector),
    slot("D", .vector),
    slot("dt_bias", .vector),
    slot("ssm_state", .{ .state = 3 }),
    slot("y", .out),
};
const binary = [_]Slot{ slot("a", .in), slot("b", .in), slot("out", .out) };
const unary = [_]Slot{ slot("x", .in), slot("out", .out) };

/// The operands of each operation, in order.
pub const signatures = std.EnumArray(command.Op, []const Slot).init(.{
    .embedding = &.{ slot("ids", .{ .step = .ids }), slot("weight", .table), slot("out", .out) },
    .linear = &.{
        slot("x", .in),
        slot("weight", .panels),
        slot("bias", .vector_optional),
        slot("residual", .in_optional),
        slot("out", .out),
    },
    .gather_rows = &.{
        slot("x", .in),
        slot("rows", .{ .step = .logit_rows }),
        slot("out", .out),
    },
    .rms_norm = &.{ slot("x", .in), slot("weight", .vector), slot("out", .out) },
    .rms_norm_gated = &.{
        slot("x", .in),
        slot("gate", .in),
        slot("weight", .vector),
        slot("out", .out),
    },
    .swiglu = &.{ slot("gate", .in), slot("up", .in), slot("out", .out) },
    .add = &binary,
    .mul = &binary,
    .silu = &unary,
    .rotary_embedding = &.{
        slot("positions", .{ .step = .positions }),
        slot("inv_freq", .vector),
        slot("cos", .out),
        slot("sin", .out),
    },
    .rope = &.{ slot("x", .in), slot("cos", .in), slot("sin", .in), slot("out", .out) },
    .causal_conv1d = &conv,
    .causal_conv1d_update = &conv,
    .ssm_scan = &ssm,
    .ssm_update = &ssm,
    .kv_append = &.{
        slot("k", .in),
        slot("v", .in),
        slot("k_pages", .{ .kv = 4 }),
        slot("v_pages", .{ .kv = 3 }),
    },
    .attention = &.{
        slot("q", .in),
        slot("k_pages", .{ .kv = 4 }),
        slot("v_pages", .{ .kv = 3 }),
        slot("out", .out),
    },
    .attention_probs = &.{ slot("q", .in), slot("k_pages", .{ .kv = 4 }), slot("out", .out) },
    .log_softmax = &unary,
    .logits_process = &.{ slot("scores", .in), slot("out", .out) },
    .logits_warp = &.{ slot("scores", .in), slot("out", .out) },
    .sample = &.{ slot("scores", .in), slot("sampled", .{ .step = .sampled }) },
    .cross_entropy = &.{
        slot("logits", .in),
        slot("labels", .{ .step = .labels }),
        slot("out", .out),
    },
});

/// One command under check: its operands by place, for sentences that name what they speak of.
pub const Checked = struct {
    plan: *Plan,
    command: Command,
    index: usize,
    slots: []const Slot,
    given: [command.max_operands]?Operand,
    f: *Failure,

    /// "Expected <name> of command <index> (<op>) ..." and then `format`.
    pub fn fail(
        c: *const Checked,
        status: command.Status,
        i: usize,
        comptime format: []const u8,
        values: anytype,
    ) Rejected {
        const head = .{ c.slots[i].name, c.index, c.command.op };
        return c.f.set(status, "Expected {s} of command {d} ({t}) " ++ format, head ++ values);
    }
};

/// Checks one command against the plan's operands, and adds to what the plan needs.
pub fn check(plan: *Plan, given: Command, index: usize, f: *Failure) Rejected!void {
    const slots = signatures.get(given.op);
    if (given.n_operands != slots.len) return f.set(
        .invalid,
        "Expected command {d} ({t}) to have {d} operands but found {d}",
        .{ index, given.op, slots.len, given.n_operands },
    );
    var c: Checked = .{
        .plan = plan,
        .command = given,
        .index = index,
        .slots = slots,
        .given = @splat(null),
        .f = f,
    };
    for (given.operands, 0..) |at, i| {
        if (i >= slots.len) {
            if (at != command.absent) return f.set(
                .invalid,
                "Expected operand {d} of command {d} ({t}) to be absent but found {d}",
                .{ i, index, given.op, at },
            );
            continue;
        }
        if (at == command.absent) {
            if (slots[i].role.optional()) continue;
            return c.fail(.invalid, i, "to be given but found none", .{});
        }
        if (at >= plan.operands.len) return c.fail(
            .range,
            i,
            "to be one of the plan's {d} operands but found {d}",
            .{ plan.operands.len, at },
        );
        c.given[i] = plan.operands[at];
        try checkRole(&c, i, c.given[i].?);
    }
    try checkOverlap(&c);
    try fit.check(&c);
    try device.check(&c);
    fit.addNeeds(&c);
}

fn checkRole(c: *const Checked, i: usize, o: Operand) Rejected!void {
    switch (c.slots[i].role) {
        .in, .in_optional, .out => {
            if (o.space != .arena and o.space != .output)
                return c.fail(.type, i, "in the arena or the output but found {t}", .{o.space});
            if (c.plan.device == .cpu) {
                try expectDType(c, i, o, &.{.f32});
            } else try expectDType(c, i, o, &.{ .f32, .bf16 });
            try expectRank(c, i, o, 2);
        },
        .vector, .vector_optional => {
            try expectWeight(c, i, o, .row_major);
            try expectDType(c, i, o, &.{.f32});
            try expectRank(c, i, o, 1);
        },
        .panels => if (c.plan.device == .cpu or inPanels(o.dtype)) {
            try expectWeight(c, i, o, .panel);
        } else {
            try expectWeight(c, i, o, .row_major);
            try expectRank(c, i, o, 2);
            try expectDense(c, i, o);
        },
        .table => {
            const on_cpu = c.plan.device == .cpu;
            const on_gpu: command.Layout = if (inPanels(o.dtype)) .panel else .row_major;
            try expectWeight(c, i, o, if (on_cpu) o.layout else on_gpu);
            try expectRank(c, i, o, 2);
        },
        .taps => {
            try expectWeight(c, i, o, .row_major);
            try expectDType(c, i, o, &.{.f32});
            try expectRank(c, i, o, 2);
            try expectDense(c, i, o);
        },
        .state => |rank| {
            try expectPlace(c, i, o, .state, rank);
            if (rank == 3) {
                try expectDType(c, i, o, &.{ .f32, .bf16, .f16 });
            } else try expectDType(c, i, o, &.{.f32});
        },
        .kv => |rank| try expectPlace(c, i, o, .kv, rank),
        .step => |field| return expectStep(c, i, o, field),
    }
    const alignment: u64 = if (o.layout == .panel) 16 else if (o.dtype == .f32) 4 else 2;
    if (o.offset % alignment != 0) return c.fail(
        .range,
        i,
        "to start at a multiple of {d} bytes but found {d}",
        .{ alignment, o.offset },
    );
}

/// Whether weights of the dtype lie in panels on a GPU, too: blocks, and numbers with scales.
fn inPanels(dtype: command.DType) bool {
    return block.is(dtype) or dtype == .f8_e4m3;
}

fn expectDType(
    c: *const Checked,
    i: usize,
    o: Operand,
    comptime wanted: []const command.DType,
) Rejected!void {
    for (wanted) |d| if (o.dtype == d) return;
    return c.fail(.type, i, "to have dtype {t} but found {t}", .{ wanted[0], o.dtype });
}

fn expectDense(c: *const Checked, i: usize, o: Operand) Rejected!void {
    if (o.row_stride != o.shape[1]) return c.fail(
        .type,
        i,
        "to have rows {d} elements apart but found {d}",
        .{ o.shape[1], o.row_stride },
    );
}

fn expectRank(c: *const Checked, i: usize, o: Operand, rank: u32) Rejected!void {
    if (o.rank != rank)
        return c.fail(.type, i, "to have rank {d} but found {d}", .{ rank, o.rank });
}

fn expectWeight(c: *const Checked, i: usize, o: Operand, layout: command.Layout) Rejected!void {
    if (o.space != .weight) return c.fail(.type, i, "to be a weight but found {t}", .{o.space});
    if (o.rows != .fixed)
        return c.fail(.type, i, "to have fixed rows but found {t}", .{o.rows});
    if (o.layout != layout)
        return c.fail(.type, i, "to be in layout {t} but found {t}", .{ layout, o.layout });
}

fn expectPlace(
    c: *const Checked,
    i: usize,
    o: Operand,
    space: command.Space,
    rank: u32,
) Rejected!void {
    if (o.space != space)
        return c.fail(.type, i, "in space {t} but found {t}", .{ space, o.space });
    if (o.rows != .fixed)
        return c.fail(.type, i, "to have fixed rows but found {t}", .{o.rows});
    try expectRank(c, i, o, rank);
    const dense = @as(u64, o.shape[1]) * o.shape[2] * o.shape[3];
    if (o.row_stride != dense) return c.fail(
        .type,
        i,
        "to have rows {d} elements apart but found {d}",
        .{ dense, o.row_stride },
    );
}

/// What the entries of an array of the step are counted by, where a command may name it.
fn stepRows(field: StepField) command.Rows {
    return switch (field) {
        .ids, .positions, .seq_of_token => .tokens,
        .logit_rows, .labels => .logits,
        else => .seqs,
    };
}

fn expectStep(c: *const Checked, i: usize, o: Operand, field: StepField) Rejected!void {
    if (o.space != .step)
        return c.fail(.type, i, "to be an array of the step but found {t}", .{o.space});
    if (o.offset != @intFromEnum(field)) {
        const found: StepField = @enumFromInt(o.offset);
        return c.fail(.type, i, "to be the step's {t} but found {t}", .{ field, found });
    }
    const rows = stepRows(field);
    if (o.rows != rows) return c.fail(.type, i, "to count {t} but found {t}", .{ rows, o.rows });
}

/// Whether an operation's result may lie exactly where its operand i lies.
fn inPlace(c: *const Checked, i: usize) bool {
    return switch (c.command.op) {
        .rms_norm, .rms_norm_gated, .swiglu, .add, .mul, .silu => true,
        .log_softmax, .logits_warp => true,
        .rope => i == 0,
        .linear => c.slots[i].role == .in_optional,
        else => false,
    };
}

fn checkOverlap(c: *const Checked) Rejected!void {
    for (c.slots, 0..) |s, i| {
        if (s.role != .out) continue;
        for (c.slots, 0..) |other, j| {
            const o = c.given[j] orelse continue;
            if (j == i or (other.role == .out and j < i)) continue;
            const read = other.role == .in or other.role == .in_optional;
            const allowed = read and inPlace(c, j);
            switch (overlap.relation(c.given[i].?, o)) {
                .apart => {},
                .same => if (!allowed) return c.fail(
                    .invalid,
                    i,
                    "to lie beside {s} but found them in one place",
                    .{other.name},
                ),
                .partly => return c.fail(
                    .invalid,
                    i,
                    "to lie beside {s} but found that they overlap",
                    .{other.name},
                ),
            }
        }
    }
}
