//! Many rows times weights in blocks: a slice of a panel is unpacked once into what one
//! multiply-add instruction takes, and stays in L1 while the tiles of all rows pass over it.
//!
//! - Unsigned bytes meet int8: a run of 32 columns costs 8 multiply-adds of 4 columns, or where
//!   there is no instruction for four, 8 of 2 columns that add up in i16, and one of shorts.
//! - q8_0 there: shorts meet shorts, in 16 multiply-adds of 2 columns.
//!
//! For each run and output 8 multiply-adds by vpdpbusd are joined by a product of scales (of the
//! integers in the K types) and one or two f32 multiply-adds on the same two pipes: 0.8 of the peak
//! at most in q8_0, 0.73 to 0.8 in q4_k. Of a prompt's peak (two cores of an AMD EPYC, Zen 4, 27
//! November 2026) 0.56 is reached in q8_0 and 0.53 in q4_k_m, everything else included.
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
const Sums = int8.Sums;
const V = lanes.V;
const width = command.panel;

pub const MR = gemm.MR;
pub const NP = gemm.NP;
/// Columns of a slice: 8 KiB of bytes or 16 KiB of shorts a panel.
pub const slice = 512;
const runs = slice / int8.columns;

pub fn kindOf(dtype: DType) Kind {
    return if (dtype == .q8_0 and !simd.has_vnni) .shorts else .bytes;
}

/// A slice of one panel, unpacked: numbers in the order of `Rows`, 64 bytes for each word of 4 or 2
/// columns; d of each block, and for each run of the K types the rows' factors (of 16 columns
/// each in q6_k) and minima.
pub const Unpacked = struct {
    q: [slice * width * if (simd.has_vnni) 1 else 2]u8 align(64),
    d: [runs][width]f32,
    dmin: [slice / block.long][width]f32,
    factor: [runs][2][V]Sums,
    min: [runs][width]f32,
};

inline fn setBytes(u: *Unpacked, run: usize, g: usize, v: usize, q: Bytes) void {
    simd.st(@as([*]u8, &u.q) + ((run * 8 + g) * width + v * L) * 4, q);
}
/// Columns (0, 2) and (1, 3) of the four of each lane.
inline fn setShorts(u: *Unpacked, run: usize, g: usize, v: usize, q: int8.Signed) void {
    const pairs: Shorts = @bitCast(q);
    const to = @as([*]u8, &u.q) + ((run * 16 + 2 * g) * width + v * L) * 4;
    simd.st(to, pairs << @splat(8) >> @splat(8));
    simd.st(to + width * 4, pairs >> @splat(8));
}
inline fn setFloats(to: *[width]f32, v: usize, x: F) void {
    simd.st(@as([*]f32, to) + v * L, x);
}

/// Unpacks block number b of a slice.
fn unpack(comptime dtype: DType, w: [*]const u8, u: *Unpacked, b: usize) void {
    @setEvalBranchQuota(100_000);
    const run0 = b * (comptime block.columns(dtype)) / int8.columns;
    inline for (0..V) |v| setFloats(&u.d[b], v, lanes.half(dtype, "d", w, v));
    switch (dtype) {
        .q8_0 => inline for (0..8) |g| inline for (0..V) |v| if (kindOf(dtype) == .bytes)
            setBytes(u, run0, g, v, lanes.lifted(w, g, v))
        else
            setShorts(u, run0, g, v, lanes.whole(w, g, v)),
        .q4_0 => inline for (0..4) |g| inline for (0..V) |v|
            inline for (lanes.pair(dtype, w, 0, g, v), 0..) |q, k|
                setBytes(u, run0, g + 4 * k, v, q),
        .q4_k, .q5_k, .q6_k => {
            inline for (0..comptime lanes.parts(dtype)) |part| {
                const both = comptime lanes.runs(dtype, part);
                inline for (0..8) |g| inline for (0..V) |v|
                    inline for (lanes.pair(dtype, w, part, g, v), both) |q, run|
                        setBytes(u, run0 + run, g, v, q);
            }
            if (dtype == .q6_k) {
                for (0..16) |i| inline for (0..V) |v| {
                    u.factor[run0 + i / 2][i % 2][v] = lanes.factor16(w, i, v);
                };
            } else unpackFiner(dtype, w, u, b, run0);
        },
        else => @compileError("no blocks"),
    }
}
fn unpackFiner(comptime dtype: DType, w: [*]const u8, u: *Unpacked, b: usize, run0: usize) void {
    var finer: lanes.Finer = undefined;
    finer.unpack(dtype, w);
    inline for (0..V) |v| {
        setFloats(&u.dmin[b], v, lanes.half(dtype, "dmin", w, v));
        for (0..8) |run| {
            u.factor[run0 + run][0][v] = finer.factor(run, v);
            setFloats(&u.min[run0 + run], v, finer.minimum(run, v));
        }
    }
}

/// n blocks of one tile: c[rows][across][16] (+)= x * w.
const TileFn = *const fn (n: usize, x: Rows, w: [*]const Unpacked, c: [*]f32, first: bool) void;

fn Tile(comptime dtype: DType, comptime rows: usize, comptime across: usize) type {
    return struct {
        const vectors = across * V;
        const Floats = [rows][vectors]F;
        const Integers = [rows][vectors]I;
        const Exact = [rows][vectors]Sums;
        const words = if (kindOf(dtype) == .bytes) 8 else 16;
        const is_long = block.columns(dtype) == block.long;
        /// Words of 4 columns whose products are summed before they are scaled.
        const cut = if (dtype == .q6_k or (dtype == .q5_k and !simd.has_vnni)) 4 else 8;

        inline fn weights(w: [*]const Unpacked, word: usize, j: usize) [*]const u8 {
            return @as([*]const u8, &w[j / V].q) + (word * width + j % V * L) * 4;
        }
        inline fn floats(w: [*]const Unpacked, comptime of: []const u8, i: usize, j: usize) F {
            return simd.ldF(@as([*]const f32, &@field(w[j / V], of)[i]) + j % V * L);
        }

        /// Sums of `cut` words of run r from number `part` * cut on.
        inline fn bytes(x: Rows, w: [*]const Unpacked, r: usize, comptime part: usize) Exact {
            @setEvalBranchQuota(100_000);
            var e: Exact = undefined;
            inline for (0..rows) |i| e[i] = @splat(switch (dtype) {
                .q4_k, .q5_k => int8.no_sums,
                else => x.start(rows, r, part, i),
            });
            inline for (part * cut..part * cut + cut) |g| {
                var q: [vectors]Bytes = undefined;
                inline for (0..vectors) |j| q[j] = simd.ld(Bytes, weights(w, r * words + g, j));
                inline for (0..rows) |i| {
                    const a = x.bytes(rows, r, g, i);
                    inline for (0..vectors) |j| e[i][j] = int8.addBytes(e[i][j], q[j], a);
                }
            }
            return e;
        }
        inline fn shorts(x: Rows, w: [*]const Unpacked, r: usize) Integers {
            @setEvalBranchQuota(100_000);
            var sums: Integers = undefined;
            inline for (0..16) |g| {
                var q: [vectors]Shorts = undefined;
                inline for (0..vectors) |j| q[j] = simd.ld(Shorts, weights(w, r * words + g, j));
                inline for (0..rows) |i| {
                    const a = int8.splatShorts(x.q[(r * words + g) * rows + i]);
                    inline for (0..vectors) |j| {
                        const product = int8.addPairs16(q[j], a);
                        sums[i][j] = if (g == 0) product else sums[i][j] +% product;
                    }
                }
            }
            return sums;
        }
        /// to += by * the sums of a run's part, for all rows and vectors; `by` is x's scale, times
        /// d in blocks of 32.
        inline fn addRun(to: [*]f32, x: Rows, w: [*]const Unpacked, r: usize, all: Integers) void {
            inline for (0..vectors) |j| inline for (0..rows) |i| {
                const at = to + (i * vectors + j) * L;
                const scale = x.scale(rows, r, i);
                const by = if (is_long) scale else floats(w, "d", r, j) * scale;
                simd.st(at, simd.mulAdd(int8.floats(all[i][j]), by, simd.ldF(at)));
            };
        }
        fn short(x: Rows, w: [*]const Unpacked, r: usize, c: [*]f32) void {
            const all = if (kindOf(dtype) == .shorts) shorts(x, w, r) else all: {
                const e = bytes(x, w, r, 0);
                var all: Integers = undefined;
                inline for (0..rows) |i| inline for (0..vectors) |j| {
                    all[i][j] = int8.whole(e[i][j]);
                };
                break :all all;
            };
            addRun(c, x, w, r, all);
        }
        inline fn factored(x: Rows, w: [*]const Unpacked, r: usize, comptime part: usize) Integers {
            const e = bytes(x, w, r, part);
            const which = if (dtype == .q6_k) part else 0;
            var all: Integers = undefined;
            inline for (0..rows) |i| inline for (0..vectors) |j| {
                all[i][j] = int8.times(e[i][j], w[j / V].factor[r][which][j % V]);
            };
            return all;
        }
        fn long(x: Rows, w: [*]const Unpacked, b: usize, c: [*]f32) void {
            const run0 = b * 8;
            if (dtype != .q6_k) minima(x, w, b, c);
            var t: [rows * vectors * L]f32 align(64) = @splat(0);
            for (lanes.order(dtype)) |which| {
                const r = run0 + which;
                var all = factored(x, w, r, 0);
                if (cut == 4) {
                    const rest = factored(x, w, r, 1);
                    inline for (0..rows) |i| inline for (0..vectors) |j| {
                        all[i][j] +%= rest[i][j];
                    };
                }
                addRun(&t, x, w, r, all);
            }
            inline for (0..vectors) |j| {
                const d = floats(w, "d", b, j);
                inline for (0..rows) |i| {
                    const at = (i * vectors + j) * L;
                    const sum = simd.ldF(@as([*]const f32, &t) + at);
                    simd.st(c + at, simd.mulAdd(d, sum, simd.ldF(c + at)));
                }
            }
        }
        fn minima(x: Rows, w: [*]const Unpacked, b: usize, c: [*]f32) void {
            var u: Floats = @splat(@splat(simd.zero));
            for (b * 8..b * 8 + 8) |r| inline for (0..rows) |i| {
                const total = x.total(rows, r, i);
                inline for (0..vectors) |j|
                    u[i][j] = simd.mulAdd(floats(w, "min", r, j), total, u[i][j]);
            };
            inline for (0..vectors) |j| {
                const d = -floats(w, "dmin", b, j);
                inline for (0..rows) |i| {
                    const at = c + (i * vectors + j) * L;
                    simd.st(at, simd.mulAdd(d, u[i][j], simd.ldF(at)));
                }
            }
        }
        fn run(n: usize, x: Rows, w: [*]const Unpacked, c: [*]f32, first: bool) void {
            @setEvalBranchQuota(100_000);
            if (first) @memset(c[0 .. rows * across * width], 0);
            for (0..n) |b| if (is_long) long(x, w, b, c) else short(x, w, b, c);
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
                var p = p0;
                var sums = c;
                while (p < p1) : (p += NP) {
                    const across: usize = @min(NP, p1 - p);
                    for (0..across) |j| for (0..n) |b|
                        unpack(d, w + ((p + j) * blocks + b0 + b) * one, &unpacked[j], b);
                    for (t0..t1) |t| {
                        const h = cut.height(t);
                        const x = Rows.at(memory, cut.rows, K, cut.at(t))
                            .from(kindOf(d), h, b0 * columns / int8.columns);
                        tile(d, h, across)(n, x, unpacked, sums, b0 == 0);
                        sums += h * across * width;
                    }
                }
            }
        },
        else => unreachable,
    }
}
