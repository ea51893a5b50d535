//! linear with weights in blocks (q8_0, q4_0, q4_k, q5_k, q6_k) as GGUF defines them, in panels.
//!
//! Phase 0 rounds the activations to int8, 32 columns to a scale; phase 1 multiplies. With s the
//! scale of x and q its numbers, `exact` is a run's sum of products of q and the weights' numbers,
//! in the K types times their finer scales: an integer that f32 holds. (Numbers of q4_k and q5_k
//! are unsigned, the others signed.) Blocks are added k upwards, each step one multiply-add:
//!   q8_0, q4_0:        sum += exact * (d * s)
//!   q4_k, q5_k, q6_k:  sum += d * t with t += exact * s for the 8 runs, upwards, but in q6_k 0, 2,
//!                      1, 3, 4, 6, 5, 7, as they share bytes
//!   q4_k, q5_k:        before that, sum -= dmin * u; u, exact, is the sum of min * (s * (sum of
//!                      q)) with the totals s * (sum of q) of the 8 runs rounded to multiples of
//!                      one power of two, 2^13 for the largest (`int8.Totals`)
//! Then (sum + bias) + residual. The bits depend on nothing but the row.
//!
//! How far from exact: rounding x leaves |x - s q| <= s (1/2 + 2^-15), so that a result is within
//! sum over k of |w_k| s_k (1/2 + 2^-15), in q4_k and q5_k the sum of dmin * min times 2^-13 of the
//! largest total of each block, and 2^-22 of the sum of absolute terms, of the product of the
//! dequantized weights and x. The tests hold every type to that. (In f32, totals took twice the
//! multiply-adds of minima: 3 % of a prompt's.)

const std = @import("std");
const command = @import("command");
const block = @import("block.zig");
const ways = @import("way.zig");
const finish = @import("linear_finish.zig").finish;
const gemm = @import("linear_gemm.zig");
const int8 = @import("int8.zig");
const kernel = @import("kernel.zig");
const many = @import("blocks_gemm.zig");
const panel = @import("panel.zig");
const few = @import("blocks_gemv.zig");
const rows_file = @import("blocks_rows.zig");
const stream = @import("blocks_stream.zig");
const DType = command.DType;
const Rows = rows_file.Rows;
const Task = kernel.Task;
const width = command.panel;

const X = 0;
const WEIGHT = 1;
const BIAS = 2;
const RESIDUAL = 3;
const OUT = 4;

/// Tiles of a unit: a slice of their rows takes 256 KiB, half of L2.
fn blockTiles(kind: rows_file.Kind) usize {
    const bytes: usize = if (kind == .shorts) 2 else 1;
    return 256 * 1024 / (many.slice * bytes) / many.MR;
}
const group_panels = 4;
const units_a_thread = 8;
/// Runs of 32 columns that one unit of rounding a single tile takes.
const fill_runs = 16;

const Shape = struct {
    M: usize,
    K: usize,
    panels: usize,
    dtype: DType,
    few: bool,
    cut: gemm.Cut,
    /// Few rows: panels at once, and how far apart they are.
    streams: usize,
    distance: usize,
    /// Many rows: panels of a unit, and how many groups and blocks of rows there are.
    group: usize,
    groups: usize,
    blocks: usize,

    fn of(t: *const Task) Shape {
        const weight = t.operands[WEIGHT];
        const M = t.rows(OUT);
        const is_few = M <= few.max_rows;
        const threads: usize = @max(1, t.n_threads);
        const in_block = blockTiles(many.kindOf(weight.dtype));
        var cut = gemm.Cut.init(M);
        if (is_few) cut.tiles = @min(M, 1);
        var s: Shape = .{
            .M = M,
            .K = weight.shape[1],
            .panels = panel.count(weight.shape[0]),
            .dtype = weight.dtype,
            .few = is_few,
            .cut = cut,
            .streams = few.streams,
            .distance = undefined,
            .group = group_panels,
            .groups = undefined,
            .blocks = (cut.tiles + in_block - 1) / in_block,
        };
        while (s.streams > 1 and s.panels < s.streams * threads * 4) s.streams /= 2;
        s.distance = (s.panels + s.streams - 1) / s.streams;
        while (true) : (s.group /= 2) {
            s.groups = (s.panels + s.group - 1) / s.group;
            if (s.group <= many.NP or s.groups * s.blocks >= units_a_thread * threads) return s;
        }
    }
    /// Units that round a single tile.
    fn fills(s: Shape) usize {
        return (s.K / int8.columns + fill_runs - 1) / fill_runs;
    }
    fn kind(s: Shape) rows_file.Kind {
        return if (s.few) .bytes else many.kindOf(s.dtype);
    }
};

/// Units of a phase of `linear`.
pub fn units(t: *const Task, phase: u32) u32 {
    const s = Shape.of(t);
    if (s.M == 0 or s.panels == 0) return 0;
    if (phase == 0) return @intCast(if (s.few) s.fills() else s.cut.tiles);
    return @intCast(if (s.few) s.distance else s.groups * s.blocks);
}

/// Does units [begin, end) of a phase of `linear`.
pub fn run(t: *const Task, phase: u32, begin: u32, end: u32, memory: [*]u8) void {
    const s = Shape.of(t);
    const from = if (phase == 1 and s.few) streamWhole(t, s, begin, end) else begin;
    for (from..end) |unit| {
        if (phase == 0) {
            fillRows(t, s, unit);
        } else if (s.few) {
            streamPanels(t, s, unit, @ptrCast(@alignCast(memory)));
        } else multiply(t, s, unit, @ptrCast(@alignCast(memory)));
    }
}

/// Rounds a tile of rows, or where there are few rows some columns of all of them.
fn fillRows(t: *const Task, s: Shape, unit: usize) void {
    const tile = if (s.few) 0 else unit;
    const first = s.cut.at(tile);
    const h = s.cut.height(tile);
    const runs = s.K / int8.columns;
    const from = if (s.few) unit * fill_runs else 0;
    const to = if (s.few) @min(runs, from + fill_runs) else runs;
    const rows = Rows.at(t.workspace.?, s.M, s.K, first);
    for (0..h) |i| rows.fill(s.dtype, s.kind(), h, i, from, to, t.row(X, first + i));
}

/// Does those of units [begin, end) of one row that have a whole panel for each stream, and answers
/// where the others begin.
fn streamWhole(t: *const Task, s: Shape, begin: usize, end: usize) usize {
    if (s.M != 1 or s.streams != few.streams or !stream.has) return begin;
    const whole = t.operands[WEIGHT].shape[0] / width;
    const last = @min(end, whole -| (s.streams - 1) * s.distance);
    if (begin >= last) return begin;
    const rows = Rows.at(t.workspace.?, 1, s.K, 0);
    stream.run(s.dtype, s.K, t.data[WEIGHT].?, begin, last, rows, .{
        .out = t.row(OUT, 0),
        .bias = if (t.has(BIAS)) t.f32s(BIAS) else null,
        .residual = if (t.has(RESIDUAL)) t.row(RESIDUAL, 0) else null,
        .distance = s.distance,
        .way = ways.behind(s.panels * block.rowBytes(s.dtype, s.K) * width),
    });
    return last;
}

fn streamPanels(t: *const Task, s: Shape, unit: usize, sums: *Scratch) void {
    const one = block.rowBytes(s.dtype, s.K) * width;
    const from = t.data[WEIGHT].? + unit * one;
    // The last units may find fewer panels than streams.
    const n = (s.panels - unit + s.distance - 1) / s.distance;
    const rows = Rows.at(t.workspace.?, s.M, s.K, 0);
    few.multiply(s.dtype, s.K, s.M, from, s.distance * one, n, rows, &sums.c);
    const way = ways.behind(s.panels * one);
    const c: [*]const f32 = &sums.c;
    for (0..n) |p|
        finish(t, 0, s.M, unit + p * s.distance, c + p * s.M * width, width, way);
}

fn multiply(t: *const Task, s: Shape, unit: usize, mine: *Scratch) void {
    const b = unit % s.blocks;
    const t0 = b * s.cut.tiles / s.blocks;
    const t1 = (b + 1) * s.cut.tiles / s.blocks;
    const p0 = unit / s.blocks * s.group;
    const p1 = @min(p0 + s.group, s.panels);
    const weight = t.data[WEIGHT].?;
    const rows = t.workspace.?;
    const sums = &mine.c;
    const unpacked = &mine.unpacked;
    many.multiply(s.dtype, s.K, s.cut, t0, t1, rows, weight, p0, p1, sums, unpacked);
    var c: [*]const f32 = sums;
    var p = p0;
    while (p < p1) : (p += many.NP) {
        const across: usize = @min(many.NP, p1 - p);
        for (t0..t1) |i| {
            const h = s.cut.height(i);
            for (0..across) |j|
                finish(t, s.cut.at(i), h, p + j, c + j * width, across * width, .cached);
            c += h * across * width;
        }
    }
}

const Scratch = struct {
    c: [group_panels * width * blockTiles(.bytes) * many.MR]f32 align(64),
    unpacked: [many.NP]many.Unpacked,
};
/// Bytes of scratch that a thread needs.
pub const scratch = @sizeOf(Scratch);

/// Bytes of workspace for `rows` rows of K columns.
pub fn workspace(rows: usize, K: usize) usize {
    return Rows.space(rows, K);
}
