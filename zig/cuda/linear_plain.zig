//! Arguments that the plain products share, of any weights: any rows, any card.

const k = @import("kernel.zig");
const Task = k.Task;

pub const Args = extern struct {
    x: ?[*]u8,
    w: ?[*]u8,
    bias: ?[*]u8,
    residual: ?[*]u8,
    out: ?[*]u8,
    m: i32,
    n: i32,
    k: i32,
    x_stride: i32,
    residual_stride: i32,
    out_stride: i32,
};

/// Operands of `linear`, as the command has them.
pub fn argsOf(t: *const Task) Args {
    return .{
        .x = k.at(t, 0),
        .w = k.at(t, 1),
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = k.at(t, 4),
        .m = @intCast(k.rows(t, 0)),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .x_stride = k.stride(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = k.stride(t, 4),
    };
}

/// Tiles of 64 x 64.
pub fn grid(t: *const Task) [3]u32 {
    return .{ k.blocks(t.cols(4), 64), k.blocks(k.rows(t, 0), 64), 1 };
}
