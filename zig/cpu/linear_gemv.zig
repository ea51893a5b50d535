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
/// Rows that go with every panel while its slice is in L1.
pub const max_rows = 2 * gemm.MR;
/// Values of k that one stream goes on before the next has its turn (many rows): 4 KiB of bf16.
const slice = 128;
/// f32 that `run` needs to unpack f16 weights.
pub const wide_floats = slice * width;

/// One row: `at[s]` is the first byte of stream s's panel; c is [S][16].
fn oneRow(
    comptime dtype: DType,
    comptime S: usize,
    K: usize,
    at: [S][*]const u8,
    x: [*]const f32,
    c: [*]f32,
) void {
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
        .i32 => unreachable,
    }
    inline for (0..S) |s| inline for (0..V) |j| simd.st(c + s * width + j * L, sums[s][j]);
}

/// Several rows: slices of k in turn over the streams, all rows on each slice; c is
/// [stream group][tile][height][across][16] as in `gemm.block`.
fn manyRows(
    comptime dtype: DType,
    K: usize,
    cut: gemm.Cut,
    at: []const [*]const u8,
    x: [*]const f32,
    stride: usize,
    c: [*]f32,
    wide: [*]f32,
) void {
    var k: usize = 0;
    while (k < K) : (k += slice) {
        const n = @min(slice, K - k);
        const skip = panel.panelBytes(dtype, k);
        var sums = c;
        for (at) |start| {
            var w = start + skip;
            if (dtype == .f16) {
                gemm.widen(n, w, wide);
                w = @ptrCast(wide);
            }
            const kind: DType = if (dtype == .bf16) .bf16 else .f32;
            for (0..cut.tiles) |t| {
                const h = cut.height(t);
                const rows = x + cut.at(t) * stride + k;
                gemm.tile(kind, .strided, h, 1)(n, rows, stride, w, 0, sums, k == 0);
                sums += h * width;
            }
        }
    }
}

/// Sums of the panels at `at` (1 to `streams`) for all rows, left in c as [panel][row][16].
pub fn run(
    dtype: DType,
    K: usize,
    rows: usize,
    at: []const [*]const u8,
    x: [*]const f32,
    stride: usize,
    c: [*]f32,
    wide: [*]f32,
) void {
    switch (dtype) {
        inline .f32, .bf16, .f16 => |d| {
            if (rows > 1) return manyRows(d, K, .init(rows), at, x, stride, c, wide);
            if (at.len == streams) return oneRow(d, streams, K, at[0..streams].*, x, c);
            if (at.len == 2) return oneRow(d, 2, K, at[0..2].*, x, c);
            for (at, 0..) |start, i| oneRow(d, 1, K, .{start}, x, c + i * width);
        },
        .i32 => unreachable,
    }
}
