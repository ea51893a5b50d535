//! The order of weights in blocks on a GPU (kernels/blocks.cuh): panels of 16 rows, each cut into
//! steps of 128 or 256 columns, whose bytes are those of the file, moved to where a warp's lanes
//! find what they multiply. Packed by the host while weights are loaded.

const std = @import("std");
const command = @import("command");
const block = @import("../cpu/block.zig");
const DType = command.DType;

const width = command.panel;
const lanes = 32;
/// Bytes that a lane reads at once.
const piece = 16;

/// Columns of a step: a row must be whole steps.
pub fn columns(dtype: DType) u32 {
    return switch (dtype) {
        .q8_0, .q4_0 => 128,
        .q4_k, .q5_k, .q6_k => 256,
        else => 1,
    };
}

/// Writes up to 16 rows of `cols` columns, which lie one after another, as one panel; missing rows
/// are zeros. `cols` is a multiple of `columns`.
pub fn pack(dtype: DType, dst: [*]u8, src: [*]const u8, rows: usize, cols: usize) void {
    switch (dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            const step = comptime columns(d);
            const row_bytes = block.rowBytes(d, cols);
            const step_bytes = comptime block.rowBytes(d, step);
            for (0..cols / step) |i| {
                var s: Step(d) = std.mem.zeroes(Step(d));
                for (0..rows) |r| s.put(r, src + r * row_bytes + i * step_bytes);
                s.write(dst + i * width * step_bytes);
            }
        },
        else => unreachable,
    }
}

/// One step of a panel on its way.
fn Step(comptime d: DType) type {
    const step = comptime columns(d);
    const n_blocks = step / block.columns(d);
    const Block = block.Of(d);
    return struct {
        q: [width][step]u8,
        blocks: [width][n_blocks]Block,

        fn put(s: *@This(), r: usize, from: [*]const u8) void {
            const to = std.mem.sliceAsBytes(&s.blocks[r]);
            @memcpy(to, from[0..to.len]);
            for (&s.blocks[r], 0..) |*b, i|
                integers(d, b, s.q[r][i * block.columns(d) ..][0..block.columns(d)]);
        }

        /// Bits [at, at + bits) of a lane's eight integers of 16 columns, as a word: a byte for
        /// each of columns 2t, 2t + 8, 2t + 1, 2t + 9, with row g's first and row g + 8's behind.
        fn word(s: *const @This(), c: usize, lane: usize, comptime at: u3, comptime bits: u3) u32 {
            const mask = (1 << @as(u8, bits)) - 1;
            const g, const t = .{ lane / 4, lane % 4 };
            var w: u32 = 0;
            inline for (0..2) |r| inline for (0..2) |far| inline for (0..2) |odd| {
                const q = s.q[g + 8 * r][16 * c + 2 * t + 8 * far + odd] >> at & mask;
                w |= @as(u32, q) << (8 * far + bits * r + 16 * odd);
            };
            return w;
        }

        fn write(s: *const @This(), dst: [*]u8) void {
            const quants = comptime step / 32 * piece * lanes / if (d == .q8_0) 1 else 2;
            for (0..step / 16) |c| for (0..lanes) |lane| {
                if (d == .q8_0) {
                    const at = dst + c / 2 * piece * lanes + lane * piece + c % 2 * 8;
                    s.bytes(c, lane, at);
                } else {
                    const at = dst + c / 4 * piece * lanes + lane * piece + c % 4 * 4;
                    std.mem.writeInt(u32, at[0..4], s.word(c, lane, 0, 4), .little);
                }
            };
            var tail = dst + quants;
            if (d == .q5_k or d == .q6_k) {
                const bits = if (d == .q5_k) 1 else 2;
                const per_word = 4 / bits;
                for (0..4 * bits) |w| for (0..lanes) |lane| {
                    var all: u32 = 0;
                    inline for (0..per_word) |i|
                        all |= s.word(w * per_word + i, lane, 4, bits) << (2 * bits * i);
                    const at = tail + w / 4 * piece * lanes + lane * piece + w % 4 * 4;
                    std.mem.writeInt(u32, at[0..4], all, .little);
                };
                tail += bits * piece * lanes;
            }
            for (0..lanes) |lane| s.scales(lane, tail);
        }

        fn bytes(s: *const @This(), c: usize, lane: usize, at: [*]u8) void {
            const g, const t = .{ lane / 4, lane % 4 };
            inline for (0..2) |r| inline for (0..2) |odd| inline for (0..2) |far| {
                at[4 * r + 2 * odd + far] = s.q[g + 8 * r][16 * c + 2 * t + 8 * far + odd];
            };
        }

        fn scales(s: *const @This(), lane: usize, tail: [*]u8) void {
            const g, const t = .{ lane / 4, lane % 4 };
            const pair = [2]*const [n_blocks]Block{ &s.blocks[g], &s.blocks[g + 8] };
            switch (d) {
                .q8_0, .q4_0 => for (pair, 0..) |row, r|
                    std.mem.writeInt(u16, (tail + lane * 4 + 2 * r)[0..2], row[t].d, .little),
                .q6_k => {
                    for (0..2) |h| for (pair, 0..) |row, r| for (0..2) |i| {
                        const scale = row[0].scales[8 * h + 2 * t + i];
                        tail[lane * 8 + 4 * h + 2 * r + i] = @bitCast(scale);
                    };
                    for (pair, 0..) |row, r| {
                        const at = tail + 8 * lanes + 2 * (g + 8 * r);
                        std.mem.writeInt(u16, at[0..2], row[0].d, .little);
                    }
                },
                .q4_k, .q5_k => {
                    const top = pair[t / 2][0];
                    const mine = if (t % 2 == 0) top.d else top.dmin;
                    for (0..2) |h| {
                        var w: u32 = @as(u32, mine >> @intCast(8 * h) & 255) << 24;
                        for (pair, 0..) |row, r| {
                            const both = block.scaleMin(&row[0].scales, 4 * h + t);
                            w |= @as(u32, both[0] | @as(u32, both[1]) << 6) << @intCast(12 * r);
                        }
                        std.mem.writeInt(u32, (tail + lane * 8 + 4 * h)[0..4], w, .little);
                    }
                },
                else => unreachable,
            }
        }
    };
}

/// The integers of a block as its bits have them, without what is taken off.
fn integers(comptime d: DType, b: *const block.Of(d), out: []u8) void {
    switch (d) {
        .q8_0 => for (b.q, out) |q, *o| {
            o.* = @bitCast(q);
        },
        .q4_0 => for (b.q, 0..) |q, i| {
            out[i] = q & 15;
            out[16 + i] = q >> 4;
        },
        .q4_k, .q5_k => for (0..4) |j| for (0..32) |i| {
            const q = b.q[32 * j + i];
            out[64 * j + i] = q & 15;
            out[64 * j + 32 + i] = q >> 4;
            if (d == .q5_k) {
                out[64 * j + i] |= (b.high[i] >> @intCast(2 * j) & 1) << 4;
                out[64 * j + 32 + i] |= (b.high[i] >> @intCast(2 * j + 1) & 1) << 4;
            }
        },
        .q6_k => for (0..2) |j| for (0..64) |i| {
            const q = b.q[64 * j + i];
            const high = b.high[32 * j + i % 32] >> @intCast(i / 32 * 2);
            out[128 * j + i] = q & 15 | (high & 3) << 4;
            out[128 * j + 64 + i] = q >> 4 | (high >> 4 & 3) << 4;
        },
        else => unreachable,
    }
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

/// Value (n, k) of panels, read as `block_value` of kernels/blocks.cuh reads it.
pub fn value(comptime d: DType, panels: []const u8, n: usize, k: usize, cols: usize) f32 {
    const step = comptime columns(d);
    const bytes = comptime width * block.rowBytes(d, step);
    const at = panels[(n / 16 * (cols / step) + k / step) * bytes ..][0..bytes];
    const in = k % step;
    const h, const c, const e = .{ in / 128, in % 128 / 16, in % 16 };
    const g, const r, const t, const odd = .{ n % 8, n / 8 % 2, e % 8 / 2, e % 2 };
    const lane = 4 * g + t;
    const register = 2 * (e / 8) + r;
    const own = 4 * g + c / 2;
    const pieces: usize = switch (d) {
        .q4_0 => 2,
        .q5_k => 5,
        .q6_k => 6,
        else => 4,
    };
    const tail = at[pieces * 512 ..];
    if (d == .q8_0) {
        const q: i8 = @bitCast(at[c / 2 * 512 + lane * 16 + c % 2 * 8 + r * 4 + odd * 2 + e / 8]);
        return half(tail, own * 4 + 2 * r) * @as(f32, @floatFromInt(q));
    }
    const m = 8 * h + c;
    const low = m / 4 * 512 + lane * 16 + m % 4 * 4;
    var q: i32 = @intCast(bitsAt(at, low, 4 * register + 16 * odd) & 15);
    if (d == .q4_0) return half(tail, own * 4 + 2 * r) * @as(f32, @floatFromInt(q - 8));
    if (d == .q6_k) {
        const shift = 8 * (e / 8) + 4 * (c % 2) + 2 * r + 16 * odd;
        q |= @intCast((bitsAt(at, (4 + h) * 512 + lane * 16 + c / 2 * 4, shift) & 3) << 4);
        const scale: i8 = @bitCast(tail[own * 8 + 4 * h + 2 * r + c % 2]);
        const by = half(tail, 256 + 2 * (n % 16)) * @as(f32, @floatFromInt(scale));
        return by * @as(f32, @floatFromInt(q - 32));
    }
    if (d == .q5_k) {
        const shift = 8 * (e / 8) + 2 * (m % 4) + r + 16 * odd;
        q |= @intCast((bitsAt(at, 2048 + lane * 16 + m / 4 * 4, shift) & 1) << 4);
    }
    const pair = bitsAt(tail, own * 8 + 4 * h, 12 * r);
    const top = tail[(4 * g + 2 * r) * 8 ..];
    const by = block.half(top[3] | @as(u16, top[7]) << 8) * @as(f32, @floatFromInt(pair & 63));
    const least: f32 = @floatFromInt(pair >> 6 & 63);
    const min = block.half(top[11] | @as(u16, top[15]) << 8) * least;
    const product = by * @as(f32, @floatFromInt(q));
    return product - min;
}
fn half(from: []const u8, at: usize) f32 {
    return block.half(std.mem.readInt(u16, from[at..][0..2], .little));
}
fn bitsAt(from: []const u8, at: usize, shift: usize) u32 {
    return std.mem.readInt(u32, from[at..][0..4], .little) >> @intCast(shift);
}

test "panels of blocks have the values of their rows, missing rows none" {
    const gpa = testing.allocator;
    var seed = std.Random.DefaultPrng.init(3);
    const random = seed.random();
    inline for (.{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k }) |name| {
        const d: DType = name;
        const cols = 512;
        const row_bytes = comptime block.rowBytes(d, cols);
        var src: [13 * row_bytes]u8 = undefined;
        random.bytes(&src);
        // Scales that are no numbers have no values to compare.
        for (0..src.len / block.bytes(d)) |i| {
            const at = src[i * block.bytes(d) ..][0..block.bytes(d)];
            at[if (d == .q6_k) block.bytes(d) - 1 else 1] &= 0x3f;
            if (d == .q4_k or d == .q5_k) at[3] &= 0x3f;
        }
        const panel = try gpa.alloc(u8, width * row_bytes);
        defer gpa.free(panel);
        pack(d, panel.ptr, &src, 13, cols);
        var row: [cols]f32 = undefined;
        for (0..width) |n| {
            if (n < 13) block.dequantizeRow(d, src[n * row_bytes ..].ptr, cols, &row);
            for (row, 0..) |there, k| {
                const wanted = if (n < 13) there else 0;
                try testing.expectEqual(wanted, value(d, panel, n, k, cols));
            }
        }
    }
}
