//! Hopper's products of some rows in e4m3 (kernels/linear_fp8_batch_sm90.cu) on the CPU: against
//! sums in f64, and the same bits whichever kernel and however many blocks. How its tensor cores
//! add is left to the card.

const std = @import("std");
const testing = std.testing;
const block = @import("../../cpu/block.zig");
const support = @import("support.zig");
const Map = support.Map;
const allocator = testing.allocator;
const value = support.value;

/// Rows in e4m3 with a scale each.
const Eights = struct {
    bytes: []align(2) u8,
    scales: []f32,

    fn make(rows: usize, cols: usize) !Eights {
        const e: Eights = .{
            .bytes = try allocator.alignedAlloc(u8, .@"2", rows * cols),
            .scales = try allocator.alloc(f32, rows),
        };
        // Below 2 in size, and no number twice as often as its neighbours.
        for (e.bytes) |*b| b.* = support.random.random().int(u8) & 0xbf;
        for (e.scales) |*s| s.* = 0.5 + support.random.random().float(f32);
        return e;
    }
    fn free(e: Eights) void {
        allocator.free(e.bytes);
        allocator.free(e.scales);
    }
    fn number(e: Eights, row: usize, col: usize) f64 {
        return block.eight(e.bytes[row * e.bytes.len / e.scales.len + col]);
    }
    fn map(e: Eights, box_rows: i32) Map {
        const cols: i64 = @intCast(e.bytes.len / e.scales.len);
        return .{
            .base = @ptrCast(e.bytes.ptr),
            .rows = @intCast(e.scales.len),
            .cols = cols,
            .stride = cols,
            .box_cols = 128,
            .box_rows = box_rows,
            .item = 1,
        };
    }
};

const Call = extern struct {
    x: Map,
    w: Map,
    of: support.BatchArgs,
    x_scale: [*]const f32,
    w_scale: [*]const f32,
    w2_scale: [*]const f32,
};

const Problem = struct {
    k: usize,
    x: Eights,
    w: Eights,
    w2: Eights,
    residual: []u16,

    fn make(m: usize, n: usize, k: usize) !Problem {
        return .{
            .k = k,
            .x = try .make(m, k),
            .w = try .make(n, k),
            .w2 = try .make(n, k),
            .residual = try support.matrix(m * n),
        };
    }
    fn free(p: Problem) void {
        for ([_]Eights{ p.x, p.w, p.w2 }) |of| of.free();
        allocator.free(p.residual);
    }
    fn check(p: Problem, out: []const u16, two: bool) !void {
        var off: support.Error = .{};
        const n = p.w.scales.len;
        for (p.x.scales, 0..) |of_token, i| for (0..n) |j| {
            var sums: [2]f64 = @splat(0);
            for (0..p.k) |e| {
                sums[0] += p.x.number(i, e) * p.w.number(j, e);
                sums[1] += p.x.number(i, e) * p.w2.number(j, e);
            }
            const one = sums[0] * of_token * p.w.scales[j];
            const want = if (two)
                support.silu(one) * sums[1] * of_token * p.w2.scales[j]
            else
                one + value(p.residual[i * n + j]);
            off.add(value(out[i * n + j]), want);
        };
        try off.expect(4e-3);
    }
    fn run(p: Problem, name: [*:0]const u8, tokens: usize, how: How) ![]u16 {
        const m, const n = .{ p.x.scales.len, p.w.scales.len };
        const out = try allocator.alloc(u16, m * n);
        errdefer allocator.free(out);
        @memset(out, 0xffff);
        const sums = try allocator.alloc(f32, how.blocks * 4 * 128 * tokens);
        defer allocator.free(sums);
        var w = (if (how.up_first) p.w2 else p.w).map(128);
        if (how.two) w.other = (if (how.up_first) p.w else p.w2).map(128).base;
        const call: Call = .{
            .x = p.x.map(@intCast(tokens)),
            .w = w,
            .of = .{
                .bias = null,
                .residual = if (how.two) null else p.residual.ptr,
                .out = out.ptr,
                .sums = sums.ptr,
                .m = @intCast(m),
                .n = @intCast(n),
                .k = @intCast(p.k),
                .residual_stride = @intCast(n),
                .out_stride = @intCast(n),
                .up_first = @intFromBool(how.up_first),
            },
            .x_scale = p.x.scales.ptr,
            .w_scale = p.w.scales.ptr,
            .w2_scale = p.w2.scales.ptr,
        };
        support.bamba_emulate_sm90(name, &call, @intCast(how.blocks), 1);
        return out;
    }
};
const How = struct { blocks: usize, two: bool = false, up_first: bool = false };

test "linear_fp8_batch_sm90: the same bits by any blocks and kernel, tokens in one tile or many" {
    for ([_]usize{ 1040, 144 }) |k| { // 144: some parts of k have no stage
        const p = try Problem.make(40, 264, k);
        defer p.free();
        const whole = try p.run("fp8_batch_64", 64, .{ .blocks = 1 });
        defer allocator.free(whole);
        try p.check(whole, false);
        // Five tiles of tokens, tiles of several blocks, and a part a block.
        const few = "fp8_batch_8";
        const names = [_][*:0]const u8{ few, few, "fp8_batch_64", "fp8_batch_128" };
        for (names, [_]usize{ 8, 8, 64, 128 }, [_]usize{ 7, 23, 5, 12 }) |name, of, blocks| {
            const out = try p.run(name, of, .{ .blocks = blocks });
            defer allocator.free(out);
            try testing.expectEqualSlices(u16, whole, out);
        }
    }
}

test "linear_fp8_batch_sm90: SwiGLU of two matrices, whichever lies first" {
    const p = try Problem.make(13, 136, 528);
    defer p.free();
    for ([_]bool{ false, true }) |up_first| for ([_]usize{ 3, 11 }) |blocks| {
        const how: How = .{ .blocks = blocks, .two = true, .up_first = up_first };
        const out = try p.run("fp8_batch_swiglu_16", 16, how);
        defer allocator.free(out);
        try p.check(out, true);
    };
}
