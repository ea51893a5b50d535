//! linear: out = x · weightᵀ (+ bias) (+ residual), weights in panels of bf16, f16, f8_e4m3 or f32;
//! what lies in blocks has its own file, `linear_blocks`, and so have large matrices of bf16 where
//! the CPU multiplies pairs of it, `linear_bf16`. An f8 weight is the f32 that its number times its
//! row's scale rounds to: the bits are those of a matrix unpacked to f32 before.
//!
//! Every output is sum = fma(x[k], w[k], sum) for k = 0, 1, .. in f32, and then (sum + bias) +
//! residual, with one row as with 512: the bits depend on nothing but the row. `linearRef` says the
//! same in scalars. Few rows stream weights from memory (`linear_gemv`), many go through packed
//! activations and register tiles (`linear_gemm`): phase 0 packs, phase 1 multiplies.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const panel = @import("panel.zig");
const gemm = @import("linear_gemm.zig");
const gemv = @import("linear_gemv.zig");
const block = @import("block.zig");
const blocks = @import("linear_blocks.zig");
const pairs = @import("linear_bf16.zig");
const ways = @import("way.zig");
const finish = @import("linear_finish.zig").finish;
const Task = kernel.Task;
const DType = command.DType;
const width = command.panel;

pub const kernels = .{ .linear = kernel.Kernel{
    .n_phases = 2,
    .units = units,
    .run = run,
    .workspace = workspace,
    .scratch = scratch,
    .alike = alike,
} };

/// Operands of the command.
const X = 0;
const WEIGHT = 1;
const BIAS = 2;
const RESIDUAL = 3;
const OUT = 4;

/// Row tiles of a block: with a slice of k they take about 290 KiB, so that they stay in L2.
const block_tiles: usize = @max(1, 96 / gemm.MR);
/// Panels of a unit, at most.
const group_panels: usize = 8;
/// Units that each thread should find, so that a late thread costs little.
const units_a_thread = 8;

const Shape = struct {
    M: usize,
    K: usize,
    N: usize,
    panels: usize,
    dtype: DType,
    cut: gemm.Cut,
    /// Few rows: panels at once, and how far apart they are.
    streams: usize,
    distance: usize,
    /// Many rows: panels of a unit, and how many groups and blocks there are.
    group: usize,
    groups: usize,
    blocks: usize,

    fn of(t: *const Task) Shape {
        const M = t.rows(OUT);
        const N: usize = t.operands[WEIGHT].shape[0];
        const panels = panel.count(N);
        const threads: usize = @max(1, t.n_threads);
        const cut = gemm.Cut.init(M);
        var s: Shape = .{
            .M = M,
            .K = t.operands[WEIGHT].shape[1],
            .N = N,
            .panels = panels,
            .dtype = t.operands[WEIGHT].dtype,
            .cut = cut,
            .streams = gemv.streams,
            .distance = undefined,
            .group = group_panels,
            .groups = undefined,
            .blocks = (cut.tiles + block_tiles - 1) / block_tiles,
        };
        while (s.streams > 1 and panels < s.streams * threads * 4) s.streams /= 2;
        s.distance = (panels + s.streams - 1) / s.streams;
        while (true) : (s.group /= 2) {
            s.groups = (panels + s.group - 1) / s.group;
            if (s.group <= gemm.NP or s.groups * s.blocks >= units_a_thread * threads) return s;
        }
    }
    fn few(s: Shape) bool {
        return s.M <= gemv.max_rows;
    }
};

fn inBlocks(t: *const Task) bool {
    return block.is(t.operands[WEIGHT].dtype);
}

fn inPairs(t: *const Task) bool {
    const w = &t.operands[WEIGHT];
    return pairs.takes(w.dtype, w.shape[0], w.shape[1]);
}

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    if (inBlocks(t)) return blocks.units(t, phase);
    if (inPairs(t)) return pairs.units(t, phase);
    const s = Shape.of(t);
    if (s.M == 0 or s.N == 0) return 0;
    if (s.few()) return if (phase == 0) 0 else @intCast(s.distance);
    return @intCast(if (phase == 0) s.cut.tiles else s.groups * s.blocks);
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, memory: [*]u8) callconv(.c) void {
    if (inBlocks(t)) return blocks.run(t, phase, begin, end, memory);
    if (inPairs(t)) return pairs.run(t, phase, begin, end, memory);
    const s = Shape.of(t);
    const sums: [*]f32 = @ptrCast(@alignCast(memory));
    for (begin..end) |unit| {
        if (phase == 0) {
            packRows(t, s, unit);
        } else if (s.few()) {
            streamPanels(t, s, unit, sums);
        } else multiply(t, s, unit, sums);
    }
}

fn packRows(t: *const Task, s: Shape, unit: usize) void {
    const out: [*]f32 = @ptrCast(@alignCast(t.workspace.?));
    const first = s.cut.at(unit);
    gemm.packTile(s.cut.height(unit), s.K, t.row(X, first), t.stride(X), out + first * s.K);
}

fn streamPanels(t: *const Task, s: Shape, unit: usize, sums: [*]f32) void {
    const one = panel.panelBytes(s.dtype, s.K);
    const first = t.data[WEIGHT].? + unit * one;
    // The last units may find fewer panels than streams.
    const n = (s.panels - unit + s.distance - 1) / s.distance;
    const wide = sums + gemv.streams * gemv.max_rows * width;
    const x = t.f32s(X);
    gemv.run(s.dtype, s.K, s.M, first, s.distance * one, n, x, t.stride(X), sums, wide);
    const way = ways.behind(s.panels * one);
    for (0..n) |p| for (0..s.M) |i|
        finish(t, i, 1, unit + p * s.distance, sums + gemv.place(s.M, n, i, p), 0, way);
}

fn multiply(t: *const Task, s: Shape, unit: usize, sums: [*]f32) void {
    const b = unit % s.blocks;
    const t0 = b * s.cut.tiles / s.blocks;
    const t1 = (b + 1) * s.cut.tiles / s.blocks;
    const p0 = unit / s.blocks * s.group;
    const p1 = @min(p0 + s.group, s.panels);
    const a: [*]const f32 = @ptrCast(@alignCast(t.workspace.?));
    const wide = sums + group_panels * width * block_tiles * gemm.MR;
    gemm.block(s.dtype, s.K, s.cut, t0, t1, a, t.data[WEIGHT].?, p0, p1, sums, wide);
    var c: [*]const f32 = sums;
    var p = p0;
    while (p < p1) : (p += gemm.NP) {
        const across: usize = @min(gemm.NP, p1 - p);
        for (t0..t1) |i| {
            const h = s.cut.height(i);
            for (0..across) |j|
                finish(t, s.cut.at(i), h, p + j, c + j * width, across * width, .cached);
            c += h * across * width;
        }
    }
}

/// Packed activations of the most rows that the plan allows.
fn workspace(t: *const Task) callconv(.c) usize {
    const operand = t.operands[OUT];
    const rows: usize = switch (operand.rows) {
        .fixed => operand.shape[0],
        else => t.capacity[@intFromEnum(operand.rows)],
    };
    if (inBlocks(t)) return blocks.workspace(rows, t.operands[WEIGHT].shape[1]);
    if (inPairs(t)) return pairs.workspace(rows, t.operands[WEIGHT].shape[1]);
    if (rows <= gemv.max_rows) return 0;
    return rows * t.operands[WEIGHT].shape[1] * 4;
}

fn scratch(t: *const Task) callconv(.c) usize {
    if (inBlocks(t)) return blocks.scratch;
    if (inPairs(t)) return pairs.scratch;
    const few: usize = gemv.streams * gemv.max_rows * width + gemv.wide_floats;
    const many: usize = group_panels * width * block_tiles * gemm.MR + gemm.wide_floats;
    const floats: usize = @max(few, many);
    return floats * 4;
}

/// Matrices of one type and width round or pack the same x alike.
fn alike(before: *const Task, t: *const Task) callconv(.c) bool {
    const a = &before.operands[WEIGHT];
    const b = &t.operands[WEIGHT];
    if (a.dtype != b.dtype or a.shape[1] != b.shape[1]) return false;
    return inPairs(before) == inPairs(t) and std.meta.eql(before.operands[X], t.operands[X]);
}

test {
    _ = blocks;
    _ = @import("linear_blocks_test.zig");
}

// ---- the scalar twin and tests -------------------------------------------------------------

/// One output as the contract defines it; `weight` is row-major f32 with K columns.
pub fn linearRef(
    K: usize,
    x: [*]const f32,
    weight: [*]const f32,
    bias: ?f32,
    residual: ?f32,
) f32 {
    var sum: f32 = 0;
    for (0..K) |k| sum = simd.mulAdd1(x[k], weight[k], sum);
    if (bias) |b| sum += b;
    if (residual) |r| sum += r;
    return sum;
}

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
    const space = try gpa.alignedAlloc(u8, .@"64", workspace(&t) + 64);
    defer gpa.free(space);
    const mine = try gpa.alignedAlloc(u8, .@"64", scratch(&t));
    defer gpa.free(mine);
    @memset(space, 0xff);
    @memset(mine, 0xff);
    t.workspace = space.ptr;
    for (0..kernels.linear.n_phases) |phase| {
        var left = units(&t, @intCast(phase));
        while (left > 0) {
            const n = @min(left, c.chunk);
            run(&t, @intCast(phase), left - n, left, mine.ptr);
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
        const ref = if (rounds) &pairs.linearRef else &linearRef;
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
