//! The end of every matrix product: sums of one panel become results.
//!
//! Where few rows meet a large matrix, its bytes have passed through all caches since anybody
//! touched the lines of the results, so that each store would wait for its line to come from
//! memory, and what is asked for ahead stands still meanwhile. Stores past the caches need no line:
//! on two cores of an AMD EPYC (Zen 4, 27 November 2026, memory at 60 GB/s) products of one row
//! with K 2048 in q4_0 went from 49.4 to 55.3 GB/s (asking for the lines beforehand: 49.7).

const builtin = @import("builtin");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const Task = kernel.Task;
const width = command.panel;

/// How results are stored: as usual, or past the caches where they lie on whole vectors.
pub const Way = enum { cached, past };

/// Bytes of the smallest matrix that leaves nothing in a core's own cache; tests have both kinds.
const large_bytes = if (builtin.is_test) 4096 else 2 << 20;

/// How the results of few rows are stored, by the bytes of their matrix.
pub fn wayOf(matrix_bytes: usize) Way {
    return if (matrix_bytes >= large_bytes) .past else .cached;
}

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
    way: Way,
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
            if (left < simd.L) {
                simd.stTail(out + j, v, left);
            } else if (way == .past) simd.stPast(out + j, v) else simd.st(out + j, v);
        }
    }
}
inline fn part(p: [*]const f32, left: usize) simd.F {
    return if (left >= simd.L) simd.ldF(p) else simd.ldTail(p, left);
}
