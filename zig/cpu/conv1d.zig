//! causal_conv1d: each channel's last W inputs weighted, and its one-token form.
//!
//! Contract: out[t][c] = act(bias[c] + sum_w weight[c][w] x[t - W + 1 + w][c]), w from the oldest
//! input upwards, with inputs before this run from the slot's state (W, C), zeros before the
//! sequence's start. After a run the state holds the sequence's last W inputs. The order of the
//! sum is the same everywhere, so any cut of a prompt leaves every bit.
//! Work: 2 W flops and a SiLU for 8 bytes read and written; SiLU decides, then memory.
//! Ideas: lanes over channels; a unit is some tokens times some channels, so that a row's bytes
//! are read once from memory and W times from L1; the weights of a unit's channels are turned to
//! (W, channels) once. States are written in a phase of their own, when nobody reads them any more.

const std = @import("std");
const simd = @import("simd.zig");
const kernel_zig = @import("kernel.zig");
const case = @import("case.zig");
const command = @import("command");
const Task = kernel_zig.Task;
const Kernel = kernel_zig.Kernel;
const L = simd.L;
const F = simd.F;

/// Channels and tokens of a unit.
const channels_step = 256;
const tokens_step = 32;

const Shape = struct {
    channels: usize,
    width: usize,
    blocks: usize,

    fn of(t: *const Task) Shape {
        const channels = t.cols(0);
        return .{
            .channels = channels,
            .width = t.cols(1),
            .blocks = (channels + channels_step - 1) / channels_step,
        };
    }
};

/// What lies before a sequence's start.
const zeros: [channels_step]f32 align(64) = @splat(0);

/// Some channels with their weights as (W, channels), and where each input lies.
const Block = struct {
    t: *const Task,
    c0: usize,
    n: usize,
    width: usize,
    weight: [*]f32,
    bias: [*]f32,
    inputs: [*][*]const f32,

    fn bytes(width: usize) usize {
        return (width + 1) * channels_step * @sizeOf(f32) + width * @sizeOf([*]f32);
    }
    fn init(t: *const Task, s: Shape, index: usize, scratch: [*]u8) Block {
        const p: [*]f32 = @ptrCast(@alignCast(scratch));
        const c0 = index * channels_step;
        const b = Block{
            .t = t,
            .c0 = c0,
            .n = @min(channels_step, s.channels - c0),
            .width = s.width,
            .weight = p,
            .bias = p + s.width * channels_step,
            .inputs = @ptrCast(@alignCast(p + (s.width + 1) * channels_step)),
        };
        b.turnWeights(t.f32s(1) + c0 * s.width);
        // A vector may reach beyond the last channel: it must find numbers there.
        for (0..s.width + 1) |w| @memset(p[w * channels_step + b.n .. (w + 1) * channels_step], 0);
        if (t.has(2)) @memcpy(b.bias[0..b.n], t.f32s(2)[c0..]) else @memset(b.bias[0..b.n], 0);
        return b;
    }
    /// (n, W) to (W, n)
    fn turnWeights(b: Block, from: [*]const f32) void {
        var c: usize = 0;
        if (b.width == 4) while (c + L <= b.n) : (c += L) {
            const all = simd.ld(@Vector(4 * L, f32), from + c * 4);
            inline for (0..4) |w| {
                const lanes = std.simd.iota(i32, L) * @as(simd.I, @splat(4));
                const mask = lanes + @as(simd.I, @splat(w));
                simd.st(b.weight + w * channels_step + c, @shuffle(f32, all, undefined, mask));
            }
        };
        while (c < b.n) : (c += 1) for (0..b.width) |w| {
            b.weight[w * channels_step + c] = from[c * b.width + w];
        };
    }
    fn state(b: Block, seq: usize, w: usize) [*]f32 {
        return b.t.slot(3, seq) + w * b.t.cols(0) + b.c0;
    }
    /// The input `back` tokens before token `row`, the sequence's token number i of this run.
    fn input(b: Block, seq: usize, row: usize, i: usize, back: usize) [*]const f32 {
        if (back <= i) return b.t.row(0, row - back) + b.c0;
        if (b.t.step.past_len.?[seq] == 0) return &zeros;
        return b.state(seq, b.width - (back - i));
    }

    fn token(b: Block, seq: usize, row: usize, i: usize) void {
        for (0..b.width) |w| b.inputs[w] = b.input(seq, row, i, b.width - 1 - w);
        const out = b.t.row(4, row) + b.c0;
        switch (b.t.attrs[0]) {
            inline 0, 1 => |silu| switch (b.width) {
                4 => b.columns(silu, 4, out),
                else => b.columns(silu, null, out),
            },
            else => unreachable,
        }
    }
    inline fn columns(b: Block, comptime silu: u32, comptime width: ?usize, out: [*]f32) void {
        var c: usize = 0;
        while (c + L <= b.n) : (c += L) simd.st(out + c, b.column(silu, width, c, L));
        if (c < b.n) simd.stTail(out + c, b.column(silu, width, c, b.n - c), b.n - c);
    }
    /// The n channels from c on; a width known in advance keeps the loop unrolled.
    inline fn column(b: Block, comptime silu: u32, comptime width: ?usize, c: usize, n: usize) F {
        var sum = simd.ldF(b.bias + c);
        if (width) |known| {
            inline for (0..known) |w| sum = b.weighted(w, c, n, sum);
        } else for (0..b.width) |w| {
            sum = b.weighted(w, c, n, sum);
        }
        return if (silu == 1) simd.silu(sum) else sum;
    }
    inline fn weighted(b: Block, w: usize, c: usize, n: usize, sum: F) F {
        const x = if (n == L) simd.ldF(b.inputs[w] + c) else simd.ldTail(b.inputs[w] + c, n);
        return simd.mulAdd(simd.ldF(b.weight + w * channels_step + c), x, sum);
    }

    /// The state after the sequence's `tokens` tokens from `row` on. Its rows move towards the
    /// older end, so that each is read before it is written over.
    fn keep(b: Block, seq: usize, row: usize, tokens: usize) void {
        for (0..b.width) |w| {
            const back = b.width - 1 - w;
            const from = b.input(seq, row + tokens - 1, tokens - 1, back);
            std.mem.copyForwards(f32, b.state(seq, w)[0..b.n], from[0..b.n]);
        }
    }
};

fn tokenBlocks(t: *const Task) usize {
    return (t.step.n_tokens + tokens_step - 1) / tokens_step;
}

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    const n = if (phase == 0) tokenBlocks(t) else t.step.n_seqs;
    return @intCast(n * Shape.of(t).blocks);
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    const s = Shape.of(t);
    const start = t.step.seq_start.?;
    for (begin..end) |unit| {
        const b = Block.init(t, s, unit % s.blocks, scratch);
        const i = unit / s.blocks;
        if (phase == 1) {
            const tokens = start[i + 1] - start[i];
            if (tokens > 0) b.keep(i, start[i], tokens);
            continue;
        }
        for (i * tokens_step..@min((i + 1) * tokens_step, t.step.n_tokens)) |row| {
            const seq = t.step.seq_of_token.?[row];
            b.token(seq, row, row - start[seq]);
        }
    }
}

/// One token a sequence: nobody else reads the state, so it is written at once.
fn unitsUpdate(t: *const Task, _: u32) callconv(.c) u32 {
    return @intCast(Shape.of(t).blocks * sequenceBlocks(t));
}
fn sequenceBlocks(t: *const Task) usize {
    return (t.step.n_seqs + tokens_step - 1) / tokens_step;
}
fn runUpdate(t: *const Task, _: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    const s = Shape.of(t);
    for (begin..end) |unit| {
        const b = Block.init(t, s, unit % s.blocks, scratch);
        const i = unit / s.blocks * tokens_step;
        for (i..@min(i + tokens_step, t.step.n_seqs)) |seq| {
            const row = t.step.seq_start.?[seq];
            b.token(seq, row, 0);
            b.keep(seq, row, 1);
        }
    }
}

fn scratchBytes(t: *const Task) callconv(.c) usize {
    return Block.bytes(t.cols(1));
}

pub const kernels = .{
    .causal_conv1d = Kernel{ .n_phases = 2, .units = units, .run = run, .scratch = scratchBytes },
    .causal_conv1d_update = Kernel{
        .units = unitsUpdate,
        .run = runUpdate,
        .scratch = scratchBytes,
    },
};

/// The twin of both kernels: every sequence's inputs, with its state in front, one by one, in f64.
pub fn causal_conv1d_ref(t: *const Task) void {
    const width = t.cols(1);
    for (0..t.step.n_seqs) |seq| for (0..t.cols(0)) |c| {
        var last: [16]f64 = @splat(0); // oldest first
        const state = t.slot(3, seq);
        if (t.step.past_len.?[seq] > 0) for (0..width) |w| {
            last[w] = state[w * t.cols(0) + c];
        };
        const from = t.step.seq_start.?[seq];
        const to = t.step.seq_start.?[seq + 1];
        for (from..to) |row| {
            for (1..width) |w| last[w - 1] = last[w];
            last[width - 1] = t.row(0, row)[c];
            var sum: f64 = if (t.has(2)) t.f32s(2)[c] else 0;
            for (0..width) |w| sum += t.f32s(1)[c * width + w] * last[w];
            if (t.attrs[0] == 1) sum /= 1 + @exp(-sum);
            t.row(4, row)[c] = @floatCast(sum);
        }
        if (to > from) for (0..width) |w| {
            state[w * t.cols(0) + c] = @floatCast(last[w]);
        };
    };
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;
const Seq = case.Seq;
const tolerance = 1e-6;

const Layer = struct {
    gpa: std.mem.Allocator,
    rows: usize,
    channels: usize,
    width: usize,
    x: []f32,
    weight: []f32,
    bias: ?[]f32,
    states: []f32,
    silu: bool,

    const gap = 5;
    fn init(gpa: std.mem.Allocator, rows: usize, channels: usize, width: usize) !Layer {
        var prng = std.Random.DefaultPrng.init(rows + channels);
        const l = Layer{
            .gpa = gpa,
            .rows = rows,
            .channels = channels,
            .width = width,
            .x = try gpa.alloc(f32, @max(1, rows * (channels + gap))),
            .weight = try gpa.alloc(f32, channels * width),
            .bias = if (channels % 2 == 0) try gpa.alloc(f32, channels) else null,
            .states = try gpa.alloc(f32, case.slots * channels * width),
            .silu = width == 4,
        };
        case.fill(prng.random(), l.x, 1);
        case.fill(prng.random(), l.weight, 1);
        case.fill(prng.random(), l.states, 1);
        if (l.bias) |b| case.fill(prng.random(), b, 1);
        return l;
    }
    fn run(
        l: Layer,
        k: ?Kernel,
        order: case.Order,
        seqs: []const Seq,
        row: usize,
        states: []f32,
        y: []f32,
    ) !void {
        var c = try case.Case.init(l.gpa, .causal_conv1d, seqs);
        c.order = order;
        c.tokens(l.x.ptr + row * (l.channels + gap), l.channels, l.channels + gap);
        c.weight(l.weight, l.channels, l.width);
        c.weight(l.bias, 1, l.channels);
        c.state(states.ptr, l.channels * l.width);
        c.tokens(y.ptr + row * l.channels, l.channels, l.channels);
        c.attr(0, @as(u32, @intFromBool(l.silu)));
        if (k) |kernel| try c.execute(kernel) else causal_conv1d_ref(&c.task);
    }
    fn output(l: Layer) ![]f32 {
        const y = try l.gpa.alloc(f32, l.rows * l.channels);
        @memset(y, case.nan);
        return y;
    }
    fn pool(l: Layer) ![]f32 {
        return l.gpa.dupe(f32, l.states);
    }
    fn poisonSlot(l: Layer, slot: usize) void {
        const n = l.channels * l.width;
        @memset(l.states[slot * n ..][0..n], case.nan);
    }
};

const batch = [_]Seq{
    .{ .past = 0, .tokens = 130, .slot = 5 },
    .{ .past = 63, .tokens = 3, .slot = 0 },
    .{ .past = 7, .tokens = 0, .slot = 3 },
    .{ .past = 0, .tokens = 2, .slot = 7 },
    .{ .past = 1, .tokens = 1, .slot = 2 },
    .{ .past = 0, .tokens = 1, .slot = 1 },
    .{ .past = 65, .tokens = 64, .slot = 4 },
};
const batch_rows = 130 + 3 + 2 + 1 + 1 + 64;
const Size = struct { channels: usize, width: usize };
const sizes = [_]Size{
    .{ .channels = 600, .width = 4 },
    .{ .channels = 37, .width = 4 },
    .{ .channels = 24, .width = 2 },
    .{ .channels = 13, .width = 1 },
    .{ .channels = 20, .width = 7 },
};

test "causal_conv1d is its twin, for many sequences, with the same bits alone and in any order" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for (sizes) |size| {
        const l = try Layer.init(arena.allocator(), batch_rows, size.channels, size.width);
        // A sequence that starts must not look at what its slot held.
        for ([_]usize{ 5, 7, 1 }) |slot| l.poisonSlot(slot);
        const want = try l.output();
        const want_states = try l.pool();
        try l.run(null, .whole, &batch, 0, want_states, want);
        const whole = try l.output();
        const whole_states = try l.pool();
        try l.run(kernels.causal_conv1d, .whole, &batch, 0, whole_states, whole);
        try testing.expect(case.worst(whole, want) < tolerance);
        try case.expectSameBits(want_states, whole_states);
        inline for (.{ case.Order.backwards, .threes }) |order| {
            const y = try l.output();
            const states = try l.pool();
            try l.run(kernels.causal_conv1d, order, &batch, 0, states, y);
            try case.expectSameBits(whole, y);
            try case.expectSameBits(whole_states, states);
        }
        const y = try l.output();
        const states = try l.pool();
        var row: usize = 0;
        for (batch) |q| {
            const one = kernels.causal_conv1d_update;
            const k = if (q.tokens == 1) one else kernels.causal_conv1d;
            try l.run(k, .whole, &.{q}, row, states, y);
            row += q.tokens;
        }
        try case.expectSameBits(whole, y);
        try case.expectSameBits(whole_states, states);
    }
}

test "a prompt has the same bits in any cut, down to one token at a time" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const l = try Layer.init(arena.allocator(), 151, 40, 4);
    const want = try l.output();
    const want_states = try l.pool();
    const whole = Seq{ .tokens = 151, .slot = 2 };
    try l.run(kernels.causal_conv1d, .whole, &.{whole}, 0, want_states, want);
    for ([_]u32{ 1, 2, 3, 64, 100 }) |part| {
        const y = try l.output();
        const states = try l.pool();
        var done: u32 = 0;
        while (done < 151) : (done += part) {
            const q = Seq{ .past = done, .tokens = @min(part, 151 - done), .slot = 2 };
            const one = part == 1;
            const k = if (one) kernels.causal_conv1d_update else kernels.causal_conv1d;
            try l.run(k, .whole, &.{q}, done, states, y);
        }
        try case.expectSameBits(want, y);
        try case.expectSameBits(want_states, states);
    }
}

test "a batch without tokens does nothing" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const l = try Layer.init(arena.allocator(), 0, 40, 4);
    const states = try l.pool();
    const none = [_]Seq{ .{ .tokens = 0 }, .{ .tokens = 0, .slot = 1 } };
    try l.run(kernels.causal_conv1d, .whole, &none, 0, states, &.{});
    try l.run(kernels.causal_conv1d_update, .whole, &.{}, 0, states, &.{});
    try case.expectSameBits(l.states, states);
}
