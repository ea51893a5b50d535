//! Pairs of bf16, two in each u32 with the even one below, and their products. `dot` is what
//! vdpbf16ps does on Intel's and AMD's CPUs alike: one multiply-add with the odd numbers, then one
//! with the even ones, each rounded to nearest even, where denormals (of a number, of the sum, of a
//! result) count as zeros.

const std = @import("std");
const simd = @import("simd.zig");
const F = simd.F;
const U = simd.U;
const L = simd.L;

extern fn @"llvm.x86.avx512bf16.dpbf16ps.512"(F, U, U) F;
extern fn @"llvm.x86.avx512bf16.cvtneps2bf16.512"(F) @Vector(L, u16);

/// sum + odd of a * odd of b, + even of a * even of b.
pub inline fn dot(sum: F, a: U, b: U) F {
    if (simd.has_avx512bf16) return @"llvm.x86.avx512bf16.dpbf16ps.512"(sum, a, b);
    const odd = simd.mulAdd(flush(simd.hi16(a)), flush(simd.hi16(b)), flush(sum));
    return flush(simd.mulAdd(flush(simd.lo16(a)), flush(simd.lo16(b)), flush(odd)));
}
/// Denormals as zeros of their sign.
inline fn flush(x: F) F {
    const bits: U = @bitCast(x);
    const none = bits & @as(U, @splat(0x7f800000)) == @as(U, @splat(0));
    return @bitCast(@select(u32, none, bits & @as(U, @splat(0x80000000)), bits));
}

/// The scalar twin of `dot`: the same bits as one of its lanes.
pub fn dotRef(sum: f32, a: [2]u16, b: [2]u16) f32 {
    const odd = simd.mulAdd1(flush1(simd.b2f(a[1])), flush1(simd.b2f(b[1])), flush1(sum));
    return flush1(simd.mulAdd1(flush1(simd.b2f(a[0])), flush1(simd.b2f(b[0])), flush1(odd)));
}
fn flush1(x: f32) f32 {
    const bits: u32 = @bitCast(x);
    return if (bits & 0x7f800000 == 0) @bitCast(bits & 0x80000000) else x;
}

/// L numbers to nearest even; denormals become zeros, which they are in every product.
pub inline fn round(x: F) @Vector(L, u16) {
    if (simd.has_avx512bf16) return @"llvm.x86.avx512bf16.cvtneps2bf16.512"(x);
    return simd.f2bV(flush(x));
}
/// One number as `round` leaves it.
pub fn round1(x: f32) u16 {
    return simd.f2b(flush1(x));
}

/// The same pair in every lane.
pub inline fn splat(pair: u32) U {
    return @splat(pair);
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

/// Numbers near 1, near the smallest ones, of any size, and special ones.
fn number(random: std.Random, kind: usize) u32 {
    const any = random.int(u32);
    return switch (kind) {
        0 => any,
        1 => any & 0x807fffff | (120 + random.uintLessThan(u32, 14)) << 23,
        2 => any & 0x807fffff | random.uintLessThan(u32, 4) << 23,
        else => any & 0x807fffff | (50 + random.uintLessThan(u32, 30)) << 23,
    };
}

test "bf16 products round, flush and keep NaN as their twin does" {
    var seed = std.Random.DefaultPrng.init(17);
    const random = seed.random();
    for (0..100_000) |i| {
        const kind = i % 4;
        const a = number(random, kind) & 0xffff0000 | number(random, kind) >> 16;
        const b = number(random, kind) & 0xffff0000 | number(random, kind) >> 16;
        const sum: f32 = @bitCast(number(random, kind));
        const got: f32 = dot(@splat(sum), splat(a), splat(b))[L - 1];
        const want = dotRef(sum, @bitCast(a), @bitCast(b));
        if (std.math.isNan(want)) try testing.expect(std.math.isNan(got)) else try testing
            .expectEqual(@as(u32, @bitCast(want)), @as(u32, @bitCast(got)));
        const rounded: [L]u16 = round(@splat(sum));
        if (std.math.isNan(sum)) try testing.expect(std.math.isNan(simd.b2f(rounded[0]))) else {
            try testing.expectEqual(round1(sum), rounded[0]);
        }
    }
}

test "a sum of bf16 products is exact where nothing needs rounding" {
    const one = [2]u16{ simd.f2b(3), simd.f2b(-0.5) };
    const other = [2]u16{ simd.f2b(7), simd.f2b(4) };
    try testing.expectEqual(@as(f32, 119), dotRef(100, one, other));
    const got = dot(@splat(100), splat(@bitCast(one)), splat(@bitCast(other)));
    try testing.expectEqual(@as(f32, 119), got[0]);
}
