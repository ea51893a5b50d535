//! log_softmax: out = x - logsumexp(x) over each row. cross_entropy: for each row the negative log
//! likelihood of its label (0 where the label is -100) and logsumexp, so that the caller can take
//! means and the z-loss over any span of rows.
//!
//! The largest score is subtracted first; exponentials are summed by `row.zig` in one order, blocks
//! in f64. NaN in a row makes its whole result NaN. log_softmax may write where it reads. Each row
//! is one unit: 2 to 3 walks over it, of which one comes from memory when it fits the cache.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const rows = @import("row.zig");
const Task = kernel.Task;
const L = simd.L;

pub const kernels = .{
    .log_softmax = kernel.Kernel{ .units = units, .run = logSoftmax },
    .cross_entropy = kernel.Kernel{ .units = units, .run = crossEntropy },
};

/// A label that counts nothing.
const ignored: i32 = -100;

/// Rows of a unit.
fn unitRows(t: *const Task) usize {
    return @max(1, 8192 / @max(1, t.cols(0)));
}
fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    _ = phase;
    const n = unitRows(t);
    return @intCast((t.rows(0) + n - 1) / n);
}

/// log of the sum of e^(x - max), in f64, and max itself.
const LogSum = struct {
    max: f32,
    log: f64,

    fn of(n: usize, x: [*]const f32) LogSum {
        const max = rows.largest(n, x);
        return .{ .max = max, .log = @log(rows.sumExp(n, x, max)) };
    }
};

fn logSoftmax(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = phase;
    _ = scratch;
    const cols = t.cols(0);
    const n = unitRows(t);
    for (begin * n..@min(end * n, t.rows(0))) |r| {
        const x = t.row(0, r);
        const s: LogSum = .of(cols, x);
        const max = simd.splat(s.max);
        const log = simd.splat(@floatCast(s.log));
        const out = t.row(1, r);
        var i: usize = 0;
        while (i < cols) : (i += L) {
            const v = rows.part(x + i, cols - i);
            rows.stPart(out + i, (v - max) - log, cols - i);
        }
    }
}

fn crossEntropy(
    t: *const Task,
    phase: u32,
    begin: u32,
    end: u32,
    scratch: [*]u8,
) callconv(.c) void {
    _ = phase;
    _ = scratch;
    const cols = t.cols(0);
    const n = unitRows(t);
    for (begin * n..@min(end * n, t.rows(0))) |r| {
        const x = t.row(0, r);
        const s: LogSum = .of(cols, x);
        const out = t.row(2, r);
        const label = t.step.labels.?[r];
        out[1] = @floatCast(s.log + s.max);
        if (label == ignored) {
            out[0] = 0;
            continue;
        }
        // Labels are checked when a job starts; one that was changed meanwhile is held inside.
        const id: usize = @min(@as(u32, @bitCast(label)), cols - 1);
        out[0] = @floatCast(s.log + (@as(f64, s.max) - x[id]));
    }
}

// ---- the scalar twins and tests ------------------------------------------------------------

/// log of the sum of exponentials in f64.
fn logSumRef(x: []const f32) f64 {
    var max: f64 = -std.math.inf(f64);
    for (x) |v| max = @max(max, v);
    var sum: f64 = 0;
    for (x) |v| sum += @exp(v - max);
    return max + @log(sum);
}
pub fn logSoftmaxRef(x: []const f32, out: []f32) void {
    const log = logSumRef(x);
    for (x, out) |v, *o| o.* = @floatCast(v - log);
}
pub fn crossEntropyRef(x: []const f32, label: i32) [2]f32 {
    const log = logSumRef(x);
    const nll = if (label == ignored) 0 else log - x[@intCast(label)];
    return .{ @floatCast(nll), @floatCast(log) };
}

const testing = std.testing;
const case = @import("case.zig");
const gap = 3;

fn caseOf(gpa: std.mem.Allocator, op: command.Op, x: []f32, n: usize, cols: usize) !case.Case {
    var c = try case.Case.init(gpa, op, &.{.{ .tokens = @intCast(n) }});
    c.step.n_logits = @intCast(n);
    c.tokens(x.ptr, cols, cols + gap);
    c.task.operands[0].rows = .logits;
    return c;
}
fn logits(gpa: std.mem.Allocator, n: usize, cols: usize) ![]f32 {
    var prng = std.Random.DefaultPrng.init(n * 100 + cols);
    const x = try gpa.alloc(f32, n * (cols + gap));
    for (x) |*v| v.* = prng.random().floatNorm(f32) * 6 + 20;
    return x;
}
fn addOut(c: *case.Case, out: []f32, cols: usize, stride: usize) void {
    c.tokens(out.ptr, cols, stride);
    c.task.operands[c.task.n_operands - 1].rows = .logits;
}

test "log_softmax agrees with its twin, beside and upon its input" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const n = 5;
    for ([_]usize{ 1, 2, 3, 129, 130, 1134, 4128, 50_000 }) |cols| {
        defer _ = arena.reset(.retain_capacity);
        const x = try logits(gpa, n, cols);
        x[0] = -std.math.inf(f32);
        if (cols == 1) x[0] = 1;
        const out = try gpa.alloc(f32, n * (cols + 1));
        @memset(out, -7);
        var c = try caseOf(gpa, .log_softmax, x, n, cols);
        addOut(&c, out, cols, cols + 1);
        c.order = .backwards;
        try c.execute(kernels.log_softmax);
        const want = try gpa.alloc(f32, cols);
        for (0..n) |r| {
            logSoftmaxRef(x[r * (cols + gap) ..][0..cols], want);
            for (want, out[r * (cols + 1) ..][0..cols]) |w, o| {
                if (std.math.isInf(w)) try testing.expectEqual(w, o) else {
                    try testing.expectApproxEqAbs(w, o, 4e-6);
                }
            }
            try testing.expectEqual(@as(f32, -7), out[r * (cols + 1) + cols]);
        }
        var in_place = try caseOf(gpa, .log_softmax, x, n, cols);
        addOut(&in_place, x, cols, cols + gap);
        try in_place.execute(kernels.log_softmax);
        for (0..n) |r| {
            const beside = out[r * (cols + 1) ..][0..cols];
            try case.expectSameBits(beside, x[r * (cols + gap) ..][0..cols]);
        }
    }
}

test "cross_entropy agrees with its twin; ignored labels count nothing" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const n = 37;
    for ([_]usize{ 1, 2, 3, 129, 130, 1134, 4128, 50_000 }) |cols| {
        defer _ = arena.reset(.retain_capacity);
        const x = try logits(gpa, n, cols);
        var labels: [n]i32 = undefined;
        for (&labels, 0..) |*label, i|
            label.* = if (i % 5 == 2) ignored else @intCast(i * 31 % cols);
        const out = try gpa.alloc(f32, n * 2);
        var c = try caseOf(gpa, .cross_entropy, x, n, cols);
        c.step.labels = &labels;
        c.tokens(@ptrCast(&labels), 1, 1);
        addOut(&c, out, 2, 2);
        c.order = .threes;
        try c.execute(kernels.cross_entropy);
        for (labels, 0..) |label, r| {
            const want = crossEntropyRef(x[r * (cols + gap) ..][0..cols], label);
            for (want, out[r * 2 ..][0..2]) |w, o|
                try testing.expectApproxEqAbs(w, o, 1e-6 + 2e-7 * @abs(w));
        }
        c.step.n_logits = 0;
        try testing.expectEqual(@as(u32, 0), kernels.cross_entropy.units(&c.task, 0));
    }
}

test "a sure label costs nothing, a banned one infinity, and NaN stays" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const inf = std.math.inf(f32);
    var x = [_]f32{ 90, -90, -inf, 0, 0, 0 } ++ [_]f32{ 1, 2, -inf, 0, 0, 0 } ++
        [_]f32{ 1, case.nan, 2, 0, 0, 0 };
    var labels = [_]i32{ 0, 2, 0 };
    var out: [6]f32 = undefined;
    var c = try caseOf(gpa, .cross_entropy, &x, 3, 3);
    c.step.labels = &labels;
    c.tokens(@ptrCast(&labels), 1, 1);
    addOut(&c, &out, 2, 2);
    try c.execute(kernels.cross_entropy);
    try testing.expectEqualSlices(f32, &.{ 0, 90, inf }, out[0..3]);
    try testing.expect(std.math.isNan(out[4]) and std.math.isNan(out[5]));
}
