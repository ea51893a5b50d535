//! The register tile of the matrix product and the loops around it. A tile keeps `rows` x `np`
//! panels of sums in registers while k goes upwards; weights come from panels, a slice of KC values
//! of k at a time so that they stay in L1 while the row tiles of a block (in L2) pass over them.
//! A sum is stored and loaded again between slices, which keeps its bits: every output is one chain
//! of multiply-adds over k from 0, whatever the tile, the slice or the number of rows.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const simd = @import("simd.zig");
const panel = @import("panel.zig");
const DType = command.DType;
const F = simd.F;
const U = simd.U;
const L = simd.L;
pub const width = command.panel;

const few_registers = builtin.cpu.arch == .x86_64 and !builtin.cpu.has(.x86, .avx);
/// Rows of a register tile and panels across. 12 of 16 registers hold sums with AVX2, 24 of 32 with
/// AVX512; without AVX one vector takes two registers.
pub const MR: usize = if (simd.has_avx512) 12 else if (few_registers) 2 else 6;
pub const NP: usize = if (simd.has_avx512) 2 else 1;
/// Values of k in a slice: NP panels of it stay in L1 (24 KiB). Even, because bf16 comes in pairs.
pub fn sliceOf(dtype: DType) usize {
    return if (dtype == .bf16) 768 / NP else 384 / NP;
}
/// f32 that `block` needs to unpack f16 and f8 weights.
pub const wide_floats = sliceOf(.f16) * NP * width;

/// Where a tile finds its activations: element (i, k) at `p[i * row + k]`, or packed at
/// `p[k * rows + i]`.
pub const Access = enum { strided, packed_tile };

/// n values of k for one tile: c[rows][across][16] (+)= a * w. Panel j of the tile starts
/// `distance * j` bytes behind w.
pub const TileFn = *const fn (
    n: usize,
    a: [*]const f32,
    row: usize,
    w: [*]const u8,
    distance: usize,
    c: [*]f32,
    first: bool,
    ahead: Ahead,
) void;

/// Weights that will be wanted soon, asked for on the way: each step of k asks for the line `step`
/// bytes further. With few tiles a slice would otherwise be awaited by the first of them.
pub const Ahead = struct {
    p: [*]const u8,
    step: usize,

    inline fn next(a: *Ahead, comptime across: usize, distance: usize) void {
        inline for (0..across) |j| @prefetch(a.p + j * distance, .{ .locality = 2 });
        a.p += a.step;
    }
};
/// Tiles whose slices are asked for ahead; more of them have time to wait.
const few_tiles = 4;

fn Tile(
    comptime dtype: DType,
    comptime access: Access,
    comptime rows: usize,
    comptime across: usize,
    comptime asks: bool,
) type {
    return struct {
        const per_panel = width / L;
        const V = across * per_panel;
        const Sums = [rows][V]F;

        inline fn activation(a: [*]const f32, row: usize, i: usize, comptime k: usize) F {
            return simd.splat(switch (access) {
                .strided => a[i * row + k],
                .packed_tile => a[k * rows + i],
            });
        }
        inline fn weights(comptime T: type, w: [*]const u8, distance: usize) [V]T {
            var v: [V]T = undefined;
            inline for (0..V) |j|
                v[j] = simd.ld(T, w + j / per_panel * distance + j % per_panel * L * 4);
            return v;
        }
        inline fn add(sums: *Sums, x: F, i: usize, w: [V]F) void {
            inline for (0..V) |j| sums[i][j] = simd.mulAdd(x, w[j], sums[i][j]);
        }
        inline fn low(w: [V]U) [V]F {
            var v: [V]F = undefined;
            inline for (0..V) |j| v[j] = simd.lo16(w[j]);
            return v;
        }
        inline fn high(w: [V]U) [V]F {
            var v: [V]F = undefined;
            inline for (0..V) |j| v[j] = simd.hi16(w[j]);
            return v;
        }
        inline fn pairs(
            sums: *Sums,
            n: usize,
            a0: [*]const f32,
            row: usize,
            w0: [*]const u8,
            distance: usize,
            ahead0: Ahead,
        ) void {
            var a = a0;
            var w = w0;
            var ahead = ahead0;
            for (0..n / 2) |_| {
                if (asks) ahead.next(across, distance);
                const even = low(weights(U, w, distance));
                inline for (0..rows) |i| add(sums, activation(a, row, i, 0), i, even);
                // Loading the pair again costs less than the registers that keeping it would take;
                // the empty assembly hides from the compiler that it is the same pair.
                var again = w;
                if (!simd.has_avx512) asm volatile (""
                    : [p] "+r" (again),
                );
                const odd = high(weights(U, again, distance));
                inline for (0..rows) |i| add(sums, activation(a, row, i, 1), i, odd);
                a += if (access == .strided) 2 else 2 * rows;
                w += width * 4;
            }
            if (n % 2 == 1) {
                const even = low(weights(U, w, distance));
                inline for (0..rows) |i| add(sums, activation(a, row, i, 0), i, even);
            }
        }
        inline fn singles(
            sums: *Sums,
            n: usize,
            a0: [*]const f32,
            row: usize,
            w0: [*]const u8,
            distance: usize,
            ahead0: Ahead,
        ) void {
            var a = a0;
            var w = w0;
            var ahead = ahead0;
            for (0..n) |_| {
                if (asks) ahead.next(across, distance);
                const v = weights(F, w, distance);
                inline for (0..rows) |i| add(sums, activation(a, row, i, 0), i, v);
                a += if (access == .strided) 1 else rows;
                w += width * 4;
            }
        }
        fn run(
            n: usize,
            a: [*]const f32,
            row: usize,
            w: [*]const u8,
            distance: usize,
            c: [*]f32,
            first: bool,
            ahead: Ahead,
        ) void {
            var sums: Sums = undefined;
            inline for (0..rows) |i| inline for (0..V) |j| {
                sums[i][j] = if (first) simd.zero else simd.ldF(c + (i * V + j) * L);
            };
            const loop = if (dtype == .bf16) pairs else singles;
            loop(&sums, n, a, row, w, distance, ahead);
            inline for (0..rows) |i| inline for (0..V) |j| simd.st(c + (i * V + j) * L, sums[i][j]);
        }
    };
}

/// The packed tile of `rows` (1 to MR) rows and `across` (1 to NP) panels.
fn tile(comptime dtype: DType, rows: usize, across: usize, asks: bool) TileFn {
    const table = comptime blk: {
        var t: [2][MR][NP]TileFn = undefined;
        for (&t, [_]bool{ false, true }) |*of, a| for (0..MR) |r| for (0..NP) |p| {
            of[r][p] = Tile(dtype, .packed_tile, r + 1, p + 1, a).run;
        };
        break :blk t;
    };
    return table[@intFromBool(asks)][rows - 1][across - 1];
}

/// The tile over unpacked rows, for `linear_gemv`.
pub fn stridedTile(comptime dtype: DType, comptime rows: usize, comptime across: usize) TileFn {
    return Tile(dtype, .strided, rows, across, false).run;
}

/// Rows cut into tiles of at most MR whose heights differ by at most one, so that no tile is left
/// with a row or two, which would wait for each multiply-add.
pub const Cut = struct {
    rows: usize,
    tiles: usize,
    pub fn init(rows: usize) Cut {
        return .{ .rows = rows, .tiles = (rows + MR - 1) / MR };
    }
    /// First row of a tile (or the end, for the tile behind the last).
    pub fn at(c: Cut, t: usize) usize {
        return t * (c.rows / c.tiles) + @min(t, c.rows % c.tiles);
    }
    pub fn height(c: Cut, t: usize) usize {
        return c.at(t + 1) - c.at(t);
    }
};

/// Writes rows [0, h) of x as [K][h].
pub fn packTile(h: usize, K: usize, x: [*]const f32, stride: usize, out: [*]f32) void {
    switch (h) {
        inline 1...MR => |rows| {
            var k: usize = 0;
            while (k + 4 <= K) : (k += 4) {
                var v: [rows]@Vector(4, f32) = undefined;
                inline for (0..rows) |i| v[i] = simd.ld(@Vector(4, f32), x + i * stride + k);
                inline for (0..4) |j| inline for (0..rows) |i| {
                    out[(k + j) * rows + i] = v[i][j];
                };
            }
            while (k < K) : (k += 1) for (0..rows) |i| {
                out[k * rows + i] = x[i * stride + k];
            };
        },
        else => unreachable,
    }
}

/// Whether a tile wants weights of this dtype as f32.
pub fn isWidened(dtype: DType) bool {
    return dtype == .f16 or dtype == .f8_e4m3;
}
/// Rows [k, k + n) of a panel of f16 or f8 as f32.
pub fn widen(comptime dtype: DType, w: [*]const u8, k: usize, n: usize, out: [*]f32) void {
    if (dtype == .f16) {
        const at = w + panel.panelBytes(dtype, k);
        for (0..n * width / L) |i| simd.st(out + i * L, simd.ldAs(.f16, at, i * L));
    } else {
        const factors = factorsOf(w);
        for (0..n) |i| inline for (factors, 0..) |factor, j|
            simd.st(out + i * width + j * L, eights(w, k + i, j, factor));
    }
}
/// What the numbers of an f8 panel are multiplied by.
pub inline fn factorsOf(w: [*]const u8) [width / L]F {
    var factors: [width / L]F = undefined;
    inline for (&factors, 0..) |*f, j| f.* = simd.ld(F, w + j * L * 4) * simd.splat(256);
    return factors;
}
/// Vector j of row k of an f8 panel: rounded once, to what its number times its scale is in f32.
pub inline fn eights(w: [*]const u8, k: usize, comptime j: usize, factor: F) F {
    const at = w + panel.scale_bytes + k * width + j * L;
    return simd.e2fV(simd.ld(@Vector(L, u8), at)) * factor;
}

/// Sums of panels [p0, p1) for tiles [t0, t1) of packed rows, left in c as
/// [panel group][tile][height][across][16]; `wide` holds `wide_floats`.
pub fn block(
    dtype: DType,
    K: usize,
    cut: Cut,
    t0: usize,
    t1: usize,
    a: [*]const f32,
    w: [*]const u8,
    p0: usize,
    p1: usize,
    c: [*]f32,
    wide: [*]f32,
) void {
    switch (dtype) {
        inline .f32, .bf16, .f16, .f8_e4m3 => |d| {
            const one = panel.panelBytes(d, K);
            const KC = comptime sliceOf(d);
            const rows = cut.at(t1) - cut.at(t0);
            var k: usize = 0;
            while (k < K) : (k += KC) {
                const n: usize = @min(KC, K - k);
                var p = p0;
                var sums = c;
                while (p < p1) : (p += NP) {
                    const across: usize = @min(NP, p1 - p);
                    var slice = w + p * one + panel.panelBytes(d, k);
                    var distance = one;
                    if (comptime isWidened(d)) {
                        for (0..across) |j|
                            widen(d, w + (p + j) * one, k, n, wide + j * KC * width);
                        slice = @ptrCast(wide);
                        distance = KC * width * 4;
                    }
                    const kind: DType = if (d == .bf16) .bf16 else .f32;
                    const tiles = t1 - t0;
                    const asks = comptime !isWidened(d);
                    // Of the slice that comes next, a part for each tile.
                    const at = if (p + NP < p1) k else k + KC;
                    const next = if (p + NP < p1) p + NP else p0;
                    const later = if (asks) w + next * one + panel.panelBytes(d, at) else slice;
                    const part = if (asks) panel.panelBytes(d, n) / tiles else 0;
                    for (t0..t1) |t| {
                        const h = cut.height(t);
                        const rows_at = a + cut.at(t) * K + k * h;
                        const ahead: Ahead = .{
                            .p = later + (t - t0) * part,
                            .step = (64 + tiles - 1) / tiles,
                        };
                        const go = tile(kind, h, across, asks and tiles <= few_tiles);
                        go(n, rows_at, 0, slice, distance, sums, k == 0, ahead);
                        sums += h * across * width;
                    }
                }
                std.debug.assert(sums == c + rows * (p1 - p0) * width);
            }
        },
        else => unreachable,
    }
}
