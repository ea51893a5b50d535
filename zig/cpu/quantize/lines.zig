//! The searches of `quantize_lanes` for a scale and a minimum a part: 8 parts of 32 columns with
//! two candidates each.

const std = @import("std");
const quantize = @import("../quantize.zig");
const all = @import("lanes.zig");
const Best = all.Best;
const Line = quantize.Line;
const Parts = all.Parts;
const V = all.V;
const across = all.across;
const choose = all.choose;
const inverse = all.inverse;
const pair = all.pair;
const splat = all.splat;
const sums = all.sums;
const twice = all.twice;
const twiceOf = all.twiceOf;
const infinity = std.math.inf(f32);

fn Lines(comptime top: f32) type {
    return struct {
        x: *const Parts(32),
        weight: *const Parts(32),
        q: *Parts(32),
        /// What is added before the scale's inverse is multiplied.
        shift: V,
        by: V,
        const S = @This();

        inline fn choose(s: S, c: usize) V {
            return quantize.nearestWithin((s.x[c] + s.shift) * s.by, 0, top);
        }
        /// Chooses integers, and sums weight q, weight q q, weight q x.
        const Products = struct {
            s: S,
            pub inline fn at(p: Products, c: usize) [3]V {
                const q = p.s.choose(c);
                p.s.q[c] = q;
                const wq = p.s.weight[c] * q;
                return .{ wq, wq * q, wq * p.s.x[c] };
            }
        };
        /// Sums weight (scale q - min - x)^2.
        fn Errors(comptime fresh: bool) type {
            return struct {
                s: S,
                scale: V,
                min: V,
                pub inline fn at(p: @This(), c: usize) [1]V {
                    const q = if (fresh) p.s.choose(c) else p.s.q[c];
                    const rest = p.scale * q - p.min - p.s.x[c];
                    return .{p.s.weight[c] * rest * rest};
                }
            };
        }
        inline fn errorOf(s: S, comptime fresh: bool, scale: V, min: V) V {
            return sums(32, Errors(fresh){ .s = s, .scale = scale, .min = min })[0];
        }
    };
}
/// How much errors count, and the sums of that and of that times x.
const Weights = struct {
    x: *const Parts(32),
    weight: *Parts(32),
    mean: V = undefined,

    const Squares = struct {
        x: *const Parts(32),
        pub inline fn at(p: Squares, c: usize) [1]V {
            return .{p.x[c] * p.x[c]};
        }
    };
    pub inline fn at(p: Weights, c: usize) [2]V {
        const w = p.mean + @abs(p.x[c]);
        p.weight[c] = w;
        return .{ w, w * p.x[c] };
    }
    fn of(x: *const Parts(32), weight: *Parts(32)) [2]V {
        const squares = sums(32, Squares{ .x = x })[0];
        return sums(32, Weights{ .x = x, .weight = weight, .mean = @sqrt(squares / splat(32)) });
    }
};

/// Fits 8 parts of 32 columns with integers from 0 to `top`.
pub fn fitLines(comptime top: f32, x: *const [256]f32) [8]Line {
    const parts = across(32, x);
    var weight: Parts(32) = undefined;
    var q: Parts(32) = undefined;
    const w, const wx = Weights.of(&parts, &weight);
    var lows: [8]f32 = undefined;
    var ranges: [8]f32 = undefined;
    for (&lows, &ranges, 0..) |*low, *range, j| {
        const part: quantize.V32 = x[32 * j ..][0..32].*;
        low.* = @min(quantize.minimum(part), 0);
        range.* = quantize.maximum(part) - low.*;
    }
    const low = twice(lows);
    const range = twice(ranges);
    var s = Lines(top){
        .x = &parts,
        .weight = &weight,
        .q = &q,
        .shift = -low,
        .by = undefined,
    };
    const whole = choose(range > splat(0), range, splat(0)) / splat(top);
    s.by = inverse(whole);
    var best: Best(3) = .{ .values = .{ whole, -low, splat(-1) } };
    best.least = s.errorOf(true, whole, -low);
    for (0..11) |i| {
        const order = twiceOf(@floatFromInt(2 * i), @floatFromInt(2 * i + 1));
        s.by = inverse(range / (splat(top - 1.1) + splat(0.1) * order));
        const wq, const wqq, const wqx = sums(32, Lines(top).Products{ .s = s });
        const determinant = w * wqq - wq * wq;
        const offset = (wqq * wx - wq * wqx) / determinant;
        const flat = offset > splat(0);
        const scale = choose(flat, wqx / wqq, (w * wqx - wx * wq) / determinant);
        const min = choose(flat, splat(0), -offset);
        const e = choose(determinant > splat(0), s.errorOf(false, scale, min), splat(infinity));
        best.take(e, .{ scale, min, order });
    }
    var out: [8]Line = undefined;
    for (&out, 0..) |*line, part| {
        const found = best.ofTwo(part);
        line.* = .{ .scale = found[0], .min = found[1] };
        if (!(ranges[part] > 0)) line.* = .{ .scale = 0 / top, .min = -lows[part] };
    }
    return out;
}

/// The integer scales and minima of 8 parts: those nearest to their lines or beside them, by the
/// errors that they leave.
pub fn chooseLines(
    comptime top: f32,
    x: *const [256]f32,
    nearest: [8][2]f32,
    d: f32,
    dmin: f32,
) [8][2]f32 {
    const parts = across(32, x);
    var weight: Parts(32) = undefined;
    _ = Weights.of(&parts, &weight);
    var middles: [2][8]f32 = undefined;
    for (nearest, 0..) |both, part| for (&middles, both) |*middle, one| {
        middle[part] = one;
    };
    var best: Best(3) = .{ .values = .{ twice(middles[0]), twice(middles[1]), splat(-1) } };
    const scale_steps = [_]f32{ 0, 0, 0, -1, -1, -1, 1, 1, 1 };
    const min_steps = [_]f32{ 0, -1, 1, 0, -1, 1, 0, -1, 1 };
    for (0..5) |i| {
        const si = twice(middles[0]) + pair(&scale_steps, i);
        const mi = twice(middles[1]) + pair(&min_steps, i);
        const scale = splat(d) * si;
        const min = splat(dmin) * mi;
        const s = Lines(top){
            .x = &parts,
            .weight = &weight,
            .q = undefined,
            .shift = min,
            .by = inverse(scale),
        };
        var e = s.errorOf(true, scale, min);
        for ([_]V{ si, mi }) |v| {
            e = choose(v < splat(0), splat(infinity), e);
            e = choose(v > splat(63), splat(infinity), e);
        }
        const order = twiceOf(@floatFromInt(2 * i), @floatFromInt(@min(2 * i + 1, 8)));
        best.take(e, .{ si, mi, order });
    }
    var out: [8][2]f32 = undefined;
    for (&out, 0..) |*both, part| both.* = best.ofTwo(part)[0..2].*;
    return out;
}
