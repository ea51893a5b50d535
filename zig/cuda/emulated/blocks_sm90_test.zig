//! Hopper's products of many rows with weights in blocks (kernels/blocks_gemm_sm90.cu), run on the
//! CPU: by clusters that share a tile's k, and by blocks that meet in memory.

const std = @import("std");
const testing = std.testing;
const block = @import("../../cpu/block.zig");
const support = @import("support.zig");
const Error = support.Error;
const Map = support.Map;
const allocator = testing.allocator;
const bf16 = support.bf16;
const matrix = support.matrix;
const value = support.value;

const Call = extern struct {
    x: Map,
    w: [*]const u8,
    w2: ?[*]const u8,
    bias: ?[*]const f32 = null,
    residual: ?[*]const u16,
    out: [*]u16,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out_stride: i32,
    swiglu: i32,
    out_f32: i32 = 0,
    split: i32,
    sums: [*]f32,
};
const Problem = struct {
    m: usize,
    n: usize,
    k: usize,
    x: []const u16,
    values: [2][]const f32,
    panels: [2][]align(16) const u8,
    residual: []const u16,

    fn make(comptime d: block.DType, m: usize, n: usize, k: usize) !Problem {
        const w, const w_panels = try support.inBlocks(d, n, k);
        const w2, const w2_panels = try support.inBlocks(d, n, k);
        return .{
            .m = m,
            .n = n,
            .k = k,
            .x = try matrix(m * k),
            .values = .{ w, w2 },
            .panels = .{ w_panels, w2_panels },
            .residual = try matrix(m * n),
        };
    }
    fn free(p: Problem) void {
        allocator.free(p.x);
        allocator.free(p.residual);
        for (p.values, p.panels) |values, panels| {
            allocator.free(values);
            allocator.free(panels);
        }
    }
    /// With two matrices their SwiGLU, else the product beside the residual.
    fn check(p: Problem, out: []const u16, two: bool) !void {
        var off: Error = .{};
        for (0..p.m) |i| for (0..p.n) |j| {
            var sums: [2]f64 = @splat(0);
            for (0..p.k) |e| for (&sums, p.values) |*sum, w| {
                sum.* += value(p.x[i * p.k + e]) * value(bf16(w[j * p.k + e]));
            };
            const plain = sums[0] + value(p.residual[i * p.n + j]);
            off.add(value(out[i * p.n + j]), if (two) support.silu(sums[0]) * sums[1] else plain);
        };
        try off.expect(4e-3);
    }
};

/// By blocks of which `split` share a tile's k, or by clusters where that is 0.
fn multiply(p: Problem, name: [*:0]const u8, tokens: usize, split: usize, two: bool) ![]u16 {
    const out = try allocator.alloc(u16, p.m * p.n);
    errdefer allocator.free(out);
    @memset(out, 0xffff);
    const tiles = std.math.divCeil(usize, p.n, if (two) 64 else 128) catch unreachable;
    const sums = try allocator.alloc(f32, tiles * split * 128 * tokens);
    defer allocator.free(sums);
    const call: Call = .{
        .x = .of(p.x, p.m, p.k, @intCast(tokens)),
        .w = p.panels[0].ptr,
        .w2 = if (two) p.panels[1].ptr else null,
        .residual = if (two) null else p.residual.ptr,
        .out = out.ptr,
        .m = @intCast(p.m),
        .n = @intCast(p.n),
        .k = @intCast(p.k),
        .residual_stride = @intCast(p.n),
        .out_stride = @intCast(p.n),
        .swiglu = @intFromBool(two),
        .split = @intCast(split),
        .sums = sums.ptr,
    };
    const cluster: usize = if (split > 0 or tokens == 256) 1 else 4;
    const blocks = tiles * @max(split, cluster);
    support.bamba_emulate_sm90(name, &call, @intCast(blocks), @intCast(cluster));
    return out;
}

fn expect(p: Problem, name: [*:0]const u8, tokens: usize, split: usize, two: bool) ![]u16 {
    const out = try multiply(p, name, tokens, split, two);
    errdefer allocator.free(out);
    try p.check(out, two);
    return out;
}

test "blocks_gemm_sm90: near the sums in every kind of block, by clusters and by blocks that meet" {
    inline for (.{ .q8_0, .q4_k, .q6_k }) |d| {
        const p = try Problem.make(d, 13, 136, 768);
        defer p.free();
        const name = "blocks_gemm_16_" ++ @tagName(d);
        for ([_]usize{ 0, 2, 0 }, [_]bool{ false, false, true }) |split, two|
            allocator.free(try expect(p, name, 16, split, two));
    }
}

test "blocks_gemm_sm90: the same bits in tiles of every width up to 128, again and again" {
    const p = try Problem.make(.q4_k, 16, 136, 1024);
    defer p.free();
    const few = try expect(p, "blocks_gemm_16_q4_k", 16, 4, false);
    defer allocator.free(few);
    for (0..2) |_| {
        const more = try multiply(p, "blocks_gemm_64_q4_k", 64, 4, false);
        defer allocator.free(more);
        try testing.expectEqualSlices(u16, few, more);
    }
}

test "blocks_gemm_sm90: eight parts of tiles of 128 and of 256 rows" {
    const p = try Problem.make(.q8_0, 100, 40, 1280);
    defer p.free();
    allocator.free(try expect(p, "blocks_gemm_128_q8_0", 128, 8, false));
    const q = try Problem.make(.q6_k, 140, 40, 2048);
    defer q.free();
    allocator.free(try expect(q, "blocks_gemm_256_q6_k", 256, 8, false));
}
