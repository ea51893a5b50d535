//! Few rows times weights in blocks: every byte of the weights is read once, in four streams, and
//! meets int8 activations right away. 16 output features fill the lanes; 4 columns of each meet in
//! one multiply-add of bytes.
//!
//! Sums of one run of 32 columns are exact integers, so only the order of runs matters: upwards.

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
const V = lanes.V;
const width = command.panel;

/// Panels walked through at once.
pub const streams = 4;
pub const max_rows = 4;

/// What one block of columns adds to the sums of a panel.
fn add(
    comptime dtype: DType,
    comptime rows: usize,
    w: [*]const u8,
    x: Rows,
    run0: usize,
    c: [*]f32,
) void {
    @setEvalBranchQuota(100_000);
    // With one row, all vectors of a panel share what is loaded of x.
    const beside = if (rows == 1) V else 1;
    inline for (0..V / beside) |group| {
        var b: Part(dtype, rows, group * beside, beside) = .{ .w = w, .x = x, .run0 = run0 };
        b.load(c);
        switch (dtype) {
            .q8_0 => b.whole(),
            .q4_0 => b.nibbles(),
            .q4_k, .q5_k => inline for (0..comptime lanes.parts(dtype)) |part| b.pairs(part),
            .q6_k => inline for (0..2) |hundred| b.centred(hundred),
            else => @compileError("no blocks"),
        }
        b.store(c);
    }
}

/// Vectors [first, first + n) of a panel.
fn Part(
    comptime dtype: DType,
    comptime rows: usize,
    comptime first: usize,
    comptime n: usize,
) type {
    return struct {
        w: [*]const u8,
        x: Rows,
        run0: usize,
        sums: [rows][n]F = undefined,

        const Self = @This();

        inline fn load(b: *Self, c: [*]const f32) void {
            inline for (0..rows) |i| inline for (0..n) |v| {
                b.sums[i][v] = simd.ldF(c + i * width + (first + v) * L);
            };
        }
        inline fn store(b: *const Self, c: [*]f32) void {
            inline for (0..rows) |i| inline for (0..n) |v|
                simd.st(c + i * width + (first + v) * L, b.sums[i][v]);
        }
        /// Step number i of 32: asks for the share of the stream's next block that is due, and
        /// keeps the compiler from moving work across, which would spill what it loads.
        inline fn next(b: *const Self, comptime i: usize) void {
            const lines = comptime block_panel.groupBytes(dtype) / 64;
            if (first == 0) inline for (i * lines / 32..(i + 1) * lines / 32) |line|
                @prefetch(b.w + (lines + line) * 64, .{ .locality = 3 });
            asm volatile ("" ::: .{ .memory = true });
        }
        inline fn bytes(b: *const Self, n_run: usize, g: usize, i: usize) int8.Signed {
            return b.x.bytes(rows, b.run0 + n_run, g, i);
        }
        /// Adds d * s * (the integers of a run).
        inline fn scaled(b: *Self, n_run: usize, i: usize, v: usize, sum: I, d: F) void {
            const by = d * simd.splat(b.x.scale(rows, b.run0 + n_run, i));
            b.sums[i][v] = simd.mulAdd(int8.floats(sum), by, b.sums[i][v]);
        }
        inline fn withMin(
            b: *Self,
            n_run: usize,
            i: usize,
            v: usize,
            sum: I,
            by: lanes.ScaleMin,
        ) void {
            b.scaled(n_run, i, v, sum, by.scale);
            const total = simd.splat(b.x.total(rows, b.run0 + n_run, i));
            b.sums[i][v] = simd.mulAdd(-by.min, total, b.sums[i][v]);
        }

        /// q8_0: signed bytes.
        inline fn whole(b: *Self) void {
            var sums: [rows][n]I = @splat(@splat(@splat(0)));
            inline for (0..8) |g| inline for (0..n) |v| {
                const q = lanes.whole(b.w, g, first + v);
                const size: int8.Bytes = @bitCast(@abs(q));
                inline for (0..rows) |i| {
                    const a = int8.withSign(b.bytes(0, g, i), q);
                    sums[i][v] +%= int8.addPairs16(int8.addPairs8(size, a), int8.ones());
                }
            };
            inline for (0..n) |v| {
                const d = lanes.d(dtype, b.w, first + v);
                inline for (0..rows) |i| b.scaled(0, i, v, sums[i][v], d);
            }
        }
        /// q4_0: at most 8 * 2 * 15 * 127 = 30480 in each i16.
        inline fn nibbles(b: *Self) void {
            var h: [rows][n]int8.Shorts = @splat(@splat(@splat(0)));
            inline for (0..4) |g| inline for (0..n) |v| {
                const q = lanes.nibbles(b.w, g, first + v);
                inline for (0..2) |k| inline for (0..rows) |i| {
                    h[i][v] +%= int8.addPairs8(q[k], b.bytes(0, g + 4 * k, i));
                };
            };
            inline for (0..n) |v| {
                const by = lanes.scaleMin(dtype, b.w, 0, first + v);
                inline for (0..rows) |i|
                    b.withMin(0, i, v, int8.addPairs16(h[i][v], int8.ones()), by);
            }
        }
        /// q4_k as q4_0; of q5_k 4 * 2 * 31 * 127 = 31496 fits an i16, twice that does not.
        inline fn pairs(b: *Self, comptime part: usize) void {
            const cut = if (dtype == .q4_k) 8 else 4;
            const both = comptime lanes.runs(dtype, part);
            var sums: [2][rows][n]I = @splat(@splat(@splat(@splat(0))));
            inline for (0..8 / cut) |half| {
                var h: [2][rows][n]int8.Shorts = @splat(@splat(@splat(@splat(0))));
                inline for (half * cut..half * cut + cut) |g| {
                    b.next(part * 8 + g);
                    inline for (0..n) |v| {
                        const q = lanes.pair(dtype, b.w, part, g, first + v);
                        inline for (both, 0..) |n_run, k| inline for (0..rows) |i| {
                            h[k][i][v] +%= int8.addPairs8(q[k], b.bytes(n_run, g, i));
                        };
                    }
                }
                inline for (0..2) |k| inline for (0..rows) |i| inline for (0..n) |v| {
                    sums[k][i][v] +%= int8.addPairs16(h[k][i][v], int8.ones());
                };
            }
            inline for (both, 0..) |n_run, k| inline for (0..n) |v| {
                const by = lanes.scaleMin(dtype, b.w, n_run, first + v);
                inline for (0..rows) |i| b.withMin(n_run, i, v, sums[k][i][v], by);
            };
        }
        /// q6_k, 128 columns in two parts. What the numbers have too much, 32 times the sum of x,
        /// is where the sum starts. On the way it may leave an i16, whose end is right all the
        /// same: 8 * 32 * 127 = 32512.
        inline fn centred(b: *Self, comptime hundred: usize) void {
            var sums: [4][rows][n]I = undefined;
            inline for (0..2) |odd| inline for (0..2) |half| {
                const part = 2 * hundred + odd;
                const both = comptime lanes.runs(dtype, part);
                var h: [2][rows][n]int8.Shorts = undefined;
                inline for (both, 0..) |n_run, k| inline for (0..rows) |i| {
                    h[k][i] = @splat(b.x.start(rows, b.run0 + n_run, half, i));
                };
                inline for (4 * half..4 * half + 4) |g| {
                    b.next(part * 8 + g);
                    inline for (0..n) |v| {
                        const q = lanes.pair(dtype, b.w, part, g, first + v);
                        inline for (both, 0..) |n_run, k| inline for (0..rows) |i| {
                            h[k][i][v] +%= int8.addPairs8(q[k], b.bytes(n_run, g, i));
                        };
                    }
                }
                inline for (both, 0..) |n_run, k| inline for (0..n) |v| {
                    const by = lanes.scale16(b.w, 2 * n_run + half, first + v);
                    inline for (0..rows) |i| {
                        const sum = int8.addPairs16(h[k][i][v], by);
                        const to = &sums[n_run % 4][i][v];
                        to.* = if (half == 0) sum else to.* +% sum;
                    }
                };
            };
            inline for (0..4) |r| inline for (0..n) |v| {
                const d = lanes.d(dtype, b.w, first + v);
                inline for (0..rows) |i| b.scaled(4 * hundred + r, i, v, sums[r][i][v], d);
            };
        }
    };
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
    @memset(c[0 .. n_panels * rows * width], 0);
    for (0..K / columns) |b| for (0..n_panels) |p| {
        const at = w + p * distance + b * one;
        add(dtype, rows, at, x, b * (columns / int8.columns), c + p * rows * width);
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
