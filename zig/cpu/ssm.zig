//! The state space model on the CPU: ssm_scan and ssm_update, their scalar twin and their tests.

const std = @import("std");
const simd = @import("simd.zig");
const kernel_zig = @import("kernel.zig");
const case = @import("case.zig");
const scan = @import("ssm_scan.zig");
const state_zig = @import("ssm_state.zig");
const update = @import("ssm_update.zig");
const Task = kernel_zig.Task;
const Shape = update.Shape;

pub const kernels = .{ .ssm_scan = scan.kernel, .ssm_update = update.kernel };

/// The recurrence token by token, in f64: the twin of both kernels.
pub fn ssm_ref(t: *const Task) void {
    const s = Shape.of(t);
    for (0..t.step.n_seqs) |seq| for (0..s.heads) |h| {
        const from = t.step.seq_start.?[seq];
        const to = t.step.seq_start.?[seq + 1];
        if (from == to) continue;
        for (0..s.p) |p| ssmColumn_ref(t, s, seq, h, p, from, to);
    };
}
fn ssmColumn_ref(
    t: *const Task,
    s: Shape,
    seq: usize,
    h: usize,
    p: usize,
    from: u32,
    to: u32,
) void {
    const state: [*]f32 = @ptrCast(@alignCast(s.state(t, seq, h)));
    var column: [512]f64 = undefined;
    const fresh = t.step.past_len.?[seq] == 0;
    for (0..s.n) |n| column[n] = if (fresh) 0 else state[n * s.p + p];
    const rate = -@exp(@as(f64, t.f32s(4)[h]));
    for (from..to) |row| {
        const raw = @as(f64, t.row(1, row)[h]) + t.f32s(6)[h];
        const soft = if (raw > 20) raw else std.math.log1p(@exp(raw));
        const dt = @min(@max(soft, t.attrF(4)), t.attrF(5));
        const decay = @exp(@min(dt * rate, 0));
        const x: f64 = s.x(t, row, h)[p];
        var y: f64 = t.f32s(5)[h] * x;
        for (0..s.n) |n| {
            column[n] = decay * column[n] + dt * s.b(t, row, s.group(h))[n] * x;
            y += s.c(t, row, s.group(h))[n] * column[n];
        }
        s.y(t, row, h)[p] = @floatCast(y);
    }
    for (0..s.n) |n| state[n * s.p + p] = @floatCast(column[n]);
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;
const Seq = case.Seq;
/// Share of the largest value: f32 over up to 18 chunks against the f64 recurrence.
const tolerance = 1e-5;

/// One layer's inputs and weights for a row of tokens, with room between rows.
const Layer = struct {
    gpa: std.mem.Allocator,
    s: Shape,
    dt_min: f32 = 0,
    dt_max: f32 = std.math.inf(f32),
    rows: usize,
    wide: usize,
    all: []f32,
    dt: []f32,
    a_log: []f32,
    d: []f32,
    dt_bias: []f32,
    states: []f32,
    /// What the states are kept as; their slots stay as far apart as those of f32.
    kept: kernel_zig.DType = .f32,

    const gap = 3;
    fn init(gpa: std.mem.Allocator, s: Shape, rows: usize, seed: u64) !Layer {
        var prng = std.Random.DefaultPrng.init(seed);
        const random = prng.random();
        const wide = s.heads * s.p + 2 * s.groups * s.n + gap;
        const l = Layer{
            .gpa = gpa,
            .s = s,
            .rows = rows,
            .wide = wide,
            .all = try gpa.alloc(f32, @max(1, rows * wide)),
            .dt = try gpa.alloc(f32, @max(1, rows * s.heads)),
            .a_log = try gpa.alloc(f32, s.heads),
            .d = try gpa.alloc(f32, s.heads),
            .dt_bias = try gpa.alloc(f32, s.heads),
            .states = try gpa.alloc(f32, case.slots * s.heads * s.n * s.p),
        };
        case.fill(random, l.all, 1);
        case.fill(random, l.dt, 3);
        case.fill(random, l.a_log, 2);
        case.fill(random, l.d, 1);
        case.fill(random, l.dt_bias, 2);
        case.fill(random, l.states, 1);
        return l;
    }
    fn keep(l: *Layer, comptime dtype: kernel_zig.DType) void {
        l.kept = dtype;
        const n = l.slotFloats();
        for (0..case.slots) |slot| {
            const at: [*]u8 = @ptrCast(l.states.ptr + slot * n);
            for (0..n) |i| state_zig.stSome(
                dtype,
                at + i * simd.size(dtype),
                simd.splat(l.states[slot * n + i]),
                1,
            );
        }
    }
    fn slotFloats(l: Layer) usize {
        return l.s.heads * l.s.n * l.s.p;
    }
    /// Runs the sequences, whose first row is `row`, over a pool of states; null: the twin.
    fn run(
        l: Layer,
        kernel: ?kernel_zig.Kernel,
        order: case.Order,
        seqs: []const Seq,
        row: usize,
        states: []f32,
        y: []f32,
    ) !void {
        var c = try case.Case.init(l.gpa, .ssm_scan, seqs);
        c.order = order;
        const s = l.s;
        const x = l.all.ptr + row * l.wide;
        const width = s.heads * s.p;
        c.tokens(x, width, l.wide);
        c.tokens(l.dt.ptr + row * s.heads, s.heads, s.heads);
        c.tokens(x + width, s.groups * s.n, l.wide);
        c.tokens(x + width + s.groups * s.n, s.groups * s.n, l.wide);
        c.weight(l.a_log, 1, s.heads);
        c.weight(l.d, 1, s.heads);
        c.weight(l.dt_bias, 1, s.heads);
        c.state(states.ptr, l.slotFloats());
        c.task.operands[7].dtype = l.kept;
        c.tokens(y.ptr + row * width, width, width);
        c.attr(0, s.heads);
        c.attr(1, s.p);
        c.attr(2, s.groups);
        c.attr(3, s.n);
        c.attr(4, l.dt_min);
        c.attr(5, l.dt_max);
        if (kernel) |k| try c.execute(k) else ssm_ref(&c.task);
    }
    fn output(l: Layer) ![]f32 {
        const y = try l.gpa.alloc(f32, l.rows * l.s.heads * l.s.p);
        @memset(y, case.nan);
        return y;
    }
    fn pool(l: Layer) ![]f32 {
        return l.gpa.dupe(f32, l.states);
    }
};

const shapes = [_]Shape{
    .{ .heads = 2, .p = 64, .groups = 1, .n = 128 },
    .{ .heads = 6, .p = 24, .groups = 3, .n = 16 },
    .{ .heads = 4, .p = 16, .groups = 2, .n = 256 },
    .{ .heads = 3, .p = 21, .groups = 1, .n = 13 },
};
const batch = [_]Seq{
    .{ .past = 0, .tokens = 130, .slot = 5 },
    .{ .past = 63, .tokens = 3, .slot = 0 },
    .{ .past = 7, .tokens = 0, .slot = 3 },
    .{ .past = 64, .tokens = 64, .slot = 7 },
    .{ .past = 100, .tokens = 1, .slot = 2 },
    .{ .past = 1, .tokens = 151, .slot = 1 },
    .{ .past = 65, .tokens = 63, .slot = 4 },
};
const batch_rows = 130 + 3 + 64 + 1 + 151 + 63;

test "ssm_scan is the recurrence, at ugly sizes and for many sequences" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for (shapes, 0..) |s, i| {
        var l = try Layer.init(arena.allocator(), s, batch_rows, i);
        if (i == 1) l.dt_min = 0.3;
        if (i == 1) l.dt_max = 0.9;
        const want = try l.output();
        const want_states = try l.pool();
        try l.run(null, .whole, &batch, 0, want_states, want);
        inline for (.{ case.Order.whole, .backwards, .threes }) |order| {
            const got = try l.output();
            const states = try l.pool();
            try l.run(scan.kernel, order, &batch, 0, states, got);
            try testing.expect(case.worst(got, want) < tolerance);
            try testing.expect(case.worst(states, want_states) < tolerance);
        }
    }
}

test "ssm_scan of one sequence of every awkward length and past" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for ([_]u32{ 1, 2, 3, 63, 64, 65, 129, 130, 151, 1134 }) |tokens| {
        for ([_]u32{ 0, 1, 63, 64, 65, 100 }) |past| {
            if (tokens > 151 and past != 100) continue;
            _ = arena.reset(.retain_capacity);
            const l = try Layer.init(arena.allocator(), shapes[1], tokens, tokens + past);
            const seqs = [_]Seq{.{ .past = past, .tokens = tokens, .slot = 3 }};
            const want = try l.output();
            const want_states = try l.pool();
            try l.run(null, .whole, &seqs, 0, want_states, want);
            const got = try l.output();
            const states = try l.pool();
            // What lies in a slot before a sequence starts must not matter.
            if (past == 0) @memset(states[3 * l.slotFloats() ..][0..l.slotFloats()], case.nan);
            try l.run(scan.kernel, .whole, &seqs, 0, states, got);
            try testing.expect(case.worst(got, want) < tolerance);
            try testing.expect(case.worst(states, want_states) < tolerance);
        }
    }
}

test "a sequence has the same bits alone, in a batch and in any order of units" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    inline for (.{ .f32, .bf16, .f16 }) |kept| for (shapes, 0..) |s, i| {
        var l = try Layer.init(arena.allocator(), s, batch_rows, 40 + i);
        l.keep(kept);
        const packed_y = try l.output();
        const packed_states = try l.pool();
        try l.run(scan.kernel, .whole, &batch, 0, packed_states, packed_y);
        inline for (.{ case.Order.backwards, .threes }) |order| {
            const y = try l.output();
            const states = try l.pool();
            try l.run(scan.kernel, order, &batch, 0, states, y);
            try case.expectSameBits(packed_y, y);
            try case.expectSameBits(packed_states, states);
        }
        const y = try l.output();
        const states = try l.pool();
        var row: usize = 0;
        for (batch) |q| {
            try l.run(scan.kernel, .whole, &.{q}, row, states, y);
            row += q.tokens;
        }
        try case.expectSameBits(packed_y, y);
        try case.expectSameBits(packed_states, states);
    };
}

/// One sequence of all the layer's tokens, run in parts.
fn runCut(l: Layer, cuts: []const u32, states: []f32, y: []f32) !void {
    var done: u32 = 0;
    for (0..cuts.len + 1) |i| {
        const end = if (i < cuts.len) cuts[i] else @as(u32, @intCast(l.rows));
        const seqs = [_]Seq{.{ .past = done, .tokens = end - done, .slot = 6 }};
        try l.run(scan.kernel, .whole, &seqs, done, states, y);
        done = end;
    }
}

test "cutting a prompt at multiples of 64 leaves every bit, elsewhere the value" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    inline for (.{ .f32, .bf16, .f16 }) |kept| for (shapes, 0..) |s, i| {
        var l = try Layer.init(arena.allocator(), s, 257, 80 + i);
        l.keep(kept);
        const want = try l.output();
        const want_states = try l.pool();
        try runCut(l, &.{}, want_states, want);
        const cuts = [_][]const u32{
            &.{64},
            &.{128},
            &.{ 64, 128, 192, 256 },
            &.{ 128, 128, 256 },
        };
        for (cuts) |cut| {
            const y = try l.output();
            const states = try l.pool();
            try runCut(l, cut, states, y);
            try case.expectSameBits(want, y);
            try case.expectSameBits(want_states, states);
        }
        const elsewhere = [_][]const u32{ &.{1}, &.{ 1, 2, 3 }, &.{63}, &.{ 65, 100, 191 } };
        if (kept == .f32) for (elsewhere) |cut| {
            const y = try l.output();
            const states = try l.pool();
            try runCut(l, cut, states, y);
            try testing.expect(case.worst(y, want) < tolerance);
            try testing.expect(case.worst(states, want_states) < tolerance);
        };
    };
}

test "ssm_update is the recurrence and has the bits of a scan of one token" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const seqs = [_]Seq{
        .{ .past = 0, .tokens = 1, .slot = 4 },
        .{ .past = 64, .tokens = 1, .slot = 0 },
        .{ .past = 1133, .tokens = 1, .slot = 7 },
    };
    for (shapes, 0..) |s, i| {
        const l = try Layer.init(arena.allocator(), s, seqs.len, 120 + i);
        @memset(l.states[4 * l.slotFloats() ..][0..l.slotFloats()], case.nan);
        const want = try l.output();
        const want_states = try l.pool();
        try l.run(null, .whole, &seqs, 0, want_states, want);
        const y = try l.output();
        const states = try l.pool();
        try l.run(update.kernel, .threes, &seqs, 0, states, y);
        try testing.expect(case.worst(y, want) < tolerance);
        try testing.expect(case.worst(states, want_states) < tolerance);
        const scanned = try l.output();
        const scanned_states = try l.pool();
        try l.run(scan.kernel, .backwards, &seqs, 0, scanned_states, scanned);
        try case.expectSameBits(scanned, y);
        try case.expectSameBits(scanned_states, states);
    }
}

test "a state of 16 bits: updates have the bits of scans, and stay near those of f32" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const seqs = [_]Seq{
        .{ .past = 0, .tokens = 1, .slot = 4 },
        .{ .past = 64, .tokens = 1, .slot = 0 },
        .{ .past = 1133, .tokens = 1, .slot = 7 },
    };
    inline for (.{ .bf16, .f16 }) |kept| for (shapes, 0..) |s, i| {
        var l = try Layer.init(arena.allocator(), s, batch_rows, 160 + i);
        const exact = try l.output();
        try l.run(scan.kernel, .whole, &batch, 0, try l.pool(), exact);
        l.keep(kept);
        const near = try l.output();
        try l.run(scan.kernel, .whole, &batch, 0, try l.pool(), near);
        // Half a unit in the last place of the state, and no more than it has after one chunk.
        try testing.expect(case.worst(near, exact) < @as(f32, if (kept == .f16) 1e-3 else 8e-3));
        var results: [2][]f32 = undefined;
        var states: [2][]f32 = undefined;
        inline for (.{ update.kernel, scan.kernel }, 0..) |kernel, j| {
            results[j] = try l.output();
            states[j] = try l.pool();
            @memset(states[j][4 * l.slotFloats() ..][0..l.slotFloats()], case.nan);
            try l.run(kernel, .threes, &seqs, 0, states[j], results[j]);
        }
        const n = seqs.len * s.heads * s.p;
        try case.expectSameBits(results[1][0..n], results[0][0..n]);
        try case.expectSameBits(states[1], states[0]);
    };
}

test "a batch without tokens does nothing" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const l = try Layer.init(arena.allocator(), shapes[1], 0, 1);
    const states = try l.pool();
    try l.run(scan.kernel, .whole, &.{}, 0, states, &.{});
    const nothing = [_]Seq{ .{ .tokens = 0 }, .{ .tokens = 0, .slot = 1 } };
    try l.run(scan.kernel, .whole, &nothing, 0, states, &.{});
    try case.expectSameBits(l.states, states);
}
