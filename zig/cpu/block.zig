//! Weights in blocks, as GGUF files hold them: the layout of one block of each type, and its values
//! as f32. A row of a matrix is cut into blocks of 32 or 256 neighbouring columns; each has its
//! own scale, and the K types a second, finer one for each 16 or 32 columns.
//!
//! `dequantize` defines what a block means: one multiplication (and one subtraction where there
//! is a minimum), each rounded to f32, never fused. Kernels may be faster; how far they may differ
//! stands in their headers.

const std = @import("std");
const command = @import("command");
pub const DType = command.DType;

/// Columns in a block of the K types.
pub const long = 256;
/// Columns in a block of the others.
pub const short = 32;

/// 8.5 bits a weight: w = d * q.
pub const Q8_0 = extern struct {
    /// f16
    d: u16 align(1),
    q: [short]i8,
};

/// 4.5 bits a weight: w = d * (q - 8). Column i has the low half of byte i, column 16 + i its high
/// half.
pub const Q4_0 = extern struct {
    d: u16 align(1),
    q: [short / 2]u8,
};

/// 4.5 bits a weight: w = d * scale * q - dmin * min, with scale and min of 6 bits for each 32
/// columns (see `scaleMin`). 64 columns share 32 bytes: the first 32 have the low halves.
pub const Q4_K = extern struct {
    d: u16 align(1),
    dmin: u16 align(1),
    scales: [12]u8,
    q: [long / 2]u8,
};

/// 5.5 bits a weight: as Q4_K, and bit j of `high[i]` is the fifth bit of column 32 j + i.
pub const Q5_K = extern struct {
    d: u16 align(1),
    dmin: u16 align(1),
    scales: [12]u8,
    high: [long / 8]u8,
    q: [long / 2]u8,
};

/// 6.5625 bits a weight: w = d * scale * (q - 32), with a signed scale for each 16 columns. Of each
/// 128 columns, the first 64 have the low and the last 64 the high halves of 64 bytes of `q`; two
/// bits of each byte of `high` belong to each quarter of 32 columns.
pub const Q6_K = extern struct {
    q: [long / 2]u8,
    high: [long / 4]u8,
    scales: [long / 16]i8,
    d: u16 align(1),
};

comptime {
    const sizes = .{ .{ Q8_0, 34 }, .{ Q4_0, 18 }, .{ Q4_K, 144 }, .{ Q5_K, 176 }, .{ Q6_K, 210 } };
    for (sizes) |s| std.debug.assert(@sizeOf(s[0]) == s[1] and @alignOf(s[0]) == 1);
}

/// Whether weights of this dtype lie in blocks.
pub fn is(dtype: DType) bool {
    return switch (dtype) {
        .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => true,
        .f32, .bf16, .f16, .i32, .f8_e4m3 => false,
    };
}

/// The block of a dtype; a single value where there are no blocks.
pub fn Of(comptime dtype: DType) type {
    return switch (dtype) {
        .q8_0 => Q8_0,
        .q4_0 => Q4_0,
        .q4_k => Q4_K,
        .q5_k => Q5_K,
        .q6_k => Q6_K,
        .f32 => f32,
        .i32 => i32,
        .bf16, .f16 => u16,
        .f8_e4m3 => u8,
    };
}

/// Columns in a block; 1 where there are no blocks.
pub fn columns(dtype: DType) usize {
    return switch (dtype) {
        .q8_0, .q4_0 => short,
        .q4_k, .q5_k, .q6_k => long,
        .f32, .bf16, .f16, .i32, .f8_e4m3 => 1,
    };
}

/// Bytes of a block.
pub fn bytes(dtype: DType) usize {
    return switch (dtype) {
        inline else => |d| @sizeOf(Of(d)),
    };
}

/// Bytes of a row of `cols` columns, a multiple of `columns(dtype)`.
pub fn rowBytes(dtype: DType, cols: usize) usize {
    return cols / columns(dtype) * bytes(dtype);
}

/// f16 bits as f32, exactly.
pub fn half(x: u16) f32 {
    return @as(f16, @bitCast(x));
}

/// f8_e4m3 bits as f32, exactly and without their row's scale: an f16 with 4 bits of exponent less.
pub fn eight(x: u8) f32 {
    if (x & 0x7f == 0x7f) return std.math.nan(f32);
    return half(@as(u16, x & 0x80) << 8 | @as(u16, x & 0x7f) << 7) * 256;
}

/// Scale and minimum of the 32 columns number j (0 to 7) of Q4_K and Q5_K, 6 bits each: those of
/// j < 4 are the low six bits of bytes j and 4 + j; the others have four bits in byte 4 + j and two
/// above the first ones.
pub fn scaleMin(scales: *const [12]u8, j: usize) [2]u8 {
    if (j < 4) return .{ scales[j] & 63, scales[4 + j] & 63 };
    return .{
        (scales[4 + j] & 15) | (scales[j - 4] >> 6 << 4),
        (scales[4 + j] >> 4) | (scales[j] >> 6 << 4),
    };
}

/// The inverse of `scaleMin` for all eight.
pub fn packScaleMin(pairs: *const [8][2]u8) [12]u8 {
    var out: [12]u8 = @splat(0);
    for (pairs, 0..) |pair, j| {
        if (j < 4) {
            out[j] |= pair[0];
            out[4 + j] |= pair[1];
        } else {
            out[4 + j] = (pair[0] & 15) | (pair[1] & 15) << 4;
            out[j - 4] |= pair[0] >> 4 << 6;
            out[j] |= pair[1] >> 4 << 6;
        }
    }
    return out;
}

/// The integer of column i of a block of Q6_K: -32 to 31.
fn six(b: *const Q6_K, i: usize) i8 {
    const part = i / 128;
    const at = i % 128;
    const low = b.q[part * 64 + at % 64] >> @intCast(at / 64 * 4) & 15;
    const high = b.high[part * 32 + at % 32] >> @intCast(at / 32 * 2) & 3;
    return @as(i8, @intCast(low | high << 4)) - 32;
}

/// The f32 values of one block.
pub fn dequantize(comptime dtype: DType, b: *align(1) const Of(dtype), out: [*]f32) void {
    switch (dtype) {
        .q8_0 => for (b.q, out) |q, *w| {
            w.* = half(b.d) * @as(f32, @floatFromInt(q));
        },
        .q4_0 => for (b.q, out, out + short / 2) |q, *low, *high| {
            low.* = half(b.d) * @as(f32, @floatFromInt(@as(i32, q & 15) - 8));
            high.* = half(b.d) * @as(f32, @floatFromInt(@as(i32, q >> 4) - 8));
        },
        .q4_k, .q5_k => for (0..long / 32) |j| {
            const pair = scaleMin(&b.scales, j);
            const d = half(b.d) * @as(f32, @floatFromInt(pair[0]));
            const m = half(b.dmin) * @as(f32, @floatFromInt(pair[1]));
            for (out[32 * j ..][0..32], 0..) |*w, i| {
                const low = b.q[j / 2 * 32 + i] >> @intCast(j % 2 * 4) & 15;
                const bit = if (dtype == .q5_k) b.high[i] >> @intCast(j) & 1 else 0;
                const product = d * @as(f32, @floatFromInt(low | bit << 4));
                w.* = product - m;
            }
        },
        .q6_k => for (0..long / 16) |j| {
            const d = half(b.d) * @as(f32, @floatFromInt(b.scales[j]));
            for (out[16 * j ..][0..16], 16 * j..) |*w, i|
                w.* = d * @as(f32, @floatFromInt(six(b, i)));
        },
        .f32 => out[0] = b.*,
        .f16 => out[0] = half(b.*),
        .bf16 => out[0] = @bitCast(@as(u32, b.*) << 16),
        .f8_e4m3 => out[0] = eight(b.*),
        .i32 => @compileError("an i32 array holds no weights"),
    }
}

/// The f32 values of `n` columns, a multiple of `columns(dtype)`, from their first block on. Any
/// alignment.
pub fn dequantizeRow(dtype: DType, src: [*]const u8, n: usize, out: [*]f32) void {
    switch (dtype) {
        .i32 => unreachable,
        inline else => |d| {
            const blocks: [*]align(1) const Of(d) = @ptrCast(src);
            for (0..n / columns(d)) |i| dequantize(d, &blocks[i], out + i * columns(d));
        },
    }
}

test {
    _ = @import("block_test.zig");
}
