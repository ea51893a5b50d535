//! Tests of both forms of causal_conv1d against their twin.

const std = @import("std");
const kernel_zig = @import("kernel.zig");
const case = @import("case.zig");
const conv1d = @import("conv1d.zig");
const Kernel = kernel_zig.Kernel;
const causal_conv1d_ref = conv1d.causal_conv1d_ref;
const kernels = conv1d.kernels;

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

test "sequences of one token each have the bits of the general form, in any order" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const seqs = [_]Seq{
        .{ .past = 3, .tokens = 1, .slot = 5 },
        .{ .past = 0, .tokens = 1, .slot = 1 },
        .{ .past = 1, .tokens = 1, .slot = 0 },
        .{ .past = 70, .tokens = 1, .slot = 7 },
        .{ .past = 0, .tokens = 1, .slot = 2 },
    };
    for (sizes) |size| {
        const l = try Layer.init(arena.allocator(), seqs.len, size.channels, size.width);
        for ([_]usize{ 1, 2 }) |slot| l.poisonSlot(slot);
        const want = try l.output();
        const want_states = try l.pool();
        try l.run(kernels.causal_conv1d, .whole, &seqs, 0, want_states, want);
        inline for (.{ case.Order.whole, .backwards, .threes }) |order| {
            const y = try l.output();
            const states = try l.pool();
            try l.run(kernels.causal_conv1d_update, order, &seqs, 0, states, y);
            try case.expectSameBits(want, y);
            try case.expectSameBits(want_states, states);
        }
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
