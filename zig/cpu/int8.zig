//! Vectors of small integers: exact products of int8 and int16, summed in pairs. Each function has
//! the instruction of the CPU level where there is one, and otherwise the same integers from plain
//! vectors; integer sums have no rounding, so all levels agree to the bit.

const std = @import("std");
const builtin = @import("builtin");
const simd = @import("simd.zig");
const L = simd.L;
const I = simd.I;
const U = simd.U;

/// 4 bytes a lane.
pub const Bytes = @Vector(4 * L, u8);
pub const Signed = @Vector(4 * L, i8);
/// 2 shorts a lane.
pub const Shorts = @Vector(2 * L, i16);

const x86 = builtin.cpu.arch == .x86_64;
const has_avx512bw = x86 and builtin.cpu.has(.x86, .avx512bw);
const has_avx2 = simd.has_avx2;

extern fn @"llvm.x86.avx2.pmadd.wd"(@Vector(16, i16), @Vector(16, i16)) @Vector(8, i32);
extern fn @"llvm.x86.avx2.pmadd.ub.sw"(@Vector(32, u8), @Vector(32, i8)) @Vector(16, i16);
extern fn @"llvm.x86.avx2.psign.b"(@Vector(32, i8), @Vector(32, i8)) @Vector(32, i8);
extern fn @"llvm.x86.avx512.pmaddw.d.512"(@Vector(32, i16), @Vector(32, i16)) @Vector(16, i32);
extern fn @"llvm.x86.avx512.pmaddubs.w.512"(@Vector(64, u8), @Vector(64, i8)) @Vector(32, i16);
extern fn @"llvm.x86.avx512.vpdpbusd.512"(I, I, I) I;
extern fn @"llvm.x86.avx512.vpdpwssd.512"(I, I, I) I;

fn every(comptime n: usize, comptime first: i32) [n]i32 {
    var at: [n]i32 = undefined;
    for (&at, 0..) |*lane, i| lane.* = @as(i32, @intCast(2 * i)) + first;
    return at;
}

/// a[2i] * b[2i] + a[2i + 1] * b[2i + 1], exact.
pub inline fn addPairs16(a: Shorts, b: Shorts) I {
    if (has_avx512bw) return @"llvm.x86.avx512.pmaddw.d.512"(a, b);
    if (has_avx2) return @"llvm.x86.avx2.pmadd.wd"(a, b);
    const even = comptime every(L, 0);
    const odd = comptime every(L, 1);
    const low = @as(I, @shuffle(i16, a, undefined, even)) *
        @as(I, @shuffle(i16, b, undefined, even));
    const high = @as(I, @shuffle(i16, a, undefined, odd)) *
        @as(I, @shuffle(i16, b, undefined, odd));
    return low +% high;
}

/// a[2i] * b[2i] + a[2i + 1] * b[2i + 1] of unsigned and signed bytes. The caller's values keep the
/// sum within an i16: instructions would saturate and plain vectors wrap.
pub inline fn addPairs8(a: Bytes, b: Signed) Shorts {
    if (has_avx512bw) return @"llvm.x86.avx512.pmaddubs.w.512"(a, b);
    if (has_avx2) return @"llvm.x86.avx2.pmadd.ub.sw"(a, b);
    const even = comptime every(2 * L, 0);
    const odd = comptime every(2 * L, 1);
    const low = @as(Shorts, @shuffle(u8, a, undefined, even)) *%
        @as(Shorts, @shuffle(i8, b, undefined, even));
    const high = @as(Shorts, @shuffle(u8, a, undefined, odd)) *%
        @as(Shorts, @shuffle(i8, b, undefined, odd));
    return low +% high;
}

/// sum + the four products of unsigned and signed bytes of each lane, exact (it wraps).
pub inline fn addFours(sum: I, a: Bytes, b: Signed) I {
    if (simd.has_vnni)
        return @"llvm.x86.avx512.vpdpbusd.512"(sum, @bitCast(a), @bitCast(b));
    var all = sum;
    inline for (0..4) |i| {
        const at = comptime every4(i);
        all +%= @as(I, @shuffle(u8, a, undefined, at)) *% @as(I, @shuffle(i8, b, undefined, at));
    }
    return all;
}
fn every4(comptime first: i32) [L]i32 {
    var at: [L]i32 = undefined;
    for (&at, 0..) |*lane, i| lane.* = @as(i32, @intCast(4 * i)) + first;
    return at;
}

/// What `offsetBytes` adds to signed bytes: the caller takes so many times the sum of the other
/// operand from the sums of `addQuads`, best as their start.
pub const offset = if (simd.has_vnni) 128 else 0;
pub inline fn offsetBytes(x: Signed) Signed {
    return if (simd.has_vnni) x ^ @as(Signed, @splat(-128)) else x;
}
/// sum + the four products of each lane of signed bytes, b at least -127, where a comes from
/// `offsetBytes`: exact (it wraps).
pub inline fn addQuads(sum: I, a: Signed, b: Signed) I {
    if (simd.has_vnni) return addFours(sum, @bitCast(a), b);
    return sum +% addPairs16(addPairs8(@abs(a), withSign(b, a)), ones());
}
/// sum + the two products of each lane of shorts, exact (it wraps).
pub inline fn addPairs(sum: I, a: Shorts, b: Shorts) I {
    if (simd.has_vnni)
        return @"llvm.x86.avx512.vpdpwssd.512"(sum, @bitCast(a), @bitCast(b));
    return sum +% addPairs16(a, b);
}

/// What products of bytes add up in: an i32 for the four of a lane, or a pair of i16 where there is
/// no instruction for four.
pub const Sums = if (simd.has_vnni) I else Shorts;

/// sums + the products of each lane. Pairs of i16 wrap, so that only their end must fit.
pub inline fn addBytes(sums: Sums, a: Bytes, b: Signed) Sums {
    if (simd.has_vnni) return addFours(sums, a, b);
    return sums +% addPairs8(a, b);
}
/// What each lane has summed.
pub inline fn whole(sums: Sums) I {
    return if (simd.has_vnni) sums else addPairs16(sums, ones());
}
/// What each lane has summed, times a factor.
pub inline fn times(sums: Sums, by: Sums) I {
    return if (simd.has_vnni) sums *% by else addPairs16(sums, by);
}
/// Factors for `times`, from u8 or i8.
pub inline fn factors(x: anytype) Sums {
    if (simd.has_vnni) return x;
    const twice = comptime blk: {
        var t: [2 * L]i32 = undefined;
        for (&t, 0..) |*lane, i| lane.* = i / 2;
        break :blk t;
    };
    return @shuffle(@typeInfo(@TypeOf(x)).vector.child, x, undefined, twice);
}
/// The sums that a start as in `Block.start` stands for, in every lane.
pub inline fn started(x: u32) Sums {
    return @bitCast(@as(U, @splat(x)));
}
pub const no_sums: Sums = @splat(0);
/// What sums that began with the bits of an f32, as `Totals.start` has them, have gained, as f32.
pub inline fn beyond(sums: I, start: I) simd.F {
    return @as(simd.F, @bitCast(sums)) - @as(simd.F, @bitCast(start));
}

/// The sign of each byte of `by` on x: x, 0 or -x; where `by` is 0, x and 0 are both allowed.
pub inline fn withSign(x: Signed, by: Signed) Signed {
    if (has_avx2 and !has_avx512bw) return @"llvm.x86.avx2.psign.b"(x, by);
    const zero: Signed = @splat(0);
    return @select(i8, by < zero, zero -% x, x);
}

pub inline fn ones() Shorts {
    return @splat(1);
}

/// The same 32 bits in every lane.
pub inline fn splatBytes(x: u32) Signed {
    return @bitCast(@as(U, @splat(x)));
}
pub inline fn splatShorts(x: u32) Shorts {
    return @bitCast(@as(U, @splat(x)));
}

pub inline fn floats(x: I) simd.F {
    return @floatFromInt(x);
}

// ---- activations ---------------------------------------------------------------------------

/// Columns of x that share a scale.
pub const columns = 32;
/// Blocks smaller than this count as zeros: their inverse would overflow.
const smallest = 1e-30;

/// One block of 32 activations as int8: x is about scale * q.
pub const Block = struct {
    q: [columns]i8,
    /// Largest |x| / 127; NaN where an x is.
    scale: f32,
    /// scale * (sum of q), for weights with a minimum.
    total: f32,
    /// For each 16 q: the sum of those in columns 4 i and 4 i + 1, and of the others.
    sums: [2][2]i16,

    /// -by times the sum of the q of one half as `Sums` start with it: by * 2032 fits an i16.
    pub inline fn start(b: *const Block, half: usize, by: i32) u32 {
        return startOf(b.sums[half][0], b.sums[half][1], by);
    }
    /// The same of all q: by * 4064 fits an i32, and in pairs by * 2032 an i16.
    pub inline fn startOfAll(b: *const Block, by: i32) u32 {
        return startOf(b.sums[0][0] + b.sums[1][0], b.sums[0][1] + b.sums[1][1], by);
    }
    inline fn startOf(low: i32, high: i32, by: i32) u32 {
        if (simd.has_vnni) return @bitCast(-by * (low + high));
        return @bitCast([2]i16{ @truncate(-by * low), @truncate(-by * high) });
    }
};

/// Totals of 8 blocks for weights with minima of 6 bits: whole multiples of one power of two.
pub const Totals = struct {
    q: [8]i16,
    /// 1.5 * 2^23 of that power, as the bits of an f32: integers added to these bits, up to 2^22,
    /// add as many multiples of it. NaN where a total is 2^113 or more or NaN.
    start: u32,

    /// Each within 2^-13 of the largest, or 2^-108, of what it was.
    pub fn of(totals: *const [8]f32) Totals {
        var top: u32 = 0;
        for (totals) |t| top = @max(top, @as(u32, @bitCast(t)) & 0x7fffffff);
        // All are below 2^(exponent - 126), and at most 2^13 once rounded: 8 * 63 * 2^13 < 2^22.
        const exponent = @max(top >> 23, 32);
        if (exponent > 240) return .{ .q = @splat(0), .start = 0x7fc00000 };
        const by: f32 = @bitCast(266 - exponent << 23);
        var t: Totals = .{ .q = undefined, .start = exponent + 11 << 23 | 0x400000 };
        for (totals, &t.q) |total, *q| {
            const rounded: u32 = @bitCast(total * by + 0x1.8p23);
            q.* = @bitCast(@as(u16, @truncate(rounded)));
        }
        return t;
    }
};

fn columnsOf(comptime k: usize) [8]i32 {
    var at: [8]i32 = undefined;
    for (&at, 0..) |*lane, i| lane.* = @intCast(i / 2 * 4 + 2 * k + i % 2);
    return at;
}

/// q = x * (127 / max |x|), rounded to nearest even: |x - scale * q| <= scale * (1/2 + 2^-15).
pub inline fn quantize(x: [*]const f32) Block {
    const n = columns / L;
    const magnitude: U = @splat(0x7fffffff);
    var v: [n]simd.F = undefined;
    var top: U = @splat(0);
    inline for (0..n) |i| {
        v[i] = simd.ldF(x + i * L);
        // As integers NaN is larger than any number, so that it wins.
        top = @max(top, @as(U, @bitCast(v[i])) & magnitude);
    }
    const largest: f32 = @bitCast(@reduce(.Max, top));
    const by: f32 = if (largest < smallest) 0 else 127 / largest;
    var b: Block = .{ .q = undefined, .scale = largest / 127, .total = 0, .sums = undefined };
    if (largest < smallest) b.scale = 0;
    // The magic number leaves the rounded value in the low bits, whatever x is.
    inline for (0..n) |i| {
        const t: U = @bitCast(simd.mulAdd(v[i], simd.splat(by), simd.splat(0x1.8p23)));
        const low: @Vector(L, u8) = @truncate(t);
        simd.st(@as([*]i8, &b.q) + i * L, low);
    }
    var all: i32 = 0;
    inline for (0..2) |h| {
        const half: @Vector(16, i8) = b.q[16 * h ..][0..16].*;
        const wide: @Vector(16, i16) = half;
        inline for (0..2) |k| {
            const picked: @Vector(8, i16) = @shuffle(i16, wide, undefined, columnsOf(k));
            const sum = @reduce(.Add, picked);
            b.sums[h][k] = sum;
            all += sum;
        }
    }
    b.total = b.scale * @as(f32, @floatFromInt(all));
    return b;
}

/// `quantize` one number after another.
pub fn quantizeRef(x: *const [columns]f32) Block {
    var largest: u32 = 0;
    for (x) |v| largest = @max(largest, @as(u32, @bitCast(v)) & 0x7fffffff);
    const top: f32 = @bitCast(largest);
    var b: Block = .{ .q = undefined, .scale = top / 127, .total = 0, .sums = @splat(@splat(0)) };
    if (top < smallest) b.scale = 0;
    var sum: i32 = 0;
    for (x, &b.q, 0..) |v, *q, i| {
        const by: f32 = if (top < smallest) 0 else 127 / top;
        const t: u32 = @bitCast(simd.mulAdd1(v, by, 0x1.8p23));
        q.* = @bitCast(@as(u8, @truncate(t)));
        b.sums[i / 16][i % 4 / 2] += q.*;
        sum += q.*;
    }
    b.total = b.scale * @as(f32, @floatFromInt(sum));
    return b;
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

test "sums of pairs are exact at their limits and elsewhere" {
    var seed = std.Random.DefaultPrng.init(5);
    const random = seed.random();
    for (0..200) |round| {
        var a: [4 * L]u8 = undefined;
        var b: [4 * L]i8 = undefined;
        var c: [2 * L]i16 = undefined;
        var d: [2 * L]i16 = undefined;
        for (&a, &b) |*x, *y| {
            x.* = if (round == 0) 128 else random.uintLessThan(u8, 129);
            y.* = if (round < 2) -127 else random.intRangeAtMost(i8, -127, 127);
        }
        for (&c, &d) |*x, *y| {
            x.* = if (round == 0) 4096 else random.intRangeAtMost(i16, -4096, 4096);
            y.* = if (round == 0) -127 else random.intRangeAtMost(i16, -127, 127);
        }
        const small: [2 * L]i16 = addPairs8(a, b);
        const large: [L]i32 = addPairs16(c, d);
        const signs: [4 * L]i8 = withSign(b, @bitCast(a));
        for (small, 0..) |got, i| {
            const want = @as(i32, a[2 * i]) * b[2 * i] + @as(i32, a[2 * i + 1]) * b[2 * i + 1];
            try testing.expectEqual(want, got);
        }
        for (large, 0..) |got, i| {
            const want = @as(i32, c[2 * i]) * d[2 * i] + @as(i32, c[2 * i + 1]) * d[2 * i + 1];
            try testing.expectEqual(want, got);
        }
        for (signs, a, b) |got, by, x| {
            if (by == 0) continue;
            try testing.expectEqual(if (by == 128) -x else x, got);
        }
    }
}

test "sums of four are exact" {
    var seed = std.Random.DefaultPrng.init(8);
    const random = seed.random();
    for (0..200) |round| {
        var a: [4 * L]u8 = undefined;
        var b: [4 * L]i8 = undefined;
        random.bytes(&a);
        random.bytes(std.mem.asBytes(&b));
        if (round == 0) a = @splat(255);
        if (round == 0) b = @splat(-128);
        const before: [L]i32 = @splat(@as(i32, @intCast(round)) - 100);
        const after: [L]i32 = addFours(before, a, b);
        for (before, after, 0..) |x, got, i| {
            var want = x;
            for (4 * i..4 * i + 4) |j| want += @as(i32, a[j]) * b[j];
            try testing.expectEqual(want, got);
        }
    }
}

test "sums of signed fours and of pairs are exact" {
    var seed = std.Random.DefaultPrng.init(9);
    const random = seed.random();
    for (0..200) |round| {
        var a: [4 * L]i8 = undefined;
        var b: [4 * L]i8 = undefined;
        random.bytes(std.mem.asBytes(&a));
        for (&b) |*x| x.* = random.intRangeAtMost(i8, -127, 127);
        if (round < 2) a = @splat(-128);
        if (round < 2) b = @splat(if (round == 0) 127 else -127);
        const c: [2 * L]i16 = @bitCast(a);
        const d: [2 * L]i16 = @bitCast(b);
        const fours: [L]i32 = addQuads(@splat(7), offsetBytes(a), b);
        const twos: [L]i32 = addPairs(@splat(7), c, d);
        for (fours, twos, 0..) |four, two, i| {
            var want: [2]i32 = @splat(7);
            for (4 * i..4 * i + 4) |j| want[0] += (@as(i32, a[j]) + offset) * b[j];
            for (2 * i..2 * i + 2) |j| want[1] += @as(i32, c[j]) * d[j];
            try testing.expectEqual(want, .{ four, two });
        }
    }
}

test "activations round as their twin does and stay within half a step" {
    var seed = std.Random.DefaultPrng.init(6);
    const random = seed.random();
    for (0..2000) |round| {
        var x: [columns]f32 = undefined;
        const size = std.math.pow(f32, 10, @floatFromInt(random.intRangeAtMost(i32, -36, 30)));
        for (&x) |*v| v.* = random.floatNorm(f32) * size;
        if (round < 2) @memset(&x, if (round == 0) 0 else -3e-31);
        const got = quantize(&x);
        const want = quantizeRef(&x);
        try testing.expectEqual(want, got);
        for (x, got.q) |v, q| {
            const near = got.scale * @as(f32, @floatFromInt(q));
            try testing.expect(@abs(v - near) <= got.scale * (0.5 + 0x1p-15) + smallest);
        }
    }
    var x: [columns]f32 = @splat(1);
    x[7] = std.math.nan(f32);
    try testing.expect(std.math.isNan(quantize(&x).scale));
}
