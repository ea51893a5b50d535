//! rms_norm: out = x * (1 / sqrt(mean(x²) + eps)) * weight over each row.
//! rms_norm_gated: the same over y = x * silu(gate), the gate first, then one mean over the
//! channels of each group.
//!
//! Statistics are f32, summed in the one order of `row.zig`, whatever the rows or threads. A row is
//! read once from memory, as the second walk finds it in L1: bytes moved decide.
//! The result may lie exactly where x or the gate lies.

const std = @import("std");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const row = @import("row.zig");
const ways = @import("way.zig");
const Task = kernel.Task;
const L = simd.L;

pub const kernels = .{
    .rms_norm = kernel.Kernel{ .units = units, .run = norm },
    .rms_norm_gated = kernel.Kernel{ .units = units, .run = gated, .scratch = gatedScratch },
};

/// The result is the last operand of both.
fn outOf(t: *const Task) usize {
    return t.n_operands - 1;
}

/// Elements of a unit, at most: about four microseconds.
const unit_elements = 16384;
/// Units that each thread should find, if there are rows enough.
const units_a_thread = 2;

/// Rows of a unit.
fn unitRows(t: *const Task) usize {
    const most = unit_elements / @max(1, t.cols(outOf(t)));
    const shared = t.rows(outOf(t)) / (units_a_thread * @max(1, t.n_threads));
    return @max(1, @min(most, shared));
}
fn wayOf(t: *const Task) ways.Way {
    return ways.ofResults(t.rows(outOf(t)) * t.cols(outOf(t)) * 4);
}

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    _ = phase;
    const n = unitRows(t);
    return @intCast((t.rows(outOf(t)) + n - 1) / n);
}

fn norm(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = phase;
    _ = scratch;
    const n = unitRows(t);
    const cols = t.cols(0);
    const way = wayOf(t);
    for (begin * n..@min(end * n, t.rows(2))) |r| {
        const x = t.row(0, r);
        const sum = row.squares(cols, x);
        scale(cols, x, t.f32s(1), factor(sum, cols, t.attrF(0)), t.row(2, r), way);
    }
}

fn gated(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = phase;
    const y: [*]f32 = @ptrCast(@alignCast(scratch));
    const way = wayOf(t);
    const n = unitRows(t);
    const groups = t.attrs[1];
    const cols = t.cols(0) / groups;
    for (begin * n..@min(end * n, t.rows(3))) |r| {
        for (0..groups) |g| {
            const at = g * cols;
            const sum = gatedSquares(cols, t.row(0, r) + at, t.row(1, r) + at, y);
            scale(cols, y, t.f32s(2) + at, factor(sum, cols, t.attrF(0)), t.row(3, r) + at, way);
        }
    }
}

/// A group of channels on its way to its mean.
fn gatedScratch(t: *const Task) callconv(.c) usize {
    return t.cols(0) / t.attrs[1] * 4;
}

inline fn factor(sum: f32, n: usize, eps: f32) f32 {
    return 1 / @sqrt(sum / @as(f32, @floatFromInt(n)) + eps);
}

/// Writes x * silu(gate) and sums its squares.
fn gatedSquares(n: usize, x: [*]const f32, gate: [*]const f32, y: [*]f32) f32 {
    var s: row.Sums = .{};
    var i: usize = 0;
    while (i + row.Sums.width <= n) : (i += row.Sums.width) {
        inline for (0..row.Sums.vectors) |j| {
            const at = i + j * L;
            const v = simd.ldF(x + at) * simd.silu(simd.ldF(gate + at));
            simd.st(y + at, v);
            s.a[j] = simd.mulAdd(v, v, s.a[j]);
        }
    }
    inline for (0..row.Sums.vectors) |j| {
        if (i < n) {
            const v = row.part(x + i, n - i) * simd.silu(row.part(gate + i, n - i));
            row.stPart(y + i, v, n - i);
            s.a[j] = simd.mulAdd(v, v, s.a[j]);
        }
        i += L;
    }
    return s.total();
}

/// out = (x * by) * weight
fn scale(
    n: usize,
    x: [*]const f32,
    weight: [*]const f32,
    by: f32,
    out: [*]f32,
    way: ways.Way,
) void {
    const f = simd.splat(by);
    var i: usize = 0;
    while (i + L <= n) : (i += L)
        ways.store(way, out + i, simd.ldF(x + i) * f * simd.ldF(weight + i), L);
    while (i < n) : (i += 1) out[i] = x[i] * by * weight[i];
}

// ---- the scalar twins and tests ------------------------------------------------------------

/// One row in f64.
pub fn rmsNormRef(x: []const f32, weight: []const f32, eps: f32, out: []f32) void {
    var sum: f64 = 0;
    for (x) |v| sum += @as(f64, v) * v;
    const by = 1 / @sqrt(sum / @as(f64, @floatFromInt(x.len)) + eps);
    for (x, weight, out) |v, w, *o| o.* = @floatCast(v * by * w);
}
/// One row in f64.
pub fn rmsNormGatedRef(
    x: []const f32,
    gate: []const f32,
    weight: []const f32,
    eps: f32,
    groups: usize,
    out: []f32,
) void {
    const n = x.len / groups;
    for (0..groups) |g| {
        var sum: f64 = 0;
        for (g * n..(g + 1) * n) |i| sum += std.math.pow(f64, x[i] * siluRef(gate[i]), 2);
        const by = 1 / @sqrt(sum / @as(f64, @floatFromInt(n)) + eps);
        for (g * n..(g + 1) * n) |i|
            out[i] = @floatCast(x[i] * siluRef(gate[i]) * by * weight[i]);
    }
}
fn siluRef(x: f64) f64 {
    return x / (1 + @exp(-x));
}

const testing = std.testing;
const case = @import("case.zig");

const Data = struct {
    const gap = 5;
    rows: usize,
    cols: usize,
    x: []f32,
    gate: []f32,
    weight: []f32,
    out: []f32,

    fn init(gpa: std.mem.Allocator, rows: usize, cols: usize) !Data {
        var prng = std.Random.DefaultPrng.init(rows * 1000 + cols);
        const random = prng.random();
        const d: Data = .{
            .rows = rows,
            .cols = cols,
            .x = try gpa.alloc(f32, rows * (cols + gap)),
            .gate = try gpa.alloc(f32, rows * (cols + gap)),
            .weight = try gpa.alloc(f32, cols),
            .out = try gpa.alloc(f32, rows * (cols + gap)),
        };
        case.fill(random, d.x, 3);
        case.fill(random, d.gate, 6);
        case.fill(random, d.weight, 2);
        @memset(d.out, -7);
        return d;
    }
    fn task(d: Data, gpa: std.mem.Allocator, groups: u32, out: []f32) !case.Case {
        const op: @import("command").Op = if (groups == 0) .rms_norm else .rms_norm_gated;
        var c = try case.Case.init(gpa, op, &.{.{ .tokens = @intCast(d.rows) }});
        c.tokens(d.x.ptr, d.cols, d.cols + gap);
        if (groups > 0) c.tokens(d.gate.ptr, d.cols, d.cols + gap);
        c.weight(d.weight, d.cols, 1);
        c.tokens(out.ptr, d.cols, d.cols + gap);
        c.attr(0, 1e-5);
        c.attr(1, groups);
        return c;
    }
    fn at(d: Data, of: []f32, r: usize) []f32 {
        return of[r * (d.cols + gap) ..][0..d.cols];
    }
};

fn kernelOf(groups: u32) kernel.Kernel {
    return if (groups == 0) kernels.rms_norm else kernels.rms_norm_gated;
}

test "both norms agree with their twins, row after row, at ugly sizes" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    for ([_]usize{ 1, 2, 3, 31, 129, 130, 151, 1134, 4128 }) |cols| {
        for ([_]u32{ 0, 1, 2, 3 }) |groups| {
            if (groups > 0 and cols % groups != 0) continue;
            const d: Data = try .init(gpa, 7, cols);
            var c = try d.task(gpa, groups, d.out);
            try c.execute(kernelOf(groups));
            const want = try gpa.alloc(f32, cols);
            for (0..d.rows) |r| {
                const x = d.at(d.x, r);
                if (groups == 0) rmsNormRef(x, d.weight, 1e-5, want) else {
                    rmsNormGatedRef(x, d.at(d.gate, r), d.weight, 1e-5, groups, want);
                }
                try testing.expect(case.worst(d.at(d.out, r), want) < 2e-6);
                for (d.out[r * (cols + Data.gap) + cols ..][0..Data.gap]) |v|
                    try testing.expectEqual(@as(f32, -7), v);
            }
        }
    }
}

test "bits do not depend on rows, units or where the result lies" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    for ([_]u32{ 0, 2 }) |groups| for ([_]usize{ 30, 1024, 20000 }) |cols| {
        const d: Data = try .init(gpa, 65, cols);
        var c = try d.task(gpa, groups, d.out);
        c.order = .backwards;
        try c.execute(kernelOf(groups));
        for ([_]usize{ 0, 17, 64 }) |r| {
            var one: Data = d;
            one.rows = 1;
            one.x = d.x[r * (cols + Data.gap) ..];
            one.gate = d.gate[r * (cols + Data.gap) ..];
            const out = try gpa.alloc(f32, cols);
            var alone = try one.task(gpa, groups, out);
            try alone.execute(kernelOf(groups));
            try case.expectSameBits(d.at(d.out, r), out);
        }
        var in_place = try d.task(gpa, groups, d.x);
        in_place.order = .threes;
        try in_place.execute(kernelOf(groups));
        for (0..d.rows) |r| try case.expectSameBits(d.at(d.out, r), d.at(d.x, r));
    };
}

test "a row of zeros gives zeros, NaN stays NaN, and no rows are no units" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const d: Data = try .init(gpa, 2, 40);
    @memset(d.at(d.x, 0), 0);
    d.at(d.x, 1)[39] = case.nan;
    inline for (.{ 0, 1 }) |groups| {
        var c = try d.task(gpa, groups, d.out);
        try c.execute(kernelOf(groups));
        for (d.at(d.out, 0)) |v| try testing.expectEqual(@as(f32, 0), v);
        for (d.at(d.out, 1)) |v| try testing.expect(std.math.isNan(v));
        c.step.n_tokens = 0;
        try testing.expectEqual(@as(u32, 0), kernelOf(groups).units(&c.task, 0));
    }
}
