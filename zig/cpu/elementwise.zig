//! swiglu, add, mul, silu: each element by itself. gather_rows: rows picked by `logit_rows`.
//!
//! The bits of an element depend on nothing else, so rows are cut into units freely. All are bound
//! by memory (12 bytes an element for two inputs). The result may lie exactly where an input lies,
//! but not for gather_rows, whose rows move.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const ways = @import("way.zig");
const Task = kernel.Task;
const F = simd.F;
const L = simd.L;

pub const kernels = .{
    .swiglu = kernel.Kernel{ .units = units, .run = over(swigluOf) },
    .add = kernel.Kernel{ .units = units, .run = over(addOf) },
    .mul = kernel.Kernel{ .units = units, .run = over(mulOf) },
    .silu = kernel.Kernel{ .units = units, .run = over(simd.silu) },
    .gather_rows = kernel.Kernel{ .units = unitsOfRows, .run = gather },
};

inline fn swigluOf(gate: F, up: F) F {
    return simd.silu(gate) * up;
}
inline fn addOf(a: F, b: F) F {
    return a + b;
}
inline fn mulOf(a: F, b: F) F {
    return a * b;
}

/// Elements of a unit: two to four microseconds. A single row, whose inputs lie in the caches of
/// all threads, goes in smaller pieces, so that it takes them all to fetch it.
const unit_elements = 16384;
const piece_elements = 1024;

fn unitRows(t: *const Task) usize {
    return @max(1, unit_elements / @max(1, t.cols(t.n_operands - 1)));
}

fn unitsOfRows(t: *const Task, _: u32) callconv(.c) u32 {
    const n = unitRows(t);
    return @intCast((t.rows(t.n_operands - 1) + n - 1) / n);
}
fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    const out = t.n_operands - 1;
    if (t.rows(out) != 1) return unitsOfRows(t, phase);
    return @intCast((t.cols(out) + piece_elements - 1) / piece_elements);
}

const Run = @typeInfo(@FieldType(kernel.Kernel, "run")).pointer.child;

/// A kernel that applies f to all its inputs, element by element.
fn over(comptime f: anytype) *const Run {
    const inputs = @typeInfo(@TypeOf(f)).@"fn".params.len;
    return struct {
        fn run(t: *const Task, _: u32, begin: u32, end: u32, _: [*]u8) callconv(.c) void {
            const cols = t.cols(inputs);
            if (t.rows(inputs) == 1) {
                const from = begin * piece_elements;
                return columns(t, 0, from, @min(end * piece_elements, cols));
            }
            const n = unitRows(t);
            for (begin * n..@min(end * n, t.rows(inputs))) |r| columns(t, r, 0, cols);
        }
        fn columns(t: *const Task, r: usize, from: usize, to: usize) void {
            const a = t.row(0, r) + from;
            const out = t.row(inputs, r) + from;
            const way = ways.ofResults(t.rows(inputs) * t.cols(inputs) * 4);
            if (inputs == 1) simd.map(f, to - from, a, out);
            if (inputs == 2) map2(f, to - from, a, t.row(1, r) + from, out, way);
        }
    }.run;
}

fn map2(
    comptime f: anytype,
    n: usize,
    a: [*]const f32,
    b: [*]const f32,
    out: [*]f32,
    way: ways.Way,
) void {
    var i: usize = 0;
    while (i + L <= n) : (i += L)
        ways.store(way, out + i, f(simd.ldF(a + i), simd.ldF(b + i)), L);
    const left = n - i;
    if (left == 0) return;
    simd.stTail(out + i, f(simd.ldTail(a + i, left), simd.ldTail(b + i, left)), left);
}

fn gather(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = phase;
    _ = scratch;
    const n = unitRows(t);
    const cols = t.cols(2);
    const last = t.rows(0) -| 1;
    for (begin * n..@min(end * n, t.rows(2))) |r| {
        // Rows are checked when a job starts; one that was changed meanwhile is held inside.
        const from: usize = @min(t.step.logit_rows.?[r], last);
        @memcpy(t.row(2, r)[0..cols], t.row(0, from)[0..cols]);
    }
}

// ---- the scalar twins and tests ------------------------------------------------------------

pub fn swigluRef(gate: f32, up: f32) f32 {
    return @floatCast(@as(f64, gate) / (1 + @exp(-@as(f64, gate))) * up);
}
pub fn addRef(a: f32, b: f32) f32 {
    return a + b;
}
pub fn mulRef(a: f32, b: f32) f32 {
    return a * b;
}
pub fn siluRef(a: f32, _: f32) f32 {
    return swigluRef(a, 1);
}

const testing = std.testing;
const case = @import("case.zig");
const gap = 3;

/// Runs one operation over `rows` rows in odd units, the result beside or upon its first input.
fn check(
    gpa: std.mem.Allocator,
    comptime name: []const u8,
    rows: usize,
    cols: usize,
    in_place: bool,
) !void {
    const inputs: usize = if (comptime std.mem.eql(u8, name, "silu")) 1 else 2;
    const twin = @field(@This(), name ++ "Ref");
    const stride = cols + gap;
    var prng = std.Random.DefaultPrng.init(rows * 999 + cols);
    const a = try gpa.alloc(f32, rows * stride);
    const b = try gpa.alloc(f32, rows * stride);
    case.fill(prng.random(), a, 9);
    case.fill(prng.random(), b, 9);
    const before = try gpa.dupe(f32, a);
    const out = if (in_place) a else try gpa.dupe(f32, b);
    var c = try case.Case.init(gpa, @field(command.Op, name), &.{.{ .tokens = @intCast(rows) }});
    c.order = if (in_place) .backwards else .threes;
    c.tokens(a.ptr, cols, stride);
    if (inputs == 2) c.tokens(b.ptr, cols, stride);
    c.tokens(out.ptr, cols, stride);
    try c.execute(@field(kernels, name));
    for (0..rows * stride) |i| {
        if (i % stride >= cols) { // nothing is written between the rows
            try testing.expectEqual(if (in_place) before[i] else b[i], out[i]);
            continue;
        }
        const want = twin(before[i], b[i]);
        try testing.expectApproxEqAbs(want, out[i], @abs(want) * 4e-7 + 1e-35);
    }
}

test "each operation agrees with its twin, beside and upon its input" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    inline for (.{ "swiglu", "add", "mul", "silu" }) |name| {
        for ([_]usize{ 1, 2, 3, 129, 130, 151, 1134, 4128, 20000 }) |cols| {
            try check(arena.allocator(), name, 1, cols, false);
            try check(arena.allocator(), name, 9, cols, true);
            _ = arena.reset(.retain_capacity);
        }
    }
}

test "gathered rows come in the order asked for, twice where asked twice" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    for ([_]usize{ 1, 7, 3000 }) |cols| {
        const x = try gpa.alloc(f32, 20 * (cols + gap));
        for (x, 0..) |*v, i| v.* = @floatFromInt(i);
        var rows = [_]u32{ 19, 0, 3, 3, 18, 7, 0 };
        var c = try case.Case.init(gpa, .gather_rows, &.{.{ .tokens = 20 }});
        c.step.logit_rows = &rows;
        c.step.n_logits = rows.len;
        const out = try gpa.alloc(f32, rows.len * (cols + 1));
        @memset(out, -1);
        c.tokens(x.ptr, cols, cols + gap);
        c.tokens(@ptrCast(&rows), 1, 1);
        c.tokens(out.ptr, cols, cols + 1);
        c.task.operands[2].rows = .logits;
        c.order = .backwards;
        try c.execute(kernels.gather_rows);
        for (rows, 0..) |from, r| {
            const got = out[r * (cols + 1) ..];
            try testing.expectEqualSlices(f32, x[from * (cols + gap) ..][0..cols], got[0..cols]);
            try testing.expectEqual(@as(f32, -1), got[cols]);
        }
        c.step.n_logits = 0;
        try testing.expectEqual(@as(u32, 0), kernels.gather_rows.units(&c.task, 0));
    }
}
