//! How results are stored that the next operation reads: as usual, or past the caches.
//!
//! While the weights of a model pass through the caches, a line of results leaves them between two
//! uses, or lies in those of another core. Each store then waits for its line to come, some 30 to
//! 50 ns that overlap little where cores share no cache, and what is asked for ahead stands still
//! meanwhile. Stores past the caches need no line, and whoever reads comes to memory in streams.
//! Measured on two cores of an AMD EPYC (Zen 4, 27 November 2026) that share no L3 (memory gives 60
//! GB/s then, and 37 where they share one): products of one row with K 2048 in q4_0 went from 49.4
//! to 55.3 GB/s (asking for the lines beforehand: 49.7), the convolution of eight sequences from
//! 120 to 39 us (asking for the lines to write: 124).

const builtin = @import("builtin");
const simd = @import("simd.zig");

/// Past the caches only where whole vectors are aligned, as `simd.stPast` says.
pub const Way = enum { cached, past };

/// Bytes that leave nothing in a core's own cache when they pass; tests have both kinds.
const large_bytes = if (builtin.is_test) 4096 else 2 << 20;
/// Bytes of results that are too few to be worth a way through memory.
const few_bytes = if (builtin.is_test) 1024 else 32 << 10;

/// By the bytes of weights or states that pass between two uses of a line.
pub fn behind(bytes: usize) Way {
    return if (bytes >= large_bytes) .past else .cached;
}
/// By the bytes of the results themselves.
pub fn ofResults(bytes: usize) Way {
    return if (bytes >= few_bytes) .past else .cached;
}

/// Stores those of a vector's lanes that are left of a row.
pub inline fn store(way: Way, p: [*]f32, v: simd.F, left: usize) void {
    if (left < simd.L) return simd.stTail(p, v, left);
    if (way == .past) simd.stPast(p, v) else simd.st(p, v);
}
