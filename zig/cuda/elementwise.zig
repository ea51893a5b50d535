//! swiglu, add, mul and silu: one plain kernel, whose speed the memory decides.

const k = @import("kernel.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .add = k.Kernel{ .launch = launcher(0) },
    .mul = k.Kernel{ .launch = launcher(1) },
    .silu = k.Kernel{ .launch = launcher(2) },
    .swiglu = k.Kernel{ .launch = launcher(3) },
};

const silu_mode = 2;

const Args = extern struct {
    a: ?[*]u8,
    b: ?[*]u8,
    out: ?[*]u8,
    width: i32,
    a_stride: i32,
    b_stride: i32,
    out_stride: i32,
    mode: i32,
};

fn launcher(comptime mode: i32) fn (*const Task, *Stream) void {
    return struct {
        fn launch(t: *const Task, s: *Stream) void {
            const one = mode == silu_mode;
            const out: usize = if (one) 1 else 2;
            const a: Args = .{
                .a = k.at(t, 0),
                .b = if (one) null else k.at(t, 1),
                .out = k.at(t, out),
                .width = k.cols(t, 0),
                .a_stride = k.stride(t, 0),
                .b_stride = if (one) 0 else k.stride(t, 1),
                .out_stride = k.stride(t, out),
                .mode = mode,
            };
            const grid = [3]u32{ k.blocks(t.cols(0), 256), k.rows(t, 0), 1 };
            switch (k.dtype(t, 0)) {
                inline .f32, .bf16 => |d| {
                    const name = "element_ref_" ++ @tagName(d);
                    s.launch("reference", name, grid, 256, .{a}, .{});
                },
                else => unreachable,
            }
        }
    }.launch;
}
