//! What the library takes from the object of one CPU level: plain pointers and values, so that the
//! library itself holds no code of that level.

const command = @import("command");
const kernel = @import("kernel.zig");
const measure = @import("measure.zig");

const DType = command.DType;
pub const Kernel = kernel.Kernel;
pub const n_ops = @typeInfo(command.Op).@"enum".fields.len;

pub const Level = extern struct {
    /// By `command.Op`.
    kernels: [n_ops]Kernel,
    /// Packs panels [begin, end) of a (rows, cols) matrix.
    pack: *const fn (*const Pack, u32, u32) callconv(.c) void,
    /// Converts n elements in order, a multiple of both types' blocks: `convert.zig`.
    convert: *const fn ([*]u8, DType, [*]const u8, DType, usize, f32) callconv(.c) void,
    panel_bytes: *const fn (DType, u32, u32) callconv(.c) usize,
    measure: *const fn (*measure.Shared, u32) callconv(.c) void,
    /// How many times as fast as f32 multiply-adds those of bf16 are; null where there are none.
    bf16_gain: ?*const fn () callconv(.c) f64,
};

pub const Pack = extern struct {
    dst: [*]u8,
    src: [*]const u8,
    dst_dtype: DType,
    src_dtype: DType,
    rows: u32,
    cols: u32,
};
