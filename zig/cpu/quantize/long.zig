//! Quantizers of the K types, whose blocks of 256 columns have a scale in f16 for the whole and
//! small integer scales for each 16 or 32 columns. First every part is fitted by itself; then the
//! parts' scales become integers, with their neighbours tried as well; then the columns.

const std = @import("std");
const block = @import("../block.zig");
const quantize = @import("../quantize.zig");
const simd = @import("../simd.zig");
const DType = block.DType;
const Line = quantize.Line;
const V32 = quantize.V32;
const V16 = @Vector(16, f32);
const nearestWithin = quantize.nearestWithin;
const over = quantize.over;

fn one(x: f32) @Vector(1, f32) {
    return .{x};
}

/// Q4_K and Q5_K.
pub fn withMinimum(
    comptime Search: type,
    comptime dtype: DType,
    x: *const [256]f32,
    b: *align(1) block.Of(dtype),
) void {
    const top: f32 = if (dtype == .q4_k) 15 else 31;
    const lines = Search.fitLines(top, x);
    var largest: Line = .{ .scale = 0, .min = 0 };
    for (lines) |line| {
        largest.scale = @max(largest.scale, line.scale);
        largest.min = @max(largest.min, line.min);
    }
    b.d = simd.f2h(largest.scale / 63);
    b.dmin = simd.f2h(largest.min / 63);
    const d = block.half(b.d);
    const dmin = block.half(b.dmin);
    var whole: [8][2]f32 = undefined;
    for (&whole, lines) |*both, line| both.* = .{
        nearestWithin(over(one(line.scale), d), 0, 63)[0],
        nearestWithin(over(one(line.min), dmin), 0, 63)[0],
    };
    whole = Search.chooseLines(top, x, whole, d, dmin);
    var scales: [8][2]u8 = undefined;
    var q: [8][32]u8 = undefined;
    for (whole, &scales, &q, 0..) |both, *pair, *row, j| {
        pair.* = .{ @intFromFloat(both[0]), @intFromFloat(both[1]) };
        const line: Line = .{ .scale = d * both[0], .min = dmin * both[1] };
        const on: [32]f32 = quantize.onLine(top, x[32 * j ..][0..32].*, line);
        for (row, on) |*to, from| to.* = @intFromFloat(from);
    }
    b.scales = block.packScaleMin(&scales);
    for (&b.q, 0..) |*pair, at| {
        const j = at / 32 * 2;
        pair.* = (q[j][at % 32] & 15) | (q[j + 1][at % 32] & 15) << 4;
    }
    if (dtype == .q5_k) for (&b.high, 0..) |*bits, i| {
        bits.* = 0;
        for (0..8) |j| bits.* |= q[j][i] >> 4 << @intCast(j);
    };
}

/// Q6_K
pub fn q6_k(comptime Search: type, x: *const [256]f32, b: *align(1) block.Q6_K) void {
    var scales = Search.fitScales16(x);
    b.d = simd.f2h(quantize.extreme(@as(V16, scales)) / -128);
    const d = block.half(b.d);
    scales = nearestWithin(over(@as(V16, scales), d), -128, 127);
    scales = Search.chooseScales16(x, scales, d);
    var q: [256]u8 = undefined;
    for (scales, &b.scales, 0..) |scale, *to, j| {
        to.* = @intFromFloat(scale);
        const part: V16 = x[16 * j ..][0..16].*;
        const whole: [16]f32 = nearestWithin(over(part, d * scale), -32, 31);
        for (q[16 * j ..][0..16], whole) |*number, from| number.* = @intFromFloat(from + 32);
    }
    for (0..2) |half| for (0..64) |i| {
        const at = half * 128 + i;
        b.q[half * 64 + i] = (q[at] & 15) | (q[at + 64] & 15) << 4;
    };
    for (0..2) |half| for (0..32) |i| {
        var bits: u8 = 0;
        for (0..4) |quarter|
            bits |= q[half * 128 + quarter * 32 + i] >> 4 << @intCast(2 * quarter);
        b.high[half * 32 + i] = bits;
    };
}
