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
    const has_bias = t.has(BIAS);
    const has_residual = t.has(RESIDUAL);
    for (0..rows) |i| {
        const out = t.row(OUT, row + i) + first;
        var j: usize = 0;
        while (j < n) : (j += simd.L) {
            const left = n - j;
            var v = simd.ldF(c + i * c_row + j);
            if (has_bias) v += part(t.f32s(BIAS) + first + j, left);
            if (has_residual) v += part(t.row(RESIDUAL, row + i) + first + j, left);
            ways.store(way, out + j, v, left);
        }
    }
}
inline fn part(p: [*]const f32, left: usize) simd.F {
    return if (left >= simd.L) simd.ldF(p) else simd.ldTail(p, left);
}
