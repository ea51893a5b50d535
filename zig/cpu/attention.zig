//! Attention over the paged cache on the CPU: kv_append, attention and attention_probs, their
//! scalar twins and their tests.

const std = @import("std");
const simd = @import("simd.zig");
const kernel_zig = @import("kernel.zig");
const pages = @import("attention/pages.zig");
const spans = @import("attention/spans.zig");
const probs = @import("attention/probs.zig");
const command = @import("command");
const bf16 = @import("attention/bf16.zig");
const bf16_ref = @import("attention/bf16_ref.zig");
const q8 = @import("attention/q8.zig");
const q8_ref = @import("attention/q8_ref.zig");
const Task = kernel_zig.Task;
const DType = command.DType;

pub const kernels = .{
    .kv_append = pages.kernel,
    .attention = spans.kernel,
    .attention_probs = probs.kernel,
};

fn get(dtype: DType, p: [*]const u8, i: usize) f32 {
    return switch (dtype) {
        .f32 => simd.get(.f32, p, i),
        .bf16 => simd.get(.bf16, p, i),
        .f16 => simd.get(.f16, p, i),
        else => unreachable,
    };
}
fn put(dtype: DType, p: [*]u8, i: usize, x: f32) void {
    switch (dtype) {
        .f32 => simd.st(p + i * 4, x),
        .bf16 => simd.st(p + i * 2, simd.f2b(x)),
        .f16 => simd.st(p + i * 2, simd.f2h(x)),
        else => unreachable,
    }
}

/// Number by number, straight from the layouts.
pub fn kv_append_ref(t: *const Task) void {
    const hd = t.attrs[1];
    for (0..t.step.n_seqs) |seq| {
        const start = t.step.seq_start.?[seq];
        for (start..t.step.seq_start.?[seq + 1]) |row| for (0..t.attrs[0] * hd) |c| {
            const pos = t.step.past_len.?[seq] + (row - start);
            const h = c / hd;
            const d = c % hd;
            const at = pos % 64;
            const k = ((h * 4 + at / 16) * hd + d) * 16 + at % 16;
            if (t.operands[2].dtype == .q8_0) {
                if (d > 0) continue;
                const head = h * 64 * hd / 32 * 34;
                q8.putKey(t.page(2, seq, pos) + head, hd, at, t.row(0, row) + c);
                q8.putValue(t.page(3, seq, pos) + head, hd, at, t.row(1, row) + c);
                continue;
            }
            put(t.operands[2].dtype, t.page(2, seq, pos), k, t.row(0, row)[c]);
            put(t.operands[3].dtype, t.page(3, seq, pos), (h * 64 + at) * hd + d, t.row(1, row)[c]);
        };
    }
}

/// The weights of one token and head, in f64; returns how many keys there are.
fn weights_ref(t: *const Task, row: usize, head: usize, w: []f64) usize {
    const hd = t.attrs[2];
    const kv_head = head / (t.attrs[0] / t.attrs[1]);
    const seq = t.step.seq_of_token.?[row];
    const n = t.step.past_len.?[seq] + (row - t.step.seq_start.?[seq]) + 1;
    var max: f64 = -std.math.inf(f64);
    for (w[0..n], 0..) |*x, pos| {
        x.* = 0;
        for (0..hd) |d| {
            const at = ((kv_head * 4 + pos % 64 / 16) * hd + d) * 16 + pos % 16;
            const q: f64 = t.row(0, row)[head * hd + d];
            const page = t.page(1, seq, pos);
            x.* += q * if (t.operands[1].dtype == .q8_0)
                q8.getKey(page + kv_head * 64 * hd / 32 * 34, hd, pos % 64, d)
            else
                get(t.operands[1].dtype, page, at);
        }
        x.* *= t.attrF(3);
        max = @max(max, x.*);
    }
    var sum: f64 = 0;
    for (w[0..n]) |*x| {
        x.* = @exp(x.* - max);
        sum += x.*;
    }
    for (w[0..n]) |*x| x.* /= sum;
    return n;
}

/// In the order of `attention_bf16` or `attention_q8_rows` where these take the pages, else
/// `attention_exact`.
pub fn attention_ref(t: *const Task) void {
    const dtype = t.operands[1].dtype;
    if (dtype == .q8_0) return q8_ref.attentionRef(t);
    const pairs = bf16.takes(dtype, t.attrs[1], t.attrs[2]);
    if (pairs) bf16_ref.attentionRef(t) else attention_exact(t);
}
/// Token by token and head by head, a plain softmax over all keys, in f64.
pub fn attention_exact(t: *const Task) void {
    const hd = t.attrs[2];
    var w: [8192]f64 = undefined;
    for (0..t.step.n_tokens) |row| for (0..t.attrs[0]) |head| {
        const kv_head = head / (t.attrs[0] / t.attrs[1]);
        const n = weights_ref(t, row, head, &w);
        const seq = t.step.seq_of_token.?[row];
        for (0..hd) |d| {
            var sum: f64 = 0;
            for (w[0..n], 0..) |x, pos| {
                const at = (kv_head * 64 + pos % 64) * hd + d;
                const page = t.page(2, seq, pos);
                sum += x * if (t.operands[2].dtype == .q8_0)
                    q8.getValue(page + kv_head * 64 * hd / 32 * 34, hd, pos % 64, d)
                else
                    get(t.operands[2].dtype, page, at);
            }
            t.row(3, row)[head * hd + d] = @floatCast(sum);
        }
    };
}

pub fn attention_probs_ref(t: *const Task) void {
    const max_keys = t.attrs[4];
    var w: [8192]f64 = undefined;
    for (0..t.step.n_tokens) |row| for (0..t.attrs[0]) |head| {
        const n = weights_ref(t, row, head, &w);
        for (0..max_keys) |key|
            t.row(2, row)[head * max_keys + key] = if (key < n) @floatCast(w[key]) else 0;
    };
}

test {
    _ = @import("attention/test.zig");
    _ = q8;
}
