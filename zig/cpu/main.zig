//! The kernels of one CPU level: this file is compiled once for each level, and its only exports
//! carry the level's name, so that code for one level never runs on a CPU without it.

const std = @import("std");
const command = @import("command");
const convert_file = @import("convert.zig");
const options = @import("level");
const level_file = @import("level.zig");
const measure = @import("measure.zig");
const panel = @import("panel.zig");
const simd = @import("simd.zig");

const DType = command.DType;
const Kernel = level_file.Kernel;
const Level = level_file.Level;
const Pack = level_file.Pack;
const n_ops = level_file.n_ops;

/// The program's threads keep their own signal stacks: std's would be 256 KiB a thread and level.
pub const std_options: std.Options = .{ .signal_stack_size = null };

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

const level: Level = .{
    .kernels = table: {
        var table: [n_ops]Kernel = undefined;
        var found: [n_ops]bool = @splat(false);
        for (families) |family| {
            for (std.meta.fieldNames(@TypeOf(family))) |name| {
                const op = @intFromEnum(@field(command.Op, name));
                table[op] = @field(family, name);
                found[op] = true;
            }
        }
        for (found, 0..) |has, op| {
            const name = @tagName(@as(command.Op, @enumFromInt(op)));
            if (!has) @compileError("no kernel for " ++ name);
        }
        break :table table;
    },
    .pack = pack,
    .convert = convert,
    .panel_bytes = panelBytes,
    .measure = measure.run,
    .bf16_gain = if (simd.has_avx512bf16) measure.bf16Gain else null,
};

fn pack(p: *const Pack, begin: u32, end: u32) callconv(.c) void {
    panel.pack(p.dst, p.dst_dtype, p.src, p.src_dtype, p.rows, p.cols, begin, end);
}

fn panelBytes(dtype: DType, rows: u32, cols: u32) callconv(.c) usize {
    return panel.bytes(dtype, rows, cols);
}

fn convert(
    dst: [*]u8,
    to: DType,
    src: [*]const u8,
    from: DType,
    n: usize,
    scale: f32,
) callconv(.c) void {
    convert_file.convert(dst, to, src, from, n, scale);
}

comptime {
    @export(&level, .{ .name = options.prefix ++ "_level", .visibility = .hidden });
}

test {
    _ = families;
    std.testing.refAllDecls(convert_file);
    _ = @import("bf16.zig");
    _ = @import("block.zig");
    _ = @import("block_panel.zig");
    _ = @import("int8.zig");
    std.testing.refAllDecls(panel);
    std.testing.refAllDecls(simd);
}
