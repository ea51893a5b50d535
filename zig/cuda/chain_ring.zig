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

pub const threads = 640;
const warps = 16;
/// What the kernels have in dynamic shared memory beside rings and x: that of weights in blocks,
/// and that of weights in rows.
const blocks_fixed_bytes = 7296;
const rows_fixed_bytes = 5120;
const room = 225 * 1024;
/// Pieces of 2048 columns that a norm may have in front of a product.
const squares = 18;

/// Kernels that take products of one row and states between them. Products of one launch have
/// weights of one kernel.
pub const Kernel = enum {
    blocks,
    bf16,
    e4m3,

    /// Slots of a warp's ring. More are no faster: what waits in line keeps x waiting, too.
    fn slots(kernel: Kernel) u32 {
        return switch (kernel) {
            .blocks => 4,
            .e4m3, .bf16 => 5,
        };
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
    return Ring.of(&.{.{ .of = a.* }}).bytes >= 2 * stepBytes(a.dtype);
}
fn stepBytes(dtype: command.DType) u32 {
    if (!block.is(dtype)) return 16 * 128;
    return @intCast(16 * block.rowBytes(dtype, order.columns(dtype)));
}

/// Rings for such products, which one kernel takes, and the shared memory of a launch.
pub const Ring = struct {
    slot: u32,
    bytes: u32,
    shared_bytes: u32,

    const none: Ring = .{ .slot = 1, .bytes = 0, .shared_bytes = 0 };

    pub fn of(products: []const Product) Ring {
        var cols: u32 = 0;
        var slot: u32 = 0;
        for (products) |*p| {
            cols = @max(cols, @as(u32, @intCast(p.of.k)));
            slot = @max(slot, stepBytes(p.of.dtype));
        }
        const kernel = kernelOf(products[0].of.dtype) orelse return .none;
        const beside = if (kernel == .blocks)
            blocks_fixed_bytes + 2 * cols + cols / 2
        else
            rows_fixed_bytes + 2 * std.mem.alignForward(u32, cols, 2048);
        const bytes = @min(kernel.slots(), (room -| beside) / warps / slot) * slot;
        return .{ .slot = slot, .bytes = bytes, .shared_bytes = beside + warps * bytes };
    }
};
