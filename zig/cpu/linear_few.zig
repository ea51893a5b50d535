//! 3 to 8 rows times weights of bf16 where the CPU has AVX2 and no more: weights come from memory
//! once, and all rows pass over a slice of them while it lies in L1. Three panels that lie far
//! apart go on together; what each pass of a register tile over a slice asks for beforehand is one
//! of their next slices. Sums run over k upwards in one accumulator per output, as in the big
//! product, and rows are packed in its tiles.
//!
//! A tile of up to 4 rows is 3 vectors across, 12 sums + 3 of weights + 1 broadcast = 16 registers;
//! of 5 or 6 rows 2. A pair of k then takes 48 instructions for 24 multiply-adds. With 8 rows that
//! is bound by multiply-adds: from memory it has 0.97 of what weights in L3 give (2 cores of a Zen
//! 3, 28 November 2026), where the tiles of the big product had 0.85.

const std = @import("std");
const command = @import("command");
const simd = @import("simd.zig");
const gemm = @import("linear_gemm.zig");
const F = simd.F;
const U = simd.U;
const L = simd.L;
const width = command.panel;

const min_rows = 3;
pub const max_rows = 8;
/// Panels that go on together.
pub const streams = 3;
/// Pairs of k in a slice: with the next one, 24 KiB of L1.
const slice = 64;
const per_panel = width / L;
const pair_bytes = width * 4;

/// Whether this level has anything multiplied here.
pub const here = simd.has_avx2 and !simd.has_avx512;

/// Whether so many rows times weights of this dtype are multiplied here.
pub fn takes(dtype: command.DType, rows: usize) bool {
    return here and dtype == .bf16 and rows >= min_rows and rows <= max_rows;
}

/// Sums of `across` (1 to `streams`) panels `distance` bytes apart for all rows, which `gemm` has
/// packed in tiles at a: row i of panel p is left at c + (i * across + p) * 16.
pub fn run(
    rows: usize,
    across: usize,
    K: usize,
    a: [*]const f32,
    w: [*]const u8,
    distance: usize,
    c: [*]f32,
) void {
    switch (rows) {
        inline min_rows...max_rows => |M| switch (across) {
            inline 1...streams => |n| Product(M, n).run(K, a, w, distance, c),
            else => unreachable,
        },
        else => unreachable,
    }
}

fn Product(comptime M: usize, comptime across: usize) type {
    return struct {
        const cut = gemm.Cut.init(M);
        /// Vectors of a register tile.
        const vecs = if (across == streams and cut.height(0) <= 4) 3 else 2;
        const groups = across * per_panel / vecs;
        const passes = cut.tiles * groups;
        /// Panels whose next slices a pass asks for.
        const asked = (across + passes - 1) / passes;
        const Panels = [across][*]const u8;

        fn run(K: usize, a: [*]const f32, w: [*]const u8, distance: usize, c: [*]f32) void {
            var panels: Panels = undefined;
            inline for (&panels, 0..) |*p, i| p.* = w + i * distance;
            const pairs = K / 2;
            var k: usize = 0;
            while (k < pairs) : (k += slice) {
                const n = @min(slice, pairs - k);
                inline for (0..cut.tiles) |t| inline for (0..groups) |g| {
                    const x = a + cut.at(t) * K + 2 * k * cut.height(t);
                    const sums = c + cut.at(t) * across * width + g * vecs * L;
                    pass(t, g, n, x, &panels, sums, k == 0);
                };
                inline for (&panels) |*p| p.* += slice * pair_bytes;
            }
            if (K % 2 == 1) inline for (0..cut.tiles) |t| {
                const x = a + cut.at(t) * K + (K - 1) * cut.height(t);
                const sums = c + cut.at(t) * across * width;
                for (0..across) |p|
                    addLast(t, x, w + p * distance + pairs * pair_bytes, sums + p * width, K == 1);
            };
        }

        /// n pairs of k for tile t and the vectors of group g.
        fn pass(
            comptime t: usize,
            comptime g: usize,
            n: usize,
            a0: [*]const f32,
            panels: *const Panels,
            c: [*]f32,
            first: bool,
        ) void {
            const rows = comptime cut.height(t);
            const from = comptime @min(across, (t * groups + g) * asked);
            const to = comptime @min(across, from + asked);
            var sums: [rows][vecs]F = undefined;
            inline for (&sums, 0..) |*row, i| inline for (row, 0..) |*sum, j| {
                sum.* = if (first) simd.zero else simd.ldF(c + i * across * width + j * L);
            };
            var a = a0;
            var at = panels.*;
            for (0..n) |_| {
                inline for (from..to) |p|
                    @prefetch(at[p] + slice * pair_bytes, .{ .locality = 3 });
                var w: [vecs]U = undefined;
                inline for (&w, 0..) |*v, j| v.* = simd.ld(U, vector(g, j, &at)) << @splat(16);
                add(rows, &sums, a, w);
                // Loading the pair again costs less than a register for a mask.
                hide(&at);
                inline for (&w, 0..) |*v, j| v.* = upper(vector(g, j, &at), v.*);
                add(rows, &sums, a + rows, w);
                a += 2 * rows;
                inline for (&at) |*p| p.* += pair_bytes;
            }
            inline for (sums, 0..) |row, i| inline for (row, 0..) |sum, j|
                simd.st(c + i * across * width + j * L, sum);
        }

        inline fn vector(comptime g: usize, comptime j: usize, at: *const Panels) [*]const u8 {
            const v = g * vecs + j;
            return at[v / per_panel] + v % per_panel * L * 4;
        }

        inline fn add(
            comptime rows: usize,
            sums: *[rows][vecs]F,
            a: [*]const f32,
            w: [vecs]U,
        ) void {
            inline for (sums, 0..) |*row, i| {
                const x = simd.splat(a[i]);
                inline for (row, 0..) |*sum, j| sum.* = simd.mulAdd(x, @bitCast(w[j]), sum.*);
            }
        }

        /// An odd K's last numbers of one panel for tile t.
        fn addLast(
            comptime t: usize,
            a: [*]const f32,
            w: [*]const u8,
            c: [*]f32,
            first: bool,
        ) void {
            for (0..cut.height(t)) |i| inline for (0..per_panel) |j| {
                const to = c + i * across * width + j * L;
                const sum = if (first) simd.zero else simd.ldF(to);
                const v = simd.lo16(simd.ld(U, w + j * L * 4));
                simd.st(to, simd.mulAdd(simd.splat(a[i]), v, sum));
            };
        }

        /// The compiler must not know that the same will be loaded again.
        inline fn hide(at: *Panels) void {
            inline for (at) |*p| {
                var again = p.*;
                asm volatile (""
                    : [p] "+r" (again),
                );
                p.* = again;
            }
        }
    };
}

/// The upper halves of a vector of pairs as f32, given any numbers whose lower halves are zeros.
inline fn upper(pairs: [*]const u8, zeros: U) U {
    const Halves = @Vector(2 * L, u16);
    const from = comptime blk: {
        var lanes: [2 * L]i32 = undefined;
        for (&lanes, 0..) |*lane, i| lane.* = if (i % 2 == 0) ~@as(i32, i) else i;
        break :blk lanes;
    };
    const zero_halves: Halves = @bitCast(zeros);
    return @bitCast(@shuffle(u16, simd.ld(Halves, pairs), zero_halves, from));
}
