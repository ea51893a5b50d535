//! attention of one token a sequence: kernels/attention_decode_sm90.cu on Hopper,
//! attention_decode.cu on other cards, and attention_combine.cu, which adds up what both leave.
//! bf16, heads of 128.

const command = @import("command");
const k = @import("kernel.zig");
const Extra = @import("stream.zig").Extra;
const Task = k.Task;
const Stream = k.Stream;

const head_dim = 128;
/// Keys that one block takes at a time, and floats that it leaves for each head.
const span_keys = 512;
const span_floats = head_dim + 2;
const shared_bytes = 49152;
/// Shared memory of the kernel for Hopper: its ring, and by head of a group queries and sums.
fn hopperBytes(group: u32) u32 {
    return 5 * 32768 + group * (4 * 256 + 8 * 132 * 4) + 1552;
}
/// Groups that it cuts a sequence's keys into at most.
const hopper_groups = 16;
/// Spans for which a warp adds up a head.
const few_splits = 32;
fn isHopper(gpu: *const k.Gpu) bool {
    return gpu.capability == 90;
}
/// What there is room for: groups, or on other cards spans of half a million keys, in a batch of 32
/// thousand.
fn splitsMax(t: *const Task, gpu: *const k.Gpu) usize {
    if (isHopper(gpu)) return hopper_groups;
    return if (t.capacity[@intFromEnum(command.Rows.seqs)] <= 8) 1024 else 64;
}

/// What every block leaves of its spans; nothing where sequences may have more tokens than one.
pub fn workspace(t: *const Task, gpu: *const k.Gpu) usize {
    const seqs: usize = t.capacity[@intFromEnum(command.Rows.seqs)];
    if (t.capacity[@intFromEnum(command.Rows.tokens)] != seqs) return 0;
    return seqs * t.attrs[0] * splitsMax(t, gpu) * span_floats * 4;
}

const Args = extern struct {
    q: ?[*]u8,
    k_pages: ?[*]u8,
    v_pages: ?[*]u8,
    out: ?[*]u8,
    partial: ?[*]u8,
    past_len: ?[*]u32,
    pages: ?[*]u32,
    page_stride: i64,
    heads: i32,
    kv_heads: i32,
    q_stride: i32,
    out_stride: i32,
    max_pages: i32,
    max_splits: i32,
    scale: f32,
    seqs: i32,
};

const CombineArgs = extern struct {
    partial: ?[*]u8,
    out: ?[*]u8,
    past_len: ?[*]u32,
    heads: i32,
    kv_heads: i32,
    out_stride: i32,
    max_splits: i32,
    seqs: i32,
    scale: f32,
};

/// Whether it could: there is work space, and a kernel for so many heads in a group.
pub fn launch(t: *const Task, s: *Stream) bool {
    if (t.capacity[@intFromEnum(command.Rows.tokens)] !=
        t.capacity[@intFromEnum(command.Rows.seqs)]) return false;
    const on_hopper = isHopper(s.gpu);
    const spans = k.blocks(t.step.max_pages * command.page_tokens, span_keys);
    const splits = if (on_hopper) @min(hopper_groups, spans) else spans;
    if (splits > splitsMax(t, s.gpu)) return false;
    const a: Args = .{
        .q = k.at(t, 0),
        .k_pages = k.at(t, 1),
        .v_pages = k.at(t, 2),
        .out = k.at(t, 3),
        .partial = t.workspace,
        .past_len = t.step.past_len,
        .pages = t.step.pages,
        .page_stride = k.pageStride(t, 1),
        .heads = k.attr(t, 0),
        .kv_heads = k.attr(t, 1),
        .q_stride = k.stride(t, 0),
        .out_stride = k.stride(t, 3),
        .max_pages = @intCast(t.step.max_pages),
        .max_splits = if (on_hopper) hopper_groups else @intCast(splits),
        .scale = t.attrF(3),
        .seqs = @intCast(t.step.n_seqs),
    };
    inline for (.{ 1, 2, 4, 8 }) |group| if (t.attrs[0] / t.attrs[1] == group) {
        if (on_hopper) hopper(t, s, a, splits, group) else {
            const name = comptime k.name("attention_decode_{d}_bf16", .{group});
            const grid = [3]u32{ splits, t.attrs[1], t.step.n_seqs };
            s.launch("attention_decode", name, grid, 128, .{a}, .{ .shared_bytes = shared_bytes });
            if (splits > few_splits) combine(t, s, a, .many) else if (splits > 1)
                combine(t, s, a, .few);
        }
        return true;
    };
    return false;
}

fn hopper(t: *const Task, s: *Stream, a: Args, groups: u32, comptime group: u32) void {
    const items = groups * t.attrs[1] * t.step.n_seqs;
    const half = head_dim / 2; // a key is two rows of the maps: its pages come in one piece
    const page_rows: u64 = @intCast(@divExact(k.pageStride(t, 1), half));
    const rows = (s.pages -| 1) * page_rows + t.attrs[1] * command.page_tokens * 2;
    const box = .{ half, 2 * command.page_tokens };
    const args = .{
        s.mapOnce(.bf16, k.at(t, 1), rows, half, half, box),
        s.mapOnce(.bf16, k.at(t, 2), rows, half, half, box),
        a,
    };
    const grid = [3]u32{ @min(s.gpu.multiprocessors, items), 1, 1 };
    const extra: Extra = .{ .shared_bytes = hopperBytes(group) };
    const name = comptime k.name("attention_decode_sm90_{d}_bf16", .{group});
    s.launch("attention_decode_sm90", name, grid, 288, args, extra);
    if (groups > 1) combine(t, s, a, .groups);
}

/// Adds up what was left of each head: spans by one warp or by four blocks, or groups.
fn combine(t: *const Task, s: *Stream, of: Args, comptime how: enum { few, many, groups }) void {
    const a: CombineArgs = .{
        .partial = of.partial,
        .out = of.out,
        .past_len = of.past_len,
        .heads = of.heads,
        .kv_heads = of.kv_heads,
        .out_stride = of.out_stride,
        .max_splits = of.max_splits,
        .seqs = of.seqs,
        .scale = of.scale,
    };
    const heads = t.attrs[0];
    const grid = if (how == .many)
        [3]u32{ heads * 4, t.step.n_seqs, 1 }
    else
        [3]u32{ k.blocks(heads * t.step.n_seqs, 8), 1, 1 };
    const by = if (how == .few) "" else "_" ++ @tagName(how);
    const name = "attention_combine" ++ by ++ "_bf16";
    s.launch("attention_combine", name, grid, 256, .{a}, .{});
}
