//! kv_append, attention and attention_probs. bf16 throughout with heads of 128:
//! attention_decode.zig where every sequence has one token, kernels/attention_sm90.cu on Hopper,
//! attention_mma.cu on other cards; else the plain twin.
//! On a GPU keys lie in their pages as values do: (kv_heads, page_tokens, head_dim).

const command = @import("command");
const decode = @import("attention_decode.zig");
const k = @import("kernel.zig");
const Extra = @import("stream.zig").Extra;
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .kv_append = k.Kernel{ .launch = append },
    .attention = k.Kernel{ .launch = attention, .workspace = workspace },
    .attention_probs = k.Kernel{ .launch = probs },
};

/// Dtypes of activations, and of keys and values, whose first operand is number i.
fn kept(t: *const Task, i: usize) [2]command.DType {
    return .{ k.dtype(t, 0), k.dtype(t, i) };
}

const fast_head_dim = 128;
const prefill_shared_bytes = 230912;
/// Queries of one head that make a tile of the kernel for prompts.
const tile_queries = 128;

const AppendArgs = extern struct {
    k: ?[*]u8,
    v: ?[*]u8,
    k_pages: ?[*]u8,
    v_pages: ?[*]u8,
    seq_of_token: ?[*]u32,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    pages: ?[*]u32,
    page_stride: i64,
    kv_heads: i32,
    head_dim: i32,
    k_stride: i32,
    v_stride: i32,
    max_pages: i32,
};

fn append(t: *const Task, s: *Stream) void {
    const a: AppendArgs = .{
        .k = k.at(t, 0),
        .v = k.at(t, 1),
        .k_pages = k.at(t, 2),
        .v_pages = k.at(t, 3),
        .seq_of_token = t.step.seq_of_token,
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .pages = t.step.pages,
        .page_stride = k.pageStride(t, 2),
        .kv_heads = k.attr(t, 0),
        .head_dim = k.attr(t, 1),
        .k_stride = k.stride(t, 0),
        .v_stride = k.stride(t, 1),
        .max_pages = @intCast(t.step.max_pages),
    };
    const grid = [3]u32{ k.rows(t, 0), 1, 1 };
    k.launchKept(s, "attention", "kv_append", null, kept(t, 2), grid, 128, .{a});
}

fn isFast(t: *const Task) bool {
    return k.dtype(t, 0) == .bf16 and k.dtype(t, 1) == .bf16 and
        t.attrs[2] == fast_head_dim and k.aligned(t, &.{ 0, 3 });
}

/// What decoding leaves of the spans of keys, where every sequence has one token.
fn workspace(t: *const Task, gpu: *const k.Gpu) usize {
    return if (isFast(t)) decode.workspace(t, gpu) else 0;
}

fn attention(t: *const Task, s: *Stream) void {
    if (isFast(t)) {
        if (s.longest() == 1 and decode.launch(t, s)) return;
        return if (s.gpu.capability == 90) prefill(t, s) else prefillMma(t, s);
    }
    plain(t, s);
}

const PrefillArgs = extern struct {
    out: ?[*]u8,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    pages: ?[*]u32,
    heads: i32,
    kv_heads: i32,
    out_stride: i32,
    max_pages: i32,
    page_rows: i32,
    scale: f32,
    tiles: i32,
    seqs: i32,
};

fn prefill(t: *const Task, s: *Stream) void {
    const heads = t.attrs[0];
    const page_rows: u32 = @intCast(@divExact(k.pageStride(t, 1), fast_head_dim));
    const page_data = t.attrs[1] * command.page_tokens;
    const rows = (s.pages -| 1) * page_rows + page_data;
    const tiles = k.blocks(s.longest(), tile_queries);
    const a: PrefillArgs = .{
        .out = k.at(t, 3),
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .pages = t.step.pages,
        .heads = k.attr(t, 0),
        .kv_heads = k.attr(t, 1),
        .out_stride = k.stride(t, 3),
        .max_pages = @intCast(t.step.max_pages),
        .page_rows = @intCast(page_rows),
        .scale = t.attrF(3),
        .tiles = @intCast(tiles),
        .seqs = @intCast(t.step.n_seqs),
    };
    const args = .{
        s.map(k.at(t, 0), k.rows(t, 0), heads * fast_head_dim, t.stride(0), .{ 64, 64 }),
        s.map(k.at(t, 1), rows, fast_head_dim, fast_head_dim, .{ 64, 64 }),
        s.map(k.at(t, 2), rows, fast_head_dim, fast_head_dim, .{ 64, 64 }),
        a,
    };
    const all = heads * tiles * t.step.n_seqs;
    const grid = [3]u32{ @min(s.gpu.multiprocessors, all), 1, 1 };
    const extra: Extra = .{ .shared_bytes = prefill_shared_bytes };
    s.launch("attention_sm90", "attention_sm90_bf16", grid, 384, args, extra);
}

const MmaArgs = extern struct {
    q: ?[*]u8,
    k_pages: ?[*]u8,
    v_pages: ?[*]u8,
    out: ?[*]u8,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    pages: ?[*]u32,
    page_stride: i64,
    heads: i32,
    kv_heads: i32,
    q_stride: i32,
    out_stride: i32,
    max_pages: i32,
    scale: f32,
};

fn prefillMma(t: *const Task, s: *Stream) void {
    const a: MmaArgs = .{
        .q = k.at(t, 0),
        .k_pages = k.at(t, 1),
        .v_pages = k.at(t, 2),
        .out = k.at(t, 3),
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .pages = t.step.pages,
        .page_stride = k.pageStride(t, 1),
        .heads = k.attr(t, 0),
        .kv_heads = k.attr(t, 1),
        .q_stride = k.stride(t, 0),
        .out_stride = k.stride(t, 3),
        .max_pages = @intCast(t.step.max_pages),
        .scale = t.attrF(3),
    };
    const grid = [3]u32{ t.attrs[0], k.blocks(s.longest(), 64), t.step.n_seqs };
    s.launch("attention_mma", "attention_mma_bf16", grid, 128, .{a}, .{});
}

const PlainArgs = extern struct {
    q: ?[*]u8,
    k_pages: ?[*]u8,
    v_pages: ?[*]u8,
    out: ?[*]u8,
    seq_of_token: ?[*]u32,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    pages: ?[*]u32,
    page_stride: i64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    q_stride: i32,
    out_stride: i32,
    max_pages: i32,
    scale: f32,
};

fn plain(t: *const Task, s: *Stream) void {
    const a: PlainArgs = .{
        .q = k.at(t, 0),
        .k_pages = k.at(t, 1),
        .v_pages = k.at(t, 2),
        .out = k.at(t, 3),
        .seq_of_token = t.step.seq_of_token,
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .pages = t.step.pages,
        .page_stride = k.pageStride(t, 1),
        .heads = k.attr(t, 0),
        .kv_heads = k.attr(t, 1),
        .head_dim = k.attr(t, 2),
        .q_stride = k.stride(t, 0),
        .out_stride = k.stride(t, 3),
        .max_pages = @intCast(t.step.max_pages),
        .scale = t.attrF(3),
    };
    const grid = [3]u32{ k.rows(t, 0), t.attrs[0], 1 };
    k.launchKept(s, "reference", "attention_ref", null, kept(t, 1), grid, 32, .{a});
}

const ProbsArgs = extern struct {
    q: ?[*]u8,
    k_pages: ?[*]u8,
    out: ?[*]u8,
    seq_of_token: ?[*]u32,
    seq_start: ?[*]u32,
    past_len: ?[*]u32,
    pages: ?[*]u32,
    page_stride: i64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    q_stride: i32,
    out_stride: i32,
    max_pages: i32,
    max_keys: i32,
    scale: f32,
};

fn probs(t: *const Task, s: *Stream) void {
    const a: ProbsArgs = .{
        .q = k.at(t, 0),
        .k_pages = k.at(t, 1),
        .out = k.at(t, 2),
        .seq_of_token = t.step.seq_of_token,
        .seq_start = t.step.seq_start,
        .past_len = t.step.past_len,
        .pages = t.step.pages,
        .page_stride = k.pageStride(t, 1),
        .heads = k.attr(t, 0),
        .kv_heads = k.attr(t, 1),
        .head_dim = k.attr(t, 2),
        .q_stride = k.stride(t, 0),
        .out_stride = k.stride(t, 2),
        .max_pages = @intCast(t.step.max_pages),
        .max_keys = k.attr(t, 4),
        .scale = t.attrF(3),
    };
    const grid = [3]u32{ k.rows(t, 0), t.attrs[0], 1 };
    k.launchKept(s, "attention", "attention_probs", null, kept(t, 1), grid, 128, .{a});
}
