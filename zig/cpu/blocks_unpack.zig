//! A slice of a panel of blocks, unpacked into what one multiply-add instruction takes: unsigned
//! bytes, or shorts for q8_0 where no instruction multiplies four bytes at once. `blocks_gemm`
//! unpacks a slice once and passes all rows over it.

const command = @import("command");
const block = @import("block.zig");
const int8 = @import("int8.zig");
const lanes = @import("block_lanes.zig");
const simd = @import("simd.zig");
const Bytes = int8.Bytes;
const DType = command.DType;
const F = simd.F;
const Kind = @import("blocks_rows.zig").Kind;
const L = simd.L;
const Shorts = int8.Shorts;
const Sums = int8.Sums;
const V = lanes.V;
const width = command.panel;

/// Columns of a slice: 8 KiB of bytes or 16 KiB of shorts a panel.
pub const slice = 512;
const runs = slice / int8.columns;

pub fn kindOf(dtype: DType) Kind {
    return if (dtype == .q8_0 and !simd.has_vnni) .shorts else .bytes;
}

/// A slice of one panel, unpacked: numbers in the order of `Rows`, 64 bytes for each word of 4 or 2
/// columns; d of each block, and in the K types each run's factors (of 16 columns each in q6_k) and
/// the minima of two runs at a time.
pub const Unpacked = struct {
    q: [slice * width * if (simd.has_vnni) 1 else 2]u8 align(64),
    d: [runs][width]f32,
    dmin: [slice / block.long][width]f32,
    factor: [runs][2][V]Sums,
    min: [runs / 2][V]Shorts,
};

inline fn setBytes(u: *Unpacked, run: usize, g: usize, v: usize, q: Bytes) void {
    simd.st(@as([*]u8, &u.q) + ((run * 8 + g) * width + v * L) * 4, q);
}
/// Columns (0, 2) and (1, 3) of the four of each lane.
inline fn setShorts(u: *Unpacked, run: usize, g: usize, v: usize, q: int8.Signed) void {
    const pairs: Shorts = @bitCast(q);
    const to = @as([*]u8, &u.q) + ((run * 16 + 2 * g) * width + v * L) * 4;
    simd.st(to, pairs << @splat(8) >> @splat(8));
    simd.st(to + width * 4, pairs >> @splat(8));
}
inline fn setFloats(to: *[width]f32, v: usize, x: F) void {
    simd.st(@as([*]f32, to) + v * L, x);
}

/// Unpacks block number b of a slice.
pub fn unpack(comptime dtype: DType, w: [*]const u8, u: *Unpacked, b: usize) void {
    @setEvalBranchQuota(100_000);
    const run0 = b * (comptime block.columns(dtype)) / int8.columns;
    inline for (0..V) |v| setFloats(&u.d[b], v, lanes.half(dtype, "d", w, v));
    switch (dtype) {
        .q8_0 => inline for (0..8) |g| inline for (0..V) |v| if (kindOf(dtype) == .bytes)
            setBytes(u, run0, g, v, lanes.lifted(w, g, v))
        else
            setShorts(u, run0, g, v, lanes.whole(w, g, v)),
        .q4_0 => inline for (0..4) |g| inline for (0..V) |v|
            inline for (lanes.pair(dtype, w, 0, g, v), 0..) |q, k|
                setBytes(u, run0, g + 4 * k, v, q),
        .q4_k, .q5_k, .q6_k => {
            inline for (0..comptime lanes.parts(dtype)) |part| {
                const both = comptime lanes.runs(dtype, part);
                inline for (0..8) |g| inline for (0..V) |v|
                    inline for (lanes.pair(dtype, w, part, g, v), both) |q, run|
                        setBytes(u, run0 + run, g, v, q);
            }
            if (dtype == .q6_k) {
                for (0..16) |i| inline for (0..V) |v| {
                    u.factor[run0 + i / 2][i % 2][v] = lanes.factor16(w, i, v);
                };
            } else unpackFiner(dtype, w, u, b, run0);
        },
        else => @compileError("no blocks"),
    }
}
fn unpackFiner(comptime dtype: DType, w: [*]const u8, u: *Unpacked, b: usize, run0: usize) void {
    var finer: lanes.Finer = undefined;
    finer.unpack(dtype, w);
    inline for (0..V) |v| {
        setFloats(&u.dmin[b], v, lanes.half(dtype, "dmin", w, v));
        for (0..8) |run| {
            u.factor[run0 + run][0][v] = finer.factor(run, v);
        }
        for (0..4) |pair| u.min[run0 / 2 + pair][v] = finer.minima(pair, v);
    }
}
