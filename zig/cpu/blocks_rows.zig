//! Activations as int8 for the products with weights in blocks: every 32 columns of a row are
//! rounded to int8 with a scale of their own. Rows lie in tiles whose rows are side by side, as the
//! register tiles read them: numbers as [K/4][height] words of 4 bytes, or, for products of shorts,
//! as [K/32][16][height] pairs of i16; scales as [K/32][height], totals as [K/64][height] pairs,
//! starts as [K/32][2][height]. Each unit of rounding writes words of its own rows and runs only.

const std = @import("std");
const command = @import("command");
const int8 = @import("int8.zig");
const simd = @import("simd.zig");
const DType = command.DType;

/// How the numbers lie.
pub const Kind = enum { bytes, shorts };

/// By how much the unsigned numbers that meet x are larger than what they mean.
pub fn excess(dtype: DType) i32 {
    return switch (dtype) {
        .q8_0 => 128,
        .q4_0 => 8,
        .q6_k => 32,
        else => 0,
    };
}

/// A tile of rows.
pub const Rows = struct {
    q: [*]u32,
    scales: [*]f32,
    /// scale * (sum of the 32 numbers) for weights with minima: pairs of `int8.Totals.q`
    totals: [*]u32,
    /// What sums begin with so that an excess does not count: `int8.Block.start` of the first and
    /// of the last 16 columns of q6_k; the first of two is of all 32 columns of q8_0 and q4_0. For
    /// weights with minima the first of 16 is `int8.Totals.start` of 256 columns.
    starts: [*]u32,

    /// Bytes that `rows` rows of K columns need.
    pub fn space(rows: usize, K: usize) usize {
        return rows * (K * 2 + K / int8.columns * 16);
    }
    /// Rows [first, ..) of M rows of K columns in `memory`; `first` starts a tile.
    pub fn at(memory: [*]u8, M: usize, K: usize, first: usize) Rows {
        const runs = K / int8.columns;
        const numbers: [*]u32 = @ptrCast(@alignCast(memory));
        const scales = numbers + M * K / 2;
        return .{
            .q = numbers + first * K / 2,
            .scales = @ptrCast(scales + first * runs),
            .totals = scales + (M + first) * runs,
            .starts = scales + (2 * M + 2 * first) * runs,
        };
    }
    /// The tile's columns from run number n on.
    pub inline fn from(r: Rows, kind: Kind, h: usize, n: usize) Rows {
        const words: usize = if (kind == .bytes) 8 else 16;
        return .{
            .q = r.q + n * words * h,
            .scales = r.scales + n * h,
            .totals = r.totals + n / 2 * h,
            .starts = r.starts + 2 * n * h,
        };
    }

    /// The tile's rows from number i on.
    pub inline fn below(r: Rows, i: usize) Rows {
        return .{
            .q = r.q + i,
            .scales = r.scales + i,
            .totals = r.totals + i,
            .starts = r.starts + i,
        };
    }

    /// Columns 4 g to 4 g + 3 of a run of row i, in every lane.
    pub inline fn bytes(r: Rows, h: usize, n: usize, g: usize, i: usize) int8.Signed {
        return int8.splatBytes(r.q[(n * 8 + g) * h + i]);
    }
    pub inline fn scale(r: Rows, h: usize, n: usize, i: usize) simd.F {
        return simd.splat(r.scales[n * h + i]);
    }
    /// The totals of runs 2 n and 2 n + 1.
    pub inline fn pair(r: Rows, h: usize, n: usize, i: usize) int8.Shorts {
        return int8.splatShorts(r.totals[n * h + i]);
    }
    /// What sums of minima times totals begin with in the 256 columns from run n on.
    pub inline fn minima(r: Rows, h: usize, n: usize, i: usize) simd.I {
        return @bitCast(@as(simd.U, @splat(r.starts[2 * n * h + i])));
    }
    pub inline fn start(r: Rows, h: usize, n: usize, half: usize, i: usize) int8.Sums {
        return int8.started(r.starts[(2 * n + half) * h + i]);
    }

    fn setTotals(r: Rows, h: usize, i: usize, n: usize, totals: int8.Totals) void {
        r.starts[2 * n * h + i] = totals.start;
        const pairs: [4]u32 = @bitCast(totals.q);
        for (pairs, n / 2..) |two, run| r.totals[run * h + i] = two;
    }
    /// Fills runs [n0, n1) of row i of a tile of h rows, for weights of a type: whole blocks.
    pub fn fill(
        r: Rows,
        dtype: DType,
        kind: Kind,
        h: usize,
        i: usize,
        n0: usize,
        n1: usize,
        x: [*]const f32,
    ) void {
        const by = excess(dtype);
        const has_minima = dtype == .q4_k or dtype == .q5_k;
        var totals: [8]f32 = undefined;
        for (n0..n1) |n| {
            const b = int8.quantize(x + n * int8.columns);
            r.scales[n * h + i] = b.scale;
            const starts = r.starts + 2 * n * h + i;
            if (has_minima) {
                totals[n % 8] = b.total;
                if (n % 8 == 7) r.setTotals(h, i, n - 7, .of(&totals));
            } else if (dtype == .q6_k) {
                for (0..2) |half| starts[half * h] = b.start(half, by);
            } else starts[0] = b.startOfAll(by);
            const words: [8]u32 = @bitCast(b.q);
            if (kind == .bytes) {
                for (words, 0..) |word, g| r.q[(n * 8 + g) * h + i] = word;
            } else for (words, 0..) |word, g| {
                // Columns (0, 2) and (1, 3) of the four, as `blocks_gemm` unpacks weights.
                const four: @Vector(4, i16) = @as(@Vector(4, i8), @bitCast(word));
                r.q[(n * 16 + 2 * g) * h + i] = @bitCast([2]i16{ four[0], four[2] });
                r.q[(n * 16 + 2 * g + 1) * h + i] = @bitCast([2]i16{ four[1], four[3] });
            }
        }
    }
};
