//! The CUDA room's front door. The core asks for a GPU (`get`, `state`), for memory on it, and to
//! run plans (`execute.zig`); an op family has one file here, beside `zig/cpu/` and `kernels/`.

const std = @import("std");
const command = @import("command");
const gpu = @import("gpu.zig");
const kernel = @import("kernel.zig");
const Kernel = kernel.Kernel;

/// The order of weights in blocks on a GPU.
pub const blocks = @import("blocks.zig");
pub const Gpu = gpu.Gpu;
pub const Upload = @import("upload.zig").Upload;
pub const get = gpu.get;
pub const state = gpu.state;
pub const max_gpus = gpu.max_gpus;

/// Every file that exports kernels; a new op family adds its file here.
const families = .{
    @import("attention.zig").kernels,
    @import("conv1d.zig").kernels,
    @import("elementwise.zig").kernels,
    @import("embedding.zig").kernels,
    @import("linear.zig").kernels,
    @import("loss.zig").kernels,
    @import("norm.zig").kernels,
    @import("rope.zig").kernels,
    @import("sample.zig").kernels,
    @import("ssm.zig").kernels,
};

/// By `command.Op`; the build fails where an operation has none.
pub const kernels = table: {
    @setEvalBranchQuota(10_000);
    var filled = std.EnumArray(command.Op, ?Kernel).initFill(null);
    for (families) |family| for (std.meta.fieldNames(@TypeOf(family))) |name| {
        filled.set(@field(command.Op, name), @field(family, name));
    };
    var whole = std.EnumArray(command.Op, Kernel).initUndefined();
    for (std.enums.values(command.Op)) |op| {
        whole.set(op, filled.get(op) orelse @compileError("no CUDA kernel for " ++ @tagName(op)));
    }
    break :table whole;
};
