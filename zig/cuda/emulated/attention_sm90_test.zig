//! Hopper's attention of prompts run on the CPU, as `linear_sm90_test.zig`.

const std = @import("std");
const testing = std.testing;
const support = @import("support.zig");
const Map = support.Map;
const Sequence = support.Sequence;
const allocator = testing.allocator;
const hd = support.hd;
const heads = support.heads;
const kv_heads = support.kv_heads;
const max_pages = support.max_pages;
const page_stride = support.page_stride;
const scale = support.scale;
const width = support.width;

/// Arguments of the kernel, behind its tensor maps.
pub const Attention = extern struct {
    q: Map,
    k: Map,
    v: Map,
    out: [*]u16,
    seq_start: [*]const u32,
    past_len: [*]const u32,
    pages: [*]const u32,
    heads: i32 = heads,
    kv_heads: i32 = kv_heads,
    out_stride: i32 = width,
    max_pages: i32 = max_pages,
    page_rows: i32 = page_stride / hd,
    scale: f32 = scale,
    tiles: i32,
    seqs: i32 = 2,
};
/// Attention of the tokens from `past` on, given as the second of two sequences, of which the first
/// has none, on so many blocks at most.
fn attend(s: Sequence, past: usize, blocks: usize, out: []u16) void {
    const length = s.tokens - past;
    const pages = Sequence.order ++ Sequence.order;
    const tiles = (length + 127) / 128;
    const call: Attention = .{
        .q = .of(s.q[past * width ..], length, width, 64),
        .k = .of(s.k, s.k.len / hd, hd, 64),
        .v = .of(s.v, s.v.len / hd, hd, 64),
        .out = out.ptr,
        .seq_start = &[_]u32{ 0, 0, @intCast(length) },
        .past_len = &[_]u32{ 5, @intCast(past) },
        .pages = &pages,
        .tiles = @intCast(tiles),
    };
    const grid = @min(blocks, heads * tiles * 2);
    support.bamba_emulate_sm90("attention_sm90_bf16", &call, @intCast(grid), 1);
}

test "attention_sm90: near the sums, with the same bits on any blocks and wherever it is cut" {
    for ([_]usize{ 1, 70, 193 }) |tokens| {
        const s = try Sequence.make(tokens);
        defer s.free();
        const whole = try allocator.alloc(u16, tokens * width);
        defer allocator.free(whole);
        attend(s, 0, 3, whole);
        try s.check(whole);
        const again = try allocator.alloc(u16, tokens * width);
        defer allocator.free(again);
        attend(s, 0, 100, again);
        try testing.expectEqualSlices(u16, whole, again);
        for ([_]usize{ 1, 64, 100 }) |past| if (past < tokens) {
            const part = again[past * width ..];
            @memset(part, 0xffff);
            attend(s, past, 2, part);
            try testing.expectEqualSlices(u16, whole[past * width ..], part);
        };
    }
}
