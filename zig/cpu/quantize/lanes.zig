//! The quantizers' searches, side by side: lanes of a vector are parts of 256 columns (16 of 16,
//! or 8 of 32 with two candidates each), and a sum over a part's columns is a tree of whole
//! vectors. The same candidates in the same order and the same trees as `quantize_ref`, which goes
//! through them one by one: the same bits. On a Zen 4 q4_k_m takes 2.4 times less than that.
//! Here is one scale a part; `quantize_lines` has a scale and a minimum.

const std = @import("std");
const lines = @import("lines.zig");
const quantize = @import("../quantize.zig");
const simd = @import("../simd.zig");

pub const fitLines = lines.fitLines;
pub const chooseLines = lines.chooseLines;

pub const lanes = 16;
pub const V = @Vector(lanes, f32);
const infinity = std.math.inf(f32);

pub inline fn splat(x: f32) V {
    return @splat(x);
}
/// Where a lane's condition holds: a; else b.
pub inline fn choose(condition: @Vector(lanes, bool), a: V, b: V) V {
    return @select(f32, condition, a, b);
}
pub inline fn inverse(scale: V) V {
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
pub fn Parts(comptime columns: usize) type {
    return [columns]V;
}
pub fn across(comptime columns: usize, x: *const [256]f32) Parts(columns) {
    var out: Parts(columns) = undefined;
    for (&out, 0..) |*v, c| {
        var row: [lanes]f32 = undefined;
        for (&row, 0..) |*one, lane| one.* = x[lane * columns % 256 + c];
        v.* = row;
    }
    return out;
}
/// Lanes of 8 parts, twice.
pub fn twice(x: [8]f32) V {
    return x ++ x;
}

/// Sums over all columns of what `of.at(column)` gives, in the order of `quantize.sum`: columns
/// half of all apart, then a quarter, ...
pub inline fn sums(comptime columns: usize, of: anytype) @TypeOf(of.at(0)) {
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
pub fn Best(comptime n: usize) type {
    return struct {
        least: V = @splat(infinity),
        values: [n]V,

        pub inline fn take(s: *@This(), e: V, values: [n]V) void {
            const better = e < s.least;
            s.least = choose(better, e, s.least);
            inline for (&s.values, values) |*old, new| old.* = choose(better, new, old.*);
        }
        /// Of a part's two lanes, the second where its error is less, or where it is as small and
        /// was tried before. `order` is the candidates' place, which is the last of the values.
        pub fn ofTwo(s: @This(), part: usize) [n]f32 {
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
pub fn pair(list: []const f32, i: usize) V {
    const second = list[@min(2 * i + 1, list.len - 1)];
    return twiceOf(list[2 * i], second);
}
pub fn twiceOf(a: f32, b: f32) V {
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
