//! Rotary position embedding: the tables of a run's tokens, and the rotation of their heads.
//!
//! Contract: rotary_embedding writes cos and sin of positions[t] * inv_freq[f], times scaling, as
//! (tokens, F). rope turns channels f and f + F of each head by them:
//!   out1 = x1 cos - x2 sin,  out2 = x2 cos + x1 sin,  and copies channels 2F and above.
//! Ideas: the angle is a product of two f32 numbers, hence exact in f64, and reduced to a quarter
//! turn there, so that a position of a million is as accurate as the first; no library's sine.
//! Work: 6 flops for each pair of channels; memory decides. Both take microseconds a token.

const std = @import("std");
const simd = @import("simd.zig");
const kernel_zig = @import("kernel.zig");
const case = @import("case.zig");
const Task = kernel_zig.Task;
const Kernel = kernel_zig.Kernel;
const L = simd.L;

/// Tokens of a unit.
const tokens_step = 16;

fn units(t: *const Task, _: u32) callconv(.c) u32 {
    return (t.step.n_tokens + tokens_step - 1) / tokens_step;
}

const Angle = struct { cos: f64, sin: f64 };

/// pi / 2 in three parts: the first two have 33 bits, so that their products with a quarter count
/// below 2^20 are exact (beyond that the error grows to 1e-7 at 2^31).
const half_pi_1: f64 = 0x1.921fb544p0;
const half_pi_2: f64 = 0x1.0b4611a6p-34;
const half_pi_3: f64 = 0x1.3198a2e037073p-69;

/// cos and sin of an angle, within 1e-11.
fn turn(angle: f64) Angle {
    const n = @round(angle * (2.0 / std.math.pi));
    const r = ((angle - n * half_pi_1) - n * half_pi_2) - n * half_pi_3;
    const z = r * r;
    // Taylor series: on a quarter turn around 0 their next terms are below 1e-11.
    var s: f64 = -1.0 / 39916800.0;
    inline for (.{ 362880.0, -5040.0, 120.0, -6.0 }) |c| s = s * z + 1.0 / c;
    var c: f64 = 1.0 / 479001600.0;
    inline for (.{ -3628800.0, 40320.0, -720.0, 24.0, -2.0 }) |d| c = c * z + 1.0 / d;
    const sin = r + r * z * s;
    const cos = 1 + z * c;
    // As floats: a frequency that is no number has no quarter, and must not be cast to an integer.
    const quarter = n - 4 * @floor(n / 4);
    if (quarter == 1) return .{ .cos = -sin, .sin = cos };
    if (quarter == 2) return .{ .cos = -cos, .sin = -sin };
    if (quarter == 3) return .{ .cos = sin, .sin = -cos };
    return .{ .cos = cos, .sin = sin };
}

fn runTables(t: *const Task, _: u32, begin: u32, end: u32, _: [*]u8) callconv(.c) void {
    const scaling = t.attrF(0);
    const inv_freq = t.f32s(1);
    const rows = @min(end * tokens_step, t.step.n_tokens);
    for (begin * tokens_step..rows) |row| {
        const position: f64 = @floatFromInt(t.step.positions.?[row]);
        for (0..t.cols(2)) |f| {
            const a = turn(position * inv_freq[f]);
            t.row(2, row)[f] = @as(f32, @floatCast(a.cos)) * scaling;
            t.row(3, row)[f] = @as(f32, @floatCast(a.sin)) * scaling;
        }
    }
}

fn runRope(t: *const Task, _: u32, begin: u32, end: u32, _: [*]u8) callconv(.c) void {
    const heads = t.attrs[0];
    const hd = t.attrs[1];
    const half = t.cols(1);
    const rows = @min(end * tokens_step, t.step.n_tokens);
    for (begin * tokens_step..rows) |row| for (0..heads) |h| {
        const x = t.row(0, row) + h * hd;
        const out = t.row(3, row) + h * hd;
        rotate(x, t.row(1, row), t.row(2, row), out, half);
        // Vector by vector, so that the result may lie where x does.
        if (x != out) @memcpy(out[2 * half .. hd], x[2 * half .. hd]);
    };
}
fn rotate(x: [*]const f32, cos: [*]const f32, sin: [*]const f32, out: [*]f32, half: usize) void {
    var f: usize = 0;
    while (f < half) : (f += L) {
        const n = half - f;
        const x1 = load(x + f, n);
        const x2 = load(x + half + f, n);
        const c = load(cos + f, n);
        const s = load(sin + f, n);
        store(out + f, simd.mulAdd(x1, c, -(x2 * s)), n);
        store(out + half + f, simd.mulAdd(x2, c, x1 * s), n);
    }
}
inline fn load(p: [*]const f32, n: usize) simd.F {
    return if (n >= L) simd.ldF(p) else simd.ldTail(p, n);
}
inline fn store(p: [*]f32, v: simd.F, n: usize) void {
    if (n >= L) simd.st(p, v) else simd.stTail(p, v, n);
}

pub const kernels = .{
    .rotary_embedding = Kernel{ .units = units, .run = runTables },
    .rope = Kernel{ .units = units, .run = runRope },
};

/// By the library's f64 sine and cosine.
pub fn rotary_embedding_ref(t: *const Task) void {
    for (0..t.step.n_tokens) |row| for (0..t.cols(2)) |f| {
        const position: f64 = @floatFromInt(t.step.positions.?[row]);
        const angle = position * t.f32s(1)[f];
        t.row(2, row)[f] = @floatCast(@cos(angle) * t.attrF(0));
        t.row(3, row)[f] = @floatCast(@sin(angle) * t.attrF(0));
    };
}

/// Channel by channel, as x cos + rotate_half(x) sin.
pub fn rope_ref(t: *const Task) void {
    const half = t.cols(1);
    for (0..t.step.n_tokens) |row| for (0..t.attrs[0]) |h| for (0..t.attrs[1]) |i| {
        const x = t.row(0, row) + h * t.attrs[1];
        const f = i % half;
        const cos: f64 = t.row(1, row)[f];
        const sin: f64 = t.row(2, row)[f];
        const turned: f64 = if (i < half) -x[i + half] else if (i < 2 * half) x[i - half] else 0;
        const y = if (i < 2 * half) x[i] * cos + turned * sin else x[i];
        t.row(3, row)[h * t.attrs[1] + i] = @floatCast(y);
    };
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;
const Seq = case.Seq;

/// The tables for tokens at the sequences' positions: cos, then sin.
fn tables(
    gpa: std.mem.Allocator,
    seqs: []const Seq,
    half: usize,
    ref: bool,
    order: case.Order,
) ![2][]f32 {
    var c = try case.Case.init(gpa, .rotary_embedding, seqs);
    c.order = order;
    const rows = c.step.n_tokens;
    const inv_freq = try gpa.alloc(f32, half);
    for (inv_freq, 0..) |*x, i| {
        const share = @as(f32, @floatFromInt(i)) / @as(f32, @floatFromInt(half));
        x.* = 1 / std.math.pow(f32, 10000, share);
    }
    const out = [2][]f32{ try gpa.alloc(f32, rows * half), try gpa.alloc(f32, rows * half) };
    c.add(std.mem.zeroes(kernel_zig.Operand), null);
    c.weight(inv_freq, 1, half);
    c.tokens(out[0].ptr, half, half);
    c.tokens(out[1].ptr, half, half);
    c.attr(0, 1.25);
    if (ref) rotary_embedding_ref(&c.task) else try c.execute(kernels.rotary_embedding);
    return out;
}

test "angles stay accurate to positions of a million" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const seqs = [_]Seq{
        .{ .tokens = 129 },
        .{ .past = 4095, .tokens = 3 },
        .{ .past = 999_990, .tokens = 65 },
        .{ .past = 7, .tokens = 0 },
        .{ .past = 16_777_215, .tokens = 1 },
    };
    for ([_]usize{ 6, 32, 64 }) |half| {
        const want = try tables(gpa, &seqs, half, true, .whole);
        inline for (.{ case.Order.whole, .backwards }) |order| {
            const got = try tables(gpa, &seqs, half, false, order);
            for (0..2) |i| for (got[i], want[i]) |g, w|
                try testing.expectApproxEqAbs(w, g, 1.6e-7);
        }
    }
}

test "rope is its twin for any F up to half a head, also in place" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const Size = struct { heads: usize, hd: usize, half: usize };
    for ([_]Size{
        .{ .heads = 4, .hd = 128, .half = 32 },
        .{ .heads = 2, .hd = 64, .half = 32 },
        .{ .heads = 3, .hd = 24, .half = 6 },
        .{ .heads = 1, .hd = 16, .half = 8 },
        .{ .heads = 2, .hd = 10, .half = 3 },
    }) |z| {
        const seqs = [_]Seq{ .{ .past = 100, .tokens = 130 }, .{ .tokens = 1 } };
        const table = try tables(gpa, &seqs, z.half, true, .whole);
        const wide = z.heads * z.hd;
        const x = try gpa.alloc(f32, 131 * (wide + 3));
        var prng = std.Random.DefaultPrng.init(z.hd);
        case.fill(prng.random(), x, 1);
        const out = try gpa.alloc([131 * 4 * 128]f32, 2);
        for (out, 0..) |*o, i| {
            var c = try case.Case.init(gpa, .rope, &seqs);
            c.tokens(x.ptr, wide, wide + 3);
            c.tokens(table[0].ptr, z.half, z.half);
            c.tokens(table[1].ptr, z.half, z.half);
            c.tokens(o, wide, wide);
            c.attr(0, z.heads);
            c.attr(1, z.hd);
            if (i == 0) rope_ref(&c.task) else try c.execute(kernels.rope);
            if (i == 0) continue;
            try testing.expect(case.worst(o[0 .. 131 * wide], out[0][0 .. 131 * wide]) < 1e-6);
            c.task.data[3] = c.task.data[0];
            c.task.operands[3] = c.task.operands[0];
            c.order = .backwards;
            try c.execute(kernels.rope);
            for (0..131) |r| try case.expectSameBits(
                o[r * wide ..][0..wide],
                x[r * (wide + 3) ..][0..wide],
            );
        }
    }
}
