//! Small matrix products held in registers: the inner loop of the scan and of attention. A tile is
//! `rows` x `vecs` vectors of sums; step k multiplies one number of each row of A with `vecs`
//! vectors of row k of B. Every sum runs over k upwards in one accumulator, so that a result never
//! depends on how rows were grouped into tiles.
//!
//! Ideas: 6 x 2 vectors are 12 sums + 2 of B + 1 broadcast = 15 of AVX2's 16 registers; 8 x 2 of
//! AVX512's 32 divide 64 and 128 without a rest. Rests of rows take a tile of their own height.

const simd = @import("simd.zig");
const F = simd.F;
const L = simd.L;

/// Rows of the largest tile, and its vectors across.
pub const rows_max = if (simd.has_avx512) 8 else if (simd.has_fma) 6 else 3;
pub const vecs = 2;
/// Floats across a tile: the width of a panel of a padded operand.
pub const width = vecs * L;

/// The left operand: element (row r, step k) lies at p[r * row + k * step].
pub const Left = struct {
    p: [*]const f32,
    row: usize,
    step: usize,
};

/// A left operand of any number of rows, tile after tile, each with its rows side by side: what a
/// step reads lies together, and the offsets are known to the compiler.
pub const Tiles = struct {
    p: [*]f32,
    /// Numbers of a row
    steps: usize,

    pub fn floats(rows: usize, steps: usize) usize {
        return (rows + rows_max - 1) / rows_max * rows_max * steps;
    }
    pub fn set(t: Tiles, row: usize, from: [*]const f32, scale: f32) void {
        const to = t.p + row / rows_max * rows_max * t.steps + row % rows_max;
        for (0..t.steps) |k| to[k * rows_max] = from[k] * scale;
    }
    /// Rows from `row` on, which starts a tile.
    pub inline fn left(t: Tiles, row: usize) Left {
        return .{ .p = t.p + row * t.steps, .row = 1, .step = rows_max };
    }
};

/// Bytes that will be wanted soon: those k * step further are asked for in step k.
pub const Ahead = struct {
    p: [*]const u8,
    step: usize,
};

/// The right operand: vector v of step k starts at p[k * step + v * vec].
pub const Right = struct {
    p: [*]const f32,
    step: usize,
    vec: usize = L,
    ahead: ?Ahead = null,

    inline fn load(b: Right, k: usize, v: usize) F {
        return simd.ldF(b.p + k * b.step + v * b.vec);
    }
};

pub fn Sums(comptime rows: usize, comptime n_vecs: usize) type {
    return [rows][n_vecs]F;
}

/// sums[r][v] += sum over k < n of a(r, k) * b(k, v)
pub inline fn mulAdd(
    comptime rows: usize,
    comptime n_vecs: usize,
    sums: *Sums(rows, n_vecs),
    n: usize,
    a: Left,
    b: Right,
) void {
    @setEvalBranchQuota(100_000);
    for (0..n) |k| {
        if (b.ahead) |ahead| @prefetch(ahead.p + k * ahead.step, .{ .locality = 2 });
        var w: [n_vecs]F = undefined;
        inline for (0..n_vecs) |v| w[v] = b.load(k, v);
        inline for (0..rows) |r| {
            const x = simd.splat(a.p[r * a.row + k * a.step]);
            inline for (0..n_vecs) |v| sums[r][v] = simd.mulAdd(x, w[v], sums[r][v]);
        }
    }
}

/// As `mulAdd`, where row r has counts[r] steps (not falling from row to row): a step that a row
/// does not have is not even multiplied by zero, so that what lies there may be NaN.
pub inline fn mulAddRagged(
    comptime rows: usize,
    comptime n_vecs: usize,
    sums: *Sums(rows, n_vecs),
    counts: [rows]usize,
    a: Left,
    b: Right,
) void {
    @setEvalBranchQuota(100_000);
    const common = counts[0];
    mulAdd(rows, n_vecs, sums, common, a, b);
    if (counts[rows - 1] == common) return;
    inline for (1..rows) |r| for (common..counts[r]) |k| {
        const x = simd.splat(a.p[r * a.row + k * a.step]);
        inline for (0..n_vecs) |v| sums[r][v] = simd.mulAdd(x, b.load(k, v), sums[r][v]);
    };
}
