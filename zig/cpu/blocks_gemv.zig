//! Few rows times weights in blocks: every byte of the weights is read once, in four streams, and
//! meets int8 activations right away. 16 output features fill the lanes; 4 columns of each meet in
//! one multiply-add of bytes.
//!
//! Sums of one run of columns are exact integers, so only the order of runs matters: upwards, but
//! for q6_k (`linear_blocks` gives it). With one row it reads 0.56 to 1.06 bytes a weight and does
//! two operations.
//!
//! Reached on two cores of an AMD EPYC (Zen 4), 27 November 2026, in turns with four plain streams:
//! 31 GB/s of 33 to 34 (q8_0, q4_0, q4_k), 30 to 31 of 33 to 35 (q5_k, q6_k). One core with its
//! weights in L2 goes through 66 GB/s of q8_0, 49 of q4_0, 45 of q4_k, 40 of q5_k, 47 of q6_k; with
//! 8 rows through 22, 12, 10, 12 and 13.

const std = @import("std");
const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const int8 = @import("int8.zig");
const lanes = @import("block_lanes.zig");
const rows_file = @import("blocks_rows.zig");
const simd = @import("simd.zig");
const DType = command.DType;
const F = simd.F;
const I = simd.I;
const L = simd.L;
const Rows = rows_file.Rows;
const Sums = int8.Sums;
const V = lanes.V;
const width = command.panel;

/// Panels walked through at once.
pub const streams = 4;
/// Rows that are few: as many as have their sums in registers.
pub const max_rows = if (simd.has_avx512) 8 else 4;
/// Columns for which one panel goes on before the next has its turn.
const slice = 256;
/// How far ahead of its place in each stream a thread asks for weights, a line with each step and
/// into L2: line buffers of L1 are too few for it. On a Zen 4, q6_k goes 18 GB/s with 1 KiB, 26
/// with 2, 31 with 3 to 8; asked for into L1, or all lines of a block at once, it is slower.
const ahead = 4096;

/// A panel's sums for all rows: vectors [first, first + n) of it.
fn Panel(
    comptime dtype: DType,
    comptime rows: usize,
    comptime first: usize,
    comptime n: usize,
) type {
    return struct {
        sums: [rows][n]F,

        const Self = @This();
        const Exact = [rows][n]Sums;
        const none: Exact = @splat(@splat(int8.no_sums));

        inline fn load(c: [*]const f32) Self {
            var s: Self = undefined;
            inline for (0..rows) |i| inline for (0..n) |v| {
                s.sums[i][v] = simd.ldF(c + i * width + (first + v) * L);
            };
            return s;
        }
        inline fn store(s: *const Self, c: [*]f32) void {
            inline for (0..rows) |i| inline for (0..n) |v|
                simd.st(c + i * width + (first + v) * L, s.sums[i][v]);
        }
        /// Asks for what is due at one of `steps` steps through a block.
        inline fn ask(w: [*]const u8, comptime step: usize, comptime steps: usize) void {
            const lines = comptime (block_panel.groupBytes(dtype) + 63) / 64;
            if (first == 0) inline for (step * lines / steps..(step + 1) * lines / steps) |line|
                @prefetch(w + ahead + line * 64, .{ .locality = 2 });
        }
        inline fn started(x: Rows, run: usize, half: usize) Exact {
            var e: Exact = undefined;
            inline for (0..rows) |i| e[i] = @splat(x.start(rows, run, half, i));
            return e;
        }
        inline fn meet(e: *Exact, q: int8.Bytes, x: Rows, run: usize, g: usize, v: usize) void {
            inline for (0..rows) |i| e[i][v] = int8.addBytes(e[i][v], q, x.bytes(rows, run, g, i));
        }

        /// Adds d * s * (the integers of a block of 32 columns).
        inline fn short(s: *Self, w: [*]const u8, x: Rows) void {
            const whole: [rows][n]I = switch (dtype) {
                .q4_0 => nibbles(w, x),
                .q8_0 => if (simd.has_vnni) lifted(w, x) else signed(w, x),
                else => @compileError("no short blocks"),
            };
            inline for (0..n) |v| {
                const d = lanes.half(dtype, "d", w, first + v);
                inline for (0..rows) |i| {
                    const by = d * x.scale(rows, 0, i);
                    s.sums[i][v] = simd.mulAdd(int8.floats(whole[i][v]), by, s.sums[i][v]);
                }
            }
        }
        inline fn lifted(w: [*]const u8, x: Rows) [rows][n]I {
            var e = started(x, 0, 0);
            inline for (0..8) |g| {
                ask(w, g, 8);
                inline for (0..n) |v| meet(&e, lanes.lifted(w, g, first + v), x, 0, g, v);
            }
            return e;
        }
        inline fn signed(w: [*]const u8, x: Rows) [rows][n]I {
            var e: [rows][n]I = @splat(@splat(@splat(0)));
            inline for (0..8) |g| {
                ask(w, g, 8);
                inline for (0..n) |v| {
                    const q = lanes.whole(w, g, first + v);
                    const size: int8.Bytes = @bitCast(@abs(q));
                    inline for (0..rows) |i| {
                        const a = int8.withSign(x.bytes(rows, 0, g, i), q);
                        e[i][v] +%= int8.addPairs16(int8.addPairs8(size, a), int8.ones());
                    }
                }
            }
            return e;
        }
        inline fn nibbles(w: [*]const u8, x: Rows) [rows][n]I {
            var e: [2]Exact = .{ started(x, 0, 0), none };
            inline for (0..4) |g| {
                ask(w, g, 4);
                inline for (0..n) |v| {
                    const q = halves(w, 0, g, v);
                    inline for (0..2) |k| meet(&e[if (raises) k else 0], q[k], x, 0, g + 4 * k, v);
                }
            }
            var all: [rows][n]I = undefined;
            inline for (0..rows) |i| inline for (0..n) |v| {
                all[i][v] = int8.whole(e[0][i][v]);
                if (raises) all[i][v] +%= lower(e[1][i][v]);
            };
            return all;
        }

        /// Whether the second halves of words stay where they lie, 16 times too large.
        const raises = simd.has_vnni and (dtype == .q4_0 or dtype == .q4_k);
        inline fn lower(e: Sums) Sums {
            return if (raises) e >> @splat(4) else e;
        }
        inline fn halves(
            w: [*]const u8,
            comptime part: usize,
            comptime g: usize,
            v: usize,
        ) [2]int8.Bytes {
            const from = if (raises) lanes.raised else lanes.pair;
            return from(dtype, w, part, g, first + v);
        }

        /// Adds the sums of a block of 256 columns.
        inline fn long(s: *Self, w: [*]const u8, x: Rows) void {
            var t: [rows][n]F = @splat(@splat(simd.zero));
            if (dtype == .q6_k) {
                inline for (0..comptime lanes.parts(dtype)) |part| centred(&t, w, x, part);
            } else {
                var finer: lanes.Finer = undefined;
                finer.unpack(dtype, w);
                s.minima(w, x, &finer);
                inline for (0..comptime lanes.parts(dtype)) |part| both(&t, w, x, part, &finer);
            }
            inline for (0..n) |v| {
                const d = lanes.half(dtype, "d", w, first + v);
                inline for (0..rows) |i| s.sums[i][v] = simd.mulAdd(d, t[i][v], s.sums[i][v]);
            }
        }
        inline fn minima(s: *Self, w: [*]const u8, x: Rows, finer: *const lanes.Finer) void {
            var u: [rows][n]F = @splat(@splat(simd.zero));
            inline for (0..8) |run| inline for (0..n) |v| {
                const min = finer.minimum(run, first + v);
                inline for (0..rows) |i| u[i][v] = simd.mulAdd(min, x.total(rows, run, i), u[i][v]);
            };
            inline for (0..n) |v| {
                const d = -lanes.half(dtype, "dmin", w, first + v);
                inline for (0..rows) |i| s.sums[i][v] = simd.mulAdd(d, u[i][v], s.sums[i][v]);
            }
        }
        /// The two runs of a part of q4_k or q5_k. In pairs, 8 * 2 * 15 * 127 = 30480 and
        /// 4 * 2 * 31 * 127 = 31496 fit an i16.
        inline fn both(
            t: *[rows][n]F,
            w: [*]const u8,
            x: Rows,
            comptime part: usize,
            finer: *const lanes.Finer,
        ) void {
            const cut = if (dtype == .q5_k and !simd.has_vnni) 4 else 8;
            const runs = comptime lanes.runs(dtype, part);
            var all: [2][rows][n]I = @splat(@splat(@splat(@splat(0))));
            inline for (0..8 / cut) |h| {
                var e: [2]Exact = .{ none, none };
                inline for (h * cut..(h + 1) * cut) |g| {
                    ask(w, part * 8 + g, 32);
                    inline for (0..n) |v| {
                        const q = halves(w, part, g, v);
                        inline for (runs, 0..) |run, k| meet(&e[k], q[k], x, run, g, v);
                    }
                }
                inline for (runs, 0..) |run, k| inline for (0..n) |v| {
                    const by = finer.factor(run, first + v);
                    inline for (0..rows) |i| {
                        const sum = if (k == 0) e[k][i][v] else lower(e[k][i][v]);
                        all[k][i][v] +%= int8.times(sum, by);
                    }
                };
            }
            addRuns(t, x, runs, &all);
        }
        /// The two runs of a part of q6_k, of which each half has its factor. In pairs, sums may
        /// leave an i16 on their way; their end is right: 8 * 32 * 127 = 32512.
        inline fn centred(t: *[rows][n]F, w: [*]const u8, x: Rows, comptime part: usize) void {
            const runs = comptime lanes.runs(dtype, part);
            var all: [2][rows][n]I = @splat(@splat(@splat(@splat(0))));
            inline for (0..2) |half| {
                var e: [2]Exact = .{ started(x, runs[0], half), started(x, runs[1], half) };
                inline for (4 * half..4 * half + 4) |g| {
                    ask(w, part * 8 + g, 32);
                    inline for (0..n) |v| {
                        const q = halves(w, part, g, v);
                        inline for (runs, 0..) |run, k| meet(&e[k], q[k], x, run, g, v);
                    }
                }
                inline for (runs, 0..) |run, k| inline for (0..n) |v| {
                    const by = lanes.factor16(w, 2 * run + half, first + v);
                    inline for (0..rows) |i| all[k][i][v] +%= int8.times(e[k][i][v], by);
                };
            }
            addRuns(t, x, runs, &all);
        }
        inline fn addRuns(
            t: *[rows][n]F,
            x: Rows,
            comptime runs: [2]usize,
            all: *const [2][rows][n]I,
        ) void {
            inline for (runs, 0..) |run, k| inline for (0..n) |v| inline for (0..rows) |i| {
                const sum = int8.floats(all[k][i][v]);
                t[i][v] = simd.mulAdd(sum, x.scale(rows, run, i), t[i][v]);
            };
        }
    };
}

/// What n neighbouring blocks add to the sums of a panel.
fn add(
    comptime dtype: DType,
    comptime rows: usize,
    n: usize,
    w: [*]const u8,
    x: Rows,
    c: [*]f32,
) void {
    @setEvalBranchQuota(100_000);
    // With one row, all vectors of a panel share what is loaded of x.
    const beside = if (rows == 1) V else 1;
    const is_long = comptime block.columns(dtype) == block.long;
    const one = comptime block_panel.groupBytes(dtype);
    inline for (0..V / beside) |group| {
        var s: Panel(dtype, rows, group * beside, beside) = .load(c);
        if (is_long) s.long(w, x) else for (0..n) |b|
            s.short(w + b * one, x.from(.bytes, rows, b));
        s.store(c);
    }
}

fn panels(
    comptime dtype: DType,
    comptime rows: usize,
    K: usize,
    w: [*]const u8,
    distance: usize,
    n_panels: usize,
    x: Rows,
    c: [*]f32,
) void {
    const columns = comptime block.columns(dtype);
    const one = comptime block_panel.groupBytes(dtype);
    const blocks = K / columns;
    const step = slice / columns;
    @memset(c[0 .. n_panels * rows * width], 0);
    var b: usize = 0;
    while (b < blocks) : (b += step) for (0..n_panels) |p| {
        const n = @min(step, blocks - b);
        const from = x.from(.bytes, rows, b * (columns / int8.columns));
        add(dtype, rows, n, w + p * distance + b * one, from, c + p * rows * width);
    };
}

/// Sums of `n_panels` (1 to `streams`) panels `distance` bytes apart for `rows` (1 to `max_rows`)
/// rows, which are one tile of x. Row i of panel p is left at c + (p * rows + i) * 16.
pub fn multiply(
    dtype: DType,
    K: usize,
    rows: usize,
    w: [*]const u8,
    distance: usize,
    n_panels: usize,
    x: Rows,
    c: [*]f32,
) void {
    switch (dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |t| switch (rows) {
            inline 1...max_rows => |r| panels(t, r, K, w, distance, n_panels, x, c),
            else => unreachable,
        },
        else => unreachable,
    }
}
