//! Tests of the quantizers: errors on values like those of weights stay below stated bounds, edge
//! cases survive, and what is representable is kept.

const std = @import("std");
const block = @import("../block.zig");
const quantize = @import("../quantize.zig");
const ref = @import("ref.zig");
const DType = block.DType;
const testing = std.testing;

const types = [_]DType{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k };

fn through(comptime dtype: DType, x: []const f32, out: []f32) void {
    var at: usize = 0;
    while (at < x.len) : (at += 256) {
        var blocks: [512]u8 = undefined;
        quantize.quantize(dtype, x[at..][0..256], 256, &blocks);
        block.dequantizeRow(dtype, &blocks, 256, out.ptr + at);
    }
}

/// Root of the mean squared error over that of the values.
fn relativeError(x: []const f32, y: []const f32) f64 {
    var wrong: f64 = 0;
    var all: f64 = 0;
    for (x, y) |a, b| {
        wrong += (@as(f64, a) - b) * (@as(f64, a) - b);
        all += @as(f64, a) * a;
    }
    return @sqrt(wrong / all);
}

test "errors on normal values stay below those of the best known quantizers" {
    // Measured with ggml's quantizers on values of the same distribution, rounded up.
    const bounds = .{ 0.00555, 0.0840, 0.0725, 0.0365, 0.0179 };
    var random = std.Random.DefaultPrng.init(9);
    var x: [1 << 14]f32 = undefined;
    var y: [1 << 14]f32 = undefined;
    for (&x) |*v| v.* = random.random().floatNorm(f32) * 0.02;
    inline for (types, bounds) |dtype, bound| {
        through(dtype, &x, &y);
        const e = relativeError(&x, &y);
        if (!(e <= bound)) {
            std.debug.print("{t}: {d:.5} is above {d:.5}\n", .{ dtype, e, bound });
            return error.TestUnexpectedResult;
        }
    }
}

test "zeros, constants, single values, huge and tiny ones survive" {
    var x: [256]f32 = undefined;
    var y: [256]f32 = undefined;
    inline for (types) |dtype| {
        @memset(&x, 0);
        through(dtype, &x, &y);
        for (y) |v| try testing.expectEqual(@as(f32, 0), v);
        for ([_]f32{ 1, -1, 1000, -0.01 }) |value| {
            @memset(&x, value);
            through(dtype, &x, &y);
            for (y) |v| try testing.expectApproxEqRel(value, v, 0.02);
            @memset(&x, 0);
            x[77] = value;
            through(dtype, &x, &y);
            try testing.expectApproxEqRel(value, y[77], 0.02);
        }
        for ([_]f32{ 1e30, 1e-30, 1e-44, std.math.inf(f32), std.math.nan(f32) }) |value| {
            for (&x, 0..) |*v, i| v.* = if (i % 3 == 0) -value else value;
            through(dtype, &x, &y); // no trap, and what is too small becomes zero
            if (value < 1e-20) for (y) |v| try testing.expectApproxEqAbs(@as(f32, 0), v, 1e-20);
        }
    }
}

test "searches side by side find what one after another does, whatever the values" {
    var random = std.Random.DefaultPrng.init(10);
    const r = random.random();
    const inf = std.math.inf(f32);
    for (0..300) |round| {
        var x: [256]f32 = undefined;
        const size = std.math.pow(f32, 10, r.float(f32) * 12 - 8);
        for (&x, 0..) |*v, i| v.* = switch (round % 6) {
            0 => r.floatNorm(f32) * size,
            1 => (r.float(f32) + 0.2) * size, // of one sign, with ties
            2 => @as(f32, @floatFromInt(r.intRangeAtMost(i8, -3, 3))) * size,
            3 => if (i / 32 % 2 == 0) 0 else -r.float(f32) * size, // parts of zeros
            4 => std.math.pow(f32, r.floatNorm(f32), 5) * size, // far out
            else => @bitCast(r.int(u32)), // anything, NaN too
        };
        if (round % 50 == 4) x[r.uintLessThan(usize, 256)] = inf;
        if (round % 50 == 9) x[r.uintLessThan(usize, 256)] = 3e38;
        inline for (types) |dtype| {
            var got: [512]u8 = @splat(7);
            var want: [512]u8 = @splat(7);
            const n = if (block.columns(dtype) == 32) 256 - 32 * (round % 3) else 256;
            quantize.quantize(dtype, &x, n, &got);
            quantize.quantizeBy(ref, dtype, &x, n, &want);
            try testing.expectEqualSlices(u8, &want, &got);
        }
    }
}

test "values on the grid of a scale are kept" {
    var x: [256]f32 = undefined;
    var y: [256]f32 = undefined;
    for (&x, 0..) |*v, i| v.* = @as(f32, @floatFromInt(i * 7 % 16)) - 8;
    through(.q4_0, &x, &y);
    try testing.expectEqualSlices(f32, &x, &y);
    for (&x, 0..) |*v, i| v.* = (@as(f32, @floatFromInt(i * 7 % 16)) - 5) / 4;
    inline for (.{ .q4_k, .q5_k }) |dtype| {
        through(dtype, &x, &y);
        for (x, y) |a, b| try testing.expectApproxEqAbs(a, b, 2e-3);
    }
}
