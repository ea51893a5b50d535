//! What a family of CUDA kernels provides for each operation. A command is resolved as for the CPU
//! (`cpu/kernel.zig`), only that addresses are the GPU's: they are passed on, never followed.

const std = @import("std");
const command = @import("command");
const stream = @import("stream.zig");
const cpu_kernel = @import("../cpu/kernel.zig");
pub const Task = cpu_kernel.Task;
pub const Step = cpu_kernel.Step;
pub const Gpu = @import("gpu.zig").Gpu;
pub const Stream = stream.Stream;
pub const Extra = stream.Extra;
pub const blocks = stream.blocks;

pub const Kernel = struct {
    /// Enqueues the kernels of one command for the run that the task's step tells.
    launch: *const fn (t: *const Task, s: *Stream) void,
    /// Bytes of zeroed memory that the command keeps from run to run, at the plan's capacities.
    workspace: ?*const fn (t: *const Task, gpu: *const Gpu) usize = null,
};

pub fn dtype(t: *const Task, i: usize) command.DType {
    return t.operands[i].dtype;
}
/// Elements between the slots of operand i, a state.
pub fn slotStride(t: *const Task, i: usize) i64 {
    return @intCast(t.slot_bytes / elementBytes(dtype(t, i)));
}
/// Elements between the pages of operand i.
pub fn pageStride(t: *const Task, i: usize) i64 {
    return @intCast(t.page_bytes / elementBytes(dtype(t, i)));
}
pub fn elementBytes(of: command.DType) u64 {
    return switch (of) {
        .bf16, .f16 => 2,
        else => 4,
    };
}
pub fn rows(t: *const Task, i: usize) u32 {
    return @intCast(t.rows(i));
}
pub fn cols(t: *const Task, i: usize) i32 {
    return @intCast(t.cols(i));
}
pub fn stride(t: *const Task, i: usize) i32 {
    return @intCast(t.stride(i));
}
pub fn attr(t: *const Task, i: usize) i32 {
    return @intCast(t.attrs[i]);
}
/// The address of operand i; null where it is absent.
pub fn at(t: *const Task, i: usize) ?[*]u8 {
    return if (i < t.n_operands) t.data[i] else null;
}
/// An address so many rows further, `step` elements of `bytes` each; none stays none.
pub fn advance(to: ?[*]u8, n_rows: i32, step: i32, bytes: usize) ?[*]u8 {
    const from = to orelse return null;
    return from + @as(usize, @intCast(n_rows)) * @as(usize, @intCast(step)) * bytes;
}
/// Whether rows of these operands, where given, are whole 16-byte pieces at multiples of 16 bytes.
pub fn aligned(t: *const Task, operands: []const usize) bool {
    for (operands) |i| {
        const address = @intFromPtr(at(t, i) orelse continue);
        if (address % 16 != 0 or t.stride(i) * elementBytes(dtype(t, i)) % 16 != 0) return false;
    }
    return true;
}
/// Launches the kernel named `base`, the activations' dtype and, where it is not `plain`, that of
/// what is kept in a cache.
pub fn launchKept(
    s: *Stream,
    comptime stem: []const u8,
    comptime base: []const u8,
    comptime plain: ?command.DType,
    kept: [2]command.DType,
    grid: [3]u32,
    threads: u32,
    args: anytype,
) void {
    switch (kept[0]) {
        inline .f32, .bf16 => |of| switch (kept[1]) {
            inline .f32, .bf16, .f16 => |cache| {
                const end = if (cache == plain orelse of) "" else "_" ++ @tagName(cache);
                s.launch(stem, base ++ "_" ++ @tagName(of) ++ end, grid, threads, args, .{});
            },
            else => unreachable,
        },
        else => unreachable,
    }
}
/// A kernel's name made of parts.
pub fn name(comptime format: []const u8, comptime values: anytype) [:0]const u8 {
    return std.fmt.comptimePrint(format, values);
}
