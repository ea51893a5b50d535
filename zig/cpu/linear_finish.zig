//! The end of every matrix product: sums of one panel become results. Where few rows meet a large
//! matrix they are stored past the caches (`way.zig`).

const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const ways = @import("way.zig");
const Task = kernel.Task;
const width = command.panel;

/// Operands of `linear`.
const WEIGHT = 1;
const BIAS = 2;
const RESIDUAL = 3;
const OUT = 4;

/// Adds bias and residual to the sums of one panel (row i at c + i * c_row) and writes them out.
pub fn finish(
    t: *const Task,
    row: usize,
    rows: usize,
    p: usize,
    c: [*]const f32,
    c_row: usize,
    way: ways.Way,
) void {
    const first = p * width;
    const n: usize = @min(width, t.operands[WEIGHT].shape[0] - first);
    const bias: ?[*]const f32 = if (t.has(BIAS)) t.f32s(BIAS) + first else null;
    const adds = t.has(RESIDUAL);
    for (0..rows) |i| {
        const sums = c + i * c_row;
        const out = t.row(OUT, row + i) + first;
        const residual: ?[*]const f32 = if (adds) t.row(RESIDUAL, row + i) + first else null;
        if (n == width) {
            inline for (0..width / simd.L) |j|
                store(way, out, sums, bias, residual, j * simd.L, simd.L);
        } else {
            var j: usize = 0;
            while (j < n) : (j += simd.L) store(way, out, sums, bias, residual, j, n - j);
        }
    }
}
/// (sum + bias) + residual of those of a vector's columns, from j on, that are left.
pub inline fn store(
    way: ways.Way,
    out: [*]f32,
    sums: [*]const f32,
    bias: ?[*]const f32,
    residual: ?[*]const f32,
    j: usize,
    left: usize,
) void {
    var v = simd.ldF(sums + j);
    if (bias) |from| v += part(from + j, left);
    if (residual) |from| v += part(from + j, left);
    ways.store(way, out + j, v, left);
}
inline fn part(p: [*]const f32, left: usize) simd.F {
    return if (left >= simd.L) simd.ldF(p) else simd.ldTail(p, left);
}
