//! Keys and values kept as 8-bit blocks (`DType.q8_0`): 32 channels of one key or value share an
//! f16 scale, as in a block of weights, and are rounded to the nearest 127th of the largest.
//!
//! Layout of a head's page, K and V alike: the scales first, (hd / 32, 64 positions), then the
//! numbers in the order in which `attention_q8_rows` multiplies them. K: (4, hd / 4, 16 keys, 4
//! channels), so that a vector is four channels of 16 keys. V: (hd / 32, 2, 16, 32 channels, 2), so
//! that a vector is 16 channels of two positions, which are 16 apart. Whole lines of a cache.
//! Error: a number is off by at most 1/254 of its block's largest magnitude, and 1/2048 of itself.

const std = @import("std");
const block = @import("../block.zig");
const command = @import("command");
const quantize = @import("../quantize.zig");
const simd = @import("../simd.zig");
const F = simd.F;
const I = simd.I;
const L = simd.L;
const Block = block.Q8_0;

/// Channels that share a scale.
pub const group = block.short;
const page_tokens = command.page_tokens;
/// Keys of one block of a K page, and positions from one value of a pair to the other.
pub const across = command.panel;
/// Channels of a key that lie together.
pub const quad = 4;
/// Bytes of a group's scales.
pub const scale_bytes = page_tokens * 2;

/// Where a head's numbers start, behind its scales.
pub fn numbersAt(hd: usize) usize {
    return hd / group * scale_bytes;
}
/// Number of channel d of key `key`, from `numbersAt` on.
pub fn keyIndex(hd: usize, key: usize, d: usize) usize {
    return ((key / across * (hd / quad) + d / quad) * across + key % across) * quad + d % quad;
}
/// The same of a value.
pub fn valueIndex(pos: usize, d: usize) usize {
    const pair = (d / group * 2 + pos / (2 * across)) * across + pos % across;
    return (pair * group + d % group) * 2 + pos / across % 2;
}
fn scaleOf(page: anytype, pos: usize, d: usize) @TypeOf(page) {
    return page + d / group * scale_bytes + pos * 2;
}
/// Scale of channel d's group of position `pos`, in a head's page.
pub fn getScale(page: [*]const u8, pos: usize, d: usize) f32 {
    return block.half(simd.ld(u16, scaleOf(page, pos, d)));
}
/// Channel d of key `key`, without its scale.
pub fn getKeyNumber(page: [*]const u8, hd: usize, key: usize, d: usize) i8 {
    return @bitCast(page[numbersAt(hd) + keyIndex(hd, key, d)]);
}
pub fn getValueNumber(page: [*]const u8, hd: usize, pos: usize, d: usize) i8 {
    return @bitCast(page[numbersAt(hd) + valueIndex(pos, d)]);
}
/// Value of channel d of key `key` in a head's K page.
pub fn getKey(page: [*]const u8, hd: usize, key: usize, d: usize) f32 {
    return getScale(page, key, d) * @as(f32, @floatFromInt(getKeyNumber(page, hd, key, d)));
}
/// Value of channel d of position `pos` in a head's V page.
pub fn getValue(page: [*]const u8, hd: usize, pos: usize, d: usize) f32 {
    return getScale(page, pos, d) * @as(f32, @floatFromInt(getValueNumber(page, hd, pos, d)));
}

/// Writes one key of hd channels.
pub fn putKey(page: [*]u8, hd: usize, key: usize, x: [*]const f32) void {
    for (0..hd / group) |g| {
        const b = round(page, key, g, x);
        for (0..group / quad) |i| {
            const to = page + numbersAt(hd) + keyIndex(hd, key, g * group + i * quad);
            simd.st(to, @as([quad]i8, b.q[i * quad ..][0..quad].*));
        }
    }
}
/// Writes one value of hd channels.
pub fn putValue(page: [*]u8, hd: usize, pos: usize, x: [*]const f32) void {
    for (0..hd / group) |g| {
        const b = round(page, pos, g, x);
        const to = page + numbersAt(hd) + valueIndex(pos, g * group);
        for (b.q, 0..) |q, c| to[2 * c] = @bitCast(q);
    }
}
/// Rounds group g of a position's numbers and writes their scale.
fn round(page: [*]u8, pos: usize, g: usize, x: [*]const f32) Block {
    var b: Block = undefined;
    quantize.q8_0(x[g * group ..][0..group].*, &b);
    simd.st(scaleOf(page, pos, g * group), b.d);
    return b;
}

/// `blocks` times 16 keys from key `first` on, as f32: out[(block * hd + channel) * 16 + key].
pub fn widenKeys(page: [*]const u8, hd: usize, first: usize, blocks: usize, out: [*]f32) void {
    for (0..blocks) |b| for (0..across / L) |v| {
        const key = first + b * across + v * L;
        for (0..hd / quad) |i| {
            const d = simd.ldAs(.f16, scaleOf(page, key, i * quad), 0);
            const fours = simd.ld(I, page + numbersAt(hd) + keyIndex(hd, key, i * quad));
            inline for (0..quad) |c| {
                const q = (fours << @splat(24 - 8 * c)) >> @splat(24);
                const to = out + (b * hd + i * quad + c) * across + v * L;
                simd.st(to, d * @as(F, @floatFromInt(q)));
            }
        }
    };
}

test "what is written is read, key by key and many at once, within the stated error" {
    const testing = std.testing;
    const hd = 64;
    const n = page_tokens;
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
}
