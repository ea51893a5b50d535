//! Many rows times weights in blocks: a slice of a panel is unpacked once into what one
//! multiply-add instruction takes, and stays in L1 while the tiles of all rows pass over it.
//!
//! - q4_0, q4_k, q5_k: unsigned bytes meet int8; 8 (q5_k: 4) products of pairs fit an i16 sum, so
//!   that a run of 32 columns costs 8 multiply-adds of 4 columns and one of shorts.
//! - q8_0, q6_k: shorts (number, or scale * number) meet shorts; 16 multiply-adds of 2 columns.
//!
//! The integers of a run are exact, and what they are scaled by is rounded as in `blocks_gemv`:
//! both give the same bits.

const std = @import("std");
const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const gemm = @import("linear_gemm.zig");
const int8 = @import("int8.zig");
const lanes = @import("block_lanes.zig");
const simd = @import("simd.zig");
const Bytes = int8.Bytes;
const DType = command.DType;
const F = simd.F;
const I = simd.I;
const Kind = @import("blocks_rows.zig").Kind;
const L = simd.L;
const Rows = @import("blocks_rows.zig").Rows;
const Shorts = int8.Shorts;
const V = lanes.V;
const width = command.panel;

pub const MR = gemm.MR;
pub const NP = gemm.NP;
/// Columns of a slice: 8 KiB of bytes or 16 KiB of shorts a panel.
pub const slice = 512;
const runs = slice / int8.columns;

pub fn kindOf(dtype: DType) Kind {
    return if (dtype == .q8_0 or dtype == .q6_k) .shorts else .bytes;
}

/// A slice of one panel, unpacked: numbers in the order of `Rows`, 64 bytes for each word of 4 or 2
/// columns, and for each run the rows' factors and minima.
pub const Unpacked = struct {
    q: [slice * width * 2]u8 align(64),
    scale: [runs][width]f32,
    min: [runs][width]f32,
};

inline fn setBytes(u: *Unpacked, run: usize, g: usize, v: usize, q: Bytes) void {
    simd.st(@as([*]u8, &u.q) + ((run * 8 + g) * width + v * L) * 4, q);
}
/// Columns (0, 2) and (1, 3) of the four of each lane, times `by` where it is given.
inline fn setShorts(
    u: *Unpacked,
    run: usize,
    g: usize,
    v: usize,
    q: int8.Signed,
    by: ?Shorts,
) void {
    const pairs: Shorts = @bitCast(q);
    var even = pairs << @splat(8) >> @splat(8);
    var odd = pairs >> @splat(8);
    if (by) |factor| {
        even *%= factor;
        odd *%= factor;
    }
    const to = @as([*]u8, &u.q) + ((run * 16 + 2 * g) * width + v * L) * 4;
    simd.st(to, even);
    simd.st(to + width * 4, odd);
}

/// Unpacks one block of columns as runs `run0` on.
fn unpack(comptime dtype: DType, w: [*]const u8, u: *Unpacked, run0: usize) void {
    @setEvalBranchQuota(100_000);
    inline for (0..V) |v| switch (dtype) {
        .q8_0 => {
            inline for (0..8) |g| setShorts(u, run0, g, v, lanes.whole(w, g, v), null);
            simd.st(@as([*]f32, &u.scale[run0]) + v * L, lanes.d(dtype, w, v));
        },
        .q4_0 => {
            inline for (0..4) |g| inline for (lanes.nibbles(w, g, v), 0..) |q, k|
                setBytes(u, run0, g + 4 * k, v, q);
            setScales(dtype, w, u, run0, 0, v);
        },
        .q4_k, .q5_k => inline for (0..comptime lanes.parts(dtype)) |part| {
            const both = comptime lanes.runs(dtype, part);
            inline for (0..8) |g| inline for (lanes.pair(dtype, w, part, g, v), both) |q, run|
                setBytes(u, run0 + run, g, v, q);
            inline for (both) |run| setScales(dtype, w, u, run0, run, v);
        },
        .q6_k => inline for (0..comptime lanes.parts(dtype)) |part| {
            const both = comptime lanes.runs(dtype, part);
            inline for (both, 0..) |run, k| {
                inline for (0..2) |half| {
                    const by = lanes.scale16(w, 2 * run + half, v);
                    inline for (4 * half..4 * half + 4) |g| {
                        const q = lanes.pair(dtype, w, part, g, v)[k] -% @as(Bytes, @splat(32));
                        setShorts(u, run0 + run, g, v, @bitCast(q), by);
                    }
                }
                simd.st(@as([*]f32, &u.scale[run0 + run]) + v * L, lanes.d(dtype, w, v));
            }
        },
        else => @compileError("no blocks"),
    };
}
inline fn setScales(
    comptime dtype: DType,
    w: [*]const u8,
    u: *Unpacked,
    run0: usize,
    comptime run: usize,
    v: usize,
) void {
    const by = lanes.scaleMin(dtype, w, run, v);
    simd.st(@as([*]f32, &u.scale[run0 + run]) + v * L, by.scale);
    simd.st(@as([*]f32, &u.min[run0 + run]) + v * L, by.min);
}

/// n runs of one tile: c[rows][across][16] (+)= x * w.
const TileFn = *const fn (n: usize, x: Rows, w: [*]const Unpacked, c: [*]f32, first: bool) void;

fn Tile(comptime dtype: DType, comptime rows: usize, comptime across: usize) type {
    return struct {
        const vectors = across * V;
        const words = if (kindOf(dtype) == .bytes) 8 else 16;
        /// Multiply-adds of bytes whose sum fits an i16.
        const cut = if (dtype == .q5_k) 4 else 8;

        inline fn weights(w: [*]const Unpacked, word: usize, j: usize) [*]const u8 {
            return @as([*]const u8, &w[j / V].q) + (word * width + j % V * L) * 4;
        }
        inline fn bytes(x: Rows, w: [*]const Unpacked, n: usize) [rows][vectors]I {
            @setEvalBranchQuota(100_000);
            var sums: [rows][vectors]I = undefined;
            inline for (0..8 / cut) |part| {
                var h: [rows][vectors]Shorts = undefined;
                inline for (part * cut..part * cut + cut) |g| {
                    var q: [vectors]Bytes = undefined;
                    inline for (0..vectors) |j| q[j] = simd.ld(Bytes, weights(w, n * words + g, j));
                    inline for (0..rows) |i| {
                        const a = x.bytes(rows, n, g, i);
                        inline for (0..vectors) |j| {
                            const product = int8.addPairs8(q[j], a);
                            h[i][j] = if (g == part * cut) product else h[i][j] +% product;
                        }
                    }
                }
                inline for (0..rows) |i| inline for (0..vectors) |j| {
                    const sum = int8.addPairs16(h[i][j], int8.ones());
                    sums[i][j] = if (part == 0) sum else sums[i][j] +% sum;
                };
            }
            return sums;
        }
        inline fn shorts(x: Rows, w: [*]const Unpacked, n: usize) [rows][vectors]I {
            @setEvalBranchQuota(100_000);
            var sums: [rows][vectors]I = undefined;
            inline for (0..16) |g| {
                var q: [vectors]Shorts = undefined;
                inline for (0..vectors) |j| q[j] = simd.ld(Shorts, weights(w, n * words + g, j));
                inline for (0..rows) |i| {
                    const a = int8.splatShorts(x.q[(n * words + g) * rows + i]);
                    inline for (0..vectors) |j| {
                        const product = int8.addPairs16(q[j], a);
                        sums[i][j] = if (g == 0) product else sums[i][j] +% product;
                    }
                }
            }
            return sums;
        }
        fn run(n: usize, x: Rows, w: [*]const Unpacked, c: [*]f32, first: bool) void {
            @setEvalBranchQuota(100_000);
            if (first) @memset(c[0 .. rows * across * width], 0);
            for (0..n) |r| {
                const sums = if (kindOf(dtype) == .bytes) bytes(x, w, r) else shorts(x, w, r);
                inline for (0..vectors) |j| {
                    const d = simd.ldF(@as([*]const f32, &w[j / V].scale[r]) + j % V * L);
                    inline for (0..rows) |i| {
                        const to = c + (i * vectors + j) * L;
                        const by = d * simd.splat(x.scale(rows, r, i));
                        var sum = simd.mulAdd(int8.floats(sums[i][j]), by, simd.ldF(to));
                        if (kindOf(dtype) == .bytes) {
                            const min = simd.ldF(@as([*]const f32, &w[j / V].min[r]) + j % V * L);
                            sum = simd.mulAdd(-min, simd.splat(x.total(rows, r, i)), sum);
                        }
                        simd.st(to, sum);
                    }
                }
            }
        }
    };
}

fn tile(comptime dtype: DType, rows: usize, across: usize) TileFn {
    const table = comptime blk: {
        var t: [MR][NP]TileFn = undefined;
        for (0..MR) |r| for (0..NP) |p| {
            t[r][p] = Tile(dtype, r + 1, p + 1).run;
        };
        break :blk t;
    };
    return table[rows - 1][across - 1];
}

/// Sums of panels [p0, p1) for tiles [t0, t1) of the M rows in `memory`, left in c as
/// [panel group][tile][height][across][16].
pub fn multiply(
    dtype: DType,
    K: usize,
    cut: gemm.Cut,
    t0: usize,
    t1: usize,
    memory: [*]u8,
    w: [*]const u8,
    p0: usize,
    p1: usize,
    c: [*]f32,
    unpacked: *[NP]Unpacked,
) void {
    @setEvalBranchQuota(100_000);
    switch (dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            const columns = comptime block.columns(d);
            const one = comptime block_panel.groupBytes(d);
            const blocks = K / columns;
            var b0: usize = 0;
            while (b0 < blocks) : (b0 += slice / columns) {
                const n = @min(slice / columns, blocks - b0);
                const n_runs = n * columns / int8.columns;
                var p = p0;
                var sums = c;
                while (p < p1) : (p += NP) {
                    const across: usize = @min(NP, p1 - p);
                    for (0..across) |j| for (0..n) |b| {
                        const from = w + ((p + j) * blocks + b0 + b) * one;
                        unpack(d, from, &unpacked[j], b * columns / int8.columns);
                    };
                    for (t0..t1) |t| {
                        const h = cut.height(t);
                        const x = Rows.at(memory, cut.rows, K, cut.at(t))
                            .from(kindOf(d), h, b0 * columns / int8.columns);
                        tile(d, h, across)(n_runs, x, unpacked, sums, b0 == 0);
                        sums += h * across * width;
                    }
                }
            }
        },
        else => unreachable,
    }
}
