//! The scalar twin of `attention_bf16`: number by number, in the order that its head defines, so
//! that both give the same bits.

const std = @import("std");
const simd = @import("../simd.zig");
const bf16 = @import("../bf16.zig");
const kernel = @import("bf16.zig");
const pages = @import("pages.zig");
const Task = @import("../kernel.zig").Task;
const block = kernel.Rows.block_tokens;
const one = [2]u16{ 0x3f80, 0x3f80 };
pub const channels_max = 256;

/// What a row has gathered over some keys.
pub const Part = struct {
    max: f32 = -std.math.inf(f32),
    sum: f32 = 0,
    values: [channels_max]f32 = @splat(0),

    pub fn merge(a: *Part, b: Part) void {
        const max = @max(a.max, b.max);
        const keep = kernel.rescale(a.max, max);
        const add = kernel.rescale(b.max, max);
        a.max = max;
        a.sum = simd.mulAdd1(a.sum, keep, b.sum * add);
        for (&a.values, b.values) |*x, y| x.* = simd.mulAdd1(x.*, keep, y * add);
    }
};

/// One query head of one token.
const Row = struct {
    t: *const Task,
    head: pages.Head,
    q: [*]const f32,
    /// Keys that it sees
    n: usize,

    fn key(s: Row, pos: usize, d: usize) u16 {
        if (d >= s.head.hd) return 0;
        const at = pages.keyIndex(s.head.hd, pos % pages.page_tokens, d);
        return simd.ld(u16, s.head.page(1, pos) + at * 2);
    }
    fn value(s: Row, pos: usize, d: usize) u16 {
        if (pos >= s.n) return 0;
        const at = pos % pages.page_tokens * s.head.hd + d;
        return simd.ld(u16, s.head.page(2, pos) + at * 2);
    }
    fn query(s: Row, d: usize) u16 {
        return if (d < s.head.hd) kernel.query(s.q[d], s.t.attrF(3)) else 0;
    }
    fn score(s: Row, pos: usize) f32 {
        var sum: f32 = 0;
        var d: usize = 0;
        while (d < s.head.hd) : (d += 2) {
            const k = [2]u16{ s.key(pos, d), s.key(pos, d + 1) };
            sum = bf16.dotRef(sum, k, .{ s.query(d), s.query(d + 1) });
        }
        return sum;
    }
    fn addBlock(s: Row, p: *Part, first: usize) void {
        const end = @min(s.n, first + block);
        var scores: [block]f32 = @splat(-std.math.inf(f32));
        var max = p.max;
        for (first..end) |pos| {
            scores[pos - first] = s.score(pos);
            max = @max(max, scores[pos - first]);
        }
        var weights: [block / 2][2]u16 = undefined;
        var lanes: [simd.L]f32 = @splat(0);
        for (&weights, 0..) |*pair, i| {
            for (pair, 0..) |*w, j|
                w.* = bf16.round1(kernel.power(simd.splat(scores[2 * i + j] - max))[0]);
            const lane = &lanes[i % simd.L];
            lane.* = bf16.dotRef(lane.*, pair.*, one);
        }
        const factor = kernel.rescale(p.max, max);
        p.max = max;
        p.sum = simd.mulAdd1(p.sum, factor, simd.sum(lanes));
        for (p.values[0..s.head.hd], 0..) |*x, d| {
            x.* *= factor;
            for (weights[0 .. (end - first + 1) / 2], 0..) |pair, i| {
                const pos = first + 2 * i;
                x.* = bf16.dotRef(x.*, pair, .{ s.value(pos, d), s.value(pos + 1, d) });
            }
        }
    }
};

/// As `attention.attention_ref`, for pages that `attention_bf16` takes.
pub fn attentionRef(t: *const Task) void {
    const hd = t.attrs[2];
    for (0..t.step.n_tokens) |token| for (0..t.attrs[0]) |h| {
        const seq = t.step.seq_of_token.?[token];
        const kv_head = h / (t.attrs[0] / t.attrs[1]);
        const row = Row{
            .t = t,
            .head = .{ .t = t, .seq = seq, .kv_head = kv_head, .hd = hd },
            .q = t.row(0, token) + h * hd,
            .n = t.step.past_len.?[seq] + (token - t.step.seq_start.?[seq]) + 1,
        };
        var all: Part = .{};
        var span: usize = 0;
        while (span < row.n) : (span += pages.span_tokens) {
            var p: Part = .{};
            var first = span;
            while (first < @min(row.n, span + pages.span_tokens)) : (first += block)
                row.addBlock(&p, first);
            if (span == 0) all = p else all.merge(p);
        }
        for (0..hd) |d| t.row(3, token)[h * hd + d] = all.values[d] / all.sum;
    };
}
