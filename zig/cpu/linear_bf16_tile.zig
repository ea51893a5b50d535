//! The register tiles of `linear_bf16` and the packing of their rows. A tile keeps rows x across
//! panels of sums in registers, 24 of 32 at most; each step takes one pair of k.

const std = @import("std");
const command = @import("command");
const simd = @import("simd.zig");
const ways = @import("way.zig");
const bf16 = @import("bf16.zig");
const F = simd.F;
const U = simd.U;
const L = simd.L;
const width = command.panel;

pub const rows_max = 12;
/// Panels across where there are many rows.
pub const across_many = 2;
const streams_max = 4;
const registers = 24;
/// How far ahead of itself packing asks for each row: rows are too many for a CPU to foresee all.
const ahead_floats = 256;
/// From so many rows on the instructions of a step fill the time in which the core looks ahead, so
/// that the few rows of one tile must ask for the weights that come.
const asking_rows = 4;

/// Panels that so many rows, of at most `rows_max`, meet at once.
pub fn streamsOf(rows: usize) usize {
    const most: usize = std.math.clamp(rows, 1, rows_max);
    return @min(streams_max, registers / most);
}

/// n pairs of one tile: c[rows][across][16] (+)= a * w. Pair k of row i is a[k * rows + i]; panel j
/// of the tile starts `distance * j` bytes behind w.
pub const TileFn = *const fn (
    n: usize,
    a: [*]const u32,
    w: [*]const u8,
    distance: usize,
    c: [*]f32,
    first: bool,
    ahead: Ahead,
) void;

/// Weights that will be wanted soon, asked for on the way: each step asks for the line `step` bytes
/// further. With few tiles a slice would otherwise be awaited by the first of them.
pub const Ahead = struct { p: [*]const u8, step: usize };

fn Tile(comptime rows: usize, comptime across: usize, comptime asks: bool) type {
    return struct {
        /// Few rows ask with the hint for L3, where their own prefetchers take over; many ask for a
        /// slice that all tiles will pass over, into L2.
        const place = if (across > across_many) 1 else 2;
        /// Steps of one panel before the next has its turn, where few rows ask: 256 bytes, as
        /// memory gives the most (8 rows of 7168 x 2048: 579 -> 570 us at 57 GB/s). Where a
        /// product of pairs is several instructions there is nothing to gain.
        const turn = if (simd.has_avx512bf16 and asks and across > across_many) 4 else 1;

        fn run(
            n: usize,
            a0: [*]const u32,
            w0: [*]const u8,
            distance: usize,
            c: [*]f32,
            first: bool,
            ahead: Ahead,
        ) void {
            var sums: [rows][across]F = undefined;
            inline for (0..rows) |i| inline for (0..across) |j| {
                sums[i][j] = if (first) simd.zero else simd.ldF(c + (i * across + j) * L);
            };
            var a = a0;
            var w = w0;
            var later = ahead.p;
            var k: usize = 0;
            while (turn > 1 and k + turn <= n) : (k += turn) {
                inline for (0..across) |j|
                    panelTurn(j, a, w + j * distance, later, distance, &sums);
                a += turn * rows;
                w += turn * width * 4;
                later += turn * ahead.step;
            }
            while (k < n) : (k += 1) {
                if (asks) {
                    inline for (0..across) |j|
                        @prefetch(later + j * distance, .{ .locality = place });
                    later += ahead.step;
                }
                var v: [across]U = undefined;
                inline for (0..across) |j| v[j] = simd.ld(U, w + j * distance);
                inline for (0..rows) |i| {
                    const x = bf16.splat(a[i]);
                    inline for (0..across) |j| sums[i][j] = bf16.dot(sums[i][j], v[j], x);
                }
                a += rows;
                w += width * 4;
            }
            inline for (0..rows) |i| inline for (0..across) |j|
                simd.st(c + (i * across + j) * L, sums[i][j]);
        }

        /// `turn` steps of panel j, which lies at w.
        inline fn panelTurn(
            comptime j: usize,
            a: [*]const u32,
            w: [*]const u8,
            later: [*]const u8,
            distance: usize,
            sums: *[rows][across]F,
        ) void {
            inline for (0..turn) |step| {
                const at = step * width * 4;
                @prefetch(later + j * distance + at, .{ .locality = place });
                const v = simd.ld(U, w + at);
                inline for (0..rows) |i|
                    sums[i][j] = bf16.dot(sums[i][j], v, bf16.splat(a[step * rows + i]));
            }
            // What is loaded of x is loaded again for the next panel: registers are short.
            asm volatile ("" ::: .{ .memory = true });
        }
    };
}

/// The tile of `rows` rows (1 to `rows_max`) and `across` panels (1 to `across_many`).
pub fn many(rows: usize, across: usize, asks: bool) TileFn {
    const table = comptime blk: {
        var t: [2][rows_max][across_many]TileFn = undefined;
        for (&t, [_]bool{ false, true }) |*of, b| for (0..rows_max) |r| for (0..across_many) |p| {
            of[r][p] = Tile(r + 1, p + 1, b).run;
        };
        break :blk t;
    };
    return table[@intFromBool(asks)][rows - 1][across - 1];
}

/// The tile for few rows and up to `streamsOf` panels.
pub fn streaming(rows: usize, across: usize) TileFn {
    const table = comptime blk: {
        var t: [rows_max][streams_max]TileFn = undefined;
        for (0..rows_max) |r| for (0..streamsOf(r + 1)) |p| {
            t[r][p] = Tile(r + 1, p + 1, r + 1 >= asking_rows).run;
        };
        break :blk t;
    };
    return table[rows - 1][across - 1];
}

/// Rows cut into tiles whose heights differ by at most one, so that no tile is left with a row or
/// two, which would wait for each multiply-add.
pub const Cut = struct {
    rows: usize,
    tiles: usize,

    pub fn init(rows: usize) Cut {
        return .{ .rows = rows, .tiles = (rows + rows_max - 1) / rows_max };
    }
    /// First row of a tile (or the end, for the tile behind the last).
    pub fn at(c: Cut, t: usize) usize {
        return t * (c.rows / c.tiles) + @min(t, c.rows % c.tiles);
    }
    pub fn height(c: Cut, t: usize) usize {
        return c.at(t + 1) - c.at(t);
    }
};

/// Rounds pairs [from, to) of rows [0, h) of x (K columns) and writes them to out[pair][h]; `from`
/// is a multiple of L. Behind an odd K comes a zero.
pub fn pack(
    h: usize,
    K: usize,
    x: [*]const f32,
    stride: usize,
    from: usize,
    to: usize,
    out: [*]u32,
) void {
    if (L < rows_max) unreachable; // has no dot of pairs
    switch (h) {
        1 => packOne(K, x, from, to, out),
        inline 2...rows_max => |rows| packSome(rows, K, x, stride, from, to, out),
        else => unreachable,
    }
}

fn packSome(
    comptime h: usize,
    K: usize,
    x: [*]const f32,
    stride: usize,
    from: usize,
    to: usize,
    out: [*]u32,
) void {
    const way = ways.ofResults(h * K * 2);
    const n = comptime std.math.ceilPowerOfTwoAssert(usize, h);
    var k = from;
    while (k < to) : (k += L) {
        var v: [n]U = @splat(@splat(0));
        inline for (v[0..h], 0..) |*pairs, i| {
            const at = x + i * stride + 2 * k;
            @prefetch(at + ahead_floats, .{ .locality = 2 });
            pairs.* = roundPairs(at, K - 2 * k);
        }
        shuffle(n, &v);
        const lanes = @min(L, to - k) * h;
        const at: [*]f32 = @ptrCast(out + k * h);
        inline for (0..h) |i| if (i * L < lanes)
            ways.store(way, at + i * L, @bitCast(together(h, n, &v, i)), lanes - i * L);
    }
}

/// The same of one row, whose pairs stay in their order.
fn packOne(K: usize, x: [*]const f32, from: usize, to: usize, out: [*]u32) void {
    var k = from;
    while (k < to) : (k += L) {
        const pairs: [L]u32 = roundPairs(x + 2 * k, K - 2 * k);
        if (k + L <= to) simd.st(out + k, pairs) else @memcpy(out[k..to], pairs[0 .. to - k]);
    }
}

/// L pairs from `left` numbers, at most 2 L of them, zeros behind.
inline fn roundPairs(x: [*]const f32, left: usize) U {
    var halves: [2]@Vector(L, u16) = undefined;
    inline for (&halves, 0..) |*half, j| {
        const from = j * L;
        half.* = bf16.round(if (left >= from + L)
            simd.ldF(x + from)
        else if (left > from)
            simd.ldTail(x + from, left - from)
        else
            simd.zero);
    }
    return @bitCast(halves);
}

/// Rows become columns, n to each: log2(n) perfect shuffles.
inline fn shuffle(comptime n: usize, v: *[n]U) void {
    const lower = comptime interleaved(0);
    const upper = comptime interleaved(L / 2);
    inline for (0..comptime std.math.log2_int(usize, n)) |_| {
        var next: [n]U = undefined;
        inline for (0..n / 2) |i| {
            next[2 * i] = @shuffle(u32, v[i], v[i + n / 2], lower);
            next[2 * i + 1] = @shuffle(u32, v[i], v[i + n / 2], upper);
        }
        v.* = next;
    }
}
/// Vector `index` of steps of h pairs, one after another, from steps that are n wide in v.
inline fn together(comptime h: usize, comptime n: usize, v: *const [n]U, comptime index: usize) U {
    const first = comptime source(h, n, index * L) / L;
    if (n == h) return v[first];
    var all = v[first];
    inline for (first..comptime source(h, n, index * L + L - 1) / L + 1) |from|
        all = @shuffle(u32, all, v[from], lanesFrom(h, n, index, first, from));
    return all;
}
/// Those lanes of `together` that v[from] has, the others as they are (or any, at first).
fn lanesFrom(h: usize, n: usize, index: usize, first: usize, from: usize) [L]i32 {
    @setEvalBranchQuota(10_000);
    var at: [L]i32 = undefined;
    for (&at, 0..) |*lane, i| {
        const of = source(h, n, index * L + i);
        const kept: i32 = if (from == first) 0 else @intCast(i);
        lane.* = if (of / L == from) ~@as(i32, @intCast(of % L)) else kept;
    }
    return at;
}
/// Where pair i of steps of h lies among steps of n.
fn source(h: usize, n: usize, i: usize) usize {
    return i / h * n + i % h;
}
fn interleaved(first: i32) [L]i32 {
    var at: [L]i32 = undefined;
    for (&at, 0..) |*lane, i| {
        const from = first + @as(i32, @intCast(i / 2));
        lane.* = if (i % 2 == 0) from else ~from;
    }
    return at;
}
