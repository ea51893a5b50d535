//! The scalar twin of `attention_q8_rows`: number by number, in the order that its head defines, so
//! that both give the same bits.

const std = @import("std");
const int8 = @import("../int8.zig");
const simd = @import("../simd.zig");
const bf16 = @import("bf16.zig");
const bf16_ref = @import("bf16_ref.zig");
const kernel = @import("q8_rows.zig");
const pages = @import("pages.zig");
const q8 = @import("q8.zig");
const Task = @import("../kernel.zig").Task;
const block = kernel.Rows.block_tokens;
const channels_max = bf16_ref.channels_max;
const Part = bf16_ref.Part;
const minus_infinity = -std.math.inf(f32);

/// One query head of one token.
const Row = struct {
    head: pages.Head,
    q: [channels_max / q8.group]int8.Block,
    /// Keys that it sees
    n: usize,

    fn score(s: Row, pos: usize) f32 {
        const page = s.head.page(1, pos);
        const key = pos % pages.page_tokens;
        var sum: f32 = 0;
        for (s.q[0 .. s.head.hd / q8.group], 0..) |b, g| {
            var products: i32 = 0;
            for (b.q, 0..) |x, c|
                products += @as(i32, x) * q8.getKeyNumber(page, s.head.hd, key, g * q8.group + c);
            const d = q8.getScale(page, key, g * q8.group);
            sum = simd.mulAdd1(@as(f32, @floatFromInt(products)) * d, b.scale, sum);
        }
        return sum;
    }
    fn valueScale(s: Row, pos: usize, d: usize) f32 {
        return q8.getScale(s.head.page(2, pos), pos % pages.page_tokens, d);
    }
    /// A weight as a multiple of the group's unit.
    fn whole(s: Row, worth: f32, pos: usize, d: usize, by: f32) i32 {
        const w: u32 = @bitCast(simd.mulAdd1(worth, s.valueScale(pos, d) * by, kernel.magic));
        return @as(i16, @bitCast(@as(u16, @truncate(w))));
    }
    fn addBlock(s: Row, p: *Part, first: usize) void {
        const end = @min(s.n, first + block);
        var worth: [block]f32 = @splat(minus_infinity);
        var max = minus_infinity;
        for (first..end) |pos| {
            worth[pos - first] = s.score(pos);
            max = @max(max, worth[pos - first]);
        }
        var lanes: [32]f32 = @splat(0);
        for (&worth, 0..) |*w, i| {
            w.* = bf16.power(simd.splat(w.* - max))[0];
            lanes[i % 32] += w.*;
        }
        for ([_]usize{ 16, 8, 4, 2, 1 }) |half| for (0..half) |i| {
            lanes[i] += lanes[i + half];
        };
        const now = @max(p.max, max);
        const keep = bf16.rescale(p.max, now);
        const add = bf16.rescale(max, now);
        p.max = now;
        p.sum = simd.mulAdd1(p.sum, keep, lanes[0] * add);
        for (p.values[0..s.head.hd], 0..) |*x, d| {
            var largest: f32 = 0;
            for (first..end) |pos| largest = @max(largest, s.valueScale(pos, d));
            const by = kernel.inverse(largest);
            var products: i32 = 0;
            for (first..end) |pos| {
                const v = q8.getValueNumber(s.head.page(2, pos), s.head.hd, pos % 64, d);
                products += s.whole(worth[pos - first], pos, d, by) * v;
            }
            const unit = largest / kernel.whole * add;
            x.* = simd.mulAdd1(x.*, keep, @as(f32, @floatFromInt(products)) * unit);
        }
    }
};

/// As `attention.attention_ref`, for pages of 8-bit blocks.
pub fn attentionRef(t: *const Task) void {
    const hd = t.attrs[2];
    for (0..t.step.n_tokens) |token| for (0..t.attrs[0]) |h| {
        const seq = t.step.seq_of_token.?[token];
        const kv_head = h / (t.attrs[0] / t.attrs[1]);
        var row = Row{
            .head = .{ .t = t, .seq = seq, .kv_head = kv_head, .hd = hd },
            .q = undefined,
            .n = t.step.past_len.?[seq] + (token - t.step.seq_start.?[seq]) + 1,
        };
        for (0..hd / q8.group) |g|
            row.q[g] = kernel.query(t.row(0, token) + h * hd + g * q8.group, t.attrF(3));
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
