//! The one file that thinks in vectors: types, loads, sums and maths from which every kernel is
//! written once for all CPU levels. The lane count is the only thing a level changes; without FMA
//! `mulAdd` rounds twice, everywhere alike. NaN always stays NaN, so a poisoned arena shows.

const std = @import("std");
const builtin = @import("builtin");
const DType = @import("command").DType;

const x86 = builtin.cpu.arch == .x86_64;
pub const has_avx512 = x86 and builtin.cpu.has(.x86, .avx512f);
/// `vpdpbusd`: four products of bytes added to each i32.
pub const has_vnni = x86 and builtin.cpu.has(.x86, .avx512vnni);
/// `vdpbf16ps`, faster than f32 multiply-adds where this level is taken.
pub const has_avx512bf16 = x86 and builtin.cpu.has(.x86, .avx512bf16);
pub const has_avx2 = x86 and builtin.cpu.has(.x86, .avx2);
const has_avx = x86 and builtin.cpu.has(.x86, .avx);
pub const has_fma = !x86 or builtin.cpu.has(.x86, .fma);
const has_f16c = !x86 or builtin.cpu.has(.x86, .f16c);

/// f32 lanes of the vectors below; a portable build spends two registers on one vector.
pub const L = if (has_avx512) 16 else 8;
pub const F = @Vector(L, f32);
pub const I = @Vector(L, i32);
pub const U = @Vector(L, u32);
pub const zero: F = @splat(0);

/// Reads a vector (or any value) from an address of any alignment.
pub inline fn ld(comptime T: type, p: anytype) T {
    return @as(*align(1) const T, @ptrCast(p)).*;
}
/// Writes a vector (or any value) to an address of any alignment.
pub inline fn st(p: anytype, v: anytype) void {
    @as(*align(1) @TypeOf(v), @ptrCast(p)).* = v;
}
/// Writes a vector past the caches where it lies on its own size. Other threads see it behind a
/// locked instruction of this one, such as a barrier's.
pub inline fn stPast(p: [*]f32, v: F) void {
    if (!has_avx or @intFromPtr(p) % @sizeOf(F) != 0) return st(p, v);
    asm volatile ("vmovntps %[v], (%[p])"
        :
        : [p] "r" (p),
          [v] "v" (v),
        : .{ .memory = true });
}
pub inline fn ldF(p: [*]const f32) F {
    return ld(F, p);
}
/// The first n (below L) floats at p, zeros behind them.
pub inline fn ldTail(p: [*]const f32, n: usize) F {
    var a: [L]f32 = @splat(0);
    for (0..n) |i| a[i] = p[i];
    return a;
}
/// Writes the first n (below L) lanes to p and nothing beyond.
pub inline fn stTail(p: [*]f32, v: F, n: usize) void {
    const a: [L]f32 = v;
    for (0..n) |i| p[i] = a[i];
}
/// Sets the n floats at p.
pub inline fn fill(p: [*]f32, n: usize, x: f32) void {
    var i: usize = 0;
    while (i + L <= n) : (i += L) st(p + i, splat(x));
    while (i < n) : (i += 1) p[i] = x;
}
pub inline fn splat(x: f32) F {
    return @splat(x);
}

/// a * b + c, rounded once where the level has FMA.
pub inline fn mulAdd(a: F, b: F, c: F) F {
    return if (has_fma) @mulAdd(F, a, b, c) else a * b + c;
}
/// The scalar twin of `mulAdd`: the same bits as one of its lanes.
pub inline fn mulAdd1(a: f32, b: f32, c: f32) f32 {
    return if (has_fma) @mulAdd(f32, a, b, c) else a * b + c;
}
/// The larger of each lane; NaN when x is NaN.
pub inline fn max(x: F, limit: F) F {
    return @select(f32, x < limit, limit, x);
}
/// The smaller of each lane; NaN when x is NaN.
pub inline fn min(x: F, limit: F) F {
    return @select(f32, x > limit, limit, x);
}

/// All lanes added in a fixed tree: the upper half onto the lower half until one is left.
pub inline fn sum(v: F) f32 {
    const v8 = if (L == 16) half(v, 0) + half(v, 8) else v;
    const v4 = half(v8, 0) + half(v8, 4);
    const v2 = half(v4, 0) + half(v4, 2);
    return v2[0] + v2[1];
}
/// The largest lane; NaN is not promised to win.
pub inline fn maxLane(v: F) f32 {
    const v8 = if (L == 16) larger(half(v, 0), half(v, 8)) else v;
    const v4 = larger(half(v8, 0), half(v8, 4));
    const v2 = larger(half(v4, 0), half(v4, 2));
    return @max(v2[0], v2[1]);
}
inline fn larger(a: anytype, b: @TypeOf(a)) @TypeOf(a) {
    return @select(f32, a > b, a, b);
}
fn Half(comptime V: type) type {
    return @Vector(@typeInfo(V).vector.len / 2, f32);
}
inline fn half(v: anytype, comptime from: usize) Half(@TypeOf(v)) {
    const at = comptime blk: {
        var m: [@typeInfo(@TypeOf(v)).vector.len / 2]i32 = undefined;
        for (&m, from..) |*lane, i| lane.* = @intCast(i);
        break :blk m;
    };
    return @shuffle(f32, v, undefined, at);
}

// ---- storage types -------------------------------------------------------------------------

/// Bytes of one element of a type without blocks.
pub inline fn size(dtype: DType) usize {
    return switch (dtype) {
        .f32, .i32 => 4,
        .bf16, .f16 => 2,
        .f8_e4m3 => 1,
        .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => unreachable, // blocks: see block.zig
    };
}
/// L elements of a row, starting with element i, as f32. Any alignment.
pub inline fn ldAs(comptime dtype: DType, p: [*]const u8, i: usize) F {
    const at = p + i * size(dtype);
    return switch (dtype) {
        .f32 => ld(F, at),
        .bf16 => b2fV(ld(@Vector(L, u16), at)),
        .f16 => h2fV(ld(@Vector(L, u16), at)),
        else => @compileError("not one number after another"),
    };
}
/// Element i of a row, as f32. Any alignment.
pub inline fn get(comptime dtype: DType, p: [*]const u8, i: usize) f32 {
    const at = p + i * size(dtype);
    return switch (dtype) {
        .f32 => ld(f32, at),
        .bf16 => b2f(ld(u16, at)),
        .f16 => h2f(ld(u16, at)),
        else => @compileError("not one number after another"),
    };
}
/// f8_e4m3 as f32, 256 times smaller than they are; NaN, which loading refuses, becomes a number.
/// The bits shifted to where an f16 has them: its exponent counts from 15, theirs from 7.
pub inline fn e2fV(x: @Vector(L, u8)) F {
    const wide: @Vector(L, i16) = @as(@Vector(L, i8), @bitCast(x));
    const bits: @Vector(L, u16) = @bitCast(wide << @splat(7));
    return h2fV(bits & @as(@Vector(L, u16), @splat(0xbfff)));
}
/// Writes L elements of a row, starting with element i, rounded to nearest even. Any alignment.
/// What f16 cannot hold becomes its largest number, so that it stays finite.
pub inline fn stAs(comptime dtype: DType, p: [*]u8, i: usize, v: F) void {
    const at = p + i * size(dtype);
    switch (dtype) {
        .f32 => st(at, v),
        .bf16 => st(at, f2bV(v)),
        .f16 => st(at, f2hV(max(min(v, splat(65504)), splat(-65504)))),
        else => @compileError("not one number after another"),
    }
}
/// A vector as `stAs` would keep it.
pub inline fn asKept(comptime dtype: DType, v: F) F {
    if (dtype == .f32) return v;
    var kept: [L * size(dtype)]u8 = undefined;
    stAs(dtype, &kept, 0, v);
    return ldAs(dtype, &kept, 0);
}
/// The low bf16 of each u32, as f32: the even k of a panel's pairs.
pub inline fn lo16(b: U) F {
    return @bitCast(b << @splat(16));
}
/// The high bf16 of each u32, as f32: the odd k of a panel's pairs.
pub inline fn hi16(b: U) F {
    return @bitCast(b & @as(U, @splat(0xffff0000)));
}
pub inline fn b2f(x: u16) f32 {
    return @bitCast(@as(u32, x) << 16);
}
pub inline fn b2fV(x: @Vector(L, u16)) F {
    return @bitCast(@as(U, x) << @splat(16));
}
/// f32 to bf16, to nearest even; NaN becomes a quiet NaN.
pub inline fn f2b(x: f32) u16 {
    const u: u32 = @bitCast(x);
    if (x != x) return @truncate(u >> 16 | 0x40);
    return @truncate((u +% 0x7fff +% (u >> 16 & 1)) >> 16);
}
pub inline fn f2bV(x: F) @Vector(L, u16) {
    const u: U = @bitCast(x);
    const one: U = @splat(1);
    const top = u >> @splat(16);
    const near = (u +% @as(U, @splat(0x7fff)) +% (top & one)) >> @splat(16);
    return @truncate(@select(u32, x != x, top | @as(U, @splat(0x40)), near));
}
/// f16 to f32. Without F16C by integer steps: the bits shifted into place and rescaled by 2^112.
pub inline fn h2fV(x: @Vector(L, u16)) F {
    if (has_f16c) return @as(@Vector(L, f16), @bitCast(x));
    const u: U = x;
    const magnitude: F = @bitCast((u & @as(U, @splat(0x7fff))) << @splat(13));
    const scaled: U = @bitCast(magnitude * @as(F, @splat(0x1p112)));
    const special = (u & @as(U, @splat(0x7c00))) == @as(U, @splat(0x7c00));
    const fixed = @select(u32, special, scaled | @as(U, @splat(0x7f800000)), scaled);
    return @bitCast(fixed | (u & @as(U, @splat(0x8000))) << @splat(16));
}
pub inline fn h2f(x: u16) f32 {
    if (has_f16c) return @as(f16, @bitCast(x));
    return h2fV(@splat(x))[0];
}
/// f32 to f16, to nearest even.
pub inline fn f2h(x: f32) u16 {
    if (has_f16c) return @bitCast(@as(f16, @floatCast(x)));
    const u: u32 = @bitCast(x);
    const sign: u16 = @truncate(u >> 16 & 0x8000);
    const m = u & 0x7fffffff;
    if (m > 0x7f800000) return sign | 0x7e00;
    if (m >= 0x477ff000) return sign | 0x7c00;
    if (m < 0x38800000) { // a denormal f16: adding 0.5 rounds at its last place
        const t: u32 = @bitCast(@as(f32, @bitCast(m)) + 0.5);
        return sign | @as(u16, @truncate(t -% 0x3f000000));
    }
    const rounded = m +% 0xfff +% (m >> 13 & 1) -% 0x38000000;
    return sign | @as(u16, @truncate(rounded >> 13));
}
pub inline fn f2hV(x: F) @Vector(L, u16) {
    if (has_f16c) return @bitCast(@as(@Vector(L, f16), @floatCast(x)));
    const a: [L]f32 = x;
    var out: [L]u16 = undefined;
    inline for (0..L) |i| out[i] = f2h(a[i]);
    return out;
}

// ---- maths ---------------------------------------------------------------------------------

/// e^x, relative error below 2e-7 (3e-7 without FMA). Below -87.3 it is 0, so that no denormals
/// arise; above 88.37 it stays at 2.4e38.
pub inline fn exp(x0: F) F {
    const x = min(x0, splat(88.37));
    // The magic number leaves round(x / ln 2) in the low bits of t.
    const t = mulAdd(x, splat(1.44269504), splat(0x1.8p23));
    const n = t - splat(0x1.8p23);
    var r = mulAdd(n, splat(-0.693145752), x);
    r = mulAdd(n, splat(-1.42860677e-6), r);
    var q: F = splat(1.9875691e-4);
    q = mulAdd(q, r, splat(1.3981999507e-3));
    q = mulAdd(q, r, splat(8.3334519073e-3));
    q = mulAdd(q, r, splat(4.1665795894e-2));
    q = mulAdd(q, r, splat(1.6666665459e-1));
    q = mulAdd(q, r, splat(5.0000001201e-1));
    q = mulAdd(q * r, r, r + splat(1));
    const power: F = @bitCast((@as(U, @bitCast(t)) +% @as(U, @splat(127))) << @splat(23));
    return @select(f32, x0 < splat(-87.3), zero, q * power);
}
/// ln x, relative error below 3e-7. 0 gives -inf, a negative NaN; denormals count as 1.2e-38.
pub inline fn log(x0: F) F {
    const x = max(x0, splat(0x1p-126));
    const u: U = @bitCast(x);
    // The mantissa is taken into [sqrt(1/2), sqrt(2)) so that x near 1 loses nothing.
    const shifted = u -% @as(U, @splat(0x3f3504f3));
    const e: I = @as(I, @bitCast(shifted)) >> @splat(23);
    const m: F = @bitCast(u -% @as(U, @bitCast(e << @splat(23))));
    const n: F = @floatFromInt(e);
    const f = m - splat(1);
    const s = f / (m + splat(1));
    const tail = atanhTail(s);
    // 2 atanh(s) = f - s * f + ..., which keeps f's own digits in front.
    const small = mulAdd(n, splat(-2.12194440e-4), s * (tail - f));
    const y = mulAdd(n, splat(0.693359375), f + small);
    const special = @select(f32, x0 == zero, splat(-std.math.inf(f32)), splat(std.math.nan(f32)));
    const finite = @select(f32, x0 == splat(std.math.inf(f32)), x0, y);
    return @select(f32, x0 > zero, finite, special);
}
/// 2 atanh(s) / s - 2, for |s| <= 1/3.
inline fn atanhTail(s: F) F {
    // A denormal square would cost several times the whole function.
    const a = max(@abs(s), splat(1e-15));
    const z = a * a;
    var q: F = splat(2.0 / 13.0);
    inline for (.{ 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0 }) |c|
        q = mulAdd(q, z, splat(c));
    return q * z;
}
/// ln(1 + y) for y in [0, 1], relative error below 3e-7.
pub inline fn log1p(y: F) F {
    const s = y / (y + splat(2));
    return s * (atanhTail(s) + splat(2));
}
/// 1 / (1 + e^-x)
pub inline fn sigmoid(x: F) F {
    return splat(1) / (splat(1) + exp(-x));
}
/// x / (1 + e^-x), relative error below 3e-7 for x > -88; below that it stays within 1e-35 of 0.
pub inline fn silu(x: F) F {
    return x / (splat(1) + exp(-x));
}
/// ln(1 + e^x), relative error below 4e-7; x itself above 20, 0 below -87.3.
pub inline fn softplus(x: F) F {
    const y = max(x, zero) + log1p(exp(-@abs(x)));
    return @select(f32, x > splat(20), x, y);
}
pub inline fn exp1(x: f32) f32 {
    return exp(splat(x))[0];
}
pub inline fn log1(x: f32) f32 {
    return log(splat(x))[0];
}
pub inline fn silu1(x: f32) f32 {
    return silu(splat(x))[0];
}
pub inline fn softplus1(x: f32) f32 {
    return softplus(splat(x))[0];
}

pub const Function = fn (F) callconv(.@"inline") F;
/// y[i] = f(x[i]) for n elements; a tail gives the same bits as a whole vector would.
pub inline fn map(comptime f: Function, n: usize, x: [*]const f32, y: [*]f32) void {
    var i: usize = 0;
    while (i + L <= n) : (i += L) st(y + i, f(ldF(x + i)));
    if (i < n) stTail(y + i, f(ldTail(x + i, n - i)), n - i);
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;
fn worst(comptime f: Function, exact: fn (f64) f64, from: f32, to: f32) f64 {
    var w: f64 = 0;
    const n = 20000;
    for (0..n) |i| {
        const x = from + (to - from) * @as(f32, @floatFromInt(i)) / n;
        const y: f64 = f(splat(x))[L - 1];
        const want = exact(x);
        w = @max(w, if (want == 0) @abs(y) else @abs(y - want) / @abs(want));
    }
    return w;
}
fn exactExp(x: f64) f64 {
    return @exp(x);
}
fn exactLog(x: f64) f64 {
    return @log(x);
}
fn exactSilu(x: f64) f64 {
    return x / (1 + @exp(-x));
}
fn exactSoftplus(x: f64) f64 {
    return if (x > 20) x else std.math.log1p(@exp(x));
}

test "exp, log, silu and softplus keep their stated errors" {
    const slack: f64 = if (has_fma) 1 else 2;
    try testing.expect(worst(exp, exactExp, -87.2, 88.3) < 2e-7 * slack);
    try testing.expect(worst(log, exactLog, 1e-6, 4) < 3e-7 * slack);
    try testing.expect(worst(log, exactLog, 0.999, 1.001) < 3e-7 * slack);
    try testing.expect(worst(log, exactLog, 1, 1e30) < 3e-7 * slack);
    try testing.expect(worst(silu, exactSilu, -87, 100) < 3e-7 * slack);
    try testing.expect(worst(softplus, exactSoftplus, -87, 30) < 4e-7 * slack);
}

test "the edges of the maths are safe" {
    const inf = std.math.inf(f32);
    const nan: f32 = @bitCast(@as(u32, 0x7fc00001));
    try testing.expectEqual(@as(f32, 0), exp1(-88));
    try testing.expectEqual(@as(f32, 0), exp1(-inf));
    try testing.expectEqual(@as(f32, 1), exp1(0));
    try testing.expect(exp1(inf) > 2e38 and exp1(1000) == exp1(inf));
    try testing.expectEqual(-inf, log1(0));
    try testing.expectEqual(inf, log1(inf));
    try testing.expectEqual(@as(f32, 0), log1(1));
    try testing.expect(std.math.isNan(log1(-1)));
    try testing.expect(@abs(silu1(-1e30)) < 1e-7 and silu1(1e30) == 1e30 and silu1(0) == 0);
    try testing.expectEqual(@as(f32, 25), softplus1(25));
    try testing.expectEqual(@as(f32, 0), softplus1(-200));
    inline for (.{ exp1, log1, silu1, softplus1 }) |f| try testing.expect(std.math.isNan(f(nan)));
    try testing.expect(std.math.isNan(sigmoid(splat(nan))[0]));
}

test "bf16 and f16 round to nearest even, one lane as the scalar" {
    var seed = std.Random.DefaultPrng.init(7);
    const random = seed.random();
    for (0..20000) |i| {
        const u: u16 = @truncate(i * 3277);
        if (!std.math.isNan(b2f(u))) try testing.expectEqual(u, f2b(b2f(u)));
        const h: f16 = @bitCast(u);
        if (std.math.isNan(h)) try testing.expect(std.math.isNan(h2f(u))) else {
            try testing.expectEqual(@as(f32, h), h2f(u));
            try testing.expectEqual(u, f2h(h2f(u)));
        }
        const scale: f32 = @floatFromInt(random.intRangeAtMost(i32, -30, 20));
        const x = (random.float(f32) - 0.5) * std.math.pow(f32, 2, scale);
        try testing.expectEqual(@as(u16, @bitCast(@as(f16, @floatCast(x)))), f2h(x));
        try testing.expectEqual(f2h(x), f2hV(splat(x))[L - 1]);
        try testing.expectEqual(f2b(x), f2bV(splat(x))[L - 1]);
        try testing.expect(@abs(b2f(f2b(x)) - x) <= @abs(x) / 256);
    }
    try testing.expectEqual(@as(u16, 0x3f80), f2b(1.00390625)); // a tie goes to the even side
    try testing.expectEqual(@as(u16, 0x3f82), f2b(1.01171875));
    try testing.expect(std.math.isNan(b2f(f2b(std.math.nan(f32)))));
    try testing.expect(std.math.isNan(b2f(f2bV(splat(@bitCast(@as(u32, 0x7fffffff))))[0])));
}

test "sums, tails and maps" {
    var a: [3 * L + 1]f32 = undefined;
    for (&a, 0..) |*v, i| v.* = @floatFromInt(i);
    try testing.expectEqual(@as(f32, L * (L - 1) / 2), sum(ldF(&a)));
    try testing.expectEqual(@as(f32, L - 1), maxLane(ldF(&a)));
    const t = ldTail(@as([*]const f32, &a) + 1, 3);
    try testing.expectEqual(@as(f32, 6), sum(t));
    var y: [3 * L + 2]f32 = @splat(-1);
    for (0..a.len + 1) |n| {
        @memset(&y, -1);
        map(silu, n, &a, &y);
        for (0..n) |i| try testing.expectEqual(silu1(a[i]), y[i]);
        try testing.expectEqual(@as(f32, -1), y[n]);
    }
}
