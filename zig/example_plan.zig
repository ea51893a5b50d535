//! A small model with every operation, as the bytes of a plan and of step buffers: what the tests
//! of validation start from, and what the fuzzer changes.

const std = @import("std");
const command = @import("command");
const Operand = command.Operand;
const Allocator = std.mem.Allocator;

pub const abi: u32 = 0xabcd;
/// The handle of the one weight buffer, where no other is named.
pub const weights = 7;
pub const vocab = 40;
pub const capacity = [4]u32{ 1, 70, 3, 3 };
pub const slots = 4;
pub const pages = 8;
/// Pages that a step buffer names for each sequence.
pub const max_pages = 2;
pub const history_capacity = 12;

const hidden = 24;
const heads = 4;
const head_dim = 6;
const kv_heads = 2;
const groups = 2;
const state = 5;
const inner = heads * head_dim;
const conv_cols = inner + 2 * groups * state;
const taps = 3;
const max_keys = 80;

/// Bytes of everything a run of the plan needs.
pub const Sizes = struct {
    arena: u64 = 0,
    output: u64 = 0,
    slot: u64 = 0,
    page: u64 = 0,
    weights: u64 = 0,
};

pub const Kind = enum { prefill, decode };

/// Gathers operands and commands.
pub const Builder = struct {
    gpa: Allocator,
    sizes: Sizes = .{},
    abi: u32 = abi,
    weights: u32 = weights,
    operands: std.ArrayList(Operand) = .empty,
    commands: std.ArrayList(command.Command) = .empty,

    fn take(total: *u64, size: u64) u64 {
        const at = total.*;
        total.* += std.mem.alignForward(u64, size, 64);
        return at;
    }
    fn add(b: *Builder, o: Operand) !u32 {
        try b.operands.append(b.gpa, o);
        return @intCast(b.operands.items.len - 1);
    }
    fn operand(space: command.Space, rows: command.Rows, shape: []const u32) Operand {
        var o = std.mem.zeroes(Operand);
        o.space = space;
        o.rows = rows;
        o.rank = @intCast(shape.len);
        o.shape = @splat(1);
        @memcpy(o.shape[0..shape.len], shape);
        o.row_stride = 1;
        for (shape[1..]) |n| o.row_stride *= n;
        return o;
    }
    /// A new activation in the arena, or in the output.
    fn value(b: *Builder, space: command.Space, rows: command.Rows, cols: u32) !u32 {
        const n = capacity[@intFromEnum(rows)];
        var o = operand(space, rows, &.{ n, cols });
        const total = if (space == .arena) &b.sizes.arena else &b.sizes.output;
        o.offset = take(total, 4 * n * cols);
        return b.add(o);
    }
    fn tokens(b: *Builder, cols: u32) !u32 {
        return b.value(.arena, .tokens, cols);
    }
    fn columns(b: *Builder, of: u32, first: u32, cols: u32) !u32 {
        var o = b.operands.items[of];
        o.offset += 4 * first;
        o.shape[1] = cols;
        return b.add(o);
    }
    fn weight(b: *Builder, dtype: command.DType, layout: command.Layout, shape: []const u32) !u32 {
        var o = operand(.weight, .fixed, shape);
        o.dtype = dtype;
        o.layout = layout;
        o.buffer = b.weights;
        const size: u64 = if (dtype == .f32) 4 else 2;
        const n: u64 = if (layout == .row_major) shape[0] else (shape[0] + 15) / 16 * 16;
        const k: u64 = if (shape.len < 2) 1 else (shape[1] + 1) / 2 * 2;
        o.offset = take(&b.sizes.weights, n * k * size);
        return b.add(o);
    }
    fn vector(b: *Builder, n: u32) !u32 {
        return b.weight(.f32, .row_major, &.{n});
    }
    fn panels(b: *Builder, dtype: command.DType, n: u32, k: u32) !u32 {
        return b.weight(dtype, .panel, &.{ n, k });
    }
    fn place(b: *Builder, space: command.Space, dtype: command.DType, shape: []const u32) !u32 {
        var o = operand(space, .fixed, shape);
        o.dtype = dtype;
        var size: u64 = if (dtype == .f32) 4 else 2;
        for (shape) |n| size *= n;
        o.offset = take(if (space == .state) &b.sizes.slot else &b.sizes.page, size);
        return b.add(o);
    }
    fn step(b: *Builder, field: command.StepField, rows: command.Rows) !u32 {
        var o = operand(.step, rows, &.{capacity[@intFromEnum(rows)]});
        o.dtype = .i32;
        o.offset = @intFromEnum(field);
        return b.add(o);
    }
    fn emit(b: *Builder, op: command.Op, operands: []const u32, attrs: []const u32) !void {
        var c = std.mem.zeroes(command.Command);
        c.op = op;
        c.n_operands = @intCast(operands.len);
        c.operands = @splat(command.absent);
        @memcpy(c.operands[0..operands.len], operands);
        @memcpy(c.attrs[0..attrs.len], attrs);
        try b.commands.append(b.gpa, c);
    }
    fn linear(b: *Builder, x: u32, dtype: command.DType, n: u32, extra: [2]?u32) !u32 {
        const x_operand = b.operands.items[x];
        const w = try b.panels(dtype, n, x_operand.shape[1]);
        const space: command.Space = if (x_operand.rows == .logits) .output else .arena;
        const out = try b.value(space, x_operand.rows, n);
        const absent = command.absent;
        try b.emit(.linear, &.{ x, w, extra[0] orelse absent, extra[1] orelse absent, out }, &.{});
        return out;
    }

    pub fn bytes(b: *Builder) ![]u8 {
        const header: command.PlanHeader = .{
            .magic = command.plan_magic,
            .abi = b.abi,
            .n_operands = @intCast(b.operands.items.len),
            .n_commands = @intCast(b.commands.items.len),
            .max_tokens = capacity[1],
            .max_seqs = capacity[2],
            .max_logits = capacity[3],
            .vocab_size = vocab,
            .arena_bytes = b.sizes.arena,
            .output_bytes = b.sizes.output,
            .slot_bytes = b.sizes.slot,
            .page_bytes = b.sizes.page,
        };
        return std.mem.concat(b.gpa, u8, &.{
            std.mem.asBytes(&header),
            std.mem.sliceAsBytes(b.operands.items),
            std.mem.sliceAsBytes(b.commands.items),
        });
    }
};

fn bits(x: f32) u32 {
    return @bitCast(x);
}

/// Every operation once or more: one Mamba layer, one attention layer, one gated MLP, all tails.
pub fn build(gpa: Allocator, kind: Kind) !Builder {
    return buildAt(gpa, kind, abi, weights);
}
/// The same for another ABI and another weight buffer.
pub fn buildAt(gpa: Allocator, kind: Kind, abi_hash: u32, handle: u32) !Builder {
    var b: Builder = .{ .gpa = gpa, .abi = abi_hash, .weights = handle };
    const ids = try b.step(.ids, .tokens);
    const table = try b.weight(.bf16, .row_major, &.{ vocab, hidden });
    const x0 = try b.tokens(hidden);
    try b.emit(.embedding, &.{ ids, table, x0 }, &.{});
    const x1 = try mamba(&b, x0, kind);
    const x2 = try attention(&b, x1);
    const gate = try b.linear(x2, .f16, hidden, .{ null, null });
    const up = try b.linear(x2, .f32, hidden, .{ null, null });
    try b.emit(.swiglu, &.{ gate, up, gate }, &.{}); // upon its input
    const both = try b.tokens(hidden);
    try b.emit(.add, &.{ gate, x2, both }, &.{});
    try b.emit(.mul, &.{ both, up, both }, &.{});
    try b.emit(.silu, &.{ both, both }, &.{});
    try tail(&b, both);
    return b;
}

fn mamba(b: *Builder, x: u32, kind: Kind) !u32 {
    const normed = try b.tokens(hidden);
    try b.emit(.rms_norm, &.{ x, try b.vector(hidden), normed }, &.{bits(1e-5)});
    const all = try b.linear(normed, .bf16, inner + conv_cols + heads, .{ null, null });
    const gate = try b.columns(all, 0, inner);
    const mixed = try b.columns(all, inner, conv_cols);
    const dt = try b.columns(all, inner + conv_cols, heads);
    const w = try b.weight(.f32, .row_major, &.{ conv_cols, taps });
    const bias = try b.vector(conv_cols);
    const conv_state = try b.place(.state, .f32, &.{ taps, conv_cols });
    const convolved = try b.tokens(conv_cols);
    const conv: command.Op = if (kind == .prefill) .causal_conv1d else .causal_conv1d_update;
    try b.emit(conv, &.{ mixed, w, bias, conv_state, convolved }, &.{1});
    const ssm: command.Op = if (kind == .prefill) .ssm_scan else .ssm_update;
    const y = try b.tokens(inner);
    const operands = [_]u32{
        try b.columns(convolved, 0, inner),
        dt,
        try b.columns(convolved, inner, groups * state),
        try b.columns(convolved, inner + groups * state, groups * state),
        try b.vector(heads),
        try b.vector(heads),
        try b.vector(heads),
        try b.place(.state, .f32, &.{ heads, state, head_dim }),
        y,
    };
    const inf = bits(std.math.inf(f32));
    try b.emit(ssm, &operands, &.{ heads, head_dim, groups, state, bits(0), inf });
    const gated = try b.tokens(inner);
    const norm = try b.vector(inner);
    try b.emit(.rms_norm_gated, &.{ y, gate, norm, gated }, &.{ bits(1e-5), groups });
    return b.linear(gated, .bf16, hidden, .{ null, x });
}

fn attention(b: *Builder, x: u32) !u32 {
    const half = head_dim / 2 - 1;
    const cos = try b.tokens(half);
    const sin = try b.tokens(half);
    const positions = try b.step(.positions, .tokens);
    const inv_freq = try b.vector(half);
    try b.emit(.rotary_embedding, &.{ positions, inv_freq, cos, sin }, &.{bits(1)});
    const bias = try b.vector(inner);
    const q = try b.linear(x, .bf16, inner, .{ bias, null });
    const k = try b.linear(x, .bf16, kv_heads * head_dim, .{ null, null });
    const v = try b.linear(x, .bf16, kv_heads * head_dim, .{ null, null });
    const rotated = try b.tokens(inner);
    const k_rotated = try b.tokens(kv_heads * head_dim);
    try b.emit(.rope, &.{ q, cos, sin, rotated }, &.{ heads, head_dim });
    try b.emit(.rope, &.{ k, cos, sin, k_rotated }, &.{ kv_heads, head_dim });
    const keys = try b.place(.kv, .f32, &.{ kv_heads, 4, head_dim, 16 });
    const values = try b.place(.kv, .bf16, &.{ kv_heads, 64, head_dim });
    try b.emit(.kv_append, &.{ k_rotated, v, keys, values }, &.{ kv_heads, head_dim });
    const out = try b.tokens(inner);
    const attrs = [_]u32{ heads, kv_heads, head_dim, bits(0.4), max_keys };
    try b.emit(.attention, &.{ rotated, keys, values, out }, attrs[0..4]);
    const probs = try b.value(.output, .tokens, heads * max_keys);
    try b.emit(.attention_probs, &.{ rotated, keys, probs }, &attrs);
    return b.linear(out, .bf16, hidden, .{ null, x });
}

fn tail(b: *Builder, x: u32) !void {
    const last = try b.value(.arena, .logits, hidden);
    const rows = try b.step(.logit_rows, .logits);
    try b.emit(.gather_rows, &.{ x, rows, last }, &.{});
    const logits = try b.linear(last, .bf16, vocab, .{ null, null });
    const loss = try b.value(.output, .logits, 2);
    try b.emit(.cross_entropy, &.{ logits, try b.step(.labels, .logits), loss }, &.{});
    const log = try b.value(.output, .logits, vocab);
    try b.emit(.log_softmax, &.{ logits, log }, &.{});
    const processed = try b.value(.arena, .logits, vocab);
    try b.emit(.logits_process, &.{ log, processed }, &.{});
    try b.emit(.logits_warp, &.{ processed, processed }, &.{});
    try b.emit(.sample, &.{ processed, try b.step(.sampled, .seqs) }, &.{});
}

/// One sequence of a step buffer.
pub const Seq = struct { past: u32 = 0, tokens: u32 = 1, slot: u32 = 0 };

/// A step buffer that `build`'s plans accept, all arrays given. Sequence s has pages 2s, 2s + 1.
pub fn stepBytes(gpa: Allocator, seqs: []const Seq) ![]u8 {
    var n: u32 = 0;
    for (seqs) |s| n += s.tokens;
    const n_seqs: u32 = @intCast(seqs.len);
    var w: Writer = .{ .gpa = gpa };
    var header = std.mem.zeroes(command.StepHeader);
    header.magic = command.step_magic;
    header.n_tokens = n;
    header.n_seqs = n_seqs;
    header.n_logits = n_seqs;
    header.max_pages = max_pages;
    header.history_capacity = history_capacity;
    header.n_eos = 2;
    header.n_bad_ids = 5;
    header.pad_id = 1;
    try w.list.appendNTimes(gpa, 0, @sizeOf(command.StepHeader) / 4);
    for (std.enums.values(command.StepField)) |field| {
        header.offsets[@intFromEnum(field)] = @intCast(w.list.items.len * 4);
        try w.field(field, seqs, n);
    }
    header.bytes = @intCast(w.list.items.len * 4);
    const bytes = std.mem.sliceAsBytes(w.list.items);
    @memcpy(bytes[0..@sizeOf(command.StepHeader)], std.mem.asBytes(&header));
    return bytes;
}

const Writer = struct {
    gpa: Allocator,
    list: std.ArrayList(u32) = .empty,

    fn put(w: *Writer, x: anytype) !void {
        const word: u32 = switch (@TypeOf(x)) {
            i32, f32 => @bitCast(x),
            else => @intCast(x),
        };
        try w.list.append(w.gpa, word);
    }

    fn field(w: *Writer, f: command.StepField, seqs: []const Seq, n: u32) !void {
        switch (f) {
            .ids => for (0..n) |t| try w.put(t * 7 % vocab),
            .positions => for (seqs) |s| for (0..s.tokens) |t| try w.put(s.past + t),
            .seq_of_token => for (seqs, 0..) |s, i| for (0..s.tokens) |_| try w.put(i),
            .seq_start, .logit_rows => {
                var at: u32 = 0;
                if (f == .seq_start) try w.put(at);
                for (seqs) |s| {
                    at += s.tokens;
                    try w.put(if (f == .seq_start) at else at - 1);
                }
            },
            .past_len => for (seqs) |s| try w.put(s.past),
            .slots => for (seqs) |s| try w.put(s.slot),
            .pages => for (0..seqs.len * max_pages) |p| try w.put(p),
            .labels => for (0..seqs.len) |i| try w.put(if (i == 1) @as(i32, -100) else 3),
            .sampling => for (0..seqs.len) |i| try w.sampling(@intCast(i)),
            .sampled => for (seqs) |_| try w.put(0),
            .history => for (0..seqs.len * history_capacity) |i| try w.put(i * 5 % 11),
            .history_len => for (0..seqs.len) |i| try w.put(i + 3),
            .eos_ids => for ([_]u32{ 2, 39 }) |id| try w.put(id),
            .bad_ids => for ([_]i32{ 9, -1, 0, 5, -1 }) |id| try w.put(id),
        }
    }

    fn sampling(w: *Writer, i: u32) !void {
        const s: command.Sampling = .{
            .do_sample = i % 2,
            .top_k = 10 * i,
            .temperature = 0.7,
            .top_p = 0.9,
            .min_p = 0.01,
            .typical_p = 0.95,
            .repetition_penalty = 1.2,
            .no_repeat_ngram_size = 2,
            .min_new_tokens = 3,
            .generated = 1,
            .seed_lo = 42,
            .seed_hi = 0,
            .stream = i,
            .finished = 0,
        };
        try w.list.appendSlice(w.gpa, std.mem.bytesAsSlice(u32, std.mem.asBytes(&s)));
    }
};
