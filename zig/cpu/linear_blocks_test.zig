//! Tests of `linear` with weights in blocks, and its scalar twin.

const std = @import("std");
const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const int8 = @import("int8.zig");
const case = @import("case.zig");
const linear = @import("linear.zig");
const panel = @import("panel.zig");
const simd = @import("simd.zig");
const DType = command.DType;
const testing = std.testing;

/// A block's numbers as integers, times the finer scale where the type has one.
fn numbersOf(comptime dtype: DType, b: *const block.Of(dtype)) [block.columns(dtype)]i32 {
    // The values of a block with d = 1 and no minimum are just these.
    var one = b.*;
    one.d = 0x3c00;
    if (@hasField(block.Of(dtype), "dmin")) one.dmin = 0;
    var values: [block.columns(dtype)]f32 = undefined;
    block.dequantize(dtype, &one, &values);
    var numbers: [block.columns(dtype)]i32 = undefined;
    for (&numbers, values) |*q, x| q.* = @intFromFloat(x);
    return numbers;
}

fn dot(q: []const i32, x: []const i8) f32 {
    var sum: i32 = 0;
    for (q, x) |a, b| sum += a * b;
    return @floatFromInt(sum);
}

/// Minima times totals, these rounded to multiples of a step: 13 bits for the largest.
fn minimaOf(comptime dtype: DType, b: *const block.Of(dtype), x: []const int8.Block) f32 {
    const largest = largestTotal(x);
    if (!(largest < 0x1p114)) return std.math.nan(f32);
    const exponent = @max(std.math.frexp(largest).exponent, -94) - 13;
    const step = std.math.ldexp(@as(f32, 1), exponent);
    var sum: i32 = 0;
    for (x, 0..) |a, j| {
        const nearest = a.total / step + 0x1.8p23 - 0x1.8p23;
        sum += block.scaleMin(&b.scales, j)[1] * @as(i32, @intFromFloat(nearest));
    }
    return step * @as(f32, @floatFromInt(sum));
}
fn largestTotal(x: []const int8.Block) f32 {
    var largest: f32 = 0;
    for (x) |a| {
        if (std.math.isNan(a.total)) return a.total;
        largest = @max(largest, @abs(a.total));
    }
    return largest;
}

/// What a block adds to an output's sum.
fn addBlock(
    comptime dtype: DType,
    b: *const block.Of(dtype),
    x: []const int8.Block,
    sum0: f32,
) f32 {
    const q = numbersOf(dtype, b);
    const d = block.half(b.d);
    if (dtype == .q8_0 or dtype == .q4_0)
        return simd.mulAdd1(dot(&q, &x[0].q), d * x[0].scale, sum0);
    var sum = sum0;
    if (dtype != .q6_k)
        sum = simd.mulAdd1(-block.half(b.dmin), minimaOf(dtype, b, x), sum);
    var t: f32 = 0;
    for (0..8) |i| {
        // Of q6_k, runs 64 columns apart follow each other.
        const j = if (dtype == .q6_k) i / 4 * 4 + i % 2 * 2 + i % 4 / 2 else i;
        t = simd.mulAdd1(dot(q[j * int8.columns ..][0..int8.columns], &x[j].q), x[j].scale, t);
    }
    return simd.mulAdd1(d, t, sum);
}

/// The activations of block i.
fn runsOf(
    comptime dtype: DType,
    x: [*]const f32,
    i: usize,
) [block.columns(dtype) / int8.columns]int8.Block {
    const columns = comptime block.columns(dtype);
    var a: [columns / int8.columns]int8.Block = undefined;
    for (&a, 0..) |*run, j|
        run.* = int8.quantizeRef(x[i * columns + j * int8.columns ..][0..int8.columns]);
    return a;
}

/// One output as `linear_blocks` defines it: `weight` is a row of blocks.
pub fn linearBlocksRef(
    comptime dtype: DType,
    K: usize,
    x: [*]const f32,
    weight: [*]const u8,
    bias: ?f32,
    residual: ?f32,
) f32 {
    const columns = comptime block.columns(dtype);
    const blocks: [*]align(1) const block.Of(dtype) = @ptrCast(weight);
    var sum: f32 = 0;
    for (blocks[0 .. K / columns], 0..) |*b, i| {
        const a = runsOf(dtype, x, i);
        // A copy, because blocks lie at any address.
        const copy = b.*;
        sum = addBlock(dtype, &copy, &a, sum);
    }
    if (bias) |b| sum += b;
    if (residual) |r| sum += r;
    return sum;
}

const Case = struct {
    M: usize,
    N: usize,
    blocks: usize = 2,
    extra: bool = false,
    threads: u32 = 2,
    order: case.Order = .backwards,
};

/// Random blocks whose scales are numbers of an ordinary size.
fn fillBlocks(comptime dtype: DType, random: std.Random, out: []u8) void {
    random.bytes(out);
    const blocks: [*]align(1) block.Of(dtype) = @ptrCast(out.ptr);
    for (0..out.len / @sizeOf(block.Of(dtype))) |i| {
        blocks[i].d = simd.f2h(random.floatNorm(f32) * 0.01);
        if (@hasField(block.Of(dtype), "dmin")) blocks[i].dmin = simd.f2h(random.float(f32) * 0.1);
    }
}

fn check(comptime dtype: DType, c: Case) !void {
    var arena_state: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena_state.deinit();
    const gpa = arena_state.allocator();
    var seed = std.Random.DefaultPrng.init(c.M * 7919 + c.N * 31 + c.blocks);
    const random = seed.random();
    const K = c.blocks * comptime block.columns(dtype);
    const gap = 3;
    const row_bytes = block.rowBytes(dtype, K);
    const rows = try gpa.alloc(u8, c.N * row_bytes);
    fillBlocks(dtype, random, rows);
    const weight = try gpa.alignedAlloc(u8, .@"64", panel.bytes(dtype, c.N, K));
    panel.pack(weight.ptr, dtype, rows.ptr, dtype, c.N, K, 0, 1 << 30);
    const x = try gpa.alloc(f32, c.M * (K + gap));
    case.fill(random, x, 3);
    const bias = try gpa.alloc(f32, c.N);
    case.fill(random, bias, 1);
    const residual = try gpa.alloc(f32, c.M * c.N);
    case.fill(random, residual, 1);
    const out = try gpa.alloc(f32, c.M * (c.N + gap));
    @memset(out, -7);

    var k = try case.Case.init(gpa, .linear, &.{.{ .tokens = @intCast(c.M) }});
    k.order = c.order;
    k.tokens(x.ptr, K, K + gap);
    k.panels(weight.ptr, dtype, c.N, K);
    if (c.extra) k.weight(bias, c.N, 1) else k.weight(null, c.N, 1);
    if (c.extra) k.tokens(residual.ptr, c.N, c.N) else k.weight(null, c.N, 1);
    k.tokens(out.ptr, c.N, c.N + gap);
    k.task.n_threads = c.threads;
    try k.execute(linear.kernels.linear);

    const values = try gpa.alloc(f32, K);
    for (0..c.M) |m| for (0..c.N + gap) |n| {
        const got = out[m * (c.N + gap) + n];
        if (n >= c.N) {
            try testing.expectEqual(@as(f32, -7), got);
            continue;
        }
        const a = x.ptr + m * (K + gap);
        const w = rows.ptr + n * row_bytes;
        const b: ?f32 = if (c.extra) bias[n] else null;
        const r: ?f32 = if (c.extra) residual[m * c.N + n] else null;
        try testing.expectEqual(linearBlocksRef(dtype, K, a, w, b, r), got);
        if (n > 2) continue;
        block.dequantizeRow(dtype, w, K, values.ptr);
        const added = (b orelse 0) + @as(f64, r orelse 0);
        try within(values, a, added, roundedTotals(dtype, K, a, w), got);
    };
}

/// How far rounding the totals that minima meet may move a result.
fn roundedTotals(comptime dtype: DType, K: usize, x: [*]const f32, weight: [*]const u8) f64 {
    if (dtype != .q4_k and dtype != .q5_k) return 0;
    const blocks: [*]align(1) const block.Of(dtype) = @ptrCast(weight);
    var sum: f64 = 0;
    for (blocks[0 .. K / block.long], 0..) |b, i| {
        var minima: f64 = 0;
        for (0..8) |j| minima += @floatFromInt(block.scaleMin(&b.scales, j)[1]);
        sum += @abs(block.half(b.dmin)) * minima * largestTotal(&runsOf(dtype, x, i)) * 0x1p-13;
    }
    return sum;
}

/// The error bound that the header of `linear_blocks` states; `totals` is its part of the minima.
fn within(w: []const f32, x: [*]const f32, added: f64, totals: f64, got: f32) !void {
    var exact: f64 = added;
    var size: f64 = @abs(exact);
    var rounding: f64 = totals;
    for (w, 0..) |v, i| {
        const run = i / int8.columns * int8.columns;
        const scale = int8.quantizeRef(x[run..][0..int8.columns]).scale;
        exact += @as(f64, v) * x[i];
        // A minimum cancels most of q4's and q5's numbers: their terms are larger than the weights.
        size += @abs(@as(f64, v)) * @abs(x[i]) + scale * 127 * 0.3;
        rounding += @abs(@as(f64, v)) * scale * (0.5 + 0x1p-15);
    }
    try testing.expect(@abs(exact - got) <= rounding + 0x1p-22 * size);
}

const all = .{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k };

test "equal to the scalar twin bit by bit, and as near to exact as promised" {
    inline for (all) |dtype| {
        for ([_]usize{ 1, 2, 3, 4, 5, 8, 9, 13, 25 }) |M| for ([_]usize{ 1, 17, 70 }) |N|
            try check(dtype, .{ .M = M, .N = N });
        try check(dtype, .{ .M = 3, .N = 150, .blocks = 1 });
        try check(dtype, .{ .M = 129, .N = 33, .blocks = 1 });
        const many = 1024 / block.columns(dtype) + 1;
        try check(dtype, .{ .M = 6, .N = 20, .blocks = many, .extra = true });
        try check(dtype, .{ .M = 1, .N = 20, .blocks = many, .extra = true });
        // Whole panels side by side, and behind them some that are not.
        try check(dtype, .{ .M = 1, .N = 300, .extra = true, .threads = 1 });
    }
}

test "more rows than a block of them" {
    try check(.q8_0, .{ .M = 600, .N = 18, .blocks = 1 });
    try check(.q4_0, .{ .M = 1100, .N = 5, .blocks = 1 });
}

test "thread counts and the order of units change nothing" {
    inline for (all) |dtype| for ([_]u32{ 1, 3, 64 }) |threads| for ([_]usize{ 0, 1, 9 }) |M|
        try check(dtype, .{ .M = M, .N = 300, .blocks = 1, .threads = threads, .order = .threes });
}

test "NaN and infinity in x reach the result" {
    var arena_state: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena_state.deinit();
    const gpa = arena_state.allocator();
    const bad_ones = [_]f32{ case.nan, std.math.inf(f32) };
    inline for (all) |dtype| for ([_]usize{ 1, 6 }) |M| for (bad_ones) |bad| {
        const K = 256;
        const weight = try gpa.alignedAlloc(u8, .@"64", panel.bytes(dtype, 16, K));
        var seed = std.Random.DefaultPrng.init(1);
        const rows = try gpa.alloc(u8, 16 * block.rowBytes(dtype, K));
        fillBlocks(dtype, seed.random(), rows);
        panel.pack(weight.ptr, dtype, rows.ptr, dtype, 16, K, 0, 1);
        const x = try gpa.alloc(f32, M * K);
        @memset(x, 0.5);
        x[(M - 1) * K + 37] = bad;
        const out = try gpa.alloc(f32, M * 16);
        var k = try case.Case.init(gpa, .linear, &.{.{ .tokens = @intCast(M) }});
        k.tokens(x.ptr, K, K);
        k.panels(weight.ptr, dtype, 16, K);
        k.weight(null, 16, 1);
        k.weight(null, 16, 1);
        k.tokens(out.ptr, 16, 16);
        try k.execute(linear.kernels.linear);
        for (out, 0..) |v, i| try testing.expectEqual(i / 16 < M - 1, std.math.isFinite(v));
    };
}
