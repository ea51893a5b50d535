//! Quantizers: f32 values into the blocks of `block.zig`, by search for the scales with the least
//! squared error (`quantize_lanes`, and its twin `quantize_ref`); every integer is chosen anew for
//! the scale that is stored, in the end. Sums are fixed trees: every CPU level gives the same bits.
//! This file has the types with one scale for 32 columns, `quantize/long.zig` the K types.

const std = @import("std");
const block = @import("block.zig");
const lanes = @import("quantize/lanes.zig");
const long = @import("quantize/long.zig");
const simd = @import("simd.zig");
const DType = block.DType;

pub const V32 = @Vector(32, f32);

/// w = scale * q - min
pub const Line = struct { scale: f32, min: f32 };

/// The nearest whole number (the even one of two), for magnitudes below 2^22.
pub inline fn nearest(v: anytype) @TypeOf(v) {
    const shift: @TypeOf(v) = @splat(12582912); // 1.5 * 2^23: beyond it f32 have no fraction
    return (v + shift) - shift;
}

/// `nearest`, held within [low, high]; NaN becomes low.
pub inline fn nearestWithin(v: anytype, low: f32, high: f32) @TypeOf(v) {
    const V = @TypeOf(v);
    // Held before it is rounded: what is far out must not reach where rounding fails. Comparisons
    // that are one instruction each.
    const l: V = @splat(low);
    const h: V = @splat(high);
    const above = @select(f32, v > l, v, l);
    return nearest(@select(f32, above < h, above, h));
}

/// All 16 or 32 lanes to one, the upper half onto the lower half again and again. (@reduce takes
/// floats one by one.)
inline fn fold(comptime how: How, v: anytype) f32 {
    const n = @typeInfo(@TypeOf(v)).vector.len;
    var all: [n]f32 = v;
    comptime var half = n / 2;
    inline while (half > 0) : (half /= 2) {
        const low: @Vector(half, f32) = all[0..half].*;
        const high: @Vector(half, f32) = all[half..][0..half].*;
        all[0..half].* = switch (how) {
            .add => low + high,
            .max => @max(low, high),
            .min => @min(low, high),
        };
    }
    return all[0];
}
const How = enum { add, max, min };
/// All lanes added in a fixed tree.
pub inline fn sum(v: anytype) f32 {
    return fold(.add, v);
}
/// The largest lane; NaN is passed over.
pub inline fn maximum(v: anytype) f32 {
    return fold(.max, v);
}
pub inline fn minimum(v: anytype) f32 {
    return fold(.min, v);
}

/// The lane of the largest magnitude, with its sign.
pub inline fn extreme(v: anytype) f32 {
    const high = maximum(v);
    const low = minimum(v);
    return if (-low > high) low else high;
}

/// The f32 that will be read back from a scale kept in f16.
pub inline fn stored(x: f32) f32 {
    return block.half(simd.f2h(x));
}

/// Integers of a part for a line.
pub inline fn onLine(comptime top: f32, x: V32, line: Line) V32 {
    return nearestWithin(over(x + @as(V32, @splat(line.min)), line.scale), 0, top);
}

/// x divided by a scale: zeros where the scale is zero.
pub inline fn over(v: anytype, scale: f32) @TypeOf(v) {
    const inverse: f32 = if (scale == 0) 0 else 1 / scale;
    return v * @as(@TypeOf(v), @splat(inverse));
}

/// One scale, by the largest magnitude; eight bits need no search.
pub fn q8_0(x: V32, b: *align(1) block.Q8_0) void {
    const d = @max(maximum(x), -minimum(x)) / 127;
    const inverse: f32 = if (d == 0) 0 else 1 / d;
    const scaled: [32]f32 = x * @as(V32, @splat(inverse));
    b.d = simd.f2h(d);
    // Halves go away from zero, as in files that other programs write.
    for (scaled, &b.q) |v, *q| q.* = @intFromFloat(@min(@max(@round(v), -127), 127));
}

/// Integers from -8 to 7; without a scale the extreme value becomes -8, so that what is not finite,
/// or too large for f16, shows.
fn q4_0(x: V32, scale: ?f32, b: *align(1) block.Q4_0) void {
    b.d = simd.f2h(scale orelse extreme(x) / -8);
    const q: [32]f32 = nearestWithin(over(x, block.half(b.d)), -8, 7);
    for (&b.q, q[0..16], q[16..]) |*pair, low, high| {
        const a: u8 = @intFromFloat(low + 8);
        const c: u8 = @intFromFloat(high + 8);
        pair.* = a | c << 4;
    }
}

/// The blocks of the first n of 256 columns, a multiple of the type's; the others may be any
/// numbers. Any alignment.
pub fn quantize(comptime dtype: DType, x: *const [256]f32, n: usize, dst: [*]u8) void {
    quantizeBy(lanes, dtype, x, n, dst);
}
pub fn quantizeBy(
    comptime Search: type,
    comptime dtype: DType,
    x: *const [256]f32,
    n: usize,
    dst: [*]u8,
) void {
    const columns = comptime block.columns(dtype);
    const blocks: [*]align(1) block.Of(dtype) = @ptrCast(dst);
    const scales = if (dtype == .q4_0) Search.fitScales32(x);
    for (blocks[0 .. n / columns], 0..) |*b, i| switch (dtype) {
        .q8_0 => q8_0(x[32 * i ..][0..32].*, b),
        .q4_0 => q4_0(x[32 * i ..][0..32].*, scales[i], b),
        .q4_k, .q5_k => long.withMinimum(Search, dtype, x, b),
        .q6_k => long.q6_k(Search, x, b),
        .f32 => b.* = x[i],
        .f16 => b.* = simd.f2h(x[i]),
        .bf16 => b.* = simd.f2b(x[i]),
        .i32, .f8_e4m3 => @compileError("nothing becomes " ++ @tagName(dtype)),
    };
}

test {
    _ = @import("quantize/test.zig");
}
