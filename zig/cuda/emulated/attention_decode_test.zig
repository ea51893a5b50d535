//! Attention of one token a sequence run on the CPU: Hopper's kernel, that of every card, and the
//! launches that add up what both leave.

const std = @import("std");
const testing = std.testing;
const support = @import("support.zig");
const Map = support.Map;
const allocator = testing.allocator;
const hd = support.hd;
const page = support.page;

const Args = extern struct {
    q: [*]const u16,
    k_pages: [*]const u16,
    v_pages: [*]const u16,
    out: [*]u16,
    partial: [*]f32,
    past_len: [*]const u32,
    pages: [*]const u32,
    page_stride: i64,
    heads: i32,
    kv_heads: i32,
    q_stride: i32,
    out_stride: i32,
    max_pages: i32,
    max_splits: i32,
    scale: f32 = support.scale,
    seqs: i32,
};
const Call = extern struct { k: Map, v: Map, args: Args };
const Combine = extern struct {
    partial: [*]const f32,
    out: [*]u16,
    past_len: [*]const u32,
    heads: i32,
    kv_heads: i32,
    out_stride: i32,
    max_splits: i32,
    seqs: i32,
    scale: f32 = support.scale,
};
const record_floats = hd + 2;
const span_keys = 512;

/// Sequences of some lengths, whose pages lie in any order in one pool.
const Case = struct {
    lengths: []const u32, // of the past; one token more is there
    heads: usize,
    kv_heads: usize,
    max_pages: usize = 0,
    q: []u16 = &.{},
    k: []u16 = &.{},
    v: []u16 = &.{},
    pages: []u32 = &.{},

    fn stride(c: Case) usize {
        return c.kv_heads * page * hd + hd;
    }
    fn make(c: *Case) !void {
        var count: usize = 0;
        for (c.lengths) |past| {
            const own = past / page + 1;
            c.max_pages = @max(c.max_pages, own);
            count += own;
        }
        c.q = try support.matrix(c.lengths.len * c.heads * hd);
        c.k = try support.matrix(count * c.stride());
        c.v = try support.matrix(count * c.stride());
        c.pages = try allocator.alloc(u32, c.lengths.len * c.max_pages);
        @memset(c.pages, 0);
        const order = try allocator.alloc(u32, count);
        defer allocator.free(order);
        for (order, 0..) |*o, i| o.* = @intCast(i);
        support.random.random().shuffle(u32, order);
        var at: usize = 0;
        for (c.lengths, 0..) |past, s| for (0..past / page + 1) |i| {
            c.pages[s * c.max_pages + i] = order[at];
            at += 1;
        };
    }
    fn free(c: Case) void {
        for ([_][]u16{ c.q, c.k, c.v }) |of| allocator.free(of);
        allocator.free(c.pages);
    }
    /// By Hopper's kernel on so many blocks, or by the other one; then what it left by a kernel of
    /// its own, of spans by either.
    fn run(c: Case, blocks: ?usize, many: bool, out: []u16) !void {
        const spans = (c.max_pages * page + span_keys - 1) / span_keys;
        const groups = @min(spans, 16);
        const seqs = c.lengths.len;
        const items = groups * c.kv_heads * seqs;
        const splits_max = if (blocks == null) spans else 16;
        const partial = try allocator.alloc(f32, seqs * c.heads * splits_max * record_floats);
        defer allocator.free(partial);
        @memset(partial, std.math.nan(f32));
        const args: Args = .{
            .q = c.q.ptr,
            .k_pages = c.k.ptr,
            .v_pages = c.v.ptr,
            .out = out.ptr,
            .partial = partial.ptr,
            .past_len = c.lengths.ptr,
            .pages = c.pages.ptr,
            .page_stride = @intCast(c.stride()),
            .heads = @intCast(c.heads),
            .kv_heads = @intCast(c.kv_heads),
            .q_stride = @intCast(c.heads * hd),
            .out_stride = @intCast(c.heads * hd),
            .max_pages = @intCast(c.max_pages),
            .max_splits = @intCast(splits_max),
            .seqs = @intCast(seqs),
        };
        inline for (.{ 1, 4, 8 }) |group| if (c.heads / c.kv_heads == group) {
            const number = std.fmt.comptimePrint("{d}", .{group});
            if (blocks) |most| support.bamba_emulate_sm90(
                "attention_decode_sm90_" ++ number ++ "_bf16",
                &Call{
                    .k = .of(c.k, c.k.len / 64, 64, 128),
                    .v = .of(c.v, c.v.len / 64, 64, 128),
                    .args = args,
                },
                @intCast(@min(most, items)),
                1,
            ) else support.bamba_emulate(
                "attention_decode_" ++ number ++ "_bf16",
                &args,
                @intCast(splits_max),
                @intCast(c.kv_heads),
                @intCast(seqs),
                128,
            );
        };
        if (spans == 1) return;
        const every = many and blocks == null;
        const name = if (every)
            "attention_combine_many_bf16"
        else if (blocks == null) "attention_combine_bf16" else "attention_combine_groups_bf16";
        const warps = c.heads * seqs;
        const grid: [2]usize = if (every) .{ c.heads * 4, seqs } else .{ (warps + 7) / 8, 1 };
        support.bamba_emulate(name, &Combine{
            .partial = partial.ptr,
            .out = out.ptr,
            .past_len = c.lengths.ptr,
            .heads = @intCast(c.heads),
            .kv_heads = @intCast(c.kv_heads),
            .out_stride = @intCast(c.heads * hd),
            .max_splits = @intCast(splits_max),
            .seqs = @intCast(seqs),
        }, @intCast(grid[0]), @intCast(grid[1]), 1, 256);
    }
    fn want(c: Case, s: usize, head: usize, out: *[hd]f64) void {
        const kv = head / (c.heads / c.kv_heads);
        const q = c.q[(s * c.heads + head) * hd ..][0..hd];
        var sum: f64 = 0;
        out.* = @splat(0);
        for (0..c.lengths[s] + 1) |key| {
            const number = c.pages[s * c.max_pages + key / page];
            const at = number * c.stride() + (kv * page + key % page) * hd;
            var dot: f64 = 0;
            for (q, c.k[at..][0..hd]) |a, b| dot += support.value(a) * support.value(b);
            const weight = @exp(dot * support.scale);
            sum += weight;
            for (out, c.v[at..][0..hd]) |*o, v| o.* += weight * support.value(v);
        }
        for (out) |*o| o.* /= sum;
    }
};

test "attention of one token: near the sums, with the same bits on any grid and beside others" {
    const cases = [_]Case{
        .{ .lengths = &.{ 63, 0, 511, 512, 1100 }, .heads = 4, .kv_heads = 1 },
        .{ .lengths = &.{ 600, 64 }, .heads = 8, .kv_heads = 1 },
        .{ .lengths = &.{511}, .heads = 2, .kv_heads = 2 },
    };
    for (cases) |of| {
        var c = of;
        try c.make();
        defer c.free();
        const width = c.heads * hd;
        const outs = [2][]u16{
            try allocator.alloc(u16, c.lengths.len * width),
            try allocator.alloc(u16, c.lengths.len * width),
        };
        defer for (outs) |out| allocator.free(out);
        for ([_]?usize{ 1, null }) |blocks| {
            try c.run(blocks, false, outs[0]);
            var off: support.Error = .{};
            for (0..c.lengths.len) |s| for (0..c.heads) |head| {
                var wanted: [hd]f64 = undefined;
                c.want(s, head, &wanted);
                for (wanted, outs[0][s * width + head * hd ..][0..hd]) |v, got|
                    off.add(support.value(got), v);
            };
            try off.expect(3e-3);
            @memset(outs[1], 0xffff);
            try c.run(if (blocks == null) null else 7, true, outs[1]);
            try testing.expectEqualSlices(u16, outs[0], outs[1]);
        }
        const last = c.lengths.len - 1;
        var alone = c;
        alone.lengths = c.lengths[last..];
        alone.q = c.q[last * width ..];
        alone.pages = c.pages[last * c.max_pages ..];
        try c.run(1, false, outs[0]);
        try alone.run(3, false, outs[1]);
        try testing.expectEqualSlices(u16, outs[0][last * width ..], outs[1][0..width]);
    }
}
