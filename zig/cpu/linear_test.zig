//! Tests of `linear` with weights in panels, against its scalar twins.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const linear_file = @import("linear.zig");
const pairs = @import("linear_bf16.zig");
const panel = @import("panel.zig");
const simd = @import("simd.zig");
const DType = command.DType;
const Task = kernel.Task;
const linear = linear_file.kernels.linear;
const width = command.panel;
const testing = std.testing;

const Case = struct {
    M: usize,
    N: usize,
    K: usize,
    dtype: DType = .bf16,
    bias: bool = false,
    residual: bool = false,
    /// The residual is the output itself.
    alias: bool = false,
    /// Elements between rows beyond the row itself.
    gap: usize = 0,
    threads: u32 = 2,
    /// Units handed out at once.
    chunk: u32 = 1,
};

const Buffers = struct {
    x: []f32,
    weight: []f32,
    packed_weight: []align(64) u8,
    bias: []f32,
    residual: []f32,
    out: []f32,
};

const Given = struct { command.Operand, ?[*]u8 };

fn dense(data: ?[*]u8, dtype: DType, shape: [2]usize, stride: usize, layout: command.Layout) Given {
    return .{ .{
        .space = .arena,
        .dtype = dtype,
        .rows = .fixed,
        .layout = layout,
        .rank = 2,
        .shape = .{ @intCast(shape[0]), @intCast(shape[1]), 1, 1 },
        .row_stride = @intCast(stride),
        .buffer = 0,
        .reserved = 0,
        .offset = 0,
    }, data };
}

fn bytesOf(p: []f32) [*]u8 {
    return @ptrCast(p.ptr);
}

/// Runs the kernel as the executor would, the last units first.
fn execute(c: Case, b: Buffers) !void {
    var step: kernel.Step = std.mem.zeroes(kernel.Step);
    var t: Task = std.mem.zeroes(Task);
    t.op = .linear;
    t.n_operands = 5;
    t.step = &step;
    t.n_threads = c.threads;
    const wide = [2]usize{ c.M, c.N };
    const residual: ?[*]u8 = if (!c.residual) null else bytesOf(if (c.alias) b.out else b.residual);
    const given = .{
        dense(bytesOf(b.x), .f32, .{ c.M, c.K }, c.K + c.gap, .row_major),
        dense(b.packed_weight.ptr, c.dtype, .{ c.N, c.K }, c.K, .panel),
        dense(if (c.bias) bytesOf(b.bias) else null, .f32, .{ c.N, 1 }, 1, .row_major),
        dense(residual, .f32, wide, c.N + c.gap, .row_major),
        dense(bytesOf(b.out), .f32, wide, c.N + c.gap, .row_major),
    };
    inline for (given, 0..) |g, i| {
        t.operands[i] = g[0];
        t.data[i] = g[1];
    }
    const gpa = testing.allocator;
    const space = try gpa.alignedAlloc(u8, .@"64", linear.workspace.?(&t) + 64);
    defer gpa.free(space);
    const mine = try gpa.alignedAlloc(u8, .@"64", linear.scratch.?(&t));
    defer gpa.free(mine);
    @memset(space, 0xff);
    @memset(mine, 0xff);
    t.workspace = space.ptr;
    for (0..linear.n_phases) |phase| {
        var left = linear.units(&t, @intCast(phase));
        while (left > 0) {
            const n = @min(left, c.chunk);
            linear.run(&t, @intCast(phase), left - n, left, mine.ptr);
            left -= n;
        }
    }
}

fn check(c: Case) !void {
    const gpa = testing.allocator;
    var arena_state = std.heap.ArenaAllocator.init(gpa);
    defer arena_state.deinit();
    const arena = arena_state.allocator();
    var seed = std.Random.DefaultPrng.init(c.M * 7919 + c.N * 31 + c.K);
    const random = seed.random();
    const out_len = c.M * (c.N + c.gap);
    const b: Buffers = .{
        .x = try arena.alloc(f32, c.M * (c.K + c.gap)),
        .weight = try arena.alloc(f32, c.N * c.K),
        .packed_weight = try arena.alignedAlloc(u8, .@"64", panel.bytes(c.dtype, c.N, c.K)),
        .bias = try arena.alloc(f32, c.N),
        .residual = try arena.alloc(f32, out_len),
        .out = try arena.alloc(f32, out_len),
    };
    // What lies between the rows must be neither read nor written.
    for (b.x, 0..) |*v, i| v.* = if (i % (c.K + c.gap) < c.K)
        random.floatNorm(f32)
    else
        std.math.nan(f32);
    for (b.bias) |*v| v.* = random.floatNorm(f32);
    for (b.weight) |*v| v.* = random.floatNorm(f32);
    for (b.residual) |*v| v.* = random.floatNorm(f32);
    if (c.dtype == .f8_e4m3)
        try packEights(arena, random, c, b.packed_weight.ptr)
    else
        panel.pack(b.packed_weight.ptr, c.dtype, bytesOf(b.weight), .f32, c.N, c.K, 0, 1 << 30);
    for (0..c.N) |n| for (0..c.K) |k| {
        b.weight[n * c.K + k] = panel.get(c.dtype, b.packed_weight.ptr, c.K, n, k);
    };
    @memcpy(b.out, b.residual);
    try execute(c, b);
    for (0..c.M) |m| for (0..c.N + c.gap) |n| {
        const got = b.out[m * (c.N + c.gap) + n];
        const before = b.residual[m * (c.N + c.gap) + n];
        if (n >= c.N) {
            try testing.expectEqual(before, got);
            continue;
        }
        const x = b.x.ptr + m * (c.K + c.gap);
        const w = b.weight.ptr + n * c.K;
        const bias: ?f32 = if (c.bias) b.bias[n] else null;
        const residual: ?f32 = if (c.residual) before else null;
        const rounds = pairs.takes(c.dtype, c.N, c.K);
        const ref = if (rounds) &pairs.linearRef else &linear_file.linearRef;
        try testing.expectEqual(ref(c.K, x, w, bias, residual), got);
        var exact: f64 = (bias orelse 0) + @as(f64, residual orelse 0);
        var size: f64 = @abs(exact);
        for (0..c.K) |k| {
            const a = if (rounds) pairs.rounded1(x[k]) else x[k];
            exact += @as(f64, a) * w[k];
            size += @abs(@as(f64, a) * w[k]);
        }
        try testing.expect(@abs(exact - got) <= 2e-6 * size + 1e-12);
    };
}

/// Any numbers but NaN, and any scales.
fn packEights(gpa: std.mem.Allocator, random: std.Random, c: Case, to: [*]u8) !void {
    const numbers = try gpa.alloc(u8, c.N * c.K);
    for (numbers) |*x| x.* = random.int(u8) & 0x80 | random.uintLessThan(u8, 0x7f);
    panel.pack(to, c.dtype, numbers.ptr, c.dtype, c.N, c.K, 0, 1 << 30);
    for (0..panel.count(c.N)) |p| for (0..width) |i| {
        const at = to + p * panel.panelBytes(c.dtype, c.K) + i * 4;
        simd.st(at, random.float(f32) / 100);
    };
}

test "equal to the scalar twin bit by bit: ugly sizes, dtypes, row counts" {
    for ([_]DType{ .bf16, .f16, .f8_e4m3, .f32 }) |dtype| {
        for ([_]usize{ 1, 2, 3, 4, 5, 7, 8, 12, 13, 24, 25, 37, 129 }) |M| {
            for ([_][2]usize{ .{ 1, 1 }, .{ 3, 2 }, .{ 129, 130 }, .{ 151, 129 } }) |s|
                try check(.{ .M = M, .N = s[0], .K = s[1], .dtype = dtype });
        }
        try check(.{ .M = 1, .N = 1134, .K = 1134, .dtype = dtype });
        try check(.{ .M = 3, .N = 130, .K = 1134, .dtype = dtype });
        try check(.{ .M = 397, .N = 35, .K = 261, .dtype = dtype });
        try check(.{ .M = 151, .N = 80, .K = 1135, .dtype = dtype, .bias = true });
    }
}

test "slices of k at their edges" {
    const dtypes = [_]DType{ .bf16, .f16, .f8_e4m3, .f32 };
    for (dtypes) |dtype| for ([_]usize{ 128, 256, 384, 768 }) |edge| {
        for ([_]usize{ edge - 1, edge, edge + 1, 2 * edge + 1 }) |K| for ([_]usize{ 1, 4, 26 }) |M|
            try check(.{ .M = M, .N = 17, .K = K, .dtype = dtype });
    };
}

test "few rows, panels together and alone, slices of pairs at their edges" {
    for (3..9) |M| for ([_]usize{ 24, 25, 26 }) |panels| {
        for ([_]usize{ 1, 2, 127, 128, 129, 131, 259 }) |K|
            try check(.{ .M = M, .N = panels * width - 3, .K = K, .threads = 1 });
    };
}

test "bias, residual, a residual that is the output, and gaps between rows" {
    for ([_]usize{ 1, 6, 40 }) |M| for ([_]bool{ false, true }) |bias| {
        for ([_]bool{ false, true }) |alias| for ([_]usize{ 0, 5 }) |gap| try check(.{
            .M = M,
            .N = 70,
            .K = 65,
            .bias = bias,
            .residual = true,
            .alias = alias,
            .gap = gap,
        });
    };
}

test "thread counts and chunks of units change nothing" {
    for ([_]u32{ 1, 3, 64 }) |threads| for ([_]u32{ 1, 5, 1000 }) |chunk| {
        for ([_]usize{ 0, 1, 9, 200 }) |M|
            try check(.{ .M = M, .N = 300, .K = 64, .threads = threads, .chunk = chunk });
    };
}
