//! logits_process, logits_warp and sample: kernels/logits_process.cu and kernels/sample.cu.

const k = @import("kernel.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .logits_process = k.Kernel{ .launch = process },
    .logits_warp = k.Kernel{ .launch = warp },
    .sample = k.Kernel{ .launch = sample },
};

const ProcessArgs = extern struct {
    x: ?[*]u8,
    out: ?[*]u8,
    sampling: ?[*]u8,
    history: ?[*]i32,
    history_len: ?[*]u32,
    eos: ?[*]i32,
    bad: ?[*]i32,
    cols: i32,
    stride: i32,
    out_stride: i32,
    history_capacity: i32,
    n_eos: i32,
    n_bad: i32,
};

fn process(t: *const Task, s: *Stream) void {
    const step = t.step;
    const a: ProcessArgs = .{
        .x = k.at(t, 0),
        .out = k.at(t, 1),
        .sampling = @ptrCast(step.sampling),
        .history = step.history,
        .history_len = step.history_len,
        .eos = step.eos_ids,
        .bad = step.bad_ids,
        .cols = k.cols(t, 0),
        .stride = k.stride(t, 0),
        .out_stride = k.stride(t, 1),
        .history_capacity = @intCast(step.history_capacity),
        .n_eos = if (step.eos_ids == null) 0 else @intCast(step.n_eos),
        .n_bad = if (step.bad_ids == null) 0 else @intCast(step.n_bad_ids),
    };
    const grid = [3]u32{ k.rows(t, 0), 1, 1 };
    s.launch("logits_process", "logits_process_f32", grid, 256, .{a}, .{});
}

const Args = extern struct {
    scores: ?[*]u8,
    out: ?[*]u8,
    sampling: ?[*]u8,
    sampled: ?[*]i32,
    vocab: i32,
    stride: i32,
    out_stride: i32,
    pad_id: i32,
};

fn arguments(t: *const Task, out: ?[*]u8, out_stride: i32) Args {
    return .{
        .scores = k.at(t, 0),
        .out = out,
        .sampling = @ptrCast(t.step.sampling),
        .sampled = t.step.sampled,
        .vocab = k.cols(t, 0),
        .stride = k.stride(t, 0),
        .out_stride = out_stride,
        .pad_id = t.step.pad_id,
    };
}

fn warp(t: *const Task, s: *Stream) void {
    const a = arguments(t, k.at(t, 1), k.stride(t, 1));
    s.launch("sample", "logits_warp_f32", .{ k.rows(t, 0), 1, 1 }, 1024, .{a}, .{});
}

/// Blocks that search a row's best together: rows alone leave most multiprocessors idle, and each
/// block still finds a place.
fn searching(n: u32) u32 {
    if (n <= 8) return 8;
    if (n <= 16) return 4;
    return if (n <= 64) 2 else 1;
}

fn sample(t: *const Task, s: *Stream) void {
    const a = arguments(t, null, 0);
    const rows = k.rows(t, 0);
    const together = if (s.gpu.capability == 90) searching(rows) else 1;
    const extra: k.Extra = .{ .cluster = if (together > 1) together else 0 };
    const grid = [3]u32{ together * rows, 1, 1 };
    s.launch("sample", "sample_f32", grid, 1024, .{a}, extra);
}
