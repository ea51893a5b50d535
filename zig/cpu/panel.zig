//! Weights in panels: packing from row-major storage of any float dtype into the panel layout of
//! any float dtype (`command.Layout.panel`), and reading single elements back. A block of 16 rows
//! and 16 words is transposed in registers, whole cache lines at a time, because rows that lie a
//! power of two apart share cache sets and would evict each other between two visits.

const std = @import("std");
const command = @import("command");
const simd = @import("simd.zig");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const DType = command.DType;
const U = simd.U;
const F = simd.F;
const L = simd.L;
const width = command.panel;

/// Bytes before the numbers of a panel of f8_e4m3: the f32 scales of its rows.
pub const scale_bytes = width * 4;

/// Panels of a matrix with that many rows (output features).
pub fn count(rows: usize) usize {
    return (rows + width - 1) / width;
}
/// Bytes of one panel over `cols` input features.
pub fn panelBytes(dtype: DType, cols: usize) usize {
    return switch (dtype) {
        .f32, .i32 => cols * width * 4,
        .f16 => cols * width * 2,
        .bf16 => (cols + 1) / 2 * width * 4,
        .f8_e4m3 => scale_bytes + cols * width,
        .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => block.rowBytes(dtype, cols) * width,
    };
}
/// Bytes of a whole (rows, cols) matrix in panels.
pub fn bytes(dtype: DType, rows: usize, cols: usize) usize {
    return count(rows) * panelBytes(dtype, cols);
}
/// Element (row, col) of a type without blocks as f32.
pub fn get(dtype: DType, p: [*]const u8, cols: usize, row: usize, col: usize) f32 {
    const at = p + row / width * panelBytes(dtype, cols);
    const lane = row % width;
    return switch (dtype) {
        .f32 => simd.get(.f32, at, col * width + lane),
        .f16 => simd.get(.f16, at, col * width + lane),
        .bf16 => simd.get(.bf16, at, (col / 2 * width + lane) * 2 + col % 2),
        .f8_e4m3 => simd.get(.f32, at, lane) * block.eight(at[scale_bytes + col * width + lane]),
        else => unreachable,
    };
}

/// Writes panels [panel_begin, panel_end) of `dst` (the matrix's first panel) from the row-major
/// matrix `src` (rows, cols) without gaps, converting as asked. Neither needs an alignment. Blocks
/// stay the blocks they are.
pub fn pack(
    dst: [*]u8,
    dst_dtype: DType,
    src: [*]const u8,
    src_dtype: DType,
    rows: usize,
    cols: usize,
    panel_begin: usize,
    panel_end: usize,
) void {
    if (block.is(dst_dtype)) {
        std.debug.assert(src_dtype == dst_dtype);
        for (panel_begin..@min(panel_end, count(rows))) |p| {
            const at = src + p * width * block.rowBytes(dst_dtype, cols);
            const some = @min(width, rows - p * width);
            block_panel.pack(dst_dtype, dst + p * panelBytes(dst_dtype, cols), at, some, cols);
        }
        return;
    }
    if (dst_dtype == .f8_e4m3) {
        std.debug.assert(src_dtype == dst_dtype);
        for (panel_begin..@min(panel_end, count(rows))) |p| {
            const at = src + p * width * cols;
            const one = dst + p * panelBytes(dst_dtype, cols);
            packBytes(one, at, @min(width, rows - p * width), cols);
        }
        return;
    }
    switch (src_dtype) {
        inline .f32, .bf16, .f16 => |from| switch (dst_dtype) {
            inline .f32, .bf16, .f16 => |to| {
                const one = panelBytes(to, cols);
                for (panel_begin..@min(panel_end, count(rows))) |p| {
                    const first = p * width;
                    const from_row = src + first * cols * simd.size(from);
                    packOne(to, from, dst + p * one, from_row, @min(width, rows - first), cols);
                }
            },
            else => unreachable,
        },
        else => unreachable,
    }
}

/// The numbers of one panel of f8_e4m3; its scales are the caller's.
fn packBytes(dst: [*]u8, src: [*]const u8, rows: usize, cols: usize) void {
    const numbers = dst + scale_bytes;
    // Some columns at a time, so that a row's cache line is read while it is there.
    const step = 64;
    var k: usize = 0;
    while (k < cols) : (k += step) {
        for (k..@min(k + step, cols)) |c| for (0..width) |r| {
            numbers[c * width + r] = if (r < rows) src[r * cols + c] else 0;
        };
    }
}

/// 32-bit words of a row that are transposed at once: one cache line.
const words = 16;
const Tile = [words][width]u32;

fn packOne(
    comptime to: DType,
    comptime from: DType,
    dst: [*]u8,
    src: [*]const u8,
    rows: usize,
    cols: usize,
) void {
    const per_word = 4 / simd.size(from);
    const stride = cols * simd.size(from);
    var tile: Tile align(64) = undefined;
    var k: usize = 0;
    while (k < cols) : (k += words * per_word) {
        const n = @min(words * per_word, cols - k);
        const at = src + k * simd.size(from);
        if (rows == width and n == words * per_word) {
            inline for (0..2) |h| transpose(at + h * 8 * stride, stride, h * 8, &tile);
        } else gather(from, at, stride, rows, n, &tile);
        emit(to, from, dst, k, n, &tile);
    }
}

/// The edge: fewer rows or words than a tile has; what is missing becomes zero.
fn gather(
    comptime from: DType,
    src: [*]const u8,
    stride: usize,
    rows: usize,
    n: usize,
    tile: *Tile,
) void {
    @memset(std.mem.asBytes(tile), 0);
    for (0..rows) |r| for (0..n) |k| {
        const row = src + r * stride;
        if (from == .f32) tile[k][r] = simd.ld(u32, row + k * 4) else {
            const v: u32 = simd.ld(u16, row + k * 2);
            tile[k / 2][r] |= v << @intCast(k % 2 * 16);
        }
    };
}

const V8 = @Vector(8, u32);
inline fn shuffle(a: V8, b: V8, comptime at: [8]i32) V8 {
    return @shuffle(u32, a, b, at);
}
/// Words [0, 16) of 8 rows become columns [first, first + 8) of the tile.
inline fn transpose(src: [*]const u8, stride: usize, comptime first: usize, tile: *Tile) void {
    inline for (0..2) |part| {
        var a: [8]V8 = undefined;
        inline for (0..8) |r| a[r] = simd.ld(V8, src + r * stride + part * 32);
        var b: [8]V8 = undefined;
        inline for (0..4) |i| {
            b[2 * i] = shuffle(a[2 * i], a[2 * i + 1], .{ 0, -1, 1, -2, 4, -5, 5, -6 });
            b[2 * i + 1] = shuffle(a[2 * i], a[2 * i + 1], .{ 2, -3, 3, -4, 6, -7, 7, -8 });
        }
        inline for (0..2) |g| inline for (0..2) |i| {
            const x = b[4 * g + i];
            const y = b[4 * g + 2 + i];
            a[4 * g + 2 * i] = shuffle(x, y, .{ 0, 1, -1, -2, 4, 5, -5, -6 });
            a[4 * g + 2 * i + 1] = shuffle(x, y, .{ 2, 3, -3, -4, 6, 7, -7, -8 });
        };
        inline for (0..4) |i| {
            const low = shuffle(a[i], a[4 + i], .{ 0, 1, 2, 3, -1, -2, -3, -4 });
            const high = shuffle(a[i], a[4 + i], .{ 4, 5, 6, 7, -5, -6, -7, -8 });
            simd.st(&tile[part * 8 + i][first], low);
            simd.st(&tile[part * 8 + i + 4][first], high);
        }
    }
}

/// Columns k .. k + n of the panel from the tile's words.
fn emit(
    comptime to: DType,
    comptime from: DType,
    dst: [*]u8,
    k: usize,
    n: usize,
    tile: *const Tile,
) void {
    if (to == from and from != .f16) {
        const used = if (from == .f32) n else (n + 1) / 2;
        const at = if (from == .f32) k else k / 2;
        const whole = std.mem.asBytes(tile);
        @memcpy((dst + at * width * 4)[0 .. used * width * 4], whole[0 .. used * width * 4]);
        return;
    }
    var i: usize = 0;
    while (i < n) : (i += 2) inline for (0..width / L) |j| {
        const even = value(from, tile, i, j);
        const odd = if (i + 1 < n) value(from, tile, i + 1, j) else simd.zero;
        const lanes = j * L;
        switch (to) {
            .f32 => {
                simd.st(dst + ((k + i) * width + lanes) * 4, even);
                if (i + 1 < n) simd.st(dst + ((k + i + 1) * width + lanes) * 4, odd);
            },
            .f16 => {
                simd.st(dst + ((k + i) * width + lanes) * 2, simd.f2hV(even));
                if (i + 1 < n) simd.st(dst + ((k + i + 1) * width + lanes) * 2, simd.f2hV(odd));
            },
            .bf16 => {
                const high = @as(U, simd.f2bV(odd)) << @splat(16);
                const pair = @as(U, simd.f2bV(even)) | high;
                simd.st(dst + ((k + i) / 2 * width + lanes) * 4, pair);
            },
            else => unreachable,
        }
    };
}
inline fn value(comptime from: DType, tile: *const Tile, i: usize, comptime j: usize) F {
    if (from == .f32) return @bitCast(simd.ld(U, &tile[i][j * L]));
    const u = simd.ld(U, &tile[i / 2][j * L]);
    const half: @Vector(L, u16) = @truncate(if (i % 2 == 0) u else u >> @splat(16));
    return if (from == .bf16) simd.b2fV(half) else simd.h2fV(half);
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

test "every dtype packs into every dtype at ugly sizes, by the layout's definition" {
    const gpa = testing.allocator;
    var seed = std.Random.DefaultPrng.init(3);
    const random = seed.random();
    const all = [_]DType{ .f32, .bf16, .f16 };
    const sizes = [_][2]usize{
        .{ 1, 1 },   .{ 2, 3 },     .{ 16, 16 },  .{ 17, 33 },
        .{ 32, 64 }, .{ 129, 130 }, .{ 31, 151 }, .{ 16, 1134 },
    };
    for (sizes) |s| {
        inline for (all) |from| inline for (all) |to| {
            const rows = s[0];
            const cols = s[1];
            // One byte off, so that nothing rests on alignment.
            const src = try gpa.alloc(u8, rows * cols * simd.size(from) + 1);
            defer gpa.free(src);
            for (0..rows * cols) |i| {
                const x = random.float(f32) * 4 - 2;
                const at = src.ptr + 1 + i * simd.size(from);
                switch (from) {
                    .f32 => simd.st(at, x),
                    .bf16 => simd.st(at, simd.f2b(x)),
                    .f16 => simd.st(at, simd.f2h(x)),
                    else => unreachable,
                }
            }
            const dst = try gpa.alloc(u8, bytes(to, rows, cols));
            defer gpa.free(dst);
            @memset(dst, 0xff);
            // In two parts, as threads do it.
            const middle = count(rows) / 2;
            pack(dst.ptr, to, src.ptr + 1, from, rows, cols, middle, count(rows) + 3);
            pack(dst.ptr, to, src.ptr + 1, from, rows, cols, 0, middle);
            for (0..count(rows) * width) |r| for (0..cols) |k| {
                const x = if (r < rows) simd.get(from, src.ptr + 1, r * cols + k) else 0;
                const want = switch (to) {
                    .f32 => x,
                    .bf16 => simd.b2f(simd.f2b(x)),
                    .f16 => simd.h2f(simd.f2h(x)),
                    else => unreachable,
                };
                try testing.expectEqual(want, get(to, dst.ptr, cols, r, k));
            };
            // The padding of an odd K is zero.
            if (to == .bf16 and cols % 2 == 1) for (0..width) |lane| {
                const at = (cols / 2 * width + lane) * 2 + 1;
                try testing.expectEqual(@as(f32, 0), simd.get(.bf16, dst.ptr, at));
            };
        };
    }
}
