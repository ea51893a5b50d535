//! Few rows times weights in blocks: every byte of the weights is read once, in four streams, and
//! meets int8 activations right away. 16 output features fill the lanes; 4 columns of each meet in
//! one multiply-add of bytes.
//!
//! Sums of one run of columns are exact integers, so only the order of runs matters: upwards, but
//! for q6_k (`linear_blocks` gives it). With one row it reads 0.56 to 1.06 bytes a weight and does
//! two operations.
//!
//! One row meets four panels block by block, so that what is loaded of x serves all four, sums stay
//! in registers over all of K, and every load of the loop goes on by one step: the CPU's own
//! prefetchers then run ahead of all four streams, and `blocks_stream` goes on from unit to unit.
//! (With one panel for 256 columns and then the next, lines asked for 4 KiB ahead held the few line
//! buffers that loads needed: time for memory and time for arithmetic added up.) Some types ask for
//! lines 1 KiB ahead all the same (`asks`).
//!
//! Reached on two cores of an AMD EPYC (Zen 4), 27 November 2026, one row, all products of the 1.2
//! B shape in turns with the better of two ways to read the same bytes, before and now: 0.75 and
//! 1.0 (q8_0), 0.67 and 0.95 (q4_0), 0.69 and 0.96 (q4_k), 0.62 and 0.96 (q6_k); q5_k 0.99. Both
//! cores with their weights in L2 go through 170 GB/s of q8_0, 160 of q4_0, 140 of q4_k, 95 of q5_k
//! and 125 of q6_k.

const std = @import("std");
const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const int8 = @import("int8.zig");
const lanes = @import("block_lanes.zig");
const rows_file = @import("blocks_rows.zig");
const simd = @import("simd.zig");
const turns = @import("blocks_turns.zig");
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
/// into L2. Panels that are walked through together come to the prefetchers as streams anyway; one
/// that is left for another every few steps does not.
fn aheadOf(across: usize) usize {
    return if (across == streams) 1024 else 4096;
}
/// Whether it asks at all. Four panels side by side are streams to the CPU itself, and where a
/// step has many instructions (q4_k, q6_k) asking costs more than it brings: without, their
/// products of one row go 0 and 2 to 4 % faster. Those of q5_k would go 1 % slower, of q8_0 3 %, of
/// q4_0 15 % in wide matrices and 1 to 5 % in others. On AVX2 q8_0 and q4_0 are as fast without or
/// (q4_0, 512 bytes ahead) faster by a fifth.
fn asks(comptime dtype: DType, comptime across: usize) bool {
    if (!simd.has_avx512) return across == 1;
    return across != streams or (dtype != .q4_k and dtype != .q6_k);
}
/// Panels that share what is loaded of x: as many as have their sums in registers, of which AVX2
/// has 16. There four panels of one row's blocks of 256 columns go to `blocks_turns`.
pub fn acrossOf(rows: usize) usize {
    if (simd.has_avx512) return if (rows == 1) 4 else if (rows == 2) 2 else 1;
    return if (simd.has_avx2 and rows == 1) 4 else 1;
}

/// Sums of `across` panels `apart` bytes from one another for all rows: vectors [first, first + n)
/// of each. What is loaded of x serves all of them.
fn Panels(
    comptime dtype: DType,
    comptime rows: usize,
    comptime across: usize,
    comptime first: usize,
    comptime n: usize,
) type {
    return struct {
        sums: [rows][all]F,

        const Self = @This();
        const all = across * n;
        const Exact = [rows][all]Sums;
        const Whole = [rows][all]I;
        const none: Exact = @splat(@splat(int8.no_sums));

        /// Where the blocks lie of which the j-th vector is.
        inline fn of(w: [*]const u8, apart: usize, j: usize) [*]const u8 {
            return w + j / n * apart;
        }
        inline fn vector(j: usize) usize {
            return first + j % n;
        }
        inline fn place(c: [*]f32, i: usize, j: usize) [*]f32 {
            return c + (j / n * rows + i) * width + vector(j) * L;
        }
        /// Sums of what lies before, or of nothing.
        inline fn begun(c: [*]f32, fresh: bool) Self {
            var s: Self = .{ .sums = @splat(@splat(simd.zero)) };
            if (fresh) return s;
            inline for (0..rows) |i| inline for (0..all) |j| {
                s.sums[i][j] = simd.ldF(place(c, i, j));
            };
            return s;
        }
        inline fn store(s: *const Self, c: [*]f32) void {
            inline for (0..rows) |i| inline for (0..all) |j|
                simd.st(place(c, i, j), s.sums[i][j]);
        }
        /// Asks for what is due of the j-th vector's panel at one of `steps` steps through a block.
        inline fn ask(
            w: [*]const u8,
            apart: usize,
            j: usize,
            comptime step: usize,
            comptime steps: usize,
        ) void {
            if (first > 0 or j % n > 0 or comptime !asks(dtype, across)) return;
            const lines = comptime (block_panel.groupBytes(dtype) + 63) / 64;
            inline for (step * lines / steps..(step + 1) * lines / steps) |line|
                @prefetch(of(w, apart, j) + aheadOf(across) + line * 64, .{ .locality = 2 });
        }
        inline fn started(x: Rows, run: usize, half: usize) Exact {
            var e: Exact = undefined;
            inline for (0..rows) |i| e[i] = @splat(x.start(rows, run, half, i));
            return e;
        }
        inline fn meet(e: *Exact, q: int8.Bytes, x: Rows, run: usize, g: usize, j: usize) void {
            inline for (0..rows) |i| e[i][j] = int8.addBytes(e[i][j], q, x.bytes(rows, run, g, i));
        }

        /// Adds d * s * (the integers of a block of 32 columns).
        inline fn short(s: *Self, w: [*]const u8, apart: usize, x: Rows) void {
            const exact: Whole = switch (dtype) {
                .q4_0 => nibbles(w, apart, x),
                .q8_0 => if (simd.has_vnni) lifted(w, apart, x) else signed(w, apart, x),
                else => @compileError("no short blocks"),
            };
            inline for (0..all) |j| {
                const d = lanes.half(dtype, "d", of(w, apart, j), vector(j));
                inline for (0..rows) |i| {
                    const by = d * x.scale(rows, 0, i);
                    s.sums[i][j] = simd.mulAdd(int8.floats(exact[i][j]), by, s.sums[i][j]);
                }
            }
        }
        inline fn lifted(w: [*]const u8, apart: usize, x: Rows) Whole {
            var e = started(x, 0, 0);
            inline for (0..8) |g| inline for (0..all) |j| {
                ask(w, apart, j, g, 8);
                meet(&e, lanes.lifted(of(w, apart, j), g, vector(j)), x, 0, g, j);
            };
            return e;
        }
        inline fn signed(w: [*]const u8, apart: usize, x: Rows) Whole {
            var e: Whole = @splat(@splat(@splat(0)));
            inline for (0..8) |g| inline for (0..all) |j| {
                const q = lanes.whole(of(w, apart, j), g, vector(j));
                const size: int8.Bytes = @bitCast(@abs(q));
                inline for (0..rows) |i| {
                    const a = int8.withSign(x.bytes(rows, 0, g, i), q);
                    e[i][j] +%= int8.addPairs16(int8.addPairs8(size, a), int8.ones());
                }
            };
            return e;
        }
        inline fn nibbles(w: [*]const u8, apart: usize, x: Rows) Whole {
            var e: [2]Exact = .{ started(x, 0, 0), none };
            inline for (0..4) |g| inline for (0..all) |j| {
                ask(w, apart, j, g, 4);
                const q = halves(w, apart, 0, g, j);
                inline for (0..2) |k| meet(&e[if (raises) k else 0], q[k], x, 0, g + 4 * k, j);
            };
            var exact: Whole = undefined;
            inline for (0..rows) |i| inline for (0..all) |j| {
                exact[i][j] = int8.whole(e[0][i][j]);
                if (raises) exact[i][j] +%= lower(e[1][i][j]);
            };
            return exact;
        }

        /// Whether the second halves of words stay where they lie, 16 times too large.
        const raises = simd.has_vnni and (dtype == .q4_0 or dtype == .q4_k);
        inline fn lower(e: Sums) Sums {
            return if (raises) e >> @splat(4) else e;
        }
        inline fn halves(
            w: [*]const u8,
            apart: usize,
            comptime part: usize,
            comptime g: usize,
            j: usize,
        ) [2]int8.Bytes {
            const from = if (raises) lanes.raised else lanes.pair;
            return from(dtype, of(w, apart, j), part, g, vector(j));
        }

        /// Adds the sums of a block of 256 columns.
        inline fn long(s: *Self, w: [*]const u8, apart: usize, x: Rows) void {
            var t: [rows][all]F = @splat(@splat(simd.zero));
            if (dtype == .q6_k) {
                inline for (0..comptime lanes.parts(dtype)) |part| centred(&t, w, apart, x, part);
            } else {
                var finer: [across]lanes.Finer = undefined;
                inline for (&finer, 0..) |*f, p| f.unpack(dtype, w + p * apart);
                s.minima(w, apart, x, &finer);
                inline for (0..comptime lanes.parts(dtype)) |part|
                    both(&t, w, apart, x, part, &finer);
            }
            inline for (0..all) |j| {
                const d = lanes.half(dtype, "d", of(w, apart, j), vector(j));
                inline for (0..rows) |i| s.sums[i][j] = simd.mulAdd(d, t[i][j], s.sums[i][j]);
            }
        }
        inline fn minima(
            s: *Self,
            w: [*]const u8,
            apart: usize,
            x: Rows,
            finer: *const [across]lanes.Finer,
        ) void {
            var u: Whole = undefined;
            inline for (0..rows) |i| u[i] = @splat(x.minima(rows, 0, i));
            inline for (0..4) |pair| inline for (0..all) |j| {
                const min = finer[j / n].minima(pair, vector(j));
                inline for (0..rows) |i|
                    u[i][j] = int8.addPairs(u[i][j], min, x.pair(rows, pair, i));
            };
            inline for (0..all) |j| {
                const d = -lanes.half(dtype, "dmin", of(w, apart, j), vector(j));
                inline for (0..rows) |i| {
                    const sum = int8.beyond(u[i][j], x.minima(rows, 0, i));
                    s.sums[i][j] = simd.mulAdd(d, sum, s.sums[i][j]);
                }
            }
        }
        /// The two runs of a part of q4_k or q5_k. In pairs, 8 * 2 * 15 * 127 = 30480 and
        /// 4 * 2 * 31 * 127 = 31496 fit an i16.
        inline fn both(
            t: *[rows][all]F,
            w: [*]const u8,
            apart: usize,
            x: Rows,
            comptime part: usize,
            finer: *const [across]lanes.Finer,
        ) void {
            const cut = if (dtype == .q5_k and !simd.has_vnni) 4 else 8;
            const runs = comptime lanes.runs(dtype, part);
            var exact: [2]Whole = @splat(@splat(@splat(@splat(0))));
            inline for (0..8 / cut) |h| {
                var e: [2]Exact = .{ none, none };
                inline for (h * cut..(h + 1) * cut) |g| inline for (0..all) |j| {
                    ask(w, apart, j, part * 8 + g, 32);
                    const q = halves(w, apart, part, g, j);
                    inline for (runs, 0..) |run, k| meet(&e[k], q[k], x, run, g, j);
                };
                inline for (runs, 0..) |run, k| inline for (0..all) |j| {
                    const by = finer[j / n].factor(run, vector(j));
                    inline for (0..rows) |i| {
                        const sum = if (k == 0) e[k][i][j] else lower(e[k][i][j]);
                        exact[k][i][j] +%= int8.times(sum, by);
                    }
                };
            }
            addRuns(t, x, runs, &exact);
        }
        /// The two runs of a part of q6_k, of which each half has its factor. In pairs, sums may
        /// leave an i16 on their way; their end is right: 8 * 32 * 127 = 32512.
        inline fn centred(
            t: *[rows][all]F,
            w: [*]const u8,
            apart: usize,
            x: Rows,
            comptime part: usize,
        ) void {
            const runs = comptime lanes.runs(dtype, part);
            var exact: [2]Whole = @splat(@splat(@splat(@splat(0))));
            inline for (0..2) |half| {
                var e: [2]Exact = .{ started(x, runs[0], half), started(x, runs[1], half) };
                inline for (4 * half..4 * half + 4) |g| inline for (0..all) |j| {
                    ask(w, apart, j, part * 8 + g, 32);
                    const q = halves(w, apart, part, g, j);
                    inline for (runs, 0..) |run, k| meet(&e[k], q[k], x, run, g, j);
                };
                inline for (runs, 0..) |run, k| inline for (0..all) |j| {
                    const by = lanes.factor16(of(w, apart, j), 2 * run + half, vector(j));
                    inline for (0..rows) |i| exact[k][i][j] +%= int8.times(e[k][i][j], by);
                };
            }
            addRuns(t, x, runs, &exact);
        }
        inline fn addRuns(
            t: *[rows][all]F,
            x: Rows,
            comptime runs: [2]usize,
            exact: *const [2]Whole,
        ) void {
            inline for (runs, 0..) |run, k| inline for (0..all) |j| inline for (0..rows) |i| {
                const sum = int8.floats(exact[k][i][j]);
                t[i][j] = simd.mulAdd(sum, x.scale(rows, run, i), t[i][j]);
            };
        }
    };
}

/// What n neighbouring blocks of `across` panels add to their sums, which start here if `fresh`.
pub fn add(
    comptime dtype: DType,
    comptime rows: usize,
    comptime across: usize,
    n: usize,
    w: [*]const u8,
    apart: usize,
    x: Rows,
    c: [*]f32,
    fresh: bool,
) void {
    @setEvalBranchQuota(1_000_000);
    // Of four panels all blocks are walked through at once.
    if (rows == 1 and across == turns.streams and comptime turns.takes(dtype))
        return turns.add(dtype, n, w, apart, x, c);
    // With one row, all vectors of a panel share what is loaded of x.
    const beside = if (rows == 1) V else 1;
    const columns = comptime block.columns(dtype);
    const one = comptime block_panel.groupBytes(dtype);
    inline for (0..V / beside) |group| {
        var s: Panels(dtype, rows, across, group * beside, beside) = .begun(c, fresh);
        for (0..n) |b| {
            const part = x.from(.bytes, rows, b * (columns / int8.columns));
            if (columns == block.long)
                s.long(w + b * one, apart, part)
            else
                s.short(w + b * one, apart, part);
        }
        s.store(c);
    }
}

fn panels(
    comptime dtype: DType,
    comptime rows: usize,
    comptime across: usize,
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
    const step = if (n_panels == across) blocks else slice / columns;
    var b: usize = 0;
    while (b < blocks) : (b += step) {
        var p: usize = 0;
        while (p < n_panels) : (p += across) {
            const n = @min(step, blocks - b);
            const from = x.from(.bytes, rows, b * (columns / int8.columns));
            const at = w + p * distance + b * one;
            add(dtype, rows, across, n, at, distance, from, c + p * rows * width, b == 0);
        }
    }
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
            inline 1...max_rows => |r| {
                const most = comptime acrossOf(r);
                if (n_panels % most == 0) {
                    panels(t, r, most, K, w, distance, n_panels, x, c);
                } else panels(t, r, 1, K, w, distance, n_panels, x, c);
            },
            else => unreachable,
        },
        else => unreachable,
    }
}
