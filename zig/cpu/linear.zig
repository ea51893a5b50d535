//! linear: out = x · weightᵀ (+ bias) (+ residual), weights in panels of bf16, f16, f8_e4m3 or f32;
//! what lies in blocks has its own file, `linear_blocks`, and so have large matrices of bf16 where
//! the CPU multiplies pairs of it, `linear_bf16`. An f8 weight is the f32 that its number times its
//! row's scale rounds to: the bits are those of a matrix unpacked to f32 before.
//!
//! Every output is sum = fma(x[k], w[k], sum) for k = 0, 1, .. in f32, and then (sum + bias) +
//! residual, with one row as with 512: the bits depend on nothing but the row. `linearRef` says the
//! same in scalars. Few rows stream weights from memory (`linear_gemv`; `linear_few` where AVX2
//! meets bf16), many go through packed activations and register tiles (`linear_gemm`): phase 0
//! packs, phase 1 multiplies.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const panel = @import("panel.zig");
const gemm = @import("linear_gemm.zig");
const gemv = @import("linear_gemv.zig");
const few = @import("linear_few.zig");
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

/// Weights as a stream past rows as they are, past packed ones, or in blocks of tiles.
const Way = enum {
    stream,
    packed_stream,
    blocks,

    fn of(dtype: DType, rows: usize) Way {
        if (few.takes(dtype, rows)) return .packed_stream;
        return if (rows <= gemv.max_rows) .stream else .blocks;
    }
    fn packs(way: Way) bool {
        return way != .stream;
    }
};

const Shape = struct {
    M: usize,
    K: usize,
    N: usize,
    panels: usize,
    dtype: DType,
    way: Way,
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
        const dtype = t.operands[WEIGHT].dtype;
        var s: Shape = .{
            .M = M,
            .K = t.operands[WEIGHT].shape[1],
            .N = N,
            .panels = panels,
            .dtype = dtype,
            .way = .of(dtype, M),
            .cut = cut,
            .streams = gemv.streams,
            .distance = undefined,
            .group = group_panels,
            .groups = undefined,
            .blocks = (cut.tiles + block_tiles - 1) / block_tiles,
        };
        while (s.streams > 1 and panels < s.streams * threads * 4) s.streams /= 2;
        if (s.way == .packed_stream)
            s.streams = if (panels < few.streams * threads * units_a_thread) 1 else few.streams;
        s.distance = (panels + s.streams - 1) / s.streams;
        while (true) : (s.group /= 2) {
            s.groups = (panels + s.group - 1) / s.group;
            if (s.group <= gemm.NP or s.groups * s.blocks >= units_a_thread * threads) return s;
        }
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
    if (phase == 0) return if (s.way.packs()) @intCast(s.cut.tiles) else 0;
    return @intCast(if (s.way == .blocks) s.groups * s.blocks else s.distance);
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, memory: [*]u8) callconv(.c) void {
    if (inBlocks(t)) return blocks.run(t, phase, begin, end, memory);
    if (inPairs(t)) return pairs.run(t, phase, begin, end, memory);
    const s = Shape.of(t);
    const sums: [*]f32 = @ptrCast(@alignCast(memory));
    for (begin..end) |unit| {
        if (phase == 0) {
            packRows(t, s, unit);
        } else if (s.way == .blocks) {
            multiply(t, s, unit, sums);
        } else streamPanels(t, s, unit, sums);
    }
}

/// Where phase 0 leaves the rows.
fn packedRows(t: *const Task) [*]f32 {
    return @ptrCast(@alignCast(t.workspace.?));
}

fn packRows(t: *const Task, s: Shape, unit: usize) void {
    const first = s.cut.at(unit);
    const out = packedRows(t) + first * s.K;
    gemm.packTile(s.cut.height(unit), s.K, t.row(X, first), t.stride(X), out);
}

fn streamPanels(t: *const Task, s: Shape, unit: usize, sums: [*]f32) void {
    const one = panel.panelBytes(s.dtype, s.K);
    const first = t.data[WEIGHT].? + unit * one;
    // The last units may find fewer panels than streams.
    const n = (s.panels - unit + s.distance - 1) / s.distance;
    const way = ways.behind(s.panels * one);
    if (few.here and s.way == .packed_stream) {
        few.run(s.M, n, s.K, packedRows(t), first, s.distance * one, sums);
        for (0..n) |p|
            finish(t, 0, s.M, unit + p * s.distance, sums + p * width, n * width, way);
        return;
    }
    const wide = sums + gemv.streams * gemv.max_rows * width;
    const x = t.f32s(X);
    gemv.run(s.dtype, s.K, s.M, first, s.distance * one, n, x, t.stride(X), sums, wide);
    for (0..n) |p| for (0..s.M) |i|
        finish(t, i, 1, unit + p * s.distance, sums + gemv.place(s.M, n, i, p), 0, way);
}

fn multiply(t: *const Task, s: Shape, unit: usize, sums: [*]f32) void {
    const b = unit % s.blocks;
    const t0 = b * s.cut.tiles / s.blocks;
    const t1 = (b + 1) * s.cut.tiles / s.blocks;
    const p0 = unit / s.blocks * s.group;
    const p1 = @min(p0 + s.group, s.panels);
    const a = packedRows(t);
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
    // Of a plan for many rows a run may have few.
    if (!Way.of(t.operands[WEIGHT].dtype, rows).packs()) return 0;
    return rows * t.operands[WEIGHT].shape[1] * 4;
}

fn scratch(t: *const Task) callconv(.c) usize {
    if (inBlocks(t)) return blocks.scratch;
    if (inPairs(t)) return pairs.scratch;
    const stream: usize = gemv.streams * gemv.max_rows * width + gemv.wide_floats;
    const packed_stream: usize = few.streams * few.max_rows * width;
    const in_blocks: usize = group_panels * width * block_tiles * gemm.MR + gemm.wide_floats;
    const floats: usize = @max(stream, packed_stream, in_blocks);
    return floats * 4;
}

/// Matrices of one type and width round or pack the same x alike.
fn alike(before: *const Task, t: *const Task) callconv(.c) bool {
    const a = &before.operands[WEIGHT];
    const b = &t.operands[WEIGHT];
    if (a.dtype != b.dtype or a.shape[1] != b.shape[1]) return false;
    return inPairs(before) == inPairs(t) and std.meta.eql(before.operands[X], t.operands[X]);
}

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

test {
    _ = blocks;
    _ = @import("linear_test.zig");
    _ = @import("linear_blocks_test.zig");
}
