//! rotary_embedding and rope: kernels/rope.cu.

const k = @import("kernel.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .rotary_embedding = k.Kernel{ .launch = tables },
    .rope = k.Kernel{ .launch = rotate },
};

const TableArgs = extern struct {
    positions: ?[*]u8,
    inv_freq: ?[*]u8,
    cos: ?[*]u8,
    sin: ?[*]u8,
    freqs: i32,
    cos_stride: i32,
    sin_stride: i32,
    scale: f32,
};

fn tables(t: *const Task, s: *Stream) void {
    const a: TableArgs = .{
        .positions = k.at(t, 0),
        .inv_freq = k.at(t, 1),
        .cos = k.at(t, 2),
        .sin = k.at(t, 3),
        .freqs = k.cols(t, 2),
        .cos_stride = k.stride(t, 2),
        .sin_stride = k.stride(t, 3),
        .scale = t.attrF(0),
    };
    s.launch("rope", "rotary_embedding_f32", .{ t.step.n_tokens, 1, 1 }, 128, .{a}, .{});
}

const RotateArgs = extern struct {
    x: ?[*]u8,
    cos: ?[*]u8,
    sin: ?[*]u8,
    out: ?[*]u8,
    heads: i32,
    head_dim: i32,
    freqs: i32,
    x_stride: i32,
    cos_stride: i32,
    sin_stride: i32,
    out_stride: i32,
};

fn rotate(t: *const Task, s: *Stream) void {
    const a: RotateArgs = .{
        .x = k.at(t, 0),
        .cos = k.at(t, 1),
        .sin = k.at(t, 2),
        .out = k.at(t, 3),
        .heads = k.attr(t, 0),
        .head_dim = k.attr(t, 1),
        .freqs = k.cols(t, 1),
        .x_stride = k.stride(t, 0),
        .cos_stride = k.stride(t, 1),
        .sin_stride = k.stride(t, 2),
        .out_stride = k.stride(t, 3),
    };
    const grid = [3]u32{ k.rows(t, 0), 1, 1 };
    switch (k.dtype(t, 0)) {
        inline .f32, .bf16 => |d| s.launch("rope", "rope_" ++ @tagName(d), grid, 128, .{a}, .{}),
        else => unreachable,
    }
}
