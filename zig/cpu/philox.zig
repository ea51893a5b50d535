//! Philox4x32-10 (Salmon et al. 2011): random numbers as a function of a counter and a key, so that
//! a draw depends on its seed and place alone, not on what was drawn before or by which thread.

const std = @import("std");

/// Four random words for a counter under a key.
pub fn words(counter: [4]u32, key: [2]u32) [4]u32 {
    var c = counter;
    var k = key;
    for (0..10) |_| {
        const a = @as(u64, c[0]) * 0xd2511f53;
        const b = @as(u64, c[2]) * 0xcd9e8d57;
        c = .{ high(b) ^ c[1] ^ k[0], low(b), high(a) ^ c[3] ^ k[1], low(a) };
        k[0] +%= 0x9e3779b9; // the golden ratio
        k[1] +%= 0xbb67ae85; // sqrt(3) - 1
    }
    return c;
}
fn high(x: u64) u32 {
    return @truncate(x >> 32);
}
fn low(x: u64) u32 {
    return @truncate(x);
}

/// A number in [0, 1), a multiple of 2^-53.
pub fn uniform(counter: [4]u32, key: [2]u32) f64 {
    const w = words(counter, key);
    const bits = @as(u64, w[0] >> 5) << 26 | w[1] >> 6;
    return @as(f64, @floatFromInt(bits)) * 0x1p-53;
}

test "the published answers" {
    const expectEqual = std.testing.expectEqual;
    const ones: u32 = 0xffffffff;
    try expectEqual(
        [4]u32{ 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
        words(.{ 0, 0, 0, 0 }, .{ 0, 0 }),
    );
    try expectEqual(
        [4]u32{ 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
        words(@splat(ones), @splat(ones)),
    );
    try expectEqual(
        [4]u32{ 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 },
        words(.{ 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, .{ 0xa4093822, 0x299f31d0 }),
    );
}

test "uniform numbers fill [0, 1) evenly" {
    var counts: [16]u32 = @splat(0);
    var sum: f64 = 0;
    const n = 160_000;
    for (0..n) |i| {
        const u = uniform(.{ @intCast(i), 7, 0, 0 }, .{ 5, 0 });
        try std.testing.expect(u >= 0 and u < 1);
        counts[@intFromFloat(u * 16)] += 1;
        sum += u;
    }
    try std.testing.expectApproxEqAbs(@as(f64, 0.5), sum / n, 0.003);
    var chi: f64 = 0;
    for (counts) |c| chi += std.math.pow(f64, @as(f64, @floatFromInt(c)) - 10_000, 2) / 10_000;
    try std.testing.expect(chi < 45); // 15 degrees of freedom: above it once in 14,000 seeds
}
