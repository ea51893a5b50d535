//! Quantizers of the K types, whose blocks of 256 columns have a scale in f16 for the whole and
//! small integer scales for each 16 or 32 columns. First every part is fitted by itself; then the
//! parts' scales become integers, with their neighbours tried as well; then the columns.

const std = @import("std");
const block = @import("block.zig");
const quantize = @import("quantize.zig");
const simd = @import("simd.zig");
const DType = block.DType;
const V32 = quantize.V32;
const V16 = @Vector(16, f32);
const nearestWithin = quantize.nearestWithin;
const over = quantize.over;
const stored = quantize.stored;
const sum = quantize.sum;

/// w = scale * q - min
const Line = struct { scale: f32, min: f32 };

/// How much an error counts: more where the value is large.
fn importance(x: V32) V32 {
    const mean = @sqrt(sum(x * x) / 32);
    return @as(V32, @splat(mean)) + @abs(x);
}

fn errorOf(x: V32, weight: V32, q: V32, line: Line) f32 {
    const rest = @as(V32, @splat(line.scale)) * q - @as(V32, @splat(line.min)) - x;
    return sum(weight * rest * rest);
}

/// The line with the least weighted squared error through given integers; the minimum may not be
/// positive, since only its magnitude is kept.
fn throughIntegers(x: V32, weight: V32, q: V32) ?Line {
    const w = sum(weight);
    const wx = sum(weight * x);
    const wq = sum(weight * q);
    const wqq = sum(weight * q * q);
    const wqx = sum(weight * q * x);
    const determinant = w * wqq - wq * wq;
    if (!(determinant > 0)) return null;
    const offset = (wqq * wx - wq * wqx) / determinant;
    if (offset > 0) return .{ .scale = wqx / wqq, .min = 0 };
    return .{ .scale = (w * wqx - wx * wq) / determinant, .min = -offset };
}

/// Fits 32 columns with integers from 0 to `top`.
fn fitLine(comptime top: f32, x: V32) Line {
    const weight = importance(x);
    const low = @min(@reduce(.Min, x), 0);
    const range = @reduce(.Max, x) - low;
    var best: Line = .{ .scale = @max(range, 0) / top, .min = -low };
    if (!(range > 0)) return best;
    const up = x - @as(V32, @splat(low));
    var least = errorOf(x, weight, nearestWithin(over(up, best.scale), 0, top), best);
    const steps = 22;
    for (0..steps) |i| {
        const widened = top - 1.1 + 0.1 * @as(f32, @floatFromInt(i));
        const q = nearestWithin(over(up, range / widened), 0, top);
        const line = throughIntegers(x, weight, q) orelse continue;
        const e = errorOf(x, weight, q, line);
        if (e < least) {
            least = e;
            best = line;
        }
    }
    return best;
}

/// Integers of a part for a line.
inline fn onLine(comptime top: f32, x: V32, line: Line) V32 {
    return nearestWithin(over(x + @as(V32, @splat(line.min)), line.scale), 0, top);
}

/// The integer scale and minimum of a part, and their neighbours, by the error that they leave.
fn chooseScales(comptime top: f32, x: V32, line: Line, d: f32, dmin: f32) [2]u8 {
    const weight = importance(x);
    const s = over(@as(@Vector(1, f32), .{line.scale}), d);
    const m = over(@as(@Vector(1, f32), .{line.min}), dmin);
    const s0 = nearestWithin(s, 0, 63)[0];
    const m0 = nearestWithin(m, 0, 63)[0];
    var best: [2]u8 = .{ @intFromFloat(s0), @intFromFloat(m0) };
    var least = std.math.inf(f32);
    for ([_]f32{ 0, -1, 1 }) |ds| for ([_]f32{ 0, -1, 1 }) |dm| {
        const si = s0 + ds;
        const mi = m0 + dm;
        if (si < 0 or si > 63 or mi < 0 or mi > 63) continue;
        const tried: Line = .{ .scale = d * si, .min = dmin * mi };
        const e = errorOf(x, weight, onLine(top, x, tried), tried);
        if (e < least) {
            least = e;
            best = .{ @intFromFloat(si), @intFromFloat(mi) };
        }
    };
    return best;
}

/// Q4_K and Q5_K.
pub fn withMinimum(
    comptime dtype: DType,
    x: *const [256]f32,
    b: *align(1) block.Of(dtype),
) void {
    const top: f32 = if (dtype == .q4_k) 15 else 31;
    var lines: [8]Line = undefined;
    var largest: Line = .{ .scale = 0, .min = 0 };
    for (&lines, 0..) |*line, j| {
        line.* = fitLine(top, x[32 * j ..][0..32].*);
        largest.scale = @max(largest.scale, line.scale);
        largest.min = @max(largest.min, line.min);
    }
    b.d = simd.f2h(largest.scale / 63);
    b.dmin = simd.f2h(largest.min / 63);
    const d = block.half(b.d);
    const dmin = block.half(b.dmin);
    var scales: [8][2]u8 = undefined;
    var q: [8][32]u8 = undefined;
    for (0..8) |j| {
        const part: V32 = x[32 * j ..][0..32].*;
        scales[j] = chooseScales(top, part, lines[j], d, dmin);
        const line: Line = .{
            .scale = d * @as(f32, @floatFromInt(scales[j][0])),
            .min = dmin * @as(f32, @floatFromInt(scales[j][1])),
        };
        const whole: [32]f32 = onLine(top, part, line);
        for (&q[j], whole) |*to, from| to.* = @intFromFloat(from);
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

/// The scale of 16 columns with integers from -32 to 31, by weighted squared error.
fn fitScale(x: V16) f32 {
    const far = quantize.extreme(x);
    if (!(@abs(far) > 1e-30)) return 0;
    const weight = @abs(x);
    var best: f32 = far / -32;
    var least = std.math.inf(f32);
    for (0..25) |i| {
        const first = far / -(30.6 + 0.1 * @as(f32, @floatFromInt(i)));
        const q = nearestWithin(over(x, first), -32, 31);
        const scale = sum(weight * q * x) / sum(weight * q * q);
        const rest = x - @as(V16, @splat(scale)) * q;
        const e = sum(weight * rest * rest);
        if (e < least) {
            least = e;
            best = scale;
        }
    }
    return best;
}

/// Q6_K
pub fn q6_k(x: *const [256]f32, b: *align(1) block.Q6_K) void {
    var scales: [16]f32 = undefined;
    for (&scales, 0..) |*scale, j| scale.* = fitScale(x[16 * j ..][0..16].*);
    b.d = simd.f2h(quantize.extreme(@as(V16, scales)) / -128);
    const d = block.half(b.d);
    var q: [256]u8 = undefined;
    for (0..16) |j| {
        const part: V16 = x[16 * j ..][0..16].*;
        const middle = nearestWithin(over(@as(@Vector(1, f32), .{scales[j]}), d), -128, 127)[0];
        var least = std.math.inf(f32);
        var best: f32 = middle;
        for ([_]f32{ 0, -1, 1 }) |step| {
            const s = middle + step;
            if (s < -128 or s > 127) continue;
            const whole = nearestWithin(over(part, d * s), -32, 31);
            const rest = part - @as(V16, @splat(d * s)) * whole;
            const e = sum(@abs(part) * rest * rest);
            if (e < least) {
                least = e;
                best = s;
            }
        }
        b.scales[j] = @intFromFloat(best);
        const whole: [16]f32 = nearestWithin(over(part, d * best), -32, 31);
        for (q[16 * j ..][0..16], whole) |*to, from| to.* = @intFromFloat(from + 32);
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
