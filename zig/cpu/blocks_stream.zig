//! One row times weights in blocks, unit after unit without a pause: four panels side by side, all
//! of them whole (`blocks_gemv` does their sums, and everything else).
//!
//! A call for each unit with its own walk through operands and results took 0.1 us in which few
//! weights were on their way. That was 4 to 7 % of a product with K 2048 in q4_0 (two cores of a
//! Zen 4 whose memory gives 60 GB/s: 155 -> 146 us of 7168 rows, 185 -> 172 of 8512).

const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const few = @import("blocks_gemv.zig");
const finish = @import("linear_finish.zig");
const simd = @import("simd.zig");
const ways = @import("way.zig");
const DType = command.DType;
const L = simd.L;
const Rows = @import("blocks_rows.zig").Rows;
const streams = few.streams;
const width = command.panel;

/// Where the results of the row go, and what is added to them.
pub const Results = struct {
    out: [*]f32,
    bias: ?[*]const f32,
    residual: ?[*]const f32,
    /// Panels from one stream to the next: unit u has panels u, u + distance, ..
    distance: usize,
    way: ways.Way,

    inline fn column(r: Results, u: usize, p: usize) usize {
        return (u + p * r.distance) * width;
    }
    /// Asks for what of the residual a unit will need.
    inline fn ask(r: Results, u: usize) void {
        const residual = r.residual orelse return;
        inline for (0..streams) |p| @prefetch(residual + r.column(u, p), .{});
    }
    inline fn store(r: Results, u: usize, sums: *const [streams * width]f32) void {
        inline for (0..streams) |p| {
            const first = r.column(u, p);
            const bias = if (r.bias) |from| from + first else null;
            const residual = if (r.residual) |from| from + first else null;
            const of = @as([*]const f32, sums) + p * width;
            inline for (0..width / L) |i|
                finish.store(r.way, r.out + first, of, bias, residual, i * L, L);
        }
    }
};

/// Whether panels go side by side here.
pub const has = few.acrossOf(1) == streams;

/// Units [begin, end) of the row x.
pub fn run(
    dtype: DType,
    K: usize,
    w: [*]const u8,
    begin: usize,
    end: usize,
    x: Rows,
    to: Results,
) void {
    switch (dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |t| if (has) {
            const blocks = K / comptime block.columns(t);
            const one = blocks * comptime block_panel.groupBytes(t);
            for (begin..end) |u| {
                to.ask(u);
                var sums: [streams * width]f32 align(64) = undefined;
                few.add(t, 1, streams, blocks, w + u * one, to.distance * one, x, &sums, true);
                to.store(u, &sums);
            }
        },
        else => unreachable,
    }
}
