//! Weights in blocks, in panels: 16 rows lie together, so that vector lanes run over rows. A panel
//! is one block of columns after another; within it the 16 blocks of the rows are interleaved
//! field by field: f16 by f16, scale byte by scale byte, and the packed numbers in words of 4
//! bytes, word i of row r at [i][r]. Nothing is added, dropped or recoded: 16 blocks take the bytes
//! of 16 blocks.
//!
//! Bytes lie in the order in which a product wants them, so that it reads a panel from its start to
//! its end, which is what a CPU's prefetchers can foresee: high bits stand beside the low ones that
//! are first to need them, and q6_k's scales before each half. With high bits in a place of their
//! own q6_k read at 0.66 of what memory gave, in this order at 0.86 (Zen 4, asking for nothing).

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

/// Where unit i of a field lies: that of 16 rows, one after another.
pub inline fn unitAt(comptime dtype: DType, comptime name: []const u8, i: usize) usize {
    const field = comptime for (fieldsOf(dtype)) |field| {
        if (std.mem.eql(u8, field.name, name)) break field;
    } else @compileError("no field " ++ name);
    const high = comptime std.mem.eql(u8, name, "high");
    if (dtype == .q5_k and (high or comptime std.mem.eql(u8, name, "q")))
        return finer_bytes + inTurns(high, i);
    if (dtype == .q6_k) {
        const scales = comptime std.mem.eql(u8, name, "scales");
        if (scales) return i / 8 * half_bytes + i % 8 * width;
        if (high) return i / 8 * half_bytes + 8 * width + inTurns(true, i % 8);
        if (field.unit == 4) return i / 16 * half_bytes + 8 * width + inTurns(false, i % 16);
        return 2 * half_bytes;
    }
    const start = comptime fieldAt(dtype, name);
    return start + i * width * field.unit;
}
/// Bytes of q5_k's d, dmin and scales, and of 128 columns of q6_k: scales, high and low bits.
const finer_bytes = width * (2 + 2 + 12);
const half_bytes = width * (8 + 32 + 64);

/// The place of word i of some bits: 8 words of high bits, each in front of the word of low bits
/// that meets it first, and the other words of low bits behind them.
inline fn inTurns(high: bool, i: usize) usize {
    if (high) return 8 * i * width;
    return 4 * width * if (i < 8) 2 * i + 1 else 8 + i;
}

fn fieldAt(comptime dtype: DType, comptime name: []const u8) usize {
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
        const Unit = std.meta.Int(.unsigned, 8 * field.unit);
        for (0..comptime bytesOf(dtype, field.name) / field.unit) |i| {
            const to = dst + unitAt(dtype, field.name, i) + lane * field.unit;
            const at: *align(1) Unit = @ptrCast(to);
            at.* = @as(*align(1) const Unit, @ptrCast(from + i * field.unit)).*;
        }
    }
}

/// The block of one row of 16 interleaved ones.
pub fn get(comptime dtype: DType, src: [*]const u8, lane: usize) block.Of(dtype) {
    var b: block.Of(dtype) = undefined;
    inline for (comptime fieldsOf(dtype)) |field| {
        const to: [*]u8 = @ptrCast(&@field(b, field.name));
        for (0..comptime bytesOf(dtype, field.name) / field.unit) |i| {
            const from = src + unitAt(dtype, field.name, i) + lane * field.unit;
            inline for (0..field.unit) |byte| to[i * field.unit + byte] = from[byte];
        }
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
