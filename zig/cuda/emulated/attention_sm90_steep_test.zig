//! Rows of Hopper's attention of prompts whose scores lie far above those of the block of keys they
//! stand in, which are done again, among rows that are not: near the sums, each with its own bits.

const std = @import("std");
const testing = std.testing;
const support = @import("support.zig");
const Attention = @import("attention_sm90_test.zig").Attention;
const Error = support.Error;
const allocator = testing.allocator;
const hd = support.hd;
const page = support.page;
const scale = support.scale;
const value = support.value;

/// Keys that steep queries see, and how far above others, in shares of what the query asks for. Two
/// of them weigh alike, so that both count. From 384 on a row finds three such blocks, each above
/// the one before.
const peaks = [_]struct { position: usize, channel: usize, height: f32 }{
    .{ .position = 5, .channel = 0, .height = 8 },
    .{ .position = 6, .channel = 0, .height = 8 },
    .{ .position = 140, .channel = 0, .height = 7 },
    .{ .position = 270, .channel = 0, .height = 6 },
};
/// Powers of two that a query's highest peak is above its other scores. The first stays below what
/// one maximum bears, the next is done again, sums of the others leave f32.
const steepness = [_]f32{ 55, 90, 140, 400 };

/// Packed sequences of `lens` tokens each after `past` others, of all heads.
const Prompts = struct {
    heads: usize,
    kv_heads: usize,
    lens: []const usize,
    past: []const usize,
    max_pages: usize,
    q: []u16,
    k: []u16,
    v: []u16,
    /// Of each query and head: which of `steepness`, or none.
    steep: []?usize,

    fn make(heads: usize, kv_heads: usize, lens: []const usize, past: []const usize) !Prompts {
        var rows: usize = 0;
        var max_pages: usize = 0;
        for (lens, past) |len, before| {
            rows += len;
            max_pages = @max(max_pages, (before + len + page - 1) / page);
        }
        const keys = lens.len * max_pages * kv_heads * page * hd;
        const p: Prompts = .{
            .heads = heads,
            .kv_heads = kv_heads,
            .lens = lens,
            .past = past,
            .max_pages = max_pages,
            .q = try support.matrix(rows * heads * hd),
            .k = try support.matrix(keys),
            .v = try support.matrix(keys),
            .steep = try allocator.alloc(?usize, rows * heads),
        };
        for (0..lens.len) |s| for (0..kv_heads) |kv| p.raise(s, kv);
        // Warps have steep rows and others, but for some heads, which have none.
        for (p.steep, 0..) |*steep, i| {
            const any = i % heads % 3 != 2 and support.random.random().uintLessThan(u8, 4) == 0;
            const which = support.random.random().uintLessThan(usize, steepness.len);
            p.ask(i, if (any) which else null);
            steep.* = if (any) which else null;
        }
        return p;
    }
    fn free(p: Prompts) void {
        for ([_][]u16{ p.q, p.k, p.v }) |of| allocator.free(of);
        allocator.free(p.steep);
    }
    /// Only peaks have something in the channel that steep queries ask for.
    fn raise(p: Prompts, s: usize, kv: usize) void {
        for (0..p.max_pages * page) |position| p.k[p.key(s, position, kv)] = 0;
        for (peaks) |peak| if (peak.position < p.max_pages * page) {
            p.k[p.key(s, peak.position, kv) + peak.channel] = support.bf16(peak.height);
        };
    }
    /// Query `i` of all rows and heads asks so steeply.
    fn ask(p: Prompts, i: usize, steep: ?usize) void {
        const powers = if (steep) |which| steepness[which] else 0;
        p.q[i * hd] = support.bf16(powers / (peaks[0].height * scale * std.math.log2e));
    }
    /// Pages lie in the order of sequences, the last page of each first.
    fn pageOf(p: Prompts, s: usize, index: usize) usize {
        return s * p.max_pages + p.max_pages - 1 - index;
    }
    fn key(p: Prompts, s: usize, position: usize, kv: usize) usize {
        return ((p.pageOf(s, position / page) * p.kv_heads + kv) * page + position % page) * hd;
    }
    /// Tokens `from` to `to` of each sequence (or as many as it has), on so many blocks at most,
    /// into their rows of `out`.
    fn attend(p: Prompts, from: usize, to: usize, blocks: usize, out: []u16) !void {
        const width = p.heads * hd;
        const n = p.lens.len;
        const pages = try allocator.alloc(u32, n * p.max_pages);
        defer allocator.free(pages);
        for (pages, 0..) |*at, i| at.* = @intCast(p.pageOf(i / p.max_pages, i % p.max_pages));
        const q = try allocator.alloc(u16, p.q.len);
        defer allocator.free(q);
        const results = try allocator.alloc(u16, p.q.len);
        defer allocator.free(results);
        var starts: [8]u32 = @splat(0);
        var past: [8]u32 = undefined;
        var row: usize = 0;
        var longest: usize = 0;
        for (p.lens, 0..) |len, s| {
            const first = @min(from, len);
            const size = @min(to, len) - first;
            const at = starts[s] * width;
            @memcpy(q[at..][0 .. size * width], p.q[(row + first) * width ..][0 .. size * width]);
            starts[s + 1] = starts[s] + @as(u32, @intCast(size));
            past[s] = @intCast(p.past[s] + first);
            longest = @max(longest, size);
            row += len;
        }
        const tiles = (longest + 127) / 128;
        const call: Attention = .{
            .q = .of(q, starts[n], width, 64),
            .k = .of(p.k, p.k.len / hd, hd, 64),
            .v = .of(p.v, p.v.len / hd, hd, 64),
            .out = results.ptr,
            .seq_start = &starts,
            .past_len = &past,
            .pages = pages.ptr,
            .heads = @intCast(p.heads),
            .kv_heads = @intCast(p.kv_heads),
            .out_stride = @intCast(width),
            .max_pages = @intCast(p.max_pages),
            .page_rows = @intCast(p.kv_heads * page),
            .tiles = @intCast(tiles),
            .seqs = @intCast(n),
        };
        const grid = @min(blocks, p.heads * tiles * n);
        support.bamba_emulate_sm90("attention_sm90_bf16", &call, @intCast(grid), 1);
        row = 0;
        for (p.lens, 0..) |len, s| {
            const size = (starts[s + 1] - starts[s]) * width;
            const first = @min(from, len);
            @memcpy(out[(row + first) * width ..][0..size], results[starts[s] * width ..][0..size]);
            row += len;
        }
    }
    fn want(p: Prompts, s: usize, position: usize, i: usize, out: *[hd]f64) !void {
        const kv = i % p.heads / (p.heads / p.kv_heads);
        const scores = try allocator.alloc(f64, position + 1);
        defer allocator.free(scores);
        var top = -std.math.inf(f64);
        for (scores, 0..) |*score, at| {
            var dot: f64 = 0;
            for (0..hd) |c| dot += value(p.q[i * hd + c]) * value(p.k[p.key(s, at, kv) + c]);
            score.* = dot * scale;
            top = @max(top, score.*);
        }
        var sum: f64 = 0;
        for (scores) |*score| {
            score.* = @exp(score.* - top);
            sum += score.*;
        }
        out.* = @splat(0);
        for (scores, 0..) |weight, at| for (out, 0..) |*o, c| {
            o.* += weight / sum * value(p.v[p.key(s, at, kv) + c]);
        };
    }
    /// Results near what they should be: of rows of each steepness, and of the others.
    fn check(p: Prompts, out: []const u16) !void {
        var off: [steepness.len + 1]Error = @splat(.{});
        var row: usize = 0;
        for (p.lens, p.past, 0..) |len, past, s| {
            for (0..len * p.heads) |of| {
                const i = row * p.heads + of;
                var wanted: [hd]f64 = undefined;
                try p.want(s, past + of / p.heads, i, &wanted);
                const e = &off[p.steep[i] orelse steepness.len];
                for (wanted, out[i * hd ..][0..hd]) |v, got| e.add(value(got), v);
            }
            row += len;
        }
        for (off) |e| if (e.all > 0) try e.expect(4e-3);
    }
    /// The same bits of those rows that `of` (steepness, or none) tells.
    fn same(p: Prompts, whole: []const u16, other: []const u16, of: []const ?usize) !void {
        for (p.steep, 0..) |steep, i| for (of) |which| if (steep == which)
            try testing.expectEqualSlices(u16, whole[i * hd ..][0..hd], other[i * hd ..][0..hd]);
    }
};

fn expectSteep(heads: usize, kv_heads: usize, lens: []const usize, past: []const usize) !void {
    const p = try Prompts.make(heads, kv_heads, lens, past);
    defer p.free();
    const whole = try allocator.alloc(u16, p.q.len);
    defer allocator.free(whole);
    const other = try allocator.alloc(u16, p.q.len);
    defer allocator.free(other);
    try p.attend(0, 1000, 3, whole);
    try p.check(whole);

    // Cut in two at an ugly place, and on many blocks.
    try p.attend(0, 37, 100, other);
    try p.attend(37, 1000, 2, other);
    try testing.expectEqualSlices(u16, whole, other);

    // Others that are calm, or NaN: a row keeps its bits, whether it is done again or not.
    for (p.steep, 0..) |steep, i| {
        if (steep == 1) p.ask(i, null);
        if (steep == 3) p.q[i * hd] = 0x7fc0;
    }
    try p.attend(0, 1000, 2, other);
    try p.same(whole, other, &.{ null, 0, 2 });
    for (p.steep, 0..) |steep, i| if (steep == 3)
        for (other[i * hd ..][0..hd]) |bits| try testing.expect(std.math.isNan(value(bits)));
}

test "attention_sm90: steep rows are done again, alone" {
    try expectSteep(4, 4, &.{ 131, 0, 2, 70 }, &.{ 0, 5, 390, 130 });
    try expectSteep(32, 8, &.{45}, &.{100});
}
