//! Tests of `block.zig`: against values that Python's `gguf` gave (testing/make_blocks.py), and the
//! packing of scales against itself.

const std = @import("std");
const block = @import("block.zig");
const DType = block.DType;
const testing = std.testing;

/// Blocks of every type in the order of this list, each followed by its values.
const golden = @embedFile("testing/blocks.bin");
const order = [_]struct { DType, usize }{
    .{ .q8_0, 6 },
    .{ .q4_0, 6 },
    .{ .q4_k, 3 },
    .{ .q5_k, 3 },
    .{ .q6_k, 3 },
};

test "blocks of every type have the values that gguf gives them, bit for bit" {
    var at: usize = 0;
    inline for (order) |entry| {
        const dtype, const n = entry;
        const columns = comptime block.columns(dtype);
        const values = golden[at + n * block.bytes(dtype) ..][0 .. n * columns * 4];
        var out: [n * columns]f32 = undefined;
        block.dequantizeRow(dtype, golden.ptr + at, n * columns, &out);
        try testing.expectEqualSlices(u8, values, std.mem.sliceAsBytes(&out));
        at += block.rowBytes(dtype, n * columns) + values.len;
    }
    try testing.expectEqual(golden.len, at);
}

test "values that are no blocks are read as they are" {
    var out: [2]f32 = undefined;
    block.dequantizeRow(.bf16, &.{ 0x80, 0x3f, 0, 0xc0 }, 2, &out);
    try testing.expectEqual([2]f32{ 1, -2 }, out);
    block.dequantizeRow(.f16, &.{ 0, 0x3c, 0, 0xc0 }, 2, &out);
    try testing.expectEqual([2]f32{ 1, -2 }, out);
    block.dequantizeRow(.f32, &.{ 0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0 }, 2, &out);
    try testing.expectEqual([2]f32{ 1, -2 }, out);
    try testing.expectEqual(4, block.bytes(.f32));
    try testing.expectEqual(1, block.columns(.f32));
}

test "six-bit scales and minima come out as they went in" {
    var random = std.Random.DefaultPrng.init(1);
    for (0..200) |_| {
        var pairs: [8][2]u8 = undefined;
        for (&pairs) |*pair| pair.* = .{
            random.random().uintLessThan(u8, 64),
            random.random().uintLessThan(u8, 64),
        };
        const packed_scales = block.packScaleMin(&pairs);
        for (pairs, 0..) |pair, j| try testing.expectEqual(pair, block.scaleMin(&packed_scales, j));
    }
}
