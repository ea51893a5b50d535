//! log_softmax and cross_entropy: kernels/loss.cu.

const k = @import("kernel.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .log_softmax = k.Kernel{ .launch = logSoftmax },
    .cross_entropy = k.Kernel{ .launch = crossEntropy },
};

const Args = extern struct {
    x: ?[*]u8,
    labels: ?[*]u8,
    out: ?[*]u8,
    cols: i32,
    stride: i32,
    out_stride: i32,
};

fn args(t: *const Task, labels: ?[*]u8, out: usize) Args {
    return .{
        .x = k.at(t, 0),
        .labels = labels,
        .out = k.at(t, out),
        .cols = k.cols(t, 0),
        .stride = k.stride(t, 0),
        .out_stride = k.stride(t, out),
    };
}

fn logSoftmax(t: *const Task, s: *Stream) void {
    const grid = [3]u32{ k.rows(t, 0), 1, 1 };
    s.launch("loss", "log_softmax_f32", grid, 256, .{args(t, null, 1)}, .{});
}

fn crossEntropy(t: *const Task, s: *Stream) void {
    const grid = [3]u32{ k.rows(t, 0), 1, 1 };
    s.launch("loss", "cross_entropy_f32", grid, 256, .{args(t, k.at(t, 1), 2)}, .{});
}
