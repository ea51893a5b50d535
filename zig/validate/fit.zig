//! How shapes and attributes of one command fit each other, by operation, and what a command asks
//! of each step buffer.

const std = @import("std");
const command = @import("command");
const failure = @import("failure.zig");
const ops = @import("ops.zig");
const Checked = ops.Checked;
const Rejected = failure.Rejected;
const Operand = command.Operand;
const StepField = command.StepField;

fn at(c: *const Checked, i: usize) Operand {
    return c.given[i].?;
}
fn cols(c: *const Checked, i: usize) u64 {
    return at(c, i).shape[1];
}
fn attr(c: *const Checked, i: usize) u64 {
    return c.command.attrs[i];
}
fn attrF(c: *const Checked, i: usize) f32 {
    return @bitCast(c.command.attrs[i]);
}

pub fn check(c: *const Checked) Rejected!void {
    switch (c.command.op) {
        .embedding => try embedding(c),
        .linear => try linear(c),
        .gather_rows => {
            try expectRows(c, 0, .tokens);
            try expectRows(c, 2, .logits);
            try expectCols(c, 2, cols(c, 0));
        },
        .rms_norm => {
            try alike(c, &.{2});
            try expectLength(c, 1, cols(c, 0));
            try notNegative(c, "eps", 0);
        },
        .rms_norm_gated => {
            try alike(c, &.{ 1, 3 });
            try expectLength(c, 2, cols(c, 0));
            try notNegative(c, "eps", 0);
            try divides(c, "groups", attr(c, 1), "columns", cols(c, 0));
        },
        .swiglu, .add, .mul => try alike(c, &.{ 1, 2 }),
        .silu, .log_softmax => try alike(c, &.{1}),
        .rotary_embedding => try rotary(c),
        .rope => try rope(c),
        .causal_conv1d, .causal_conv1d_update => try conv(c),
        .ssm_scan, .ssm_update => try ssm(c),
        .kv_append => try kvAppend(c),
        .attention => try attention(c, true),
        .attention_probs => try attention(c, false),
        .logits_process, .logits_warp => {
            try expectRows(c, 0, .logits);
            try alike(c, &.{1});
        },
        .sample => {
            try expectRows(c, 0, .logits);
            const vocab = c.plan.header.vocab_size;
            if (cols(c, 0) > vocab) return c.fail(
                .range,
                0,
                "to have at most the {d} columns of the vocabulary but found {d}",
                .{ vocab, cols(c, 0) },
            );
        },
        .cross_entropy => {
            try expectRows(c, 0, .logits);
            try expectRows(c, 2, .logits);
            try expectCols(c, 2, 2);
            try coversVocabulary(c, 0, cols(c, 0), "columns");
        },
    }
}

/// Adds what the command reads and writes of a step.
pub fn addNeeds(c: *const Checked) void {
    const needs = &c.plan.needs;
    const fields = &needs.fields;
    for (c.slots, 0..) |s, i| {
        const o = c.given[i] orelse continue;
        if (s.role == .step) fields.insert(s.role.step);
        if (o.space == .output) needs.output = true;
        if (s.role == .state) {
            needs.state = true;
            for ([_]StepField{ .seq_start, .past_len, .slots }) |name| fields.insert(name);
        }
        if (s.role == .kv) {
            needs.kv = true;
            for ([_]StepField{ .seq_of_token, .seq_start, .past_len, .pages }) |name|
                fields.insert(name);
        }
    }
    switch (c.command.op) {
        .causal_conv1d, .ssm_scan => fields.insert(.seq_of_token),
        .causal_conv1d_update, .ssm_update => needs.one_token = true,
        .logits_process => needs.processes = true,
        .sample => needs.samples = true,
        else => {},
    }
    switch (c.command.op) {
        .logits_process, .logits_warp, .sample => {
            needs.row_a_sequence = true;
            fields.insert(.sampling);
        },
        else => {},
    }
}

// ---- relations -----------------------------------------------------------------------------

fn expectCols(c: *const Checked, i: usize, wanted: u64) Rejected!void {
    if (cols(c, i) != wanted)
        return c.fail(.range, i, "to have {d} columns but found {d}", .{ wanted, cols(c, i) });
}
fn expectLength(c: *const Checked, i: usize, wanted: u64) Rejected!void {
    const o = c.given[i] orelse return;
    if (o.shape[0] != wanted)
        return c.fail(.range, i, "to have {d} elements but found {d}", .{ wanted, o.shape[0] });
}
fn expectRows(c: *const Checked, i: usize, rows: command.Rows) Rejected!void {
    if (at(c, i).rows != rows)
        return c.fail(.type, i, "to have one row for each of {t} but found {t}", .{
            rows,
            at(c, i).rows,
        });
}
/// The same kind and number of rows as operand 0.
fn sameRows(c: *const Checked, i: usize) Rejected!void {
    const a = at(c, 0);
    const b = at(c, i);
    if (a.rows == b.rows and a.shape[0] == b.shape[0]) return;
    return c.fail(
        .range,
        i,
        "to have {d} rows ({t}) like {s} but found {d} ({t})",
        .{ a.shape[0], a.rows, c.slots[0].name, b.shape[0], b.rows },
    );
}
/// The same rows and columns as operand 0.
fn alike(c: *const Checked, others: []const usize) Rejected!void {
    for (others) |i| {
        try sameRows(c, i);
        try expectCols(c, i, cols(c, 0));
    }
}
fn expectShape(c: *const Checked, i: usize, wanted: []const u64) Rejected!void {
    for (wanted, 0..) |n, axis| if (at(c, i).shape[axis] != n) return c.fail(
        .range,
        i,
        "to have {d} as dimension {d} but found {d}",
        .{ n, axis, at(c, i).shape[axis] },
    );
}

fn failAttr(
    c: *const Checked,
    name: []const u8,
    comptime format: []const u8,
    values: anytype,
) Rejected {
    const head = .{ name, c.index, c.command.op };
    return c.f.set(.range, "Expected {s} of command {d} ({t}) " ++ format, head ++ values);
}
fn notNegative(c: *const Checked, name: []const u8, i: usize) Rejected!void {
    const found = attrF(c, i);
    if (!(found >= 0 and std.math.isFinite(found)))
        return failAttr(c, name, "to be a finite number of at least 0 but found {d}", .{found});
}
fn finite(c: *const Checked, name: []const u8, i: usize) Rejected!void {
    if (!std.math.isFinite(attrF(c, i)))
        return failAttr(c, name, "to be a finite number but found {d}", .{attrF(c, i)});
}
fn divides(
    c: *const Checked,
    name: []const u8,
    part: u64,
    whole_name: []const u8,
    whole: u64,
) Rejected!void {
    if (part >= 1 and whole % part == 0) return;
    return failAttr(c, name, "to divide the {d} {s} but found {d}", .{ whole, whole_name, part });
}
/// `parts` times `size` columns.
fn expectHeads(c: *const Checked, i: usize, parts: u64, size: u64) Rejected!void {
    if (parts >= 1 and size >= 1 and parts * size == cols(c, i)) return;
    return c.fail(
        .range,
        i,
        "to have {d} x {d} columns but found {d}",
        .{ parts, size, cols(c, i) },
    );
}
/// Every id of the vocabulary, to which the step's ids are held, has its row or column.
fn coversVocabulary(c: *const Checked, i: usize, found: u64, what: []const u8) Rejected!void {
    const vocab = c.plan.header.vocab_size;
    if (found < vocab) return c.fail(
        .range,
        i,
        "to have {s} for the {d} ids of the vocabulary but found {d}",
        .{ what, vocab, found },
    );
}

// ---- operations ----------------------------------------------------------------------------

fn embedding(c: *const Checked) Rejected!void {
    try expectRows(c, 2, .tokens);
    try expectCols(c, 2, cols(c, 1));
    try coversVocabulary(c, 1, at(c, 1).shape[0], "rows");
}

fn linear(c: *const Checked) Rejected!void {
    const n = at(c, 1).shape[0];
    if (cols(c, 1) != cols(c, 0)) return c.fail(
        .range,
        1,
        "to have {d} columns but found {d}",
        .{ cols(c, 0), cols(c, 1) },
    );
    try expectLength(c, 2, n);
    if (c.given[3] != null) {
        try sameRows(c, 3);
        try expectCols(c, 3, n);
    }
    try sameRows(c, 4);
    try expectCols(c, 4, n);
}

fn rotary(c: *const Checked) Rejected!void {
    for ([_]usize{ 2, 3 }) |i| {
        try expectRows(c, i, .tokens);
        try expectCols(c, i, at(c, 1).shape[0]);
    }
    try finite(c, "scaling", 0);
}

fn rope(c: *const Checked) Rejected!void {
    try alike(c, &.{3});
    for ([_]usize{ 1, 2 }) |i| {
        try sameRows(c, i);
        try expectCols(c, i, cols(c, 1));
    }
    const head_dim = attr(c, 1);
    try expectHeads(c, 0, attr(c, 0), head_dim);
    if (2 * cols(c, 1) > head_dim) return c.fail(
        .range,
        1,
        "to have at most half of {d} columns but found {d}",
        .{ head_dim, cols(c, 1) },
    );
}

fn conv(c: *const Checked) Rejected!void {
    try expectRows(c, 0, .tokens);
    try alike(c, &.{4});
    const channels = cols(c, 0);
    const width = at(c, 1).shape[1];
    try expectShape(c, 1, &.{ channels, width });
    try expectLength(c, 2, channels);
    try expectShape(c, 3, &.{ width, channels });
    if (attr(c, 0) > 1)
        return failAttr(c, "activation", "to be 0 or 1 but found {d}", .{attr(c, 0)});
}

fn ssm(c: *const Checked) Rejected!void {
    const heads = attr(c, 0);
    const head_dim = attr(c, 1);
    const groups = attr(c, 2);
    const state = attr(c, 3);
    try expectRows(c, 0, .tokens);
    try expectHeads(c, 0, heads, head_dim);
    try alike(c, &.{8});
    for ([_]usize{ 1, 2, 3 }) |i| try sameRows(c, i);
    try expectCols(c, 1, heads);
    try expectHeads(c, 2, groups, state);
    try expectHeads(c, 3, groups, state);
    try divides(c, "groups", groups, "heads", heads);
    for ([_]usize{ 4, 5, 6 }) |i| try expectLength(c, i, heads);
    const states: [3]u64 = switch (c.plan.device) {
        .cpu => .{ heads, state, head_dim },
        .cuda => .{ heads, head_dim, state },
    };
    try expectShape(c, 7, &states);
    const low = attrF(c, 4);
    const high = attrF(c, 5);
    if (!(low <= high)) return failAttr(
        c,
        "dt_min",
        "to be at most dt_max, {d}, but found {d}",
        .{ high, low },
    );
}

fn expectKeys(c: *const Checked, i: usize, kv_heads: u64, head_dim: u64) Rejected!void {
    if (c.plan.device != .cpu)
        return expectShape(c, i, &.{ kv_heads, command.page_tokens, head_dim, 1 });
    const blocks = command.page_tokens / command.panel;
    try expectShape(c, i, &.{ kv_heads, blocks, head_dim, command.panel });
}

fn kvAppend(c: *const Checked) Rejected!void {
    const kv_heads = attr(c, 0);
    const head_dim = attr(c, 1);
    try expectRows(c, 0, .tokens);
    try expectHeads(c, 0, kv_heads, head_dim);
    try alike(c, &.{1});
    try expectKeys(c, 2, kv_heads, head_dim);
    try expectShape(c, 3, &.{ kv_heads, command.page_tokens, head_dim });
}

fn attention(c: *const Checked, has_values: bool) Rejected!void {
    const heads = attr(c, 0);
    const kv_heads = attr(c, 1);
    const head_dim = attr(c, 2);
    try expectRows(c, 0, .tokens);
    try expectHeads(c, 0, heads, head_dim);
    try divides(c, "kv_heads", kv_heads, "heads", heads);
    try finite(c, "scale", 3);
    try expectKeys(c, 1, kv_heads, head_dim);
    const out: usize = if (has_values) 3 else 2;
    try sameRows(c, out);
    if (has_values) {
        try expectShape(c, 2, &.{ kv_heads, command.page_tokens, head_dim });
        return expectHeads(c, out, heads, head_dim);
    }
    try expectHeads(c, out, heads, attr(c, 4));
}
