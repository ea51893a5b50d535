//! causal_conv1d: each channel's last W inputs weighted, and its one-token form.
//!
//! Contract: out[t][c] = act(bias[c] + sum_w weight[c][w] x[t - W + 1 + w][c]), w from the oldest
//! input upwards, with inputs before this run from the slot's state (W, C), zeros before the
//! sequence's start. After a run the state holds the sequence's last W inputs. The order of the
//! sum is the same everywhere, so any cut of a prompt leaves every bit.
//! Work: 2 W flops and a SiLU for 8 bytes read and written; SiLU decides, then memory.
//! Ideas: lanes over channels; a unit is some tokens times some channels, so that a row's bytes
//! are read once from memory and W times from L1; the weights of a unit's channels are turned to
//! (W, channels) once. States are written in a phase of their own, when nobody reads them any more;
//! those of sequences with one token in the same walk, past the caches (`way.zig`).

const std = @import("std");
const simd = @import("simd.zig");
const ways = @import("way.zig");
const kernel_zig = @import("kernel.zig");
const rows = @import("row.zig");
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

    /// A sequence's one token and the state behind it. What comes next, `soon`, is asked for on the
    /// way: a thousand bytes of each row of a state are too few for a CPU to foresee.
    fn update(b: Block, seq: usize, row: usize, soon: Places) void {
        if (b.width != 4) {
            b.token(seq, row, 0);
            return b.keep(seq, row, 1);
        }
        const fresh = b.t.step.past_len.?[seq] == 0;
        switch (b.t.attrs[0]) {
            inline 0, 1 => |silu| b.updateColumns(silu, b.places(seq, row), fresh, soon),
            else => unreachable,
        }
    }
    fn updateColumns(
        b: Block,
        comptime silu: u32,
        at: Places,
        fresh: bool,
        soon: Places,
    ) void {
        const way = ways.behind(b.t.slot_bytes * b.t.step.n_seqs);
        var c: usize = 0;
        while (c < b.n) : (c += L) {
            soon.ask(c);
            const left = b.n - c;
            var in: [4]F = @splat(simd.zero);
            if (!fresh) inline for (0..3) |w| {
                in[w] = rows.part(at.state + (w + 1) * at.apart + c, left);
            };
            in[3] = rows.part(at.x + c, left);
            var sum = simd.ldF(b.bias + c);
            inline for (0..4) |w|
                sum = simd.mulAdd(simd.ldF(b.weight + w * channels_step + c), in[w], sum);
            ways.store(way, at.out + c, if (silu == 1) simd.silu(sum) else sum, left);
            inline for (0..4) |w| ways.store(way, at.state + w * at.apart + c, in[w], left);
        }
    }
    fn places(b: Block, seq: usize, row: usize) Places {
        return .{
            .state = b.state(seq, 0),
            .apart = b.t.cols(0),
            .x = b.t.row(0, row) + b.c0,
            .out = b.t.row(4, row) + b.c0,
        };
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

/// Where some channels of a sequence with one token lie.
const Places = struct {
    /// Of the oldest input, the others `apart` from each other
    state: [*]f32,
    apart: usize,
    x: [*]const f32,
    out: [*]f32,

    /// The channels of the next unit.
    fn behind(p: Places) Places {
        var next = p;
        next.state += channels_step;
        next.x += channels_step;
        next.out += channels_step;
        return next;
    }
    inline fn ask(p: Places, c: usize) void {
        inline for (1..4) |w| @prefetch(p.state + w * p.apart + c, .{});
        @prefetch(p.x + c, .{});
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
    const start = t.step.seq_start.?;
    for (begin..end) |unit| {
        const b = Block.init(t, s, unit % s.blocks, scratch);
        const first = unit / s.blocks * tokens_step;
        const last = @min(first + tokens_step, t.step.n_seqs) - 1;
        for (first..last + 1) |seq| {
            // Behind the last of these sequences comes the first with the next channels, if any.
            const next = if (seq < last) seq + 1 else first;
            var soon = b.places(next, start[next]);
            if (seq == last and b.c0 + 2 * channels_step <= s.channels) soon = soon.behind();
            b.update(seq, start[seq], soon);
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

test {
    _ = @import("conv1d_test.zig");
}
