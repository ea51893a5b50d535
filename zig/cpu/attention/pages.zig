//! The paged cache of keys and values: where a position lies, and kv_append, which fills it.
//!
//! Contract: position p of a sequence lies in the p / 64-th page of its table. Within a page and
//! layer, K is (kv_heads, 4, head_dim, 16), keys across, and V is (kv_heads, 64, head_dim); in
//! 8-bit blocks `attention_q8` says how they lie. kv_append writes the run's tokens at positions
//! past_len + i, rounded to the pages' dtype, to nearest even.
//! Work: 8 bytes read and 2 to 8 written for each key and value number; microseconds a token.
//! Ideas: keys across make the scores of 16 keys one row of a matrix product without any sum over
//! lanes; a unit takes 16 positions of one head, so that K is written in whole vectors.

const std = @import("std");
const simd = @import("../simd.zig");
const kernel_zig = @import("../kernel.zig");
const command = @import("command");
const block_zig = @import("../block.zig");
const q8 = @import("q8.zig");
const Task = kernel_zig.Task;
const DType = command.DType;

pub const page_tokens = command.page_tokens;
/// Positions whose values are gathered by themselves.
pub const span_tokens = 16 * page_tokens;
/// Keys in one block of a K page.
pub const block = command.panel;

/// Element of key `pos` (within the page), channel d, in a head's part of a K page.
pub fn keyIndex(hd: usize, pos: usize, d: usize) usize {
    return (pos / block * hd + d) * block + pos % block;
}
/// One head's part of the K or V page of operand i that holds position pos: (64, hd) numbers.
pub fn headPage(t: *const Task, i: usize, seq: usize, pos: usize, kv_head: usize, hd: usize) [*]u8 {
    const bytes = page_tokens * block_zig.rowBytes(t.operands[i].dtype, hd);
    return t.page(i, seq, pos) + kv_head * bytes;
}
/// One head of a sequence's pages.
pub const Head = struct {
    t: *const Task,
    seq: usize,
    kv_head: usize,
    hd: usize,

    /// The head's part of operand i's page that holds position pos.
    pub fn page(h: Head, i: usize, pos: usize) [*]u8 {
        return headPage(h.t, i, h.seq, pos, h.kv_head, h.hd);
    }
};
/// The new tokens of a sequence.
pub fn tokenCount(t: *const Task, seq: usize) usize {
    return t.step.seq_start.?[seq + 1] - t.step.seq_start.?[seq];
}

inline fn put(comptime dtype: DType, p: [*]u8, i: usize, x: f32) void {
    switch (dtype) {
        .f32 => simd.st(p + i * 4, x),
        .bf16 => simd.st(p + i * 2, simd.f2b(x)),
        .f16 => simd.st(p + i * 2, simd.f2h(x)),
        else => unreachable,
    }
}

/// Blocks of 16 positions that a sequence's new tokens touch.
fn blocksOf(t: *const Task, seq: usize) usize {
    const tokens = tokenCount(t, seq);
    if (tokens == 0) return 0;
    return (t.step.past_len.?[seq] % block + tokens + block - 1) / block;
}

fn units(t: *const Task, _: u32) callconv(.c) u32 {
    var n: usize = 0;
    for (0..t.step.n_seqs) |seq| n += blocksOf(t, seq) * t.attrs[0];
    return @intCast(n);
}

fn run(t: *const Task, _: u32, begin: u32, end: u32, _: [*]u8) callconv(.c) void {
    const heads = t.attrs[0];
    var unit0: usize = 0;
    for (0..t.step.n_seqs) |seq| {
        const n = blocksOf(t, seq) * heads;
        defer unit0 += n;
        if (unit0 >= end) return;
        for (@max(begin, unit0)..@max(begin, @min(end, unit0 + n))) |unit|
            append(t, seq, (unit - unit0) / heads, (unit - unit0) % heads);
    }
}

/// The new positions of one block, for one head.
fn append(t: *const Task, seq: usize, index: usize, head: usize) void {
    const past: usize = t.step.past_len.?[seq];
    const first = @max(past, (past / block + index) * block);
    const last = @min(past + tokenCount(t, seq), (past / block + index + 1) * block);
    const hd = t.attrs[1];
    const row = t.step.seq_start.?[seq] + (first - past);
    const k = headPage(t, 2, seq, first, head, hd);
    const v = headPage(t, 3, seq, first, head, hd);
    const pos = first % page_tokens;
    switch (t.operands[2].dtype) {
        else => unreachable,
        inline .f32, .bf16, .f16 => |dtype| for (0..hd) |d| for (0..last - first) |i|
            put(dtype, k, keyIndex(hd, pos + i, d), t.row(0, row + i)[head * hd + d]),
        .q8_0 => for (0..last - first) |i|
            q8.putKey(k, hd, pos + i, t.row(0, row + i) + head * hd),
    }
    switch (t.operands[3].dtype) {
        else => unreachable,
        inline .f32, .bf16, .f16 => |dtype| for (0..last - first) |i| for (0..hd) |d|
            put(dtype, v, (pos + i) * hd + d, t.row(1, row + i)[head * hd + d]),
        .q8_0 => for (0..last - first) |i|
            q8.putValue(v, hd, pos + i, t.row(1, row + i) + head * hd),
    }
}

pub const kernel = kernel_zig.Kernel{ .units = units, .run = run };
