//! A norm and the three projections behind it as one product, where the weights lie one behind the
//! other (three of e4m3, whose scales lie between); then the rotation of queries and keys, and keys
//! and values into their pages, as one kernel (kernels/rope.cu, qkv_rope). Nine launches of an
//! attention layer become two or three.

const std = @import("std");
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
const q_rope_at = 2;
const k_at = 3;
const k_rope_at = 4;
const v_at = 5;
const append_at = 6;

pub fn fits(tasks: []const Task) bool {
    const norm, const append = .{ &tasks[norm_at], &tasks[append_at] };
    const q_rope, const k_rope = .{ &tasks[q_rope_at], &tasks[k_rope_at] };
    for ([_]usize{ q_at, k_at, v_at }) |i| {
        const of = &tasks[i];
        if (of.data[0] != norm.data[2] or of.has(2) or of.has(3)) return false;
        const known = k.dtype(of, 1) == .bf16 or isEights(of);
        const alike = k.dtype(of, 4) == .bf16 and k.dtype(of, 1) == k.dtype(&tasks[q_at], 1);
        if (!known or !alike or !linear.isFast(of) or of.cols(4) % 8 != 0) return false;
    }
    const wired = q_rope.data[0] == tasks[q_at].data[4] and
        k_rope.data[0] == tasks[k_at].data[4] and append.data[0] == k_rope.data[3] and
        append.data[1] == tasks[v_at].data[4] and k_rope.data[1] == q_rope.data[1];
    // The rotation writes pages of bf16.
    if (k.dtype(append, 2) != .bf16) return false;
    const freqs = q_rope.cols(1);
    const pieces = freqs % 8 == 0 and q_rope.attrs[1] % 8 == 0;
    const joined = isEights(&tasks[q_at]) or
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

fn isEights(of: *const Task) bool {
    return k.dtype(of, 1) == .f8_e4m3;
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
    if (isEights(&tasks[q_at])) {
        apart(tasks, s);
        return rotate(tasks, s);
    }
    const norm = &tasks[norm_at];
    var product: Task = tasks[q_at];
    product.data[4] = s.spare;
    product.operands[4].row_stride = columns(tasks);
    product.operands[4].shape[1] = columns(tasks);
    product.operands[1].shape[0] = columns(tasks);
    var a = decode.arguments(&product);
    if (decode.takesNorm(&a, s)) {
        decode.takeNorm(&a, norm, 1);
        decode.launch(.rms, a, false, s);
    } else {
        @import("norm.zig").kernels.rms_norm.launch(norm, s);
        linear.kernels.linear.launch(&product, s);
    }
    rotate(tasks, s);
}

/// Three products side by side behind one norm.
fn apart(tasks: []const Task, s: *Stream) void {
    const norm = &tasks[norm_at];
    const many = fp8.many(&tasks[q_at], s);
    const from: fp8.From = .{ .of = &tasks[q_at], .norm = norm, .behind = joinedBytes(tasks) };
    const eights = if (many) fp8.toEights(from, s) else null;
    const first = decode.arguments(&tasks[q_at]);
    const inside = !many and decode.takesNorm(&first, s);
    if (!many and !inside) @import("norm.zig").kernels.rms_norm.launch(norm, s);
    var column: usize = 0;
    for ([_]usize{ q_at, k_at, v_at }) |i| {
        var product: Task = tasks[i];
        product.data[4] = s.spare.? + 2 * column;
        product.operands[4].row_stride = columns(tasks);
        column += tasks[i].cols(4);
        if (eights) |x| {
            fp8.product(&product, null, x, product.data[4], k.stride(&product, 4), s);
        } else if (inside) {
            var a = decode.arguments(&product);
            decode.takeNorm(&a, norm, 1);
            decode.launch(.rms, a, false, s);
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

fn rotate(tasks: []const Task, s: *Stream) void {
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
