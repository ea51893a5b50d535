//! Products of many rows in two launches that run side by side. Clusters of eight blocks share each
//! tile of weights, so that L2 is read 5/8 as often as by clusters of two; but only 15 of them run
//! at once on an H200 or H100, as parts of the chip have other numbers of multiprocessors. The 12
//! that those leave are for clusters of two with a share of the columns: `BEHIND` in
//! kernels/gemm_sm90.cuh. A row's bits are the same.

const std = @import("std");
const k = @import("kernel.zig");
const Extra = @import("stream.zig").Extra;
const Stream = k.Stream;

/// Fewer rows do not take the card to its limit of power.
const rows_min = 1024;

/// Outputs [0, columns) are the eights', the others the twos'; clusters of both that run at once.
pub const Shares = struct { columns: usize, eights: u32, twos: u32 };

/// How n outputs of `rows` are dealt out, in tiles of 128 rows x `tile` outputs a block; null where
/// clusters of two alone end sooner, or leave much fewer rows empty.
pub fn deal(rows: usize, n: usize, tile: usize, eights: u32, multiprocessors: u32) ?Shares {
    if (rows < rows_min or eights == 0) return null;
    const twos = (multiprocessors -| 8 * eights) / 2;
    const high = k.blocks(rows, 8 * 128);
    if (high * 8 * 128 > rows + rows / 8) return null; // empty rows take power, too
    const low = k.blocks(rows, 2 * 128);
    const cols = k.blocks(n, tile);
    var rounds = k.blocks(low * cols, multiprocessors / 2);
    var slowest = std.math.inf(f64);
    var found: ?Shares = null;
    for (1..cols + 1) |of| {
        const mine = high * of;
        const others = low * (cols - of);
        if (others > 0 and twos == 0) continue;
        const turns = @max(k.blocks(mine, eights), k.blocks(others, @max(twos, 1)));
        const longer = @max(ratio(mine, eights), ratio(others, @max(twos, 1)));
        if (turns > rounds or (turns == rounds and longer >= slowest)) continue;
        rounds = turns;
        slowest = longer;
        found = .{ .columns = @min(n, of * tile), .eights = eights, .twos = twos };
    }
    return found;
}
fn ratio(a: usize, b: usize) f64 {
    return @as(f64, @floatFromInt(a)) / @as(f64, @floatFromInt(b));
}

/// A part of a product's columns: where its first weights, outputs and what is added to them lie.
pub const Part = struct { first: usize, count: usize };

/// Of a product; `tile` counts a block's outputs, `columns` those of both matrices of SwiGLU.
pub const Shape = struct {
    rows: usize,
    n: usize,
    tile: usize,
    columns: u32,
    shared_bytes: u32,
};

/// Starts a product in two shares, the kernels `name` with `_eight` and `_beside` in front of
/// `tail`; false where it is not worth it. `p.args(part, box, s)` gives a kernel's arguments for
/// some columns, weights in boxes of `box` rows.
pub fn launch(
    comptime stem: []const u8,
    comptime name: []const u8,
    comptime tail: []const u8,
    p: anytype,
    shape: Shape,
    s: *Stream,
) bool {
    if (shape.rows < rows_min) return false;
    const eight = name ++ "_eight" ++ tail;
    const extra: Extra = .{ .shared_bytes = shape.shared_bytes, .cluster = 8 };
    if (s.gpu.eights == null) s.gpu.eights = s.atOnce(stem, eight, 384, extra);
    const eights = s.gpu.eights.?;
    const shares = deal(shape.rows, shape.n, shape.tile, eights, s.gpu.multiprocessors) orelse
        return false;
    const first: Part = .{ .first = 0, .count = shares.columns };
    const high = k.blocks(shape.rows, 8 * 128) * k.blocks(first.count, shape.tile);
    const grid = [3]u32{ 8 * @min(shares.eights, high), 1, 1 };
    s.launch(stem, eight, grid, 384, p.args(first, shape.columns / 8, s), extra);
    const rest: Part = .{ .first = first.count, .count = shape.n - first.count };
    const low = k.blocks(shape.rows, 2 * 128) * k.blocks(rest.count, shape.tile);
    const beside = name ++ "_beside" ++ tail;
    const others = [3]u32{ 2 * @min(shares.twos, low), 1, 1 };
    if (rest.count == 0) return true;
    s.launch(stem, beside, others, 384, p.args(rest, shape.columns / 2, s), .{
        .shared_bytes = shape.shared_bytes,
        .cluster = 2,
    });
    return true;
}

test "columns are dealt out so that both kinds of clusters end in as few rounds as twos alone" {
    const expectEqual = std.testing.expectEqual;
    const Case = struct { rows: usize, n: usize, tile: usize, columns: usize };
    for ([_]Case{
        .{ .rows = 2048, .n = 16768, .tile = 256, .columns = 60 * 256 }, // in_proj
        .{ .rows = 2048, .n = 4096, .tile = 256, .columns = 15 * 256 }, // out_proj, down
        .{ .rows = 8192, .n = 14336, .tile = 128, .columns = 102 * 128 }, // gate and up
        .{ .rows = 8192, .n = 6144, .tile = 256, .columns = 22 * 256 }, // queries, keys, values
    }) |case| {
        const found = deal(case.rows, case.n, case.tile, 15, 132).?;
        try expectEqual(Shares{ .columns = case.columns, .eights = 15, .twos = 6 }, found);
    }
    try expectEqual(null, deal(512, 16768, 256, 15, 132));
    try expectEqual(null, deal(2048, 16768, 256, 0, 132));
    for ([_]usize{ 1100, 2500 }) |rows| try expectEqual(null, deal(rows, 4096, 256, 15, 132));
    try expectEqual(true, deal(2000, 4096, 256, 15, 132) != null);
    try expectEqual(4096, deal(2048, 4096, 256, 16, 128).?.columns);
}
