//! Few rows: the time goes into reading weights once, as fast as memory gives them. A thread walks
//! through four panels that lie far apart, which keeps four streams of the prefetcher busy: on the
//! machines measured 0.9 to 1.0 of the read rate against 0.7 with one stream. Sums run over k
//! upwards in one accumulator per output, as in the big product.

const std = @import("std");
const command = @import("command");
const simd = @import("simd.zig");
const panel = @import("panel.zig");
const gemm = @import("linear_gemm.zig");
const DType = command.DType;
const F = simd.F;
const U = simd.U;
const L = simd.L;
const width = command.panel;
const V = width / L;

/// Panels walked through at once.
pub const streams = 4;
/// Rows that are few. With more, rows that lie a power of two apart would push each other out of
/// L1, and packing them pays.
pub const max_rows = 4;
/// Values of k for which two panels go on before the next two have their turn, when the sums of all
/// four do not fit into registers: 4 KiB of bf16 each.
const slice = 128;
/// f32 that `run` needs to unpack f16 and f8 weights.
pub const wide_floats = slice * 2 * width;

/// Panels of one register tile: as many as have room for their sums, at least enough of them to
/// hide the multiply-adds' latency.
fn acrossOf(rows: usize) usize {
    return if (rows == 1 or simd.has_avx512) 4 else if (rows < 4) 2 else 1;
}

/// One row: stream s's panel starts at w + s * distance; c is [S][16].
fn oneRow(
    comptime dtype: DType,
    comptime S: usize,
    K: usize,
    w0: [*]const u8,
    distance: usize,
    x: [*]const f32,
    c: [*]f32,
) void {
    var at: [S][*]const u8 = undefined;
    inline for (0..S) |s| at[s] = w0 + s * distance;
    var sums: [S][V]F = @splat(@splat(simd.zero));
    const row_bytes = width * comptime simd.size(dtype);
    switch (dtype) {
        .bf16 => {
            for (0..K / 2) |k| {
                const x0 = simd.splat(x[2 * k]);
                const x1 = simd.splat(x[2 * k + 1]);
                inline for (0..S) |s| inline for (0..V) |j| {
                    const w = simd.ld(U, at[s] + k * width * 4 + j * L * 4);
                    sums[s][j] = simd.mulAdd(x0, simd.lo16(w), sums[s][j]);
                    sums[s][j] = simd.mulAdd(x1, simd.hi16(w), sums[s][j]);
                };
            }
            if (K % 2 == 1) inline for (0..S) |s| inline for (0..V) |j| {
                const w = simd.ld(U, at[s] + K / 2 * width * 4 + j * L * 4);
                sums[s][j] = simd.mulAdd(simd.splat(x[K - 1]), simd.lo16(w), sums[s][j]);
            };
        },
        .f32, .f16 => for (0..K) |k| {
            const x0 = simd.splat(x[k]);
            inline for (0..S) |s| inline for (0..V) |j| {
                const w = simd.ldAs(dtype, at[s] + k * row_bytes, j * L);
                sums[s][j] = simd.mulAdd(x0, w, sums[s][j]);
            };
        },
        .f8_e4m3 => {
            var factors: [S][V]F = undefined;
            inline for (0..S) |s| factors[s] = gemm.factorsOf(at[s]);
            for (0..K) |k| {
                const x0 = simd.splat(x[k]);
                inline for (0..S) |s| inline for (0..V) |j| {
                    const w = gemm.eights(at[s], k, j, factors[s][j]);
                    sums[s][j] = simd.mulAdd(x0, w, sums[s][j]);
                };
            }
        },
        else => unreachable,
    }
    inline for (0..S) |s| inline for (0..V) |j| simd.st(c + s * width + j * L, sums[s][j]);
}

/// Several rows: slices of k in turn over the streams, all rows on each slice. Panel i of the
/// stream starts at w + i * distance; c is [group][row][across][16].
fn manyRows(
    comptime dtype: DType,
    comptime rows: usize,
    comptime across: usize,
    K: usize,
    w: [*]const u8,
    distance: usize,
    n_panels: usize,
    x: [*]const f32,
    stride: usize,
    c: [*]f32,
    wide: [*]f32,
) void {
    const widened = comptime gemm.isWidened(dtype);
    const all = across == streams and !widened;
    const step = if (all) K else slice;
    const kind: DType = if (dtype == .bf16) .bf16 else .f32;
    var k: usize = 0;
    while (k < K) : (k += step) {
        const n = @min(step, K - k);
        var p: usize = 0;
        while (p < n_panels) : (p += across) {
            var at = w + panel.panelBytes(dtype, k) + p * distance;
            var apart = distance;
            if (widened) {
                for (0..across) |j|
                    gemm.widen(dtype, w + (p + j) * distance, k, n, wide + j * slice * width);
                at = @ptrCast(wide);
                apart = slice * width * 4;
            }
            const sums = c + p * rows * width;
            const none: gemm.Ahead = .{ .p = at, .step = 0 };
            gemm.stridedTile(kind, rows, across)(n, x + k, stride, at, apart, sums, k == 0, none);
        }
    }
}

/// Sums of `n_panels` (1 to `streams`) panels `distance` bytes apart for all rows. Row i of panel p
/// is left at c + place(rows, n_panels, i, p).
pub fn run(
    dtype: DType,
    K: usize,
    rows: usize,
    w: [*]const u8,
    distance: usize,
    n_panels: usize,
    x: [*]const f32,
    stride: usize,
    c: [*]f32,
    wide: [*]f32,
) void {
    switch (dtype) {
        inline .f32, .bf16, .f16, .f8_e4m3 => |d| switch (rows) {
            1 => switch (n_panels) {
                inline 1...streams => |S| oneRow(d, S, K, w, distance, x, c),
                else => unreachable,
            },
            inline 2...max_rows => |r| {
                const most = comptime acrossOf(r);
                if (n_panels % most == 0) {
                    manyRows(d, r, most, K, w, distance, n_panels, x, stride, c, wide);
                } else manyRows(d, r, 1, K, w, distance, n_panels, x, stride, c, wide);
            },
            else => unreachable,
        },
        else => unreachable,
    }
}

/// Where `run` leaves the sums of row i of panel p.
pub fn place(rows: usize, n_panels: usize, i: usize, p: usize) usize {
    const most = acrossOf(rows);
    const across = if (rows == 1) n_panels else if (n_panels % most == 0) most else 1;
    return ((p / across * rows + i) * across + p % across) * width;
}
