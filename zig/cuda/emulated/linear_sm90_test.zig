//! Hopper's products run on the CPU by `wgmma.cuh` and `hopper.cuh`: against sums in f64, and for
//! the bits that `docs/contract.md` promises. What only the card can tell is left to the card: how
//! its tensor cores add, and in what order what runs beside a thread ends.

const std = @import("std");
const testing = std.testing;
const support = @import("support.zig");
const Error = support.Error;
const Map = support.Map;
const allocator = testing.allocator;
const matrix = support.matrix;
const number = support.number;
const silu = support.silu;
const value = support.value;
const width = support.width;

const Problem = struct {
    m: usize,
    n: usize,
    k: usize,
    x: []u16,
    w: []u16,
    w2: []u16,
    residual: []u16,
    bias: []f32,

    fn make(m: usize, n: usize, k: usize) !Problem {
        const p: Problem = .{
            .m = m,
            .n = n,
            .k = k,
            .x = try matrix(m * k),
            .w = try matrix(n * k),
            .w2 = try matrix(n * k),
            .residual = try matrix(m * n),
            .bias = try allocator.alloc(f32, n),
        };
        for (p.bias) |*b| b.* = number();
        return p;
    }
    fn free(p: Problem) void {
        for ([_][]u16{ p.x, p.w, p.w2, p.residual }) |of| allocator.free(of);
        allocator.free(p.bias);
    }
    fn want(p: Problem, i: usize, j: usize, two: bool) f64 {
        var sums: [2]f64 = @splat(0);
        for (0..p.k) |e| {
            const v = value(p.x[i * p.k + e]);
            sums[0] += v * value(p.w[j * p.k + e]);
            sums[1] += v * value(p.w2[j * p.k + e]);
        }
        if (two) return silu(sums[0]) * sums[1];
        return sums[0] + p.bias[j] + value(p.residual[i * p.n + j]);
    }
    /// Of results in bf16.
    fn check(p: Problem, out: []const u16, rows: usize, two: bool) !void {
        var off: Error = .{};
        for (0..rows) |i| for (0..p.n) |j|
            off.add(value(out[i * p.n + j]), p.want(i, j, two));
        try off.expect(4e-3);
    }
};

const Gemm = extern struct {
    x: Map,
    w: Map,
    w2: Map,
    bias: ?[*]const f32,
    residual: ?[*]const u16,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out_at: ?*anyopaque,
    out_stride: i32,
    sums: ?[*]f32,
};
const Tile = struct {
    name: [*:0]const u8,
    columns: usize,
    two: bool = false,
    bare: bool = false,
    split: usize = 1,
    /// Of a cluster.
    blocks: usize = 2,
};

/// Results of `p` by the kernel of a tile, bf16 or what else `T` is.
fn multiply(comptime T: type, p: Problem, tile: Tile) ![]T {
    const out = try allocator.alloc(T, p.m * p.n);
    errdefer allocator.free(out);
    @memset(std.mem.sliceAsBytes(out), 0xff);
    const outputs = if (tile.two) tile.columns / 2 else tile.columns;
    const tiles = ceil(p.m, 128 * tile.blocks) * ceil(p.n, outputs) * tile.split;
    const sums = try allocator.alloc(f32, tiles * 2 * 128 * 256);
    defer allocator.free(sums);
    const box: i32 = @intCast(tile.columns / tile.blocks);
    const call: Gemm = .{
        .x = .of(p.x, p.m, p.k, 128),
        .w = .of(p.w, p.n, p.k, box),
        .w2 = .of(p.w2, p.n, p.k, box),
        .bias = if (tile.two or tile.bare) null else p.bias.ptr,
        .residual = if (tile.two or tile.bare) null else p.residual.ptr,
        .m = @intCast(p.m),
        .n = @intCast(p.n),
        .k = @intCast(p.k),
        .residual_stride = @intCast(p.n),
        .out_at = out.ptr,
        .out_stride = @intCast(p.n),
        .sums = sums.ptr,
    };
    // Two clusters take what there is in turn; parts of a tile's k run at once.
    const clusters = if (tile.split > 1) tiles else @min(tiles, @as(usize, 2));
    support.bamba_emulate_sm90(tile.name, &call, @intCast(tile.blocks * clusters), 1);
    return out;
}
fn ceil(n: usize, of: usize) usize {
    return (n + of - 1) / of;
}

test "gemm_sm90: near the sums, with the same bits in tiles of every width" {
    const p = try Problem.make(300, 264, 424); // every ring goes round
    defer p.free();
    const wide = try multiply(u16, p, .{ .name = "gemm_256_sm90_bf16", .columns = 256 });
    defer allocator.free(wide);
    try p.check(wide, p.m, false);
    const narrow = try multiply(u16, p, .{ .name = "gemm_128_sm90_bf16", .columns = 128 });
    defer allocator.free(narrow);
    try testing.expectEqualSlices(u16, wide, narrow);
    const floats = try multiply(f32, p, .{ .name = "gemm_256_sm90_f32", .columns = 256 });
    defer allocator.free(floats);
    for (floats, wide) |f, w| try testing.expectEqual(w, support.bf16(f));
}

test "gemm_sm90: the kernel that adds nothing has the bits of the one that adds zeros" {
    const p = try Problem.make(300, 264, 424);
    defer p.free();
    @memset(p.bias, 0);
    @memset(p.residual, 0);
    const zeros = try multiply(u16, p, .{ .name = "gemm_256_sm90_bf16", .columns = 256 });
    defer allocator.free(zeros);
    const bare: Tile = .{ .name = "gemm_256_bare_sm90_bf16", .columns = 256, .bare = true };
    const nothing = try multiply(u16, p, bare);
    defer allocator.free(nothing);
    try p.check(nothing, p.m, false);
    try testing.expectEqualSlices(u16, zeros, nothing);
}

test "gemm_sm90: SwiGLU of two matrices, in tiles of every width" {
    const p = try Problem.make(130, 136, 712);
    defer p.free();
    var first: ?[]u16 = null;
    defer if (first) |f| allocator.free(f);
    const tiles = [_]Tile{
        .{ .name = "gemm_swiglu_256_sm90_bf16", .columns = 256, .two = true },
        .{ .name = "gemm_swiglu_224_sm90_bf16", .columns = 224, .two = true },
        .{ .name = "gemm_swiglu_128_sm90_bf16", .columns = 128, .two = true },
    };
    for (tiles) |tile| {
        const out = try multiply(u16, p, tile);
        try p.check(out, p.m, true);
        if (first) |f| {
            defer allocator.free(out);
            try testing.expectEqualSlices(u16, f, out);
        } else first = out;
    }
}

/// Results of a kernel, the same bits as `p` has by that of another tile.
fn expectSame(p: Problem, tile: Tile, other: Tile) !void {
    const out = try multiply(u16, p, tile);
    defer allocator.free(out);
    const same = try multiply(u16, p, other);
    defer allocator.free(same);
    try p.check(out, p.m, tile.two);
    try testing.expectEqualSlices(u16, out, same);
}

test "gemm_sm90: clusters of eight, and what runs beside them, have the bits of clusters of two" {
    const p = try Problem.make(1100, 264, 328); // two clusters, of which one has many empty rows
    defer p.free();
    const one: Tile = .{ .name = "gemm_256_sm90_bf16", .columns = 256 };
    const names = [_][*:0]const u8{ "gemm_256_eight_sm90_bf16", "gemm_256_beside_sm90_bf16" };
    for (names, [_]usize{ 8, 2 }) |name, blocks|
        try expectSame(p, one, .{ .name = name, .columns = 256, .blocks = blocks });
    const q = try Problem.make(300, 136, 712);
    defer q.free();
    const pairs = [_][*:0]const u8{ "gemm_swiglu_256", "gemm_swiglu_parts_192" };
    inline for (pairs, [_]usize{ 256, 192 }) |name, columns| {
        const stem = comptime std.mem.span(name);
        const of: Tile = .{ .name = stem ++ "_sm90_bf16", .columns = columns, .two = true };
        const eight = stem ++ "_eight_sm90_bf16";
        try expectSame(q, of, .{ .name = eight, .columns = columns, .two = true, .blocks = 8 });
    }
}

test "gemm_sm90: parts of k that run at once have the bits of parts in turn, again and again" {
    const p = try Problem.make(200, 264, 1608);
    defer p.free();
    const parts = try multiply(u16, p, .{ .name = "gemm_parts_sm90_bf16", .columns = 128 });
    defer allocator.free(parts);
    try p.check(parts, p.m, false);
    const four: Tile = .{ .name = "gemm_split_4_sm90_bf16", .columns = 256, .split = 4 };
    const two: Tile = .{ .name = "gemm_split_2_sm90_bf16", .columns = 256, .split = 2 };
    for ([_]Tile{ four, two, four }) |tile| {
        const out = try multiply(u16, p, tile);
        defer allocator.free(out);
        try p.check(out, p.m, false);
        if (tile.split == 4) try testing.expectEqualSlices(u16, parts, out);
    }
}

const Batch = extern struct { x: Map, w: Map, of: support.BatchArgs };
const BatchTile = struct {
    name: [*:0]const u8,
    tokens: usize,
    two: bool = false,
    up_first: bool = false,
};

/// By `blocks` blocks, which meet where one tile's parts are shares of several.
fn batch(comptime T: type, p: Problem, tile: BatchTile, blocks: usize) ![]T {
    const out = try allocator.alloc(T, p.m * p.n);
    errdefer allocator.free(out);
    @memset(std.mem.sliceAsBytes(out), 0xff);
    const sums = try allocator.alloc(f32, blocks * 4 * 128 * tile.tokens);
    defer allocator.free(sums);
    var w: Map = .of(if (tile.up_first) p.w2 else p.w, p.n, p.k, 128);
    if (tile.two) w.other = if (tile.up_first) p.w.ptr else p.w2.ptr;
    const call: Batch = .{
        .x = .of(p.x, p.m, p.k, @intCast(tile.tokens)),
        .w = w,
        .of = .{
            .bias = if (tile.two) null else p.bias.ptr,
            .residual = if (tile.two) null else p.residual.ptr,
            .out = out.ptr,
            .sums = sums.ptr,
            .m = @intCast(p.m),
            .n = @intCast(p.n),
            .k = @intCast(p.k),
            .residual_stride = @intCast(p.n),
            .out_stride = @intCast(p.n),
            .up_first = @intFromBool(tile.up_first),
            .pushes = @intFromBool(tile.two != tile.up_first), // either way, a hint alone
        },
    };
    support.bamba_emulate_sm90(tile.name, &call, @intCast(blocks), 1);
    return out;
}

test "gemm_sm90: SwiGLU of parts, with the same bits in tiles of both widths" {
    const p = try Problem.make(130, 328, 328); // fewer stages of k than pieces of results
    defer p.free();
    const names = [_][*:0]const u8{
        "gemm_swiglu_parts_192_sm90_bf16",
        "gemm_swiglu_parts_128_sm90_bf16",
    };
    const out = try multiply(u16, p, .{ .name = names[0], .columns = 192, .two = true });
    defer allocator.free(out);
    try p.check(out, p.m, true);
    const same = try multiply(u16, p, .{ .name = names[1], .columns = 128, .two = true });
    defer allocator.free(same);
    try testing.expectEqualSlices(u16, out, same);
}

test "linear_batch_sm90: near the sums, with the bits of many rows in parts, by any blocks" {
    const p = try Problem.make(70, 392, 2312); // four tiles
    defer p.free();
    const parts = try multiply(u16, p, .{ .name = "gemm_parts_sm90_bf16", .columns = 128 });
    defer allocator.free(parts);
    try p.check(parts, p.m, false);
    const few: BatchTile = .{ .name = "linear_batch_8_bf16", .tokens = 8 };
    const many: BatchTile = .{ .name = "linear_batch_64_bf16", .tokens = 64 };
    // Of 144 parts of tiles, and of 32: whole tiles, and some that several blocks have parts of.
    for ([_]BatchTile{ few, few, many, many }, [_]usize{ 5, 19, 1, 21 }) |tile, blocks| {
        const out = try batch(u16, p, tile, blocks);
        defer allocator.free(out);
        try testing.expectEqualSlices(u16, parts, out);
    }
    const floats = try batch(f32, p, .{ .name = "linear_batch_128_f32", .tokens = 128 }, 7);
    defer allocator.free(floats);
    for (floats, parts) |f, w| try testing.expectEqual(w, support.bf16(f));
}

test "linear_batch_sm90: a part a block, each of which finishes some tokens, again and again" {
    for ([_]usize{ 40, 100 }, [_]usize{ 64, 128 }) |rows, tokens| {
        const p = try Problem.make(rows, 264, if (tokens == 64) 1100 else 136);
        defer p.free();
        const names = [_][*:0]const u8{ "linear_batch_64_bf16", "linear_batch_128_bf16" };
        const tile: BatchTile = .{ .name = names[tokens / 128], .tokens = tokens };
        const parts = try batch(u16, p, tile, 5);
        defer allocator.free(parts);
        try p.check(parts, p.m, false);
        for (0..2) |_| {
            const out = try batch(u16, p, tile, 12);
            defer allocator.free(out);
            try testing.expectEqualSlices(u16, parts, out);
        }
    }
}

test "linear_batch_sm90: SwiGLU of two matrices, whichever lies first, some k in no part" {
    for ([_]usize{ 520, 136 }) |columns| {
        const p = try Problem.make(13, 136, columns);
        defer p.free();
        for ([_]bool{ false, true }) |up_first| for ([_]usize{ 2, 11 }) |blocks| {
            const tile: BatchTile = .{
                .name = "linear_batch_swiglu_16_bf16",
                .tokens = 16,
                .two = true,
                .up_first = up_first,
            };
            const out = try batch(u16, p, tile, blocks);
            defer allocator.free(out);
            try p.check(out, p.m, true);
        };
    }
}
