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
const width = command.panel;

/// Vectors across a panel.
pub const V = width / L;
const Bytes1 = @Vector(L, u8);
const unitAt = block_panel.unitAt;

inline fn word(
    comptime dtype: DType,
    comptime name: []const u8,
    p: [*]const u8,
    i: usize,
    v: usize,
) Bytes {
    return simd.ld(Bytes, p + unitAt(dtype, name, i) + v * L * 4);
}
/// Each byte shifted right by n (left where negative), and then only the bits of `mask`.
inline fn bits(x: Bytes, comptime n: i32, comptime mask: u8) Bytes {
    const Pairs = @Vector(2 * L, u16);
    const pairs: Pairs = @bitCast(x);
    const moved = if (n >= 0) pairs >> @splat(n) else pairs << @splat(-n);
    return @as(Bytes, @bitCast(moved)) & @as(Bytes, @splat(mask));
}

/// An f16 of the rows: d or dmin.
pub inline fn half(
    comptime dtype: DType,
    comptime name: []const u8,
    p: [*]const u8,
    v: usize,
) F {
    return simd.ldAs(.f16, p + comptime unitAt(dtype, name, 0), v * L);
}

/// Scales and minima of the 8 runs of 16 rows of q4_k or q5_k.
pub const Finer = struct {
    scale: [8][width]u8 align(64),
    min: [8][width]u8,

    /// Unpacks those of a block, as `block.scaleMin` does, as many at once as bytes fill a vector.
    pub inline fn unpack(f: *Finer, comptime dtype: DType, p: [*]const u8) void {
        const from = p + comptime unitAt(dtype, "scales", 0);
        const four = 4 * width;
        inline for (0..four / (4 * L)) |i| {
            const at = i * 4 * L;
            const first = simd.ld(Bytes, from + at);
            const second = simd.ld(Bytes, from + four + at);
            const third = simd.ld(Bytes, from + 2 * four + at);
            const scale: [*]u8 = @ptrCast(&f.scale);
            const min: [*]u8 = @ptrCast(&f.min);
            simd.st(scale + at, bits(first, 0, 63));
            simd.st(min + at, bits(second, 0, 63));
            simd.st(scale + four + at, bits(third, 0, 15) | bits(first, 2, 48));
            simd.st(min + four + at, bits(third, 4, 15) | bits(second, 2, 48));
        }
        // They are widened from memory; kept in registers, each would be moved to the front first.
        asm volatile (""
            :
            : [f] "r" (f),
            : .{ .memory = true });
    }
    /// The factor of run j.
    pub inline fn factor(f: *const Finer, j: usize, v: usize) int8.Sums {
        return int8.factors(simd.ld(Bytes1, @as([*]const u8, &f.scale[j]) + v * L));
    }
    /// The minima of runs 2 j and 2 j + 1, side by side in each lane, without dmin.
    pub inline fn minima(f: *const Finer, j: usize, v: usize) int8.Shorts {
        const first: simd.U = simd.ld(Bytes1, @as([*]const u8, &f.min[2 * j]) + v * L);
        const second: simd.U = simd.ld(Bytes1, @as([*]const u8, &f.min[2 * j + 1]) + v * L);
        return @bitCast(first | second << @splat(16));
    }
};

/// The factor of 16 columns of q6_k, number j of 16.
pub inline fn factor16(p: [*]const u8, j: usize, v: usize) int8.Sums {
    const at = p + unitAt(.q6_k, "scales", j);
    return int8.factors(simd.ld(@Vector(L, i8), at + v * L));
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
/// The runs of a block of 256 columns in the order in which they are added: part by part.
pub fn order(comptime dtype: DType) [8]usize {
    var all: [8]usize = undefined;
    inline for (0..4) |part| all[2 * part ..][0..2].* = comptime runs(dtype, part);
    return all;
}

/// The unsigned numbers of word g (columns 4 g to 4 g + 3) of a part's two runs; of q4_0's run
/// words g and g + 4. For q4_0 8 and for q6_k 32 more than they mean.
pub inline fn pair(
    comptime dtype: DType,
    p: [*]const u8,
    comptime part: usize,
    comptime g: usize,
    v: usize,
) [2]Bytes {
    const both = word(dtype, "q", p, part * 8 + g, v);
    const low = bits(both, 0, 15);
    const high = bits(both, 4, 15);
    switch (dtype) {
        .q4_0, .q4_k => return .{ low, high },
        .q5_k => {
            const fifth = word(dtype, "high", p, g, v);
            const shift = 2 * @as(i32, part) - 4;
            return .{ low | bits(fifth, shift, 16), high | bits(fifth, shift + 1, 16) };
        },
        .q6_k => {
            const top = word(dtype, "high", p, part / 2 * 8 + g, v);
            const shift = 2 * @as(i32, part % 2) - 4;
            return .{ low | bits(top, shift, 48), high | bits(top, shift + 4, 48) };
        },
        else => @compileError("no halves"),
    }
}
/// As `pair` of q4_0 and q4_k, the second ones left where they lie: 16 times what they are, which
/// a sum of 32 bits can have taken back at its end.
pub inline fn raised(
    comptime dtype: DType,
    p: [*]const u8,
    comptime part: usize,
    comptime g: usize,
    v: usize,
) [2]Bytes {
    const both = word(dtype, "q", p, part * 8 + g, v);
    return .{ bits(both, 0, 15), bits(both, 0, 0xf0) };
}

/// Word g of q8_0's run.
pub inline fn whole(p: [*]const u8, comptime g: usize, v: usize) int8.Signed {
    return @bitCast(word(.q8_0, "q", p, g, v));
}
/// The same as unsigned numbers, 128 more than they mean.
pub inline fn lifted(p: [*]const u8, comptime g: usize, v: usize) Bytes {
    return word(.q8_0, "q", p, g, v) ^ @as(Bytes, @splat(0x80));
}
