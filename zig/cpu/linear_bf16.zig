//! linear with large matrices of bf16 where the CPU multiplies pairs of bf16 (level v4_bf16):
//! activations are rounded to bf16, to nearest even, and vdpbf16ps adds two products at once to an
//! f32 sum. Small matrices keep f32 activations: a large model spends no time on them, and a small
//! model gains nothing that one would notice, while its results are those of every other level.
//!
//! Every output is sum = dot(sum, pair of x, pair of w) for the pairs (0, 1), (2, 3), .. of k, as
//! `bf16.zig` defines dot, and then (sum + bias) + residual, with one row as with 512: the bits
//! depend on nothing but the row. An odd K's last pair ends in zeros.
//!
//! Phase 0 rounds and packs the rows in tiles, [K / 2][height] pairs each, so that a step of all
//! its rows lies together and a pair is a broadcast operand of the instruction. Up to `few_rows`
//! rows are one tile, which meets each weight once, on its way from memory, over all of k, with
//! panels far apart so that several streams of the prefetcher are busy. More rows go through slices
//! of k that stay in L1 while the tiles of a block (in L2) pass over them.
//! Work: 2 M N K flops, one instruction for each 64; of M up to 12, 2 N K bytes of weights once.
//! Reached: 0.91 of the rate of vdpbf16ps for a whole prompt of 512 of the 1.2 B shape (2 cores of
//! Zen 4, 27 November 2026), where f32 activations had 0.40 of it.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const bf16 = @import("bf16.zig");
const panel = @import("panel.zig");
const tiles_file = @import("linear_bf16_tile.zig");
const ways = @import("way.zig");
const finish = @import("linear_finish.zig").finish;
const Ahead = tiles_file.Ahead;
const Cut = tiles_file.Cut;
const DType = command.DType;
const Task = kernel.Task;
const width = command.panel;

/// Operands of `linear`.
const X = 0;
const WEIGHT = 1;
const OUT = 4;

/// Numbers of the smallest matrix that is large: 4 MiB. Tests have both kinds at small sizes.
const least_numbers = if (builtin.is_test) 4000 else 2 << 20;

/// Whether a matrix of N rows and K columns is multiplied here. Nothing but the matrix decides.
pub fn takes(dtype: DType, N: usize, K: usize) bool {
    return simd.has_avx512bf16 and dtype == .bf16 and N * K >= least_numbers;
}

/// Rows that are one tile.
pub const few_rows = tiles_file.rows_max;
/// Pairs of k in a slice: two panels of it take 16 KiB of L1, a tile's rows 6 KiB.
pub const slice = 128;
/// Row tiles of a block: with a slice of k and their sums they take about 150 KiB of L2.
const block_tiles = 16;
/// Panels of a unit, at most.
const group_panels = 8;
/// Units that each thread should find, so that a late thread costs little.
const units_a_thread = 8;
/// Tiles whose slices are asked for ahead; more of them have time to wait.
const asking_tiles = 8;
/// How far ahead of a stream several rows ask for its weights.
const ahead_bytes = 4096;
/// Pairs that one unit of packing a single tile rounds.
const pack_pairs = 512;

const Shape = struct {
    M: usize,
    pairs: usize,
    K: usize,
    panels: usize,
    cut: Cut,
    /// Few rows: panels at once, and how far apart they are.
    streams: usize,
    distance: usize,
    /// Many rows: panels of a unit, and how many groups and blocks there are.
    group: usize,
    groups: usize,
    blocks: usize,

    fn of(t: *const Task) Shape {
        const M = t.rows(OUT);
        const K: usize = t.operands[WEIGHT].shape[1];
        const panels = panel.count(t.operands[WEIGHT].shape[0]);
        const threads: usize = @max(1, t.n_threads);
        const cut = Cut.init(M);
        var s: Shape = .{
            .M = M,
            .K = K,
            .pairs = (K + 1) / 2,
            .panels = panels,
            .cut = cut,
            .streams = tiles_file.streamsOf(M),
            .distance = undefined,
            .group = group_panels,
            .groups = undefined,
            .blocks = (cut.tiles + block_tiles - 1) / block_tiles,
        };
        while (s.streams > 1 and panels < s.streams * threads * 4) s.streams /= 2;
        s.distance = (panels + s.streams - 1) / s.streams;
        while (true) : (s.group /= 2) {
            s.groups = (panels + s.group - 1) / s.group;
            const enough = s.groups * s.blocks >= units_a_thread * threads;
            if (s.group <= tiles_file.across_many or enough) return s;
        }
    }
    fn few(s: Shape) bool {
        return s.M <= few_rows;
    }
};

pub fn units(t: *const Task, phase: u32) u32 {
    const s = Shape.of(t);
    if (s.M == 0 or s.panels == 0) return 0;
    if (s.few())
        return @intCast(if (phase == 0) (s.pairs + pack_pairs - 1) / pack_pairs else s.distance);
    return @intCast(if (phase == 0) s.cut.tiles else s.groups * s.blocks);
}

pub fn run(t: *const Task, phase: u32, begin: u32, end: u32, memory: [*]u8) void {
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

/// Where phase 0 leaves the rows.
fn rounded(t: *const Task) [*]u32 {
    return @ptrCast(@alignCast(t.workspace.?));
}

fn packRows(t: *const Task, s: Shape, unit: usize) void {
    const tile = if (s.few()) 0 else unit;
    const first = s.cut.at(tile);
    const h = s.cut.height(tile);
    const from = if (s.few()) unit * pack_pairs else 0;
    const to = if (s.few()) @min(s.pairs, from + pack_pairs) else s.pairs;
    const out = rounded(t) + first * s.pairs;
    tiles_file.pack(h, s.K, t.row(X, first), t.stride(X), from, to, out);
}

fn streamPanels(t: *const Task, s: Shape, unit: usize, sums: [*]f32) void {
    const one = panel.panelBytes(.bf16, s.K);
    // The last units may find fewer panels than streams.
    const n = (s.panels - unit + s.distance - 1) / s.distance;
    const w = t.data[WEIGHT].? + unit * one;
    const ahead: Ahead = .{ .p = w + ahead_bytes, .step = width * 4 };
    const go = tiles_file.streaming(s.M, n);
    go(s.pairs, rounded(t), w, s.distance * one, sums, true, ahead);
    const way = ways.behind(s.panels * one);
    for (0..n) |p| finish(t, 0, s.M, unit + p * s.distance, sums + p * width, n * width, way);
}

fn multiply(t: *const Task, s: Shape, unit: usize, sums: [*]f32) void {
    const b = unit % s.blocks;
    const t0 = b * s.cut.tiles / s.blocks;
    const t1 = (b + 1) * s.cut.tiles / s.blocks;
    const p0 = unit / s.blocks * s.group;
    const p1 = @min(p0 + s.group, s.panels);
    var k: usize = 0;
    while (k < s.pairs) : (k += slice) slicePanels(t, s, .{ t0, t1 }, .{ p0, p1 }, k, sums);
    var c: [*]const f32 = sums;
    var p = p0;
    while (p < p1) : (p += tiles_file.across_many) {
        const across: usize = @min(tiles_file.across_many, p1 - p);
        for (t0..t1) |i| {
            const h = s.cut.height(i);
            for (0..across) |j|
                finish(t, s.cut.at(i), h, p + j, c + j * width, across * width, .cached);
            c += h * across * width;
        }
    }
}

/// Adds pairs [k, k + slice) of a group of panels for a block of tiles to the sums.
fn slicePanels(
    t: *const Task,
    s: Shape,
    tiles: [2]usize,
    panels: [2]usize,
    k: usize,
    sums: [*]f32,
) void {
    const one = panel.panelBytes(.bf16, s.K);
    const pair_bytes = width * 4;
    const n = @min(slice, s.pairs - k);
    const w = t.data[WEIGHT].?;
    const count = tiles[1] - tiles[0];
    const asks = count <= asking_tiles;
    const NP = tiles_file.across_many;
    var c = sums;
    var p = panels[0];
    while (p < panels[1]) : (p += NP) {
        const across: usize = @min(NP, panels[1] - p);
        // Of the slice that comes next, a part for each tile.
        const at = if (p + NP < panels[1]) k else k + slice;
        const next = if (p + NP < panels[1]) p + NP else panels[0];
        const later = w + next * one + at * pair_bytes;
        for (tiles[0]..tiles[1]) |i| {
            const h = s.cut.height(i);
            const rows = rounded(t) + s.cut.at(i) * s.pairs + k * h;
            const ahead: Ahead = .{
                .p = later + (i - tiles[0]) * (n * pair_bytes / count),
                .step = (64 + count - 1) / count,
            };
            const go = tiles_file.many(h, across, asks);
            go(n, rows, w + p * one + k * pair_bytes, one, c, k == 0, ahead);
            c += h * across * width;
        }
    }
}

/// Packed activations of so many rows.
pub fn workspace(rows: usize, K: usize) usize {
    return rows * ((K + 1) / 2) * 4;
}

pub const scratch = group_panels * width * block_tiles * tiles_file.rows_max * 4;

// ---- the scalar twin -----------------------------------------------------------------------

/// An activation as it is multiplied.
pub fn rounded1(x: f32) f32 {
    return simd.b2f(bf16.round1(x));
}

/// One output as the head of this file defines it; `weight` holds K bf16 as f32.
pub fn linearRef(
    K: usize,
    x: [*]const f32,
    weight: [*]const f32,
    bias: ?f32,
    residual: ?f32,
) f32 {
    var sum: f32 = 0;
    for (0..(K + 1) / 2) |k| {
        var a: [2]u16 = @splat(0);
        var w: [2]u16 = @splat(0);
        for (2 * k..@min(K, 2 * k + 2), 0..) |from, i| {
            a[i] = bf16.round1(x[from]);
            w[i] = simd.f2b(weight[from]);
        }
        sum = bf16.dotRef(sum, a, w);
    }
    if (bias) |b| sum += b;
    if (residual) |r| sum += r;
    return sum;
}
