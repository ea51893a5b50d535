//! linear: bf16 throughout has fast kernels (`linear_decode.zig`, `linear_sm90.zig`, on other cards
//! `linear_mma.zig`), and so has bf16 times weights in blocks (`linear_blocks.zig`) or of e4m3
//! (`linear_fp8.zig`). Other dtypes and shapes take the plain twin, which adds over k upwards as
//! the CPU does. On a GPU weights lie in rows, those in blocks in panels of its own (`blocks.zig`).

const block = @import("../cpu/block.zig");
const blocks = @import("linear_blocks.zig");
const k = @import("kernel.zig");
const decode = @import("linear_decode.zig");
const fp8 = @import("linear_fp8.zig");
const mma = @import("linear_mma.zig");
const shared = @import("linear_plain.zig");
const sm90 = @import("linear_sm90.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{ .linear = k.Kernel{ .launch = linear, .workspace = sm90.workspace } };

fn linear(t: *const Task, s: *Stream) void {
    start(t, false, s);
}
/// Where a layer's states have been updated in front.
pub fn behindStates(t: *const Task, s: *Stream) void {
    start(t, true, s);
}
fn start(t: *const Task, behind_states: bool, s: *Stream) void {
    const rows = k.rows(t, 0);
    if (rows == 0) return;
    const f32_out = k.dtype(t, 4) == .f32;
    if (isFast(t) and k.aligned(t, &.{4})) {
        if (k.dtype(t, 1) == .f8_e4m3) return fp8.linear(t, s);
        const a = decode.arguments(t);
        const in_blocks = block.is(a.dtype);
        if (if (in_blocks) blocks.fits(&a, s) else decode.takes(rows, s))
            return decode.launch(.plain, a, f32_out, s);
        const product: sm90.Product = .{
            .of = t,
            .out = k.at(t, 4),
            .out_stride = k.stride(t, 4),
            .f32_out = f32_out,
            .behind_states = behind_states,
        };
        if (inTiles(t)) return tiled(product, s);
        if (in_blocks and rows <= decode.rows_max) return decode.launch(.plain, a, f32_out, s);
    }
    if (block.is(k.dtype(t, 1))) return blocks.plain(t, s);
    if (k.dtype(t, 1) == .f8_e4m3) return fp8.plain(t, s);
    plain(t, s);
}

/// A task of few rows as a product of a chain; null where its own kernel is another.
pub fn asProduct(tasks: []const Task, s: *const Stream, _: usize) ?decode.Args {
    const t = &tasks[0];
    const rows = k.rows(t, 0);
    if (rows == 0 or !isFast(t) or !k.aligned(t, &.{4})) return null;
    var a = decode.arguments(t);
    if (!(if (block.is(a.dtype)) blocks.fits(&a, s) else decode.takes(rows, s))) return null;
    decode.describe(.plain, k.dtype(t, 4) == .f32, &a);
    return a;
}

/// Whether the fast kernels take the command's inputs.
pub fn isFast(t: *const Task) bool {
    const weight = k.dtype(t, 1);
    const columns: usize = if (weight == .f8_e4m3) fp8.columns else 8;
    return k.dtype(t, 0) == .bf16 and
        (weight == .bf16 or weight == .f8_e4m3 or block.is(weight)) and
        t.cols(0) % columns == 0 and k.aligned(t, &.{ 0, 3 }) and
        @intFromPtr(t.data[1].?) % 16 == 0;
}
/// Whether the kernels for many rows take the command's outputs.
pub fn inTiles(t: *const Task) bool {
    return t.cols(4) % 8 == 0;
}
/// A product of many rows, whose inputs and outputs the fast kernels take.
pub fn tiled(p: sm90.Product, s: *Stream) void {
    if (s.gpu.capability == 90) sm90.launch(p, s) else mma.launch(p, s);
}

fn plain(t: *const Task, s: *Stream) void {
    const a = shared.argsOf(t);
    const grid = shared.grid(t);
    const stem = "reference";
    if (k.dtype(t, 0) == .bf16) return switch (k.dtype(t, 4)) {
        .f32 => s.launch(stem, "linear_ref_bf16_bf16_f32", grid, 256, .{a}, .{}),
        else => s.launch(stem, "linear_ref_bf16_bf16_bf16", grid, 256, .{a}, .{}),
    };
    switch (k.dtype(t, 1)) {
        inline .f32, .bf16, .f16 => |w| {
            const name = "linear_ref_f32_" ++ @tagName(w) ++ "_f32";
            s.launch(stem, name, grid, 256, .{a}, .{});
        },
        else => unreachable,
    }
}
