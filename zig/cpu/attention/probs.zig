//! attention_probs: the softmax weights themselves, for a caller who asks to see them.
//!
//! Contract: out[token][head * max_keys + key] = softmax(scale q K) over keys 0 .. own position,
//! zeros beyond it. Scores and sums as in attention over pages of f32; the softmax takes the whole
//! row at once.
//! Work: 2 hd flops a key and the row written once; nobody waits for it.

const std = @import("std");
const simd = @import("../simd.zig");
const kernel_zig = @import("../kernel.zig");
const tile = @import("../tile.zig");
const pages = @import("pages.zig");
const rows_zig = @import("rows.zig");
const Shape = @import("spans.zig").Shape;
const Task = kernel_zig.Task;
const L = simd.L;

fn units(t: *const Task, _: u32) callconv(.c) u32 {
    return t.step.n_tokens * t.attrs[1];
}

fn run(t: *const Task, _: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    const s = Shape.of(t);
    for (begin..end) |unit| {
        const token = unit / s.kv_heads;
        weights(t, s, token, unit % s.kv_heads, @ptrCast(@alignCast(scratch)));
    }
}

/// All query heads of one token and kv head.
fn weights(t: *const Task, s: Shape, token: usize, kv_head: usize, mem: [*]f32) void {
    const seq = t.step.seq_of_token.?[token];
    const r0 = (token - t.step.seq_start.?[seq]) * s.group;
    const max_keys = t.attrs[4];
    const n = @min(max_keys, t.step.past_len.?[seq] + r0 / s.group + 1);
    const q = tile.Tiles{ .p = mem, .steps = s.hd };
    const some = mem + tile.Tiles.floats(s.group, s.hd); // (group, 64)
    const out = t.row(2, token) + kv_head * s.group * max_keys;
    const products = rows_zig.Scores{
        .q = q,
        .n = s.group,
        .hd = s.hd,
        .out = some,
        .buffer = some + s.group * 64,
    };
    for (0..s.group) |r| q.set(r, s.row(t, 0, seq, kv_head, r0 + r), s.scale);
    var first: usize = 0;
    while (first < n) : (first += pages.page_tokens) {
        const k = pages.headPage(t, 1, seq, first, kv_head, s.hd);
        const here = @min(pages.page_tokens, n - first);
        products.run(.{ .p = k, .dtype = t.operands[1].dtype }, here, k);
        for (0..s.group) |r|
            @memcpy(out[r * max_keys + first ..][0..here], some[r * pages.page_tokens ..][0..here]);
    }
    for (0..s.group) |r| soften(out + r * max_keys, n, max_keys);
}
fn soften(row: [*]f32, n: usize, max_keys: usize) void {
    var max = row[0];
    for (row[1..n]) |x| max = @max(max, x);
    var sum: f32 = 0;
    for (row[0..n]) |*x| {
        x.* = simd.exp1(x.* - max);
        sum += x.*;
    }
    for (row[0..n]) |*x| x.* /= sum;
    @memset(row[n..max_keys], 0);
}

fn scratchBytes(t: *const Task) callconv(.c) usize {
    const s = Shape.of(t);
    const floats = tile.Tiles.floats(s.group, s.hd) + 64 * (s.group + s.hd);
    return floats * @sizeOf(f32);
}

pub const kernel = kernel_zig.Kernel{ .units = units, .run = run, .scratch = scratchBytes };
