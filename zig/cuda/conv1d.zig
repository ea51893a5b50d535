//! causal_conv1d and its update: kernels/conv1d.cu for bf16 and widths 2 to 4, else the plain twin.
//! On a GPU `conv_state` is a ring: the input of position p lies in entry p mod W.

const k = @import("kernel.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .causal_conv1d = k.Kernel{ .launch = forward },
    .causal_conv1d_update = k.Kernel{ .launch = update },
};

const Args = extern struct {
    x: ?[*]u8,
    out: ?[*]u8,
    w: ?[*]u8,
    bias: ?[*]u8,
    state: ?[*]u8,
    seq_of_token: ?[*]u32,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    slots: ?[*]u32,
    slot_stride: i64,
    rows: i32,
    channels: i32,
    x_stride: i32,
    out_stride: i32,
    activation: i32,
    /// Only the plain twin reads it.
    width: i32,
    sequences: i32,
    /// The convolution writes the state, too.
    keeps: i32 = 0,
    run: i32 = 0,
};

fn arguments(t: *const Task) Args {
    return .{
        .x = k.at(t, 0),
        .out = k.at(t, 4),
        .w = k.at(t, 1),
        .bias = k.at(t, 2),
        .state = k.at(t, 3),
        .seq_of_token = t.step.seq_of_token,
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .slots = t.step.slots,
        .slot_stride = k.slotStride(t, 3),
        .rows = @intCast(k.rows(t, 0)),
        .channels = k.cols(t, 0),
        .x_stride = k.stride(t, 0),
        .out_stride = k.stride(t, 4),
        .activation = k.attr(t, 0),
        .width = k.cols(t, 1),
        .sequences = @intCast(t.step.n_seqs),
    };
}

/// Tokens of one thread: more leave less to be read twice, fewer give a short prompt more threads.
fn runOf(tokens: usize) u32 {
    if (tokens >= 4096) return 48;
    return if (tokens >= 1024) 24 else 16;
}
/// Channels and runs of a block.
const block_channels = 128;
const block_runs = 4;

/// Whether no sequence has a past, in which case no block reads the state that another writes.
fn allBegin(s: *const Stream) bool {
    const past = s.host.past_len orelse return false;
    for (past[0..s.host.n_seqs]) |n| if (n != 0) return false;
    return true;
}

fn isFast(t: *const Task) bool {
    return k.dtype(t, 0) == .bf16 and t.cols(0) % 4 == 0 and k.aligned(t, &.{ 0, 4 }) and
        t.cols(1) >= 2 and t.cols(1) <= 4;
}

fn forward(t: *const Task, s: *Stream) void {
    var a = arguments(t);
    const channels = t.cols(0);
    const tokens = k.rows(t, 0);
    if (isFast(t)) {
        a.keeps = @intFromBool(allBegin(s));
        const state_grid = [3]u32{ k.blocks(channels, 256), t.step.n_seqs, 1 };
        const run = runOf(tokens);
        a.run = @intCast(run);
        const across = k.blocks(channels, block_channels);
        const grid = [3]u32{ across * k.blocks(tokens, block_runs * run), 1, 1 };
        inline for (.{ 2, 3, 4 }) |w| if (t.cols(1) == w) {
            const name = comptime k.name("conv1d_w{d}_bf16", .{w});
            const state = comptime k.name("conv1d_state_w{d}_bf16", .{w});
            s.launch("conv1d", name, grid, 128, .{a}, .{});
            if (a.keeps != 0) return;
            return s.launch("conv1d", state, state_grid, 256, .{a}, .{});
        };
    }
    const grid = [3]u32{ k.blocks(channels, 128), tokens, 1 };
    const state_grid = [3]u32{ k.blocks(channels, 128), t.step.n_seqs, 1 };
    switch (k.dtype(t, 0)) {
        inline .f32, .bf16 => |d| {
            const name = @tagName(d);
            s.launch("reference", "conv_ref_" ++ name, grid, 128, .{a}, .{});
            s.launch("reference", "conv_state_ref_" ++ name, state_grid, 128, .{a}, .{});
        },
        else => unreachable,
    }
}

fn update(t: *const Task, s: *Stream) void {
    if (!isFast(t)) return forward(t, s);
    const grid = [3]u32{ k.blocks(t.cols(0) / 4, 256), t.step.n_seqs, 1 };
    inline for (.{ 2, 3, 4 }) |w| if (t.cols(1) == w) {
        const name = comptime k.name("conv1d_update_w{d}_bf16", .{w});
        s.launch("conv1d", name, grid, 256, .{arguments(t)}, .{});
    };
}
