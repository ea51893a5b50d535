//! Reductions over one row whose order depends on the row's length alone: 32 running sums, lane i
//! taking columns i, i + 32, ..., folded in halves. Levels with 8 and with 16 lanes give the same
//! bits.

const std = @import("std");
const simd = @import("simd.zig");
const F = simd.F;
const L = simd.L;

/// The 32 running sums.
pub const Sums = struct {
    pub const width = 32;
    pub const vectors = width / L;
    a: [vectors]F = @splat(simd.zero),

    pub inline fn total(s: Sums) f32 {
        if (L == 8) return simd.sum((s.a[0] + s.a[2]) + (s.a[1] + s.a[3]));
        return simd.sum(s.a[0] + s.a[1]);
    }
};

/// A whole vector where `left` allows, else what is left and zeros.
pub inline fn part(p: [*]const f32, left: usize) F {
    return if (left >= L) simd.ldF(p) else simd.ldTail(p, left);
}
/// The same with `fill` behind what is left.
pub inline fn partOr(p: [*]const f32, left: usize, fill: f32) F {
    if (left >= L) return simd.ldF(p);
    var a: [L]f32 = @splat(fill);
    for (0..left) |i| a[i] = p[i];
    return a;
}
pub inline fn stPart(p: [*]f32, v: F, left: usize) void {
    if (left >= L) simd.st(p, v) else simd.stTail(p, v, left);
}

/// Sum of x².
pub fn squares(n: usize, x: [*]const f32) f32 {
    var s: Sums = .{};
    var i: usize = 0;
    while (i + Sums.width <= n) : (i += Sums.width) {
        inline for (0..Sums.vectors) |j| {
            const v = simd.ldF(x + i + j * L);
            s.a[j] = simd.mulAdd(v, v, s.a[j]);
        }
    }
    inline for (0..Sums.vectors) |j| {
        if (i < n) {
            const v = part(x + i, n - i);
            s.a[j] = simd.mulAdd(v, v, s.a[j]);
        }
        i += L;
    }
    return s.total();
}

/// The largest number; NaN is passed over; -inf where there is none.
pub fn largest(n: usize, x: [*]const f32) f32 {
    const low = -std.math.inf(f32);
    var m: [Sums.vectors]F = @splat(simd.splat(low));
    var i: usize = 0;
    while (i < n) {
        inline for (0..Sums.vectors) |j| {
            if (i < n) {
                const v = partOr(x + i, n - i, low);
                m[j] = @select(f32, v > m[j], v, m[j]);
            }
            i += L;
        }
    }
    var best = low;
    inline for (m) |v| best = @max(best, simd.maxLane(v));
    return best;
}

/// Columns whose exponentials are summed in f32; such blocks are summed in f64.
const block = 4096;

/// Sum of e^(x - max). NaN where x has one.
pub fn sumExp(n: usize, x: [*]const f32, max: f32) f64 {
    var sum: f64 = 0;
    var at: usize = 0;
    while (at < n) : (at += block) sum += blockSumExp(@min(block, n - at), x + at, max);
    return sum;
}
fn blockSumExp(n: usize, x: [*]const f32, max: f32) f32 {
    const low = -std.math.inf(f32);
    const m = simd.splat(max);
    var s: Sums = .{};
    var i: usize = 0;
    while (i + Sums.width <= n) : (i += Sums.width) {
        inline for (0..Sums.vectors) |j| s.a[j] += simd.exp(simd.ldF(x + i + j * L) - m);
    }
    inline for (0..Sums.vectors) |j| {
        if (i < n) s.a[j] += simd.exp(partOr(x + i, n - i, low) - m);
        i += L;
    }
    return s.total();
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

test "sums and maxima agree with plain loops at every length" {
    const gpa = testing.allocator;
    var prng = std.Random.DefaultPrng.init(3);
    const random = prng.random();
    for (0..200) |k| {
        const n = if (k < 100) k else k * k;
        const x = try gpa.alloc(f32, n + 1);
        defer gpa.free(x);
        for (x) |*v| v.* = (random.float(f32) - 0.5) * 20;
        x[n] = 1e9; // never read
        var square: f64 = 0;
        var best = -std.math.inf(f32);
        var sum: f64 = 0;
        for (x[0..n]) |v| {
            square += @as(f64, v) * v;
            best = @max(best, v);
        }
        for (x[0..n]) |v| sum += @exp(@as(f64, v) - best);
        try testing.expectApproxEqRel(square, @as(f64, squares(n, x.ptr)), 1e-5);
        try testing.expectEqual(best, largest(n, x.ptr));
        try testing.expectApproxEqRel(sum, sumExp(n, x.ptr, best), 1e-6);
    }
}

test "NaN and infinities" {
    const inf = std.math.inf(f32);
    const nan = std.math.nan(f32);
    var x: [40]f32 = @splat(nan);
    try testing.expectEqual(-inf, largest(x.len, &x));
    x[33] = -3;
    try testing.expectEqual(@as(f32, -3), largest(x.len, &x));
    try testing.expect(std.math.isNan(sumExp(x.len, &x, -3)));
    x = @splat(-inf);
    x[7] = 2;
    try testing.expectEqual(@as(f64, 1), sumExp(x.len, &x, 2));
    x[8] = inf;
    try testing.expectEqual(inf, largest(x.len, &x));
}
