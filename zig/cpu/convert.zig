//! Conversion between the types that weights are stored in, in order: from any to any, blocks
//! included, but none becomes f8_e4m3. One type to itself is a copy of the bits.

const std = @import("std");
const block = @import("block.zig");
const quantize = @import("quantize.zig");
const simd = @import("simd.zig");
const DType = block.DType;

/// Columns that are in f32 at a time: blocks of any two types fit.
const step = block.long;

/// Converts n columns, a multiple of both types' blocks. Any alignment. Numbers of f8_e4m3 are
/// multiplied by `scale`, that of their row.
pub fn convert(
    dst: [*]u8,
    to: DType,
    src: [*]const u8,
    from: DType,
    n: usize,
    scale: f32,
) void {
    if (to == from) {
        const bytes = block.rowBytes(to, n);
        @memcpy(dst[0..bytes], src[0..bytes]);
        return;
    }
    switch (to) {
        .i32, .f8_e4m3 => unreachable,
        inline else => |t| {
            // Searches look at all columns at once, whether or not they are wanted.
            var values: [step]f32 = @splat(0);
            var i: usize = 0;
            while (i < n) : (i += step) {
                const some = @min(step, n - i);
                toFloats(from, src + block.rowBytes(from, i), some, &values);
                if (from == .f8_e4m3) for (values[0..some]) |*v| {
                    v.* *= scale;
                };
                quantize.quantize(t, &values, some, dst + block.rowBytes(t, i));
            }
        },
    }
}

fn toFloats(from: DType, src: [*]const u8, n: usize, values: *[step]f32) void {
    switch (from) {
        .i32 => unreachable,
        inline .f32, .bf16, .f16 => |f| for (values[0..n], 0..) |*v, i| {
            v.* = simd.get(f, src, i);
        },
        else => block.dequantizeRow(from, src, n, values),
    }
}

test "every type becomes every other, and stays what it is" {
    const testing = std.testing;
    var random = std.Random.DefaultPrng.init(5);
    var values: [512]f32 = undefined;
    for (&values) |*v| v.* = random.random().floatNorm(f32);
    const types = [_]DType{ .f32, .bf16, .f16, .q8_0, .q4_0, .q4_k, .q5_k, .q6_k };
    for (types) |a| {
        var first: [2048]u8 = undefined;
        convert(&first, a, std.mem.sliceAsBytes(&values).ptr, .f32, values.len, 0);
        for (types) |b| {
            var second: [2048]u8 = undefined;
            convert(&second, b, &first, a, values.len, 0);
            var back: [values.len]f32 = undefined;
            block.dequantizeRow(b, &second, values.len, &back);
            for (values, back) |x, y| try testing.expectApproxEqAbs(x, y, 0.5);
            if (a == b) try testing.expectEqualSlices(
                u8,
                first[0..block.rowBytes(a, values.len)],
                second[0..block.rowBytes(a, values.len)],
            );
        }
    }
}

test "f8_e4m3 become what they mean, times their scale" {
    const testing = std.testing;
    var bytes: [256]u8 = undefined;
    for (&bytes, 0..) |*b, i| b.* = @intCast(i);
    var out: [256]f32 = undefined;
    convert(@ptrCast(&out), .f32, &bytes, .f8_e4m3, bytes.len, 0.75);
    for (bytes, out) |b, x| {
        const exponent: i32 = b >> 3 & 15;
        const fraction: f32 = @floatFromInt(b & 7);
        const normal = (1 + fraction / 8) * std.math.pow(f32, 2, @floatFromInt(exponent - 7));
        const size = if (exponent == 0) fraction / 512 else normal;
        const want = if (b & 0x7f == 0x7f) std.math.nan(f32) else if (b > 127) -size else size;
        if (b & 0x7f == 0x7f) try testing.expect(std.math.isNan(x)) else {
            try testing.expectEqual(want * 0.75, x);
            const lanes: @Vector(simd.L, u8) = @splat(b);
            try testing.expectEqual(want, simd.e2fV(lanes)[simd.L - 1] * 256);
        }
    }
}
