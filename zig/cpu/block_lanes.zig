//! Panels of blocks as vectors: lane r holds a row's scale, or four neighbouring numbers of it.
//! Both products with blocks (`blocks_gemv`, `blocks_gemm`) take their weights from here.
//!
//! A block of 256 columns is walked in parts, each with two runs of 32 columns whose numbers share
//! bytes: one in the low halves of 8 words and one in the high halves. Blocks of 32 columns have
//! one run: q8_0 in 8 whole words, q4_0 in the two halves of 4 words.

const std = @import("std");
const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const int8 = @import("int8.zig");
const simd = @import("simd.zig");
const Bytes = int8.Bytes;
const DType = command.DType;
const F = simd.F;
const L = simd.L;
const U = simd.U;
const width = command.panel;

/// Vectors across a panel.
pub const V = width / L;
const Bytes1 = @Vector(L, u8);
const fieldAt = block_panel.fieldAt;

inline fn halves(comptime dtype: DType, comptime name: []const u8, p: [*]const u8, v: usize) F {
    return simd.ldAs(.f16, p + comptime fieldAt(dtype, name), v * L);
}
/// Scale byte number i of each row.
inline fn scaleByte(comptime dtype: DType, p: [*]const u8, i: usize, v: usize) U {
    return simd.ld(Bytes1, p + comptime fieldAt(dtype, "scales") + i * width + v * L);
}
inline fn word(
    comptime dtype: DType,
    comptime name: []const u8,
    p: [*]const u8,
    i: usize,
    v: usize,
) Bytes {
    return simd.ld(Bytes, p + comptime fieldAt(dtype, name) + (i * width + v * L) * 4);
}
/// Each byte shifted right by n (left where negative), and then only the bits of `mask`.
inline fn bits(x: Bytes, comptime n: i32, comptime mask: u8) Bytes {
    const Pairs = @Vector(2 * L, u16);
    const pairs: Pairs = @bitCast(x);
    const moved = if (n >= 0) pairs >> @splat(n) else pairs << @splat(-n);
    return @as(Bytes, @bitCast(moved)) & @as(Bytes, @splat(mask));
}

/// d of the rows.
pub inline fn d(comptime dtype: DType, p: [*]const u8, v: usize) F {
    return halves(dtype, "d", p, v);
}

/// Factor and minimum of run j of each row: w = scale * q - min.
pub const ScaleMin = struct { scale: F, min: F };
pub inline fn scaleMin(
    comptime dtype: DType,
    p: [*]const u8,
    comptime j: usize,
    v: usize,
) ScaleMin {
    const by = d(dtype, p, v);
    if (dtype == .q4_0) return .{ .scale = by, .min = by * simd.splat(8) };
    const low: U = @splat(15);
    const six: U = @splat(63);
    const later = scaleByte(dtype, p, 4 + j, v);
    var scale: U = undefined;
    var min: U = undefined;
    if (j < 4) {
        scale = scaleByte(dtype, p, j, v) & six;
        min = later & six;
    } else {
        const top: U = @splat(0x30);
        scale = (later & low) | (scaleByte(dtype, p, j - 4, v) >> @splat(2) & top);
        min = later >> @splat(4) | (scaleByte(dtype, p, j, v) >> @splat(2) & top);
    }
    return .{
        .scale = by * int8.floats(@bitCast(scale)),
        .min = halves(dtype, "dmin", p, v) * int8.floats(@bitCast(min)),
    };
}

/// The signed scale of 16 columns of q6_k, number j of 16, in both shorts of each lane.
pub inline fn scale16(p: [*]const u8, j: usize, v: usize) int8.Shorts {
    const at = p + comptime fieldAt(.q6_k, "scales");
    const twice = comptime blk: {
        var t: [2 * L]i32 = undefined;
        for (&t, 0..) |*lane, i| lane.* = i / 2;
        break :blk t;
    };
    return @shuffle(i8, simd.ld(@Vector(L, i8), at + j * width + v * L), undefined, twice);
}

/// Parts of a block with two runs each.
pub fn parts(comptime dtype: DType) usize {
    return if (block.columns(dtype) == block.long) 4 else 1;
}
/// The runs of a part, as numbers of 32 columns in the block.
pub fn runs(comptime dtype: DType, comptime part: usize) [2]usize {
    if (dtype == .q6_k) return .{ part / 2 * 4 + part % 2, part / 2 * 4 + part % 2 + 2 };
    return .{ 2 * part, 2 * part + 1 };
}

/// The unsigned numbers of word g (columns 4 g to 4 g + 3) of a part's two runs. For q6_k 32 more
/// than they mean.
pub inline fn pair(
    comptime dtype: DType,
    p: [*]const u8,
    comptime part: usize,
    comptime g: usize,
    v: usize,
) [2]Bytes {
    switch (dtype) {
        .q4_k => {
            const both = word(dtype, "q", p, part * 8 + g, v);
            return .{ bits(both, 0, 15), bits(both, 4, 15) };
        },
        .q5_k => {
            const both = word(dtype, "q", p, part * 8 + g, v);
            const high = word(dtype, "high", p, g, v);
            const shift = 2 * @as(i32, part) - 4;
            return .{
                bits(both, 0, 15) | bits(high, shift, 16),
                bits(both, 4, 15) | bits(high, shift + 1, 16),
            };
        },
        .q6_k => {
            const first = part % 2;
            const both = word(dtype, "q", p, part * 8 + g, v);
            const high = word(dtype, "high", p, part / 2 * 8 + g, v);
            const shift = 2 * @as(i32, first) - 4;
            return .{
                bits(both, 0, 15) | bits(high, shift, 48),
                bits(both, 4, 15) | bits(high, shift + 4, 48),
            };
        },
        else => @compileError("no parts"),
    }
}

/// Word g of q8_0's run.
pub inline fn whole(p: [*]const u8, comptime g: usize, v: usize) int8.Signed {
    return @bitCast(word(.q8_0, "q", p, g, v));
}
/// Words g and g + 4 of q4_0's run.
pub inline fn nibbles(p: [*]const u8, comptime g: usize, v: usize) [2]Bytes {
    const both = word(.q4_0, "q", p, g, v);
    return .{ bits(both, 0, 15), bits(both, 4, 15) };
}
