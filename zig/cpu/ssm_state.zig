//! The state of an SSM head, (N, P) numbers in a slot, as what it is kept in: f32, bf16 or f16. The
//! scan holds it in f32 panels two vectors wide, (P / width, N, width), padded with zeros.

const std = @import("std");
const command = @import("command");
const simd = @import("simd.zig");
const tile = @import("tile.zig");
const DType = command.DType;
const F = simd.F;
const L = simd.L;

/// Panels of a row of p columns.
pub fn count(p: usize) usize {
    return (p + tile.width - 1) / tile.width;
}

/// The first n (below L) numbers at p, zeros behind them.
pub fn ldSome(comptime kept: DType, p: [*]const u8, n: usize) F {
    var a: [L]f32 = @splat(0);
    for (0..n) |i| a[i] = simd.get(kept, p, i);
    return a;
}
/// Writes the first n (below L) lanes to p and nothing beyond.
pub fn stSome(comptime kept: DType, p: [*]u8, v: F, n: usize) void {
    const bytes = comptime L * simd.size(kept);
    var whole: [bytes]u8 = undefined;
    simd.stAs(kept, &whole, 0, v);
    const some = n * simd.size(kept);
    @memcpy(p[0..some], whole[0..some]);
}

/// Columns of panel q of a row of n numbers; zeros beyond the row's end.
pub inline fn loadPanelRow(
    comptime kept: DType,
    to: [*]f32,
    row: [*]const u8,
    q: usize,
    n: usize,
) void {
    inline for (0..tile.vecs) |v| {
        const p = q * tile.width + v * L;
        if (p + L <= n) {
            simd.st(to + v * L, simd.ldAs(kept, row, p));
        } else simd.st(to + v * L, ldSome(kept, row + p * simd.size(kept), n -| p));
    }
}
/// Writes those of columns p .. p + L that a row of n numbers has.
pub inline fn storeColumns(comptime kept: DType, row: [*]u8, p: usize, n: usize, v: F) void {
    if (p + L <= n) {
        simd.stAs(kept, row, p, v);
    } else stSome(kept, row + p * simd.size(kept), v, n -| p);
}

/// A state in panels.
pub const Panels = struct {
    p: [*]f32,
    /// Rows, and the numbers of each.
    n: usize,
    width: usize,

    pub fn load(s: Panels, kept: DType, from: [*]const u8) void {
        switch (kept) {
            inline .f32, .bf16, .f16 => |d| for (0..count(s.width)) |q| for (0..s.n) |n| {
                const row = from + n * s.width * simd.size(d);
                loadPanelRow(d, s.p + (q * s.n + n) * tile.width, row, q, s.width);
            },
            else => unreachable,
        }
    }
    pub fn store(s: Panels, kept: DType, to: [*]u8) void {
        switch (kept) {
            inline .f32, .bf16, .f16 => |d| for (0..s.n) |n| for (0..count(s.width)) |q| {
                const row = to + n * s.width * simd.size(d);
                inline for (0..tile.vecs) |v| {
                    const from = s.p + (q * s.n + n) * tile.width + v * L;
                    storeColumns(d, row, q * tile.width + v * L, s.width, simd.ldF(from));
                }
            },
            else => unreachable,
        }
    }
    /// As if the state were stored and loaded again: a run may end after any piece of a chunk.
    pub fn round(s: Panels, kept: DType) void {
        switch (kept) {
            .f32 => {},
            inline .bf16, .f16 => |d| for (0..count(s.width) * s.n * tile.vecs) |i| {
                simd.st(s.p + i * L, simd.asKept(d, simd.ldF(s.p + i * L)));
            },
            else => unreachable,
        }
    }
};

test "a rounded state is a stored and loaded one, whatever its width" {
    const testing = std.testing;
    var random = std.Random.DefaultPrng.init(2);
    const n = 3;
    inline for ([_]DType{ .f32, .bf16, .f16 }) |kept| for ([_]usize{ 1, 13, 64, 71 }) |width| {
        var a: [n * 96]f32 = @splat(0);
        var b: [n * 96]f32 = @splat(7);
        var bytes: [n * 71 * 4 + 1]u8 = @splat(0xee);
        const used = n * width * comptime simd.size(kept);
        for (0..n * 96) |i| {
            const column = i / (n * tile.width) * tile.width + i % tile.width;
            if (column < width) a[i] = random.random().floatNorm(f32) * 1e3;
        }
        const first = Panels{ .p = &a, .n = n, .width = width };
        first.store(kept, &bytes);
        first.round(kept);
        const second = Panels{ .p = &b, .n = n, .width = width };
        second.load(kept, &bytes);
        const floats = count(width) * n * tile.width;
        try testing.expectEqualSlices(f32, a[0..floats], b[0..floats]);
        try testing.expectEqual(@as(u8, 0xee), bytes[used]);
    };
    const huge = simd.asKept(.f16, simd.splat(1e9));
    try testing.expectEqual(@as(f32, 65504), huge[0]);
}
