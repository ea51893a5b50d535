//! Keys and values kept as 8-bit blocks (`DType.q8_0`): 32 channels of one key or value share an
//! f16 scale, as in a block of weights, and are rounded to the nearest 127th of the largest.
//!
//! Layout: V has each position's hd / 32 blocks one after another. K has, for 16 keys and 32
//! channels, the keys' scales and then the numbers with the keys across (`Keys`), so that what is
//! read becomes rows of a panel without any transposing.
//! Error: a number is off by at most 1/254 of its block's largest magnitude, and 1/2048 of itself.

const std = @import("std");
const block = @import("block.zig");
const command = @import("command");
const quantize = @import("quantize.zig");
const simd = @import("simd.zig");
const F = simd.F;
const L = simd.L;
const Block = block.Q8_0;

/// Channels that share a scale.
pub const group = block.short;
/// Keys of one block of a K page.
const across = command.panel;

/// 32 channels of 16 keys.
const Keys = extern struct {
    d: [across]u16 align(1),
    q: [group][across]i8,

    /// Group g of the 16 keys whose first is number `key` of the head's page.
    fn at(page: anytype, hd: usize, key: usize, g: usize) PointerLike(@TypeOf(page)) {
        return @ptrCast(page + (key / across * (hd / group) + g) * @sizeOf(Keys));
    }
    fn PointerLike(comptime Bytes: type) type {
        return if (Bytes == [*]u8) *align(1) Keys else *align(1) const Keys;
    }
};

comptime {
    std.debug.assert(@sizeOf(Keys) == across * @sizeOf(Block));
}

/// Value of channel d of key `key` in a head's K page.
pub fn getKey(page: [*]const u8, hd: usize, key: usize, d: usize) f32 {
    const keys = Keys.at(page, hd, key, d / group);
    const q: f32 = @floatFromInt(keys.q[d % group][key % across]);
    return block.half(keys.d[key % across]) * q;
}
/// Value of channel d of position `pos` in a head's V page.
pub fn getValue(page: [*]const u8, hd: usize, pos: usize, d: usize) f32 {
    const b = value(page, hd, pos, d);
    return block.half(b.d) * @as(f32, @floatFromInt(b.q[d % group]));
}
fn value(page: [*]const u8, hd: usize, pos: usize, d: usize) *align(1) const Block {
    return @ptrCast(page + ((pos * hd + d) / group) * @sizeOf(Block));
}

/// Writes one key of hd channels.
pub fn putKey(page: [*]u8, hd: usize, key: usize, x: [*]const f32) void {
    for (0..hd / group) |g| {
        var b: Block = undefined;
        quantize.quantize(.q8_0, x + g * group, &b);
        const keys = Keys.at(page, hd, key, g);
        keys.d[key % across] = b.d;
        for (&keys.q, b.q) |*row, q| row[key % across] = q;
    }
}
/// Writes one value of hd channels.
pub fn putValue(page: [*]u8, hd: usize, pos: usize, x: [*]const f32) void {
    const to: [*]align(1) Block = @ptrCast(page + pos * hd / group * @sizeOf(Block));
    for (0..hd / group) |g| quantize.quantize(.q8_0, x + g * group, &to[g]);
}

/// `blocks` times 16 keys from key `first` on, as f32: out[(block * hd + channel) * 16 + key].
pub fn widenKeys(page: [*]const u8, hd: usize, first: usize, blocks: usize, out: [*]f32) void {
    for (0..blocks) |b| for (0..hd / group) |g| {
        const keys = Keys.at(page, hd, first + b * across, g);
        var d: [across / L]F = undefined;
        inline for (&d, 0..) |*v, i| v.* = simd.ldAs(.f16, @ptrCast(&keys.d), i * L);
        const to = out + (b * hd + g * group) * across;
        for (&keys.q, 0..) |*row, c| inline for (d, 0..) |scale, i| {
            const q = simd.ld(@Vector(L, i8), @as([*]const i8, row) + i * L);
            simd.st(to + c * across + i * L, scale * floats(q));
        };
    };
}

/// `n` positions from `first` on: channels d .. d + count, both multiples of L, to rows of `width`.
pub fn widenValues(
    page: [*]const u8,
    hd: usize,
    first: usize,
    n: usize,
    d: usize,
    count: usize,
    width: usize,
    out: [*]f32,
) void {
    for (0..n) |row| {
        var at: usize = 0;
        while (at < count) : (at += L) {
            const b = value(page, hd, first + row, d + at);
            const q = simd.ld(@Vector(L, i8), @as([*]const i8, &b.q) + (d + at) % group);
            simd.st(out + row * width + at, simd.splat(block.half(b.d)) * floats(q));
        }
    }
}

inline fn floats(q: @Vector(L, i8)) F {
    return @floatFromInt(@as(simd.I, q));
}

test "what is written is read, key by key and many at once, within the stated error" {
    const testing = std.testing;
    const hd = 64;
    const n = 64;
    var random = std.Random.DefaultPrng.init(9);
    var x: [n][hd]f32 = undefined;
    for (&x) |*row| for (row) |*v| {
        v.* = random.random().floatNorm(f32);
    };
    var k: [n * hd / group * @sizeOf(Block)]u8 = @splat(0xff);
    var v = k;
    for (&x, 0..) |*row, pos| {
        putKey(&k, hd, pos, row);
        putValue(&v, hd, pos, row);
    }
    var keys: [n * hd]f32 = undefined;
    widenKeys(&k, hd, 0, n / across, &keys);
    for (x, 0..) |row, pos| for (row, 0..) |want, d| {
        const found = getKey(&k, hd, pos, d);
        try testing.expectEqual(found, getValue(&v, hd, pos, d));
        try testing.expectEqual(found, keys[(pos / across * hd + d) * across + pos % across]);
        var largest: f32 = 0;
        for (row[d / group * group ..][0..group]) |y| largest = @max(largest, @abs(y));
        try testing.expect(@abs(found - want) <= largest / 250 + @abs(want) / 2048);
    };
    var some: [5 * 2 * L]f32 = @splat(7);
    widenValues(&v, hd, 3, 5, 32, L, 2 * L, &some);
    for (0..5) |r| for (0..2 * L) |c| {
        const want = if (c < L) getValue(&v, hd, 3 + r, 32 + c) else 7;
        try testing.expectEqual(want, some[r * 2 * L + c]);
    };
}
