//! The scalar twin of `quantize_lanes`: part by part and candidate by candidate.

const std = @import("std");
const quantize = @import("../quantize.zig");
const Line = quantize.Line;
const V32 = quantize.V32;
const V16 = @Vector(16, f32);
const nearestWithin = quantize.nearestWithin;
const over = quantize.over;
const stored = quantize.stored;
const sum = quantize.sum;
const infinity = std.math.inf(f32);

fn part32(x: *const [256]f32, j: usize) V32 {
    return x[32 * j ..][0..32].*;
}
fn part16(x: *const [256]f32, j: usize) V16 {
    return x[16 * j ..][0..16].*;
}

/// One block's scale: the extreme value becomes -8, or a little less or more, whichever of these,
/// each fitted to its integers, leaves the smallest error.
fn fitScale32(x: V32) ?f32 {
    const far = quantize.extreme(x);
    var best: f32 = infinity;
    var d: ?f32 = null;
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
    return d;
}
pub fn fitScales32(x: *const [256]f32) [8]?f32 {
    var out: [8]?f32 = undefined;
    for (&out, 0..) |*d, j| d.* = fitScale32(part32(x, j));
    return out;
}

fn fitScale16(x: V16) f32 {
    const far = quantize.extreme(x);
    if (!(@abs(far) > 1e-30)) return 0;
    const weight = @abs(x);
    var best: f32 = far / -32;
    var least = infinity;
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
pub fn fitScales16(x: *const [256]f32) [16]f32 {
    var out: [16]f32 = undefined;
    for (&out, 0..) |*scale, j| scale.* = fitScale16(part16(x, j));
    return out;
}
pub fn chooseScales16(x: *const [256]f32, middle: [16]f32, d: f32) [16]f32 {
    var out = middle;
    for (&out, middle, 0..) |*best, from, j| {
        const part = part16(x, j);
        var least = infinity;
        for ([_]f32{ 0, -1, 1 }) |step| {
            const s = from + step;
            if (s < -128 or s > 127) continue;
            const whole = nearestWithin(over(part, d * s), -32, 31);
            const rest = part - @as(V16, @splat(d * s)) * whole;
            const e = sum(@abs(part) * rest * rest);
            if (e < least) {
                least = e;
                best.* = s;
            }
        }
    }
    return out;
}

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
fn fitLine(comptime top: f32, x: V32) Line {
    const weight = importance(x);
    const low = @min(quantize.minimum(x), 0);
    const range = quantize.maximum(x) - low;
    var best: Line = .{ .scale = @max(range, 0) / top, .min = -low };
    if (!(range > 0)) return best;
    const up = x - @as(V32, @splat(low));
    var least = errorOf(x, weight, nearestWithin(over(up, best.scale), 0, top), best);
    for (0..22) |i| {
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
pub fn fitLines(comptime top: f32, x: *const [256]f32) [8]Line {
    var out: [8]Line = undefined;
    for (&out, 0..) |*line, j| line.* = fitLine(top, part32(x, j));
    return out;
}
pub fn chooseLines(
    comptime top: f32,
    x: *const [256]f32,
    nearest: [8][2]f32,
    d: f32,
    dmin: f32,
) [8][2]f32 {
    var out = nearest;
    for (&out, nearest, 0..) |*best, from, j| {
        const part = part32(x, j);
        const weight = importance(part);
        var least = infinity;
        for ([_]f32{ 0, -1, 1 }) |ds| for ([_]f32{ 0, -1, 1 }) |dm| {
            const si = from[0] + ds;
            const mi = from[1] + dm;
            if (si < 0 or si > 63 or mi < 0 or mi > 63) continue;
            const tried: Line = .{ .scale = d * si, .min = dmin * mi };
            const e = errorOf(part, weight, quantize.onLine(top, part, tried), tried);
            if (e < least) {
                least = e;
                best.* = .{ si, mi };
            }
        };
    }
    return out;
}
