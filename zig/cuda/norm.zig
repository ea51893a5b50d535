//! rms_norm and rms_norm_gated: kernels/norm.cu for bf16 rows of whole 16-byte pieces, else the
//! plain twin.

const k = @import("kernel.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .rms_norm = k.Kernel{ .launch = plain },
    .rms_norm_gated = k.Kernel{ .launch = gated },
};

const Args = extern struct {
    x: ?[*]u8,
    gate: ?[*]u8,
    weight: ?[*]u8,
    out: ?[*]u8,
    width: i32,
    groups: i32,
    x_stride: i32,
    gate_stride: i32,
    out_stride: i32,
    eps: f32,
};

fn plain(t: *const Task, s: *Stream) void {
    run(false, t, s, .{
        .x = k.at(t, 0),
        .gate = null,
        .weight = k.at(t, 1),
        .out = k.at(t, 2),
        .width = k.cols(t, 0),
        .groups = 1,
        .x_stride = k.stride(t, 0),
        .gate_stride = 0,
        .out_stride = k.stride(t, 2),
        .eps = t.attrF(0),
    }, &.{ 0, 2 });
}

fn gated(t: *const Task, s: *Stream) void {
    run(true, t, s, .{
        .x = k.at(t, 0),
        .gate = k.at(t, 1),
        .weight = k.at(t, 2),
        .out = k.at(t, 3),
        .width = k.cols(t, 0),
        .groups = k.attr(t, 1),
        .x_stride = k.stride(t, 0),
        .gate_stride = k.stride(t, 1),
        .out_stride = k.stride(t, 3),
        .eps = t.attrF(0),
    }, &.{ 0, 1, 3 });
}

fn run(comptime gate: bool, t: *const Task, s: *Stream, a: Args, used: []const usize) void {
    const grid = [3]u32{ k.rows(t, 0), @intCast(a.groups), 1 };
    const part = @divExact(a.width, a.groups);
    const pieces_max = 8 * 2048;
    const fast = k.dtype(t, 0) == .bf16 and @rem(part, 8) == 0 and part <= pieces_max and
        k.aligned(t, used);
    if (fast) {
        const op = if (gate) "rms_norm_gated" else "rms_norm";
        inline for (.{ 1, 2, 4, 8 }) |pieces| if (part <= pieces * 2048) {
            const name = comptime k.name(op ++ "_{d}_bf16", .{pieces});
            return s.launch("norm", name, grid, 256, .{a}, .{});
        };
    }
    switch (k.dtype(t, 0)) {
        inline .f32, .bf16 => |d| {
            s.launch("reference", "norm_ref_" ++ @tagName(d), grid, 256, .{a}, .{});
        },
        else => unreachable,
    }
}
