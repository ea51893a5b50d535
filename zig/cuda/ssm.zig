//! ssm_scan and ssm_update. bf16 with heads of 64 and states of 128: the chunked scan on Hopper
//! (kernels/ssm_scan_sm90.cu) and the update (kernels/ssm_update.cu); else the recurrence, token by
//! token. On a GPU `ssm_state` lies as (heads, P, N).

const command = @import("command");
const k = @import("kernel.zig");
const driver = @import("driver.zig");
const Extra = @import("stream.zig").Extra;
const DType = command.DType;
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .ssm_scan = k.Kernel{ .launch = scan },
    .ssm_update = k.Kernel{ .launch = update },
};

pub const fast_head_dim = 64;
const fast_state = 128;
const scan_shared_bytes = 220416;

fn isFast(t: *const Task) bool {
    return k.dtype(t, 0) == .bf16 and t.attrs[1] == fast_head_dim and t.attrs[3] == fast_state and
        k.aligned(t, &.{ 0, 2, 3, 8 });
}

const ScanArgs = extern struct {
    dt: ?[*]u8,
    a_log: ?[*]u8,
    d: ?[*]u8,
    dt_bias: ?[*]u8,
    state: ?[*]u8,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    slots: ?[*]u32,
    y: ?[*]u8,
    slot_stride: i64,
    dt_stride: i32,
    y_stride: i32,
    heads: i32,
    groups: i32,
    dt_min: f32,
    dt_max: f32,
};

fn scan(t: *const Task, s: *Stream) void {
    if (!isFast(t) or s.gpu.capability != 90) return recurrence(t, s);
    const rows = k.rows(t, 0);
    const heads = t.attrs[0];
    const groups = t.attrs[2];
    const args = .{
        s.map(k.at(t, 0), rows, heads * fast_head_dim, t.stride(0), .{ 64, 64 }),
        s.map(k.at(t, 2), rows, groups * fast_state, t.stride(2), .{ 64, 64 }),
        s.map(k.at(t, 3), rows, groups * fast_state, t.stride(3), .{ 64, 64 }),
        scanArguments(t),
    };
    const grid = [3]u32{ heads, t.step.n_seqs, 1 };
    const extra: Extra = .{ .shared_bytes = scan_shared_bytes };
    switch (k.dtype(t, 7)) {
        inline .f32, .bf16, .f16 => |d| {
            const name = comptime stateName("ssd_sm90_bf16", d);
            s.launch("ssm_scan_sm90", name, grid, 512, args, extra);
        },
        else => unreachable,
    }
}

fn scanArguments(t: *const Task) ScanArgs {
    return .{
        .dt = k.at(t, 1),
        .a_log = k.at(t, 4),
        .d = k.at(t, 5),
        .dt_bias = k.at(t, 6),
        .state = k.at(t, 7),
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .slots = t.step.slots,
        .y = k.at(t, 8),
        .slot_stride = k.slotStride(t, 7),
        .dt_stride = k.stride(t, 1),
        .y_stride = k.stride(t, 8),
        .heads = k.attr(t, 0),
        .groups = k.attr(t, 2),
        .dt_min = t.attrF(4),
        .dt_max = t.attrF(5),
    };
}

pub const UpdateArgs = extern struct {
    x: ?[*]u8,
    b: ?[*]u8,
    c: ?[*]u8,
    dt: ?[*]u8,
    a_log: ?[*]u8,
    d: ?[*]u8,
    dt_bias: ?[*]u8,
    state: ?[*]u8,
    past_len: ?[*]u32,
    slots: ?[*]u32,
    y: ?[*]u8,
    conv_state: ?[*]u8 = null,
    conv_w: ?[*]u8 = null,
    conv_b: ?[*]u8 = null,
    slot_stride: i64,
    conv_slot_stride: i64 = 0,
    x_stride: i32,
    b_stride: i32,
    c_stride: i32,
    dt_stride: i32,
    y_stride: i32,
    heads: i32,
    groups: i32,
    width: i32 = 0,
    conv_dim: i32 = 0,
    dt_min: f32,
    dt_max: f32,
    /// Where the sequences' ends stand.
    sampling: ?[*]u8,
};

fn update(t: *const Task, s: *Stream) void {
    if (!isFast(t)) return recurrence(t, s);
    launchUpdate("ssm_update_bf16", t, updateArguments(t), s);
}
fn launchUpdate(comptime name: []const u8, t: *const Task, a: UpdateArgs, s: *Stream) void {
    const grid = [3]u32{ t.attrs[0], t.step.n_seqs, 1 };
    switch (k.dtype(t, 7)) {
        inline .f32, .bf16, .f16 => |d| {
            s.launch("ssm_update", comptime stateName(name, d), grid, 256, .{a}, .{});
        },
        else => unreachable,
    }
}
/// The end of a kernel's name is the state's dtype, none f32.
fn stateName(comptime name: []const u8, comptime state: DType) [:0]const u8 {
    return if (state == .f32) name ++ "" else name ++ "_" ++ @tagName(state);
}

fn updateArguments(t: *const Task) UpdateArgs {
    return .{
        .x = k.at(t, 0),
        .b = k.at(t, 2),
        .c = k.at(t, 3),
        .dt = k.at(t, 1),
        .a_log = k.at(t, 4),
        .d = k.at(t, 5),
        .dt_bias = k.at(t, 6),
        .state = k.at(t, 7),
        .past_len = t.step.past_len,
        .slots = t.step.slots,
        .y = k.at(t, 8),
        .slot_stride = k.slotStride(t, 7),
        .x_stride = k.stride(t, 0),
        .b_stride = k.stride(t, 2),
        .c_stride = k.stride(t, 3),
        .dt_stride = k.stride(t, 1),
        .y_stride = k.stride(t, 8),
        .heads = k.attr(t, 0),
        .groups = k.attr(t, 2),
        .dt_min = t.attrF(4),
        .dt_max = t.attrF(5),
        .sampling = @ptrCast(t.step.sampling),
    };
}

/// The convolution of one token and then the update, in one kernel.
pub fn chainFits(tasks: []const Task) bool {
    const conv, const t = .{ &tasks[0], &tasks[1] };
    const heads = t.attrs[0] * fast_head_dim;
    const c = @intFromPtr(conv.data[4].?);
    const wired = @intFromPtr(t.data[0].?) == c and @intFromPtr(t.data[2].?) == c + 2 * heads and
        @intFromPtr(t.data[3].?) == c + 2 * (heads + t.attrs[2] * fast_state);
    const silu = conv.attrs[0] == 1;
    return wired and silu and conv.cols(1) <= 4 and isFast(t) and k.aligned(conv, &.{0}) and
        conv.cols(0) == heads + 2 * t.attrs[2] * fast_state;
}
/// Rows for which each head may well repeat the convolution of B and C.
const chain_rows_max = 8;

pub fn chain(tasks: []const Task, s: *Stream) void {
    const conv, const t = .{ &tasks[0], &tasks[1] };
    if (k.rows(t, 0) > chain_rows_max) {
        @import("conv1d.zig").kernels.causal_conv1d_update.launch(conv, s);
        return update(t, s);
    }
    launchUpdate("conv_ssm_update_bf16", t, fused(tasks), s);
}
/// The same for one row as part of another launch; null where there are more.
pub fn chainArguments(tasks: []const Task) ?UpdateArgs {
    const t = &tasks[1];
    return if (k.rows(t, 0) == 1 and t.step.n_seqs == 1) fused(tasks) else null;
}
fn fused(tasks: []const Task) UpdateArgs {
    const conv, const t = .{ &tasks[0], &tasks[1] };
    var a = updateArguments(t);
    a.x = k.at(conv, 0);
    a.x_stride = k.stride(conv, 0);
    a.conv_state = k.at(conv, 3);
    a.conv_w = k.at(conv, 1);
    a.conv_b = k.at(conv, 2);
    a.conv_slot_stride = k.slotStride(conv, 3);
    a.width = k.cols(conv, 1);
    a.conv_dim = k.cols(conv, 0);
    return a;
}

const RecurrenceArgs = extern struct {
    x: ?[*]u8,
    b: ?[*]u8,
    c: ?[*]u8,
    dt: ?[*]u8,
    a_log: ?[*]u8,
    d: ?[*]u8,
    dt_bias: ?[*]u8,
    state: ?[*]u8,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    slots: ?[*]u32,
    y: ?[*]u8,
    slot_stride: i64,
    x_stride: i32,
    b_stride: i32,
    c_stride: i32,
    dt_stride: i32,
    y_stride: i32,
    heads: i32,
    groups: i32,
    head_dim: i32,
    state_dim: i32,
    dt_min: f32,
    dt_max: f32,
    sampling: ?[*]u8,
};

fn recurrence(t: *const Task, s: *Stream) void {
    const a: RecurrenceArgs = .{
        .x = k.at(t, 0),
        .b = k.at(t, 2),
        .c = k.at(t, 3),
        .dt = k.at(t, 1),
        .a_log = k.at(t, 4),
        .d = k.at(t, 5),
        .dt_bias = k.at(t, 6),
        .state = k.at(t, 7),
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .slots = t.step.slots,
        .y = k.at(t, 8),
        .slot_stride = k.slotStride(t, 7),
        .x_stride = k.stride(t, 0),
        .b_stride = k.stride(t, 2),
        .c_stride = k.stride(t, 3),
        .dt_stride = k.stride(t, 1),
        .y_stride = k.stride(t, 8),
        .heads = k.attr(t, 0),
        .groups = k.attr(t, 2),
        .head_dim = k.attr(t, 1),
        .state_dim = k.attr(t, 3),
        .dt_min = t.attrF(4),
        .dt_max = t.attrF(5),
        .sampling = @ptrCast(t.step.sampling),
    };
    const channels = k.blocks(t.attrs[1], 8); // eight warps, each with one of a head's channels
    const grid = [3]u32{ t.attrs[0], t.step.n_seqs, channels };
    const kept = [2]DType{ k.dtype(t, 0), k.dtype(t, 7) };
    k.launchKept(s, "reference", "scan_ref", .f32, kept, grid, 256, .{a});
}
