//! linear for many rows on cards since Ampere that are no Hopper: kernels/mma.cuh, with weights in
//! bf16, in blocks or of e4m3, and a second matrix for SwiGLU.

const k = @import("kernel.zig");
const Product = @import("linear_sm90.zig").Product;
const Stream = k.Stream;
const Task = k.Task;

const Args = extern struct {
    x: ?[*]u8,
    w: ?[*]u8,
    w2: ?[*]u8,
    bias: ?[*]u8,
    residual: ?[*]u8,
    out: ?[*]u8,
    m: i32,
    n: i32,
    k: i32,
    x_stride: i32,
    residual_stride: i32,
    out_stride: i32,
    out_f32: i32,
};

/// Up to so many rows, tiles of as many.
const few_rows = 64;

pub fn launch(p: Product, s: *Stream) void {
    const t = p.of;
    const rows = k.rows(t, 0);
    const a: Args = .{
        .x = k.at(t, 0),
        .w = k.at(t, 1),
        .w2 = if (p.up) |up| k.at(up, 1) else null,
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = p.out,
        .m = @intCast(rows),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .x_stride = k.stride(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = p.out_stride,
        .out_f32 = @intFromBool(p.f32_out),
    };
    switch (k.dtype(t, 1)) {
        .bf16 => tiles("linear_mma", "linear_mma", a, s),
        .f8_e4m3 => tiles("linear_fp8_mma", "fp8_mma", a, s),
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            tiles("blocks_mma", "blocks_mma_" ++ @tagName(d), a, s);
        },
        else => unreachable,
    }
}

fn tiles(comptime stem: []const u8, comptime base: []const u8, a: Args, s: *Stream) void {
    const rows: usize = @intCast(a.m);
    inline for (.{ few_rows, 128 }) |size| if (rows <= few_rows or size > few_rows) {
        const outputs: usize = if (a.w2 == null) size else size / 2;
        const grid = [3]u32{ k.blocks(rows, size) * k.blocks(@intCast(a.n), outputs), 1, 1 };
        const name = comptime k.name("{s}_{d}", .{ base, size });
        if (a.w2 == null) return s.launch(stem, name, grid, 128, .{a}, .{});
        return s.launch(stem, name ++ "_swiglu", grid, 128, .{a}, .{});
    };
}
