//! Which kernels take products of one row and states between them, and what memory a launch of
//! theirs has: kernels/blocks_chain_sm90.cu of weights in blocks, rows_chain_sm90.cu of others.

const std = @import("std");
const block = @import("../cpu/block.zig");
const command = @import("command");
const decode = @import("linear_decode.zig");
const k = @import("kernel.zig");
const order = @import("blocks.zig");
const wiring = @import("chain_wire.zig");
const Args = decode.Args;
const Product = wiring.Product;

/// Of products, of states and of those that ask for weights.
pub const threads = 768;
const warps = 16;
/// What the kernels have in dynamic shared memory beside rings and x: that of weights in blocks,
/// and that of weights in rows.
const blocks_fixed_bytes = 8448;
const rows_fixed_bytes = 6144;
const room = 225 * 1024;
/// Steps begin at multiples of so many bytes of a ring, less than 256 of them.
const ring_unit = 64;
const ring_most = 255 * ring_unit;
/// Pieces of 2048 columns that a norm may have in front of a product.
const squares = 18;

/// Kernels that take products of one row and states between them. Products of one launch have
/// weights of one kernel.
pub const Kernel = enum {
    blocks,
    bf16,
    e4m3,

    /// What is under way to a multiprocessor at most, bytes: for the product that is read, and for
    /// one behind it while its x is waited for. Measured: bench/results/gpu-decode.md.
    fn way(kernel: Kernel) [2]u32 {
        return switch (kernel) {
            .blocks => .{ 48 * 1024, 24 * 1024 },
            .e4m3 => .{ 80 * 1024, 16 * 1024 },
            .bf16 => .{ 52 * 1024, 16 * 1024 },
        };
    }
    /// Where rings begin: a tensor copy's swizzle counts from there.
    fn alignment(kernel: Kernel) u32 {
        return if (kernel == .blocks) ring_unit else 1024;
    }
};
pub fn kernelOf(dtype: command.DType) ?Kernel {
    if (block.is(dtype)) return .blocks;
    return switch (dtype) {
        .bf16 => .bf16,
        .f8_e4m3 => .e4m3,
        else => null,
    };
}

pub fn fits(a: *const Args) bool {
    const kernel = kernelOf(a.dtype) orelse return false;
    if (a.batch != 1) return false;
    if (a.mode != 0 and k.blocks(@intCast(a.k), 2048) > squares) return false;
    // Rows of two matrices come eight of each at a time.
    if (kernel != .blocks and a.swiglu != 0 and @mod(a.n, 8) != 0) return false;
    return Ring.of(&.{.{ .of = a.* }}).holds;
}
fn stepBytes(dtype: command.DType) u32 {
    if (!block.is(dtype)) return 16 * 128;
    return @intCast(16 * block.rowBytes(dtype, order.columns(dtype)));
}

/// Rings for such products, which one kernel takes, and the shared memory of a launch.
pub const Ring = struct {
    bytes: u32 = 0,
    /// Whether they hold two steps of any product.
    holds: bool = false,
    budget: u32 = 0,
    ahead: u32 = 0,
    shared_bytes: u32 = 0,

    pub fn of(products: []const Product) Ring {
        var cols: u32 = 0;
        var step: u32 = 0;
        for (products) |*p| {
            cols = @max(cols, @as(u32, @intCast(p.of.k)));
            step = @max(step, stepBytes(p.of.dtype));
        }
        const kernel = kernelOf(products[0].of.dtype) orelse return .{};
        const beside = if (kernel == .blocks)
            blocks_fixed_bytes + 2 * cols + cols / 2
        else
            rows_fixed_bytes + 2 * std.mem.alignForward(u32, cols, 2048);
        const most = @min((room -| beside) / warps, ring_most);
        const bytes = std.mem.alignBackward(u32, most, kernel.alignment());
        const budget, const ahead = kernel.way();
        return .{
            .bytes = bytes,
            .holds = bytes >= 2 * std.mem.alignForward(u32, step, ring_unit),
            .budget = budget,
            .ahead = ahead,
            .shared_bytes = beside + warps * bytes,
        };
    }
};
