//! A norm and the three projections behind it: one product where bf16 weights lie one behind the
//! other, else (in blocks, and of e4m3, whose scales lie between) three into one row; then the
//! rotation of queries and keys, and keys and values into their pages, as one kernel
//! (kernels/rope.cu, qkv_rope). Nine launches of an attention layer become two to five.

const std = @import("std");
const block = @import("../cpu/block.zig");
const k = @import("kernel.zig");
const decode = @import("linear_decode.zig");
const fp8 = @import("linear_fp8.zig");
const linear = @import("linear.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const ops = [_]@import("command").Op{
    .rms_norm, .linear, .rope, .linear, .rope, .linear, .kv_append,
};
/// Values that nobody may want: the norm, q, k and v before the rotation, k behind it.
pub const between = [_][2]usize{ .{ 0, 2 }, .{ 1, 4 }, .{ 3, 4 }, .{ 4, 3 }, .{ 5, 4 } };

const norm_at = 0;
const q_at = 1;
const projections = [_]usize{ q_at, k_at, v_at };
const q_rope_at = 2;
const k_at = 3;
const k_rope_at = 4;
const v_at = 5;
const append_at = 6;

pub fn fits(tasks: []const Task) bool {
    const norm, const append = .{ &tasks[norm_at], &tasks[append_at] };
    const q_rope, const k_rope = .{ &tasks[q_rope_at], &tasks[k_rope_at] };
    for (projections) |i| {
        const of = &tasks[i];
        if (of.data[0] != norm.data[2] or of.has(2) or of.has(3)) return false;
        const first = k.dtype(&tasks[q_at], 1);
        const known = first == .bf16 or isApart(&tasks[q_at]);
        const alike = k.dtype(of, 1) == first or
            (block.is(first) and block.is(k.dtype(of, 1)));
        if (!known or !alike or k.dtype(of, 4) != .bf16) return false;
        if (!linear.isFast(of) or of.cols(4) % 8 != 0) return false;
    }
    const wired = q_rope.data[0] == tasks[q_at].data[4] and
        k_rope.data[0] == tasks[k_at].data[4] and append.data[0] == k_rope.data[3] and
        append.data[1] == tasks[v_at].data[4] and k_rope.data[1] == q_rope.data[1];
    // The rotation writes pages of bf16.
    if (k.dtype(append, 2) != .bf16) return false;
    const freqs = q_rope.cols(1);
    const pieces = freqs % 8 == 0 and q_rope.attrs[1] % 8 == 0;
    const joined = isApart(&tasks[q_at]) or
        (follows(&tasks[q_at], &tasks[k_at]) and follows(&tasks[k_at], &tasks[v_at]));
    return wired and pieces and joined and k.aligned(norm, &.{ 0, 2 }) and
        k.aligned(q_rope, &.{3});
}

/// Whether b's weight begins where a's ends.
fn follows(a: *const Task, b: *const Task) bool {
    const bytes = a.cols(4) * a.stride(1) * 2;
    return a.stride(1) == b.stride(1) and a.data[1].? + bytes == b.data[1].?;
}

fn columns(tasks: []const Task) u32 {
    return @intCast(tasks[q_at].cols(4) + tasks[k_at].cols(4) + tasks[v_at].cols(4));
}

/// Whether each projection is a product of its own.
fn isApart(of: *const Task) bool {
    return k.dtype(of, 1) == .f8_e4m3 or block.is(k.dtype(of, 1));
}

/// Bytes for q, k and v side by side, and for rows in e4m3 behind them.
pub fn spareBytes(tasks: []const Task) usize {
    return joinedBytes(tasks) + fp8.taskSpareBytes(&tasks[q_at]);
}
fn joinedBytes(tasks: []const Task) usize {
    const bytes = @as(usize, tasks[norm_at].operands[2].shape[0]) * columns(tasks) * 2;
    return std.mem.alignForward(usize, bytes, 256);
}

pub fn launch(tasks: []const Task, s: *Stream) void {
    if (isApart(&tasks[q_at])) {
        apart(tasks, s);
    } else if (asProduct(tasks, s, 0)) |a| {
        decode.launch(.rms, a, false, s);
    } else {
        @import("norm.zig").kernels.rms_norm.launch(&tasks[norm_at], s);
        linear.kernels.linear.launch(&projection(tasks, s, 0), s);
    }
    rotate(tasks, s);
}
/// Products of the three projections: one, or one each.
pub fn parts(tasks: []const Task) u32 {
    return if (isApart(&tasks[q_at])) projections.len else 1;
}
/// One of them, which writes its part of a row of all three.
fn projection(tasks: []const Task, s: *const Stream, i: usize) Task {
    var t: Task = tasks[projections[i]];
    var before: usize = 0;
    for (projections[0..i]) |at| before += tasks[at].cols(4);
    t.data[4] = if (s.spare) |spare| spare + 2 * before else null;
    t.operands[4].row_stride = columns(tasks);
    if (isApart(&tasks[q_at])) return t;
    t.operands[4].shape[1] = columns(tasks);
    t.operands[1].shape[0] = columns(tasks);
    return t;
}
/// Norm and projection `i` as a product of few rows.
pub fn asProduct(tasks: []const Task, s: *const Stream, i: usize) ?decode.Args {
    var a = decode.arguments(&projection(tasks, s, i));
    if (!decode.takesNorm(&a, s)) return null;
    decode.takeNorm(&a, &tasks[norm_at], 1);
    decode.describe(.rms, false, &a);
    return a;
}

/// Three products side by side behind one norm.
fn apart(tasks: []const Task, s: *Stream) void {
    const norm = &tasks[norm_at];
    const many = fp8.many(&tasks[q_at], s);
    const from: fp8.From = .{ .of = &tasks[q_at], .norm = norm, .behind = joinedBytes(tasks) };
    const eights = if (many) fp8.toEights(from, s) else null;
    var inside = !many;
    for (0..projections.len) |i| inside = inside and asProduct(tasks, s, i) != null;
    if (!many and !inside) @import("norm.zig").kernels.rms_norm.launch(norm, s);
    for (0..projections.len) |i| {
        const product = projection(tasks, s, i);
        if (eights) |x| {
            fp8.product(&product, null, x, product.data[4], k.stride(&product, 4), s);
        } else if (inside) {
            decode.launch(.rms, asProduct(tasks, s, i).?, false, s);
        } else linear.kernels.linear.launch(&product, s);
    }
}

const RopeArgs = extern struct {
    qkv: ?[*]u8,
    cos: ?[*]u8,
    sin: ?[*]u8,
    q_out: ?[*]u8,
    k_pages: ?[*]u8,
    v_pages: ?[*]u8,
    seq_of_token: ?[*]u32,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    pages: ?[*]u32,
    page_stride: i64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    freqs: i32,
    stride: i32,
    q_stride: i32,
    cos_stride: i32,
    sin_stride: i32,
    max_pages: i32,
};

/// What comes behind the product.
pub fn rotate(tasks: []const Task, s: *Stream) void {
    const rope, const append = .{ &tasks[q_rope_at], &tasks[append_at] };
    const a: RopeArgs = .{
        .qkv = s.spare,
        .cos = k.at(rope, 1),
        .sin = k.at(rope, 2),
        .q_out = k.at(rope, 3),
        .k_pages = k.at(append, 2),
        .v_pages = k.at(append, 3),
        .seq_of_token = append.step.seq_of_token,
        .seq_start = append.step.seq_start,
        .past_len = append.step.past_len,
        .pages = append.step.pages,
        .page_stride = k.pageStride(append, 2),
        .heads = k.attr(rope, 0),
        .kv_heads = k.attr(append, 0),
        .head_dim = k.attr(append, 1),
        .freqs = k.cols(rope, 1),
        .stride = @intCast(columns(tasks)),
        .q_stride = k.stride(rope, 3),
        .cos_stride = k.stride(rope, 1),
        .sin_stride = k.stride(rope, 2),
        .max_pages = @intCast(append.step.max_pages),
    };
    s.launch("rope", "qkv_rope_bf16", .{ k.rows(append, 0), 1, 1 }, 128, .{a}, .{});
}
