//! The quantizers' searches, side by side: lanes of a vector are parts of 256 columns (16 of 16,
//! or 8 of 32 with two candidates each), and a sum over a part's columns is a tree of whole
//! vectors. The same candidates in the same order and the same trees as `quantize_ref`, which goes
//! through them one by one: the same bits. On a Zen 4 q4_k_m takes 2.4 times less than that.

const std = @import("std");
const quantize = @import("quantize.zig");
const simd = @import("simd.zig");
const Line = quantize.Line;

const lanes = 16;
pub const V = @Vector(lanes, f32);
const infinity = std.math.inf(f32);

inline fn splat(x: f32) V {
    return @splat(x);
}
/// Where a lane's condition holds: a; else b.
inline fn choose(condition: @Vector(lanes, bool), a: V, b: V) V {
    return @select(f32, condition, a, b);
}
inline fn inverse(scale: V) V {
    return choose(scale == splat(0), splat(0), splat(1) / scale);
}
inline fn stored(v: V) V {
    var a: [lanes]f32 = v;
    const n = simd.L;
    inline for (0..lanes / n) |i| {
        const p = @as([*]f32, &a) + i * n;
        simd.st(p, simd.h2fV(simd.f2hV(simd.ldF(p))));
    }
    return a;
}

/// Parts of `columns` columns across lanes: those of 32 are there twice.
fn Parts(comptime columns: usize) type {
    return [columns]V;
}
fn across(comptime columns: usize, x: *const [256]f32) Parts(columns) {
    var out: Parts(columns) = undefined;
    for (&out, 0..) |*v, c| {
        var row: [lanes]f32 = undefined;
        for (&row, 0..) |*one, lane| one.* = x[lane * columns % 256 + c];
        v.* = row;
    }
    return out;
}
/// Lanes of 8 parts, twice.
fn twice(x: [8]f32) V {
    return x ++ x;
}

/// Sums over all columns of what `of.at(column)` gives, in the order of `quantize.sum`: columns
/// half of all apart, then a quarter, ...
inline fn sums(comptime columns: usize, of: anytype) @TypeOf(of.at(0)) {
    const quarter = columns / 4;
    var some: [quarter]@TypeOf(of.at(0)) = undefined;
    for (&some, 0..) |*sum, i| {
        const a = plus(of.at(i), of.at(i + 2 * quarter));
        sum.* = plus(a, plus(of.at(i + quarter), of.at(i + 3 * quarter)));
    }
    comptime var n = quarter / 2;
    inline while (n > 0) : (n /= 2) inline for (0..n) |i| {
        some[i] = plus(some[i], some[i + n]);
    };
    return some[0];
}
inline fn plus(a: anytype, b: @TypeOf(a)) @TypeOf(a) {
    var out = a;
    inline for (&out, b) |*x, y| x.* += y;
    return out;
}

/// The candidates with the least error so far, one a lane.
fn Best(comptime n: usize) type {
    return struct {
        least: V = @splat(infinity),
        values: [n]V,

        inline fn take(s: *@This(), e: V, values: [n]V) void {
            const better = e < s.least;
            s.least = choose(better, e, s.least);
            inline for (&s.values, values) |*old, new| old.* = choose(better, new, old.*);
        }
        /// Of a part's two lanes, the second where its error is less, or where it is as small and
        /// was tried before. `order` is the candidates' place, which is the last of the values.
        fn ofTwo(s: @This(), part: usize) [n]f32 {
            const e: [lanes]f32 = s.least;
            const order: [lanes]f32 = s.values[n - 1];
            const other = part + 8;
            const later = e[other] < e[part] or
                (e[other] == e[part] and order[other] < order[part]);
            var out: [n]f32 = undefined;
            for (&out, s.values) |*x, v| x.* = @as([lanes]f32, v)[if (later) other else part];
            return out;
        }
    };
}
/// Numbers 2 i and 2 i + 1 of a list in the lanes of the first and of the second candidate.
fn pair(list: []const f32, i: usize) V {
    const second = list[@min(2 * i + 1, list.len - 1)];
    return twiceOf(list[2 * i], second);
}
fn twiceOf(a: f32, b: f32) V {
    return @as([8]f32, @splat(a)) ++ @as([8]f32, @splat(b));
}

// ---- one scale a part ----------------------------------------------------------------------

/// Candidates of a scale: the extreme value by each of `count` numbers from `first` on, 0.1 apart.
fn Scales(comptime columns: usize, comptime low: f32, comptime high: f32) type {
    return struct {
        x: *const Parts(columns),
        q: *Parts(columns),
        by: V,
        const S = @This();
        const weighted = columns == 16;

        /// Chooses integers, and sums weight q x and weight q q, weights being |x| or 1.
        const Products = struct {
            s: S,
            inline fn at(p: Products, c: usize) [2]V {
                const x = p.s.x[c];
                const q = quantize.nearestWithin(x * p.s.by, low, high);
                p.s.q[c] = q;
                const wq = if (weighted) @abs(x) * q else q;
                return .{ wq * x, wq * q };
            }
        };
        /// Sums weight (x - scale q)^2, `by` being the scale.
        const Errors = struct {
            s: S,
            inline fn at(p: Errors, c: usize) [1]V {
                const x = p.s.x[c];
                return .{squared(x, x - p.s.by * p.s.q[c])};
            }
        };
        /// The same, of integers chosen for that scale.
        const Fresh = struct {
            x: *const Parts(columns),
            scale: V,
            by: V,
            inline fn at(p: Fresh, c: usize) [1]V {
                const x = p.x[c];
                const q = quantize.nearestWithin(x * p.by, low, high);
                return .{squared(x, x - p.scale * q)};
            }
        };
        inline fn squared(x: V, rest: V) V {
            return if (weighted) @abs(x) * rest * rest else rest * rest;
        }
        inline fn fresh(x: *const Parts(columns), scale: V) V {
            return sums(columns, Fresh{ .x = x, .scale = scale, .by = inverse(scale) })[0];
        }
        inline fn of(x: *const Parts(columns), q: *Parts(columns), by: V) S {
            return .{ .x = x, .q = q, .by = by };
        }
    };
}

/// The scales of 16 parts of 16 columns with integers from -32 to 31, by weighted squared error.
pub fn fitScales16(x: *const [256]f32) [16]f32 {
    const S = Scales(16, -32, 31);
    const parts = across(16, x);
    var q: Parts(16) = undefined;
    var extremes: [16]f32 = undefined;
    for (&extremes, 0..) |*far, j|
        far.* = quantize.extreme(@as(@Vector(16, f32), x[16 * j ..][0..16].*));
    const far: V = extremes;
    var best: Best(1) = .{ .values = .{far / splat(-32)} };
    for (0..25) |i| {
        const first = far / splat(-(30.6 + 0.1 * @as(f32, @floatFromInt(i))));
        const found = sums(16, S.Products{ .s = S.of(&parts, &q, inverse(first)) });
        const scale = found[0] / found[1];
        const e = sums(16, S.Errors{ .s = S.of(&parts, &q, scale) });
        best.take(e[0], .{scale});
    }
    const small = @abs(far) > splat(1e-30);
    return choose(small, best.values[0], splat(0));
}

/// Of the integer scales beside `middle` those that leave the least errors, tried in the order
/// given.
pub fn chooseScales16(x: *const [256]f32, middle: [16]f32, d: f32) [16]f32 {
    const S = Scales(16, -32, 31);
    const parts = across(16, x);
    var best: Best(1) = .{ .values = .{middle} };
    for ([_]f32{ 0, -1, 1 }) |step| {
        const s = @as(V, middle) + splat(step);
        const scale = splat(d) * s;
        const e = S.fresh(&parts, scale);
        const outside = choose(s < splat(-128), splat(infinity), e);
        best.take(choose(s > splat(127), splat(infinity), outside), .{s});
    }
    return best.values[0];
}

/// The scales of 8 blocks of 32 columns with integers from -8 to 7, as they are stored; null where
/// none leaves a finite error.
pub fn fitScales32(x: *const [256]f32) [8]?f32 {
    const S = Scales(32, -8, 7);
    const parts = across(32, x);
    var q: Parts(32) = undefined;
    var extremes: [8]f32 = undefined;
    for (&extremes, 0..) |*far, j|
        far.* = quantize.extreme(@as(quantize.V32, x[32 * j ..][0..32].*));
    const far = twice(extremes);
    var best: Best(2) = .{ .values = .{ splat(0), splat(0) } };
    for (0..13) |i| {
        const order = twiceOf(@floatFromInt(2 * i), @floatFromInt(@min(2 * i + 1, 24)));
        const first = far / -(splat(6.6) + splat(0.1) * order);
        const found = sums(32, S.Products{ .s = S.of(&parts, &q, inverse(first)) });
        const fitted = stored(found[0] / found[1]);
        best.take(S.fresh(&parts, fitted), .{ fitted, order });
    }
    var out: [8]?f32 = undefined;
    const least: [lanes]f32 = best.least;
    for (&out, extremes, 0..) |*d, extreme, part| {
        d.* = if (extreme == 0) null else best.ofTwo(part)[0];
        if (@min(least[part], least[part + 8]) == infinity) d.* = null;
    }
    return out;
}

// ---- a scale and a minimum a part ----------------------------------------------------------

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
            inline fn at(p: Products, c: usize) [3]V {
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
                inline fn at(p: @This(), c: usize) [1]V {
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
        inline fn at(p: Squares, c: usize) [1]V {
            return .{p.x[c] * p.x[c]};
        }
    };
    inline fn at(p: Weights, c: usize) [2]V {
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
