//! Small products of pairs of bf16 held in registers: what `tile.zig` is for f32, where the CPU has
//! vdpbf16ps. Step k multiplies one pair of each row of A with two vectors of pairs of B; every sum
//! runs over k upwards in one accumulator, by `bf16.dot`.
//!
//! Ideas: 12 x 2 are 24 sums + 2 of B of 32 registers, pairs of A being broadcast by the
//! instruction itself. What many rows use lies paired up in L1 (`Packed`); what few rows use once
//! is paired up on its way from memory (`Across`, `Along`).

const std = @import("std");
const simd = @import("simd.zig");
const bf16 = @import("bf16.zig");
const F = simd.F;
const U = simd.U;
const L = simd.L;

/// Rows of the largest tile.
pub const rows_max = 12;
const vecs = 2;
/// Sums of a row in a tile.
pub const width = vecs * L;

pub fn Sums(comptime rows: usize) type {
    return [rows][vecs]F;
}
/// The pairs of one step of B.
const Step = [vecs]U;
const Halves = @Vector(2 * L, u16);

/// The left operand: pair (row r, step k) lies at p[r * row + k * step].
pub fn Left(comptime row: usize, comptime step: usize) type {
    return struct {
        p: [*]const u32,

        inline fn pair(a: @This(), r: usize, k: usize) U {
            return bf16.splat(a.p[r * row + k * step]);
        }
    };
}

/// Bytes that will be wanted soon: those k * step further are asked for in step k, `lines` at once.
pub const Ahead = struct {
    p: [*]const u8,
    step: usize,

    inline fn ask(a: Ahead, k: usize, comptime lines: usize) void {
        inline for (0..lines) |i|
            @prefetch(a.p + k * a.step + i * 64, .{ .locality = 2 });
    }
};

/// B paired up in rows of `width`.
pub fn Packed(comptime asks: bool) type {
    return struct {
        p: [*]const u32,
        ahead: if (asks) Ahead else void = if (asks) undefined else {},

        inline fn load(b: @This(), k: usize) Step {
            if (asks) b.ahead.ask(k, 1);
            var w: Step = undefined;
            inline for (&w, 0..) |*v, i| v.* = simd.ld(U, b.p + k * width + i * L);
            return w;
        }
    };
}

/// B in two blocks of L columns, rows 2 k and 2 k + 1 of a block one after another, as a K page has
/// them.
pub const Across = struct {
    p: [*]const u8,
    /// Bytes from one block to the next
    block: usize,
    ahead: Ahead,

    inline fn load(b: Across, k: usize) Step {
        b.ahead.ask(k, vecs);
        var w: Step = undefined;
        inline for (&w, 0..) |*v, i| v.* = acrossPairs(b.p + i * b.block + k * 4 * L);
        return w;
    }
};
/// The pairs of two rows of L numbers that lie one after another.
pub inline fn acrossPairs(p: [*]const u8) U {
    return @bitCast(@shuffle(u16, simd.ld(Halves, p), undefined, rows_paired));
}

/// B in rows of `width` columns, `stride` bytes from one to the next, as a V page has them.
pub const Along = struct {
    p: [*]const u8,
    stride: usize,
    ahead: Ahead,

    inline fn load(b: Along, k: usize) Step {
        b.ahead.ask(k, vecs);
        return alongPairs(b.p + 2 * k * b.stride, b.stride);
    }
};
/// The pairs of two rows of `width` numbers.
pub inline fn alongPairs(p: [*]const u8, stride: usize) Step {
    const even = simd.ld(Halves, p);
    const odd = simd.ld(Halves, p + stride);
    var w: Step = undefined;
    inline for (&w, 0..) |*v, part| {
        v.* = @bitCast(@shuffle(u16, even, odd, columns_paired[part]));
    }
    return w;
}
/// Lane 2 i and 2 i + 1 of pairs: numbers i of the two rows in a vector.
const rows_paired = blk: {
    var lanes: [2 * L]i32 = undefined;
    for (&lanes, 0..) |*lane, i| lane.* = @intCast(i / 2 + i % 2 * L);
    break :blk lanes;
};
/// The same, numbers i of one vector and of another, for each part of them.
const columns_paired = blk: {
    var lanes: [vecs][2 * L]i32 = undefined;
    for (&lanes, 0..) |*part, v| for (part, 0..) |*lane, i| {
        const from: i32 = @intCast(v * L + i / 2);
        lane.* = if (i % 2 == 0) from else ~from;
    };
    break :blk lanes;
};

/// sums[r][v] += sum over k < n of the products of pairs a(r, k) and b(k, v)
pub inline fn mulAdd(
    comptime rows: usize,
    sums: *Sums(rows),
    n: usize,
    a: anytype,
    b: anytype,
) void {
    @setEvalBranchQuota(100_000);
    for (0..n) |k| {
        const w = b.load(k);
        inline for (0..rows) |r| {
            const x = a.pair(r, k);
            inline for (w, 0..) |pairs, v| sums[r][v] = bf16.dot(sums[r][v], pairs, x);
        }
    }
}

/// As `mulAdd`, where row r has counts[r] numbers (not falling from row to row), halves of pairs: a
/// number that a row does not have is taken for zero, so that what lies there may be NaN.
pub inline fn mulAddRagged(
    comptime rows: usize,
    sums: *Sums(rows),
    counts: [rows]usize,
    a: anytype,
    b: anytype,
) void {
    @setEvalBranchQuota(100_000);
    const common = counts[0] / 2;
    mulAdd(rows, sums, common, a, b);
    if (counts[rows - 1] == 2 * common) return;
    inline for (0..rows) |r| {
        for (common..(counts[r] + 1) / 2) |k| {
            const half = 2 * k + 1 == counts[r];
            const seen: U = @splat(if (half) 0x0000ffff else 0xffffffff);
            const x = a.pair(r, k);
            inline for (b.load(k), 0..) |pairs, v|
                sums[r][v] = bf16.dot(sums[r][v], pairs & seen, x);
        }
    }
}

/// Pairs up two blocks of L columns and `n` rows, `block` bytes apart, to rows of `width`; behind
/// an odd n come zeros.
pub fn pairAcross(n: usize, p: [*]const u8, block: usize, out: [*]u32) void {
    inline for (0..vecs) |i| {
        const from = p + i * block;
        for (0..n / 2) |k| simd.st(out + k * width + i * L, acrossPairs(from + k * 4 * L));
        if (n % 2 == 1) {
            const last = simd.ld(@Vector(L, u16), from + (n - 1) * 2 * L);
            simd.st(out + n / 2 * width + i * L, @as(U, last));
        }
    }
}
/// Pairs up 2 n rows of `count` numbers, `stride` bytes apart, to n rows of `width`, zeros behind.
pub fn pairAlong(n: usize, count: usize, p: [*]const u8, stride: usize, out: [*]u32) void {
    for (0..n) |k| {
        const rows = p + 2 * k * stride;
        const to = out + k * width;
        if (count == width) {
            inline for (alongPairs(rows, stride), 0..) |pairs, i| simd.st(to + i * L, pairs);
            continue;
        }
        for (0..width) |c| {
            var pair: [2]u16 = @splat(0);
            if (c < count) for (&pair, 0..) |*x, i| {
                x.* = simd.ld(u16, rows + i * stride + c * 2);
            };
            to[c] = @bitCast(pair);
        }
    }
}
