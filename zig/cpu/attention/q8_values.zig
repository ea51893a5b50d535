//! The values' part of `attention_q8_rows`: weights of a group of channels as whole numbers, and
//! their exact products with V, which is widened on its way from memory or, for many rows, once.

const std = @import("std");
const simd = @import("../simd.zig");
const int8 = @import("../int8.zig");
const pages = @import("pages.zig");
const q8 = @import("q8.zig");
const q8_rows = @import("q8_rows.zig");
const Rows = q8_rows.Rows;
const F = simd.F;
const I = simd.I;
const U = simd.U;
const L = simd.L;
const block = q8_rows.block;
const group = q8_rows.group;
const vecs = q8_rows.vecs;
const high = q8_rows.high;
const pairs = q8_rows.pairs;
const both = q8_rows.both;
const whole = q8_rows.whole;

/// Every row's weights of group g, in pairs.
pub fn weigh(s: Rows, head: pages.Head, g: usize, first: usize, most: usize) void {
    const end = std.mem.alignForward(usize, most, both);
    var n: usize = 0;
    var unit: f32 = 0;
    for (0..s.n) |r| {
        const sees = s.seen(r, first);
        if (sees != n) unit = takeScales(s, head, g, first, sees, end);
        n = sees;
        s.unit[r] = unit;
        const x = s.worth + r * block;
        const w = s.weights + r * pairs;
        var i: usize = 0;
        while (i < end) : (i += both) inline for (0..q8.across / L) |v| {
            const low = weight(s, x, i + v * L);
            const upper = weight(s, x, i + q8.across + v * L);
            const sixteen: U = @splat(16);
            simd.st(w + i / 2 + v * L, low & @as(U, @splat(0xffff)) | upper << sixteen);
        };
    }
}
inline fn weight(s: Rows, x: [*]const f32, i: usize) U {
    const w = simd.mulAdd(simd.ldF(x + i), simd.ldF(s.scaled + i), simd.splat(q8_rows.magic));
    return @bitCast(w);
}
/// The scales of V's first n positions of the block as multiples of the unit, which is
/// returned; zeros behind them.
fn takeScales(s: Rows, head: pages.Head, g: usize, first: usize, n: usize, end: usize) f32 {
    const page = pages.page_tokens;
    const to = s.scaled;
    var all: [2]F = @splat(simd.zero);
    var i: usize = 0;
    while (i < n) : (i += both) {
        const from = head.page(2, first + i) + g * q8.scale_bytes;
        inline for (0..both / L) |v| {
            var d = simd.ldAs(.f16, from, i % page + v * L);
            if (i + both > n) d = @select(f32, places(i + v * L) < splatI(n), d, simd.zero);
            simd.st(to + i + v * L, d);
            all[v % 2] = simd.max(all[v % 2], d);
        }
    }
    simd.fill(to + i, end - i, 0);
    const largest = simd.maxLane(simd.max(all[0], all[1]));
    const by = simd.splat(q8_rows.inverse(largest));
    i = 0;
    while (i < end) : (i += both) inline for (0..both / L) |v|
        simd.st(to + i + v * L, simd.ldF(to + i + v * L) * by);
    return largest / whole;
}
/// first, first + 1, ..
inline fn places(first: usize) I {
    return splatI(first) + std.simd.iota(i32, L);
}
inline fn splatI(n: usize) I {
    return @splat(@intCast(n));
}

/// values[r] = values[r] * keep[r] + sum over keys of weight * V, for group g.
pub fn addValues(
    s: Rows,
    head: pages.Head,
    g: usize,
    first: usize,
    most: usize,
    end: usize,
) void {
    const few = s.n <= high;
    if (!few) widen(s, head, g, first, most);
    // The next block's pages, one a group.
    const later = first + block + g * pages.page_tokens;
    if (few and later < end) s.askScales(head.page(1, later));
    var r: usize = 0;
    while (r < s.n) : (r += high) switch (s.tileEnd(r) - r) {
        inline 1...high => |rows| if (few)
            valuesTile(s, rows, true, head, g, r, first, end)
        else
            valuesTile(s, rows, false, head, g, r, first, end),
        else => unreachable,
    };
}
/// Group g of the block's values, in pairs of i16.
fn widen(s: Rows, head: pages.Head, g: usize, first: usize, most: usize) void {
    var pos: usize = 0;
    while (pos < most) : (pos += both) {
        const from = column(s, head, 2, g, first + pos);
        const to = s.buffer + pos / 2 * group;
        for (0..q8.across * vecs) |i| simd.st(to + i * L, shorts(from + i * 2 * L));
    }
}
inline fn shorts(from: [*]const u8) int8.Shorts {
    return @as(int8.Shorts, simd.ld(@Vector(2 * L, i8), from));
}
/// Operand i's numbers of 32 positions and 32 channels, as V has them.
fn column(s: Rows, head: pages.Head, i: usize, g: usize, position: usize) [*]const u8 {
    const at = q8.valueIndex(position % pages.page_tokens, g * group);
    return head.page(i, position) + q8.numbersAt(s.hd) + at;
}
inline fn valuesTile(
    s: Rows,
    comptime rows: usize,
    comptime few: bool,
    head: pages.Head,
    g: usize,
    r: usize,
    first: usize,
    end: usize,
) void {
    @setEvalBranchQuota(100_000);
    const sees = s.seen(r + rows - 1, first);
    if (sees == 0) return;
    var sums: [rows][vecs]I = @splat(@splat(@splat(0)));
    var pos: usize = 0;
    while (pos < sees) : (pos += both) {
        const from = column(s, head, 2, g, first + pos);
        const paired = s.buffer + pos / 2 * group;
        const later = first + pos + block;
        const next = column(s, head, 1, g, if (later < end) later else first + pos);
        const w = s.weights + r * pairs + pos / 2;
        for (0..q8.across) |k| {
            if (few) @prefetch(next + k * 2 * group, .{ .locality = 2 });
            var x: [vecs]int8.Shorts = undefined;
            inline for (&x, 0..) |*value, v| value.* = if (few)
                shorts(from + (k * vecs + v) * 2 * L)
            else
                simd.ld(int8.Shorts, paired + (k * vecs + v) * L);
            inline for (&sums, 0..) |*row, i| {
                const by = int8.splatShorts(w[i * pairs + k]);
                inline for (row, x) |*sum, value| sum.* = int8.addPairs(sum.*, value, by);
            }
        }
    }
    inline for (&sums, 0..) |*row, i| {
        // Zero times what was not seen would still turn -0 to 0.
        if (s.seen(r + i, first) > 0) {
            const keep = simd.splat(s.keep[r + i]);
            const by = simd.splat(s.unit[r + i] * s.add_[r + i]);
            inline for (row, 0..) |x, v| {
                const to = s.values + (r + i) * s.hd + g * group + v * L;
                simd.st(to, simd.mulAdd(simd.ldF(to), keep, int8.floats(x) * by));
            }
        }
    }
}
