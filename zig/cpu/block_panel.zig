//! Weights in blocks, in panels: 16 rows lie together, so that vector lanes run over rows. A panel
//! is one block of columns after another; within it the 16 blocks of the rows are interleaved
//! field by field: f16 by f16, scale byte by scale byte, and the packed numbers in words of 4
//! bytes, word i of row r at [i][r]. Nothing is added, dropped or recoded: 16 blocks take the bytes
//! of 16 blocks.

const std = @import("std");
const command = @import("command");
const block = @import("block.zig");
const DType = command.DType;
const width = command.panel;

/// A field of a block: how many bytes of it stay together.
const Field = struct { name: []const u8, unit: usize };

/// Fields in the order in which a panel has them.
fn fieldsOf(comptime dtype: DType) []const Field {
    const d: Field = .{ .name = "d", .unit = 2 };
    const dmin: Field = .{ .name = "dmin", .unit = 2 };
    const scales: Field = .{ .name = "scales", .unit = 1 };
    const high: Field = .{ .name = "high", .unit = 4 };
    const q: Field = .{ .name = "q", .unit = 4 };
    return switch (dtype) {
        .q8_0, .q4_0 => &.{ d, q },
        .q4_k => &.{ d, dmin, scales, q },
        .q5_k => &.{ d, dmin, scales, high, q },
        .q6_k => &.{ d, scales, high, q },
        else => @compileError("no blocks"),
    };
}

fn bytesOf(comptime dtype: DType, comptime name: []const u8) usize {
    return @sizeOf(@FieldType(block.Of(dtype), name));
}

/// Bytes of 16 interleaved blocks.
pub fn groupBytes(dtype: DType) usize {
    return width * block.bytes(dtype);
}

/// Where a field of the 16 blocks starts.
pub fn fieldAt(comptime dtype: DType, comptime name: []const u8) usize {
    comptime {
        var at: usize = 0;
        for (fieldsOf(dtype)) |field| {
            if (std.mem.eql(u8, field.name, name)) return at;
            at += width * bytesOf(dtype, field.name);
        }
        @compileError("no field " ++ name);
    }
}

/// Writes the block of one row of a panel to its places among the 16.
fn put(comptime dtype: DType, dst: [*]u8, lane: usize, b: *align(1) const block.Of(dtype)) void {
    inline for (comptime fieldsOf(dtype)) |field| {
        const from: [*]const u8 = @ptrCast(&@field(b, field.name));
        const to = dst + comptime fieldAt(dtype, field.name);
        const Unit = std.meta.Int(.unsigned, 8 * field.unit);
        for (0..comptime bytesOf(dtype, field.name) / field.unit) |i| {
            const at: *align(1) Unit = @ptrCast(to + (i * width + lane) * field.unit);
            at.* = @as(*align(1) const Unit, @ptrCast(from + i * field.unit)).*;
        }
    }
}

/// The block of one row of 16 interleaved ones.
pub fn get(comptime dtype: DType, src: [*]const u8, lane: usize) block.Of(dtype) {
    var b: block.Of(dtype) = undefined;
    inline for (comptime fieldsOf(dtype)) |field| {
        const to: [*]u8 = @ptrCast(&@field(b, field.name));
        const from = src + comptime fieldAt(dtype, field.name);
        for (0..comptime bytesOf(dtype, field.name)) |i|
            to[i] = from[(i / field.unit * width + lane) * field.unit + i % field.unit];
    }
    return b;
}

/// Packs up to 16 rows of `cols` columns, which lie one after another, into one panel; rows that
/// are missing become zeros.
pub fn pack(dtype: DType, dst: [*]u8, src: [*]const u8, rows: usize, cols: usize) void {
    switch (dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            const n = cols / comptime block.columns(d);
            const blocks: [*]align(1) const block.Of(d) = @ptrCast(src);
            const nothing = comptime std.mem.zeroes(block.Of(d));
            for (0..n) |i| for (0..width) |lane| {
                const b = if (lane < rows) &blocks[lane * n + i] else &nothing;
                put(d, dst + i * groupBytes(d), lane, b);
            };
        },
        else => unreachable,
    }
}

/// One row of a matrix in panels as f32.
pub fn row(dtype: DType, panels: [*]const u8, index: usize, cols: usize, out: [*]f32) void {
    switch (dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            const columns = comptime block.columns(d);
            const n = cols / columns;
            const panel = panels + index / width * n * groupBytes(d);
            for (0..n) |i| {
                const b = get(d, panel + i * groupBytes(d), index % width);
                block.dequantize(d, &b, out + i * columns);
            }
        },
        else => unreachable,
    }
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

test "blocks come out of a panel as they went in, missing rows as zeros" {
    const gpa = testing.allocator;
    var seed = std.Random.DefaultPrng.init(8);
    const random = seed.random();
    inline for (.{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k }) |name| {
        const d: DType = name;
        const cols = 3 * comptime block.columns(d);
        for ([_]usize{ 1, 15, 16 }) |rows| {
            const src = try gpa.alloc(u8, rows * block.rowBytes(d, cols) + 1);
            defer gpa.free(src);
            random.bytes(src);
            const dst = try gpa.alloc(u8, 3 * groupBytes(d));
            defer gpa.free(dst);
            pack(d, dst.ptr, src.ptr + 1, rows, cols);
            for (0..width) |lane| for (0..3) |i| {
                const b = get(d, dst.ptr + i * groupBytes(d), lane);
                const at = src.ptr + 1 + lane * block.rowBytes(d, cols) + i * block.bytes(d);
                if (lane < rows) {
                    try testing.expectEqualSlices(u8, at[0..block.bytes(d)], std.mem.asBytes(&b));
                } else try testing.expect(std.mem.allEqual(u8, std.mem.asBytes(&b), 0));
            };
        }
    }
}
