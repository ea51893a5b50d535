//! Quantizers: f32 values into the blocks of `block.zig`, by search for the scales with the least
//! squared error; every integer is chosen anew for the scale that is stored, in the end. Vectors
//! span a sub-block, sums are fixed trees: every CPU level gives the same bits. This file has the
//! types with one scale for 32 columns, `quantize_long.zig` the K types.

const std = @import("std");
const block = @import("block.zig");
const long = @import("quantize_long.zig");
const simd = @import("simd.zig");
const DType = block.DType;

pub const V32 = @Vector(32, f32);

/// The nearest whole number (the even one of two), for magnitudes below 2^22.
pub inline fn nearest(v: anytype) @TypeOf(v) {
    const shift: @TypeOf(v) = @splat(12582912); // 1.5 * 2^23: beyond it f32 have no fraction
    return (v + shift) - shift;
}

/// `nearest`, held within [low, high]; NaN becomes one of the two.
pub inline fn nearestWithin(v: anytype, low: f32, high: f32) @TypeOf(v) {
    const V = @TypeOf(v);
    // Held before it is rounded: what is far out must not reach where rounding fails.
    return nearest(@min(@max(v, @as(V, @splat(low))), @as(V, @splat(high))));
}

/// The upper half of the lanes onto the lower half.
inline fn fold(v: anytype) @Vector(@typeInfo(@TypeOf(v)).vector.len / 2, f32) {
    const n = @typeInfo(@TypeOf(v)).vector.len / 2;
    const lanes: [2 * n]f32 = v;
    return @as(@Vector(n, f32), lanes[0..n].*) + @as(@Vector(n, f32), lanes[n..].*);
}

/// All 16 or 32 lanes added in a fixed tree.
pub inline fn sum(v: anytype) f32 {
    const v16 = if (@typeInfo(@TypeOf(v)).vector.len == 32) fold(v) else v;
    return fold(fold(fold(fold(v16))))[0];
}

/// The lane of the largest magnitude, with its sign.
pub inline fn extreme(v: anytype) f32 {
    const high = @reduce(.Max, v);
    const low = @reduce(.Min, v);
    return if (-low > high) low else high;
}

/// The f32 that will be read back from a scale kept in f16.
pub inline fn stored(x: f32) f32 {
    return block.half(simd.f2h(x));
}

/// x divided by a scale: zeros where the scale is zero.
pub inline fn over(v: anytype, scale: f32) @TypeOf(v) {
    const inverse: f32 = if (scale == 0) 0 else 1 / scale;
    return v * @as(@TypeOf(v), @splat(inverse));
}

/// One scale, by the largest magnitude; eight bits need no search.
fn q8_0(x: V32, b: *align(1) block.Q8_0) void {
    const d = @max(@reduce(.Max, x), -@reduce(.Min, x)) / 127;
    const inverse: f32 = if (d == 0) 0 else 1 / d;
    const scaled: [32]f32 = x * @as(V32, @splat(inverse));
    b.d = simd.f2h(d);
    // Halves go away from zero, as in files that other programs write.
    for (scaled, &b.q) |v, *q| q.* = @intFromFloat(@min(@max(@round(v), -127), 127));
}

/// Integers from -8 to 7: the extreme value becomes -8, or a little less or more, whichever of
/// these scales, each fitted to its integers, leaves the smallest error.
fn q4_0(x: V32, b: *align(1) block.Q4_0) void {
    const far = extreme(x);
    var best: f32 = std.math.inf(f32);
    var d: f32 = 0;
    if (far != 0) for (0..25) |i| {
        const first = far / -(6.6 + 0.1 * @as(f32, @floatFromInt(i)));
        var q = nearestWithin(over(x, first), -8, 7);
        const fitted = stored(sum(q * x) / sum(q * q));
        q = nearestWithin(over(x, fitted), -8, 7);
        const rest = x - @as(V32, @splat(fitted)) * q;
        const e = sum(rest * rest);
        if (e < best) {
            best = e;
            d = fitted;
        }
    };
    if (best == std.math.inf(f32)) d = far / -8; // what is not finite, or too large for f16, shows
    b.d = simd.f2h(d);
    const q: [32]f32 = nearestWithin(over(x, stored(d)), -8, 7);
    for (&b.q, q[0..16], q[16..]) |*pair, low, high| {
        const a: u8 = @intFromFloat(low + 8);
        const c: u8 = @intFromFloat(high + 8);
        pair.* = a | c << 4;
    }
}

/// One block from as many values as its type has columns. Any alignment.
pub fn quantize(comptime dtype: DType, x: [*]const f32, b: *align(1) block.Of(dtype)) void {
    switch (dtype) {
        .q8_0 => q8_0(x[0..32].*, b),
        .q4_0 => q4_0(x[0..32].*, b),
        .q4_k, .q5_k => long.withMinimum(dtype, x[0..256], b),
        .q6_k => long.q6_k(x[0..256], b),
        .f32 => b.* = x[0],
        .f16 => b.* = simd.f2h(x[0]),
        .bf16 => b.* = simd.f2b(x[0]),
        .i32, .f8_e4m3 => @compileError("nothing becomes " ++ @tagName(dtype)),
    }
}

test {
    _ = @import("quantize_test.zig");
}
