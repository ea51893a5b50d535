//! Tests of kv_append, attention and attention_probs against their twins, and of the bits they
//! promise: alone or in a batch, whole or cut, with NaN wherever nothing has been written.

const std = @import("std");
const attention = @import("../attention.zig");
const bf16 = @import("bf16.zig");
const block = @import("../block.zig");
const case = @import("../case.zig");
const pages = @import("pages.zig");
const kernel_zig = @import("../kernel.zig");
const DType = @import("command").DType;
const Kernel = kernel_zig.Kernel;
const Seq = case.Seq;
const testing = std.testing;
const kernels = attention.kernels;

const Shape = struct { heads: usize, kv_heads: usize, hd: usize, dtype: DType = .f32 };
const shapes = [_]Shape{
    .{ .heads = 4, .kv_heads = 2, .hd = 24 },
    .{ .heads = 4, .kv_heads = 1, .hd = 128, .dtype = .bf16 },
    .{ .heads = 2, .kv_heads = 2, .hd = 16, .dtype = .f16 },
    .{ .heads = 8, .kv_heads = 1, .hd = 64 },
    .{ .heads = 3, .kv_heads = 1, .hd = 13 },
    .{ .heads = 4, .kv_heads = 2, .hd = 96, .dtype = .q8_0 },
    .{ .heads = 14, .kv_heads = 1, .hd = 32, .dtype = .q8_0 },
    .{ .heads = 4, .kv_heads = 2, .hd = 24, .dtype = .bf16 },
    // More heads than a register tile of pairs has rows, and an odd number of channels.
    .{ .heads = 26, .kv_heads = 2, .hd = 64, .dtype = .bf16 },
    .{ .heads = 3, .kv_heads = 1, .hd = 101, .dtype = .bf16 },
};

/// Projections of every position of every slot, and a pool of pages: position p of slot s has its
/// own numbers, so that a test can run any part of any sequence.
const Layer = struct {
    gpa: std.mem.Allocator,
    s: Shape,
    longest: usize,
    /// (slots, longest, heads * hd), twice (.., kv_heads * hd)
    q: []f32,
    k: []f32,
    v: []f32,

    fn init(gpa: std.mem.Allocator, s: Shape, positions: usize) !Layer {
        var prng = std.Random.DefaultPrng.init(s.hd + positions);
        const n = case.slots * positions * s.hd;
        const l = Layer{
            .gpa = gpa,
            .s = s,
            .longest = positions,
            .q = try gpa.alloc(f32, n * s.heads),
            .k = try gpa.alloc(f32, n * s.kv_heads),
            .v = try gpa.alloc(f32, n * s.kv_heads),
        };
        case.fill(prng.random(), l.q, 3);
        case.fill(prng.random(), l.k, 1);
        case.fill(prng.random(), l.v, 1);
        return l;
    }
    fn pageBytes(l: Layer) usize {
        return 2 * l.s.kv_heads * 64 * block.rowBytes(l.s.dtype, l.s.hd);
    }
    /// Pages full of NaN, with the keys and values that the sequences had before.
    fn cache(l: Layer, seqs: []const Seq, k: ?Kernel) ![]u8 {
        const n_pages = case.slots * (l.longest / 64 + 1);
        const m = try l.gpa.alignedAlloc(u8, .@"64", n_pages * l.pageBytes());
        @memset(m, 0xff);
        var past: [case.slots]Seq = undefined;
        for (seqs, 0..) |q, i| past[i] = .{ .tokens = q.past, .slot = q.slot };
        try l.append(past[0..seqs.len], m, k);
        return m;
    }
    fn rows(l: Layer, all: []f32, wide: usize, seqs: []const Seq) ![]f32 {
        var out: std.ArrayList(f32) = .empty;
        for (seqs) |q| {
            const from = (q.slot * l.longest + q.past) * wide;
            try out.appendSlice(l.gpa, all[from..][0 .. q.tokens * wide]);
        }
        try out.append(l.gpa, 0);
        return out.items;
    }
    fn append(l: Layer, seqs: []const Seq, m: []u8, k: ?Kernel) !void {
        const wide = l.s.kv_heads * l.s.hd;
        var c = try case.Case.init(l.gpa, .kv_append, seqs);
        c.order = .backwards;
        c.tokens((try l.rows(l.k, wide, seqs)).ptr, wide, wide);
        c.tokens((try l.rows(l.v, wide, seqs)).ptr, wide, wide);
        c.kv(m.ptr, l.s.dtype, l.pageBytes());
        c.kv(m.ptr + l.pageBytes() / 2, l.s.dtype, l.pageBytes());
        c.attr(0, l.s.kv_heads);
        c.attr(1, l.s.hd);
        if (k) |kernel| try c.execute(kernel) else attention.kv_append_ref(&c.task);
    }
    /// Appends the sequences' tokens to the cache and answers their attention.
    fn run(l: Layer, k: ?Kernel, order: case.Order, seqs: []const Seq, m: []u8) ![]f32 {
        try l.append(seqs, m, kernels.kv_append);
        return l.attend(if (k) |of| .{ .kernel = of } else .twin, order, seqs, m);
    }
    const By = union(enum) { kernel: Kernel, twin, exact };
    fn attend(l: Layer, by: By, order: case.Order, seqs: []const Seq, m: []u8) ![]f32 {
        const wide = l.s.heads * l.s.hd;
        var c = try case.Case.init(l.gpa, .attention, seqs);
        c.order = order;
        const out = try l.gpa.alloc(f32, c.step.n_tokens * wide + 1);
        @memset(out, case.nan);
        c.tokens((try l.rows(l.q, wide, seqs)).ptr, wide, wide);
        c.kv(m.ptr, l.s.dtype, l.pageBytes());
        c.kv(m.ptr + l.pageBytes() / 2, l.s.dtype, l.pageBytes());
        c.tokens(out.ptr, wide, wide);
        c.attr(0, l.s.heads);
        c.attr(1, l.s.kv_heads);
        c.attr(2, l.s.hd);
        c.attr(3, 1 / @sqrt(@as(f32, @floatFromInt(l.s.hd))));
        switch (by) {
            .kernel => |k| try c.execute(k),
            .twin => attention.attention_ref(&c.task),
            .exact => attention.attention_exact(&c.task),
        }
        return out[0 .. out.len - 1];
    }
};

const batch = [_]Seq{
    .{ .past = 0, .tokens = 130, .slot = 5 },
    .{ .past = 63, .tokens = 3, .slot = 0 },
    .{ .past = 7, .tokens = 0, .slot = 3 },
    .{ .past = 64, .tokens = 64, .slot = 7 },
    .{ .past = 100, .tokens = 1, .slot = 2 },
    .{ .past = 1, .tokens = 151, .slot = 1 },
    .{ .past = 0, .tokens = 1, .slot = 6 },
    .{ .past = 1100, .tokens = 2, .slot = 4 },
};
const longest = 1160;

test "kv_append writes what its twin writes, and nothing else" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for (shapes) |s| {
        const l = try Layer.init(arena.allocator(), s, longest);
        const want = try l.cache(&batch, null);
        try l.append(&batch, want, null);
        const got = try l.cache(&batch, kernels.kv_append);
        try l.append(&batch, got, kernels.kv_append);
        try testing.expectEqualSlices(u8, want, got);
    }
}

test "attention is its twin, for many sequences, with the same bits alone and in any order" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for (shapes) |s| {
        _ = arena.reset(.retain_capacity);
        const l = try Layer.init(arena.allocator(), s, longest);
        const m = try l.cache(&batch, kernels.kv_append);
        const want = try l.run(null, .whole, &batch, m);
        const got = try l.run(kernels.attention, .whole, &batch, m);
        try testing.expect(case.worst(got, want) < 1e-6);
        if (s.dtype == .q8_0 or bf16.takes(s.dtype, s.kv_heads, s.hd)) {
            try case.expectSameBits(want, got);
            const exact = try l.attend(.exact, .whole, &batch, m);
            try testing.expect(case.worst(got, exact) < 1e-2);
        }
        inline for (.{ case.Order.backwards, .threes }) |order|
            try case.expectSameBits(got, try l.run(kernels.attention, order, &batch, m));
        var row: usize = 0;
        for (batch) |q| {
            const alone = try l.run(kernels.attention, .whole, &.{q}, m);
            const at = row * s.heads * s.hd;
            try case.expectSameBits(got[at..][0..alone.len], alone);
            row += q.tokens;
        }
    }
}

test "a prompt has the same bits in any cut, down to one token at a time, over spans too" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for (shapes) |s| for ([_]u32{ 1, 5, 64, 100, 1030 }) |part| {
        _ = arena.reset(.retain_capacity);
        const l = try Layer.init(arena.allocator(), s, longest);
        const whole = [_]Seq{.{ .tokens = 1134, .slot = 2 }};
        const want = try l.run(kernels.attention, .whole, &whole, try l.cache(&.{}, null));
        const m = try l.cache(&.{}, null);
        var done: u32 = 0;
        while (done < 1134) : (done += part) {
            // Some thousand single steps would take long and show no more than these.
            const skip = part == 1 and done % 64 > 1 and done % 64 < 63;
            const q = Seq{ .past = done, .tokens = @min(part, 1134 - done), .slot = 2 };
            if (skip) {
                try l.append(&.{q}, m, kernels.kv_append);
                continue;
            }
            const got = try l.run(kernels.attention, .whole, &.{q}, m);
            try case.expectSameBits(want[done * s.heads * s.hd ..][0..got.len], got);
        }
    };
}

test "a decoded token over many spans is its twin" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for (shapes[0..2]) |s| {
        _ = arena.reset(.retain_capacity);
        const l = try Layer.init(arena.allocator(), s, 5000);
        const seqs = [_]Seq{
            .{ .past = 4999, .tokens = 1, .slot = 1 },
            .{ .past = 1023, .tokens = 1 },
        };
        const m = try l.cache(&seqs, kernels.kv_append);
        const want = try l.run(null, .whole, &seqs, m);
        const got = try l.run(kernels.attention, .threes, &seqs, m);
        try testing.expect(case.worst(got, want) < 2e-6);
    }
}

test "attention_probs is its twin, zeros beyond a token's own position" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    for (shapes) |s| {
        _ = arena.reset(.retain_capacity);
        const l = try Layer.init(arena.allocator(), s, 260);
        const seqs = batch[0..7];
        const m = try l.cache(seqs, kernels.kv_append);
        try l.append(seqs, m, kernels.kv_append);
        const wide = s.heads * s.hd;
        const max_keys = 200;
        var out: [2][]f32 = undefined;
        for (&out, 0..) |*o, i| {
            var c = try case.Case.init(l.gpa, .attention_probs, seqs);
            c.order = .backwards;
            o.* = try l.gpa.alloc(f32, c.step.n_tokens * s.heads * max_keys);
            @memset(o.*, case.nan);
            c.tokens((try l.rows(l.q, wide, seqs)).ptr, wide, wide);
            c.kv(m.ptr, s.dtype, l.pageBytes());
            c.tokens(o.ptr, s.heads * max_keys, s.heads * max_keys);
            c.attr(0, s.heads);
            c.attr(1, s.kv_heads);
            c.attr(2, s.hd);
            c.attr(3, 0.25);
            c.attr(4, max_keys);
            if (i == 0)
                attention.attention_probs_ref(&c.task)
            else
                try c.execute(kernels.attention_probs);
        }
        try testing.expect(case.worst(out[1], out[0]) < 3e-6);
        for (out[0], out[1]) |w, g| if (w == 0) try testing.expectEqual(@as(f32, 0), g);
    }
}

test "attention of nothing does nothing" {
    var arena = std.heap.ArenaAllocator.init(testing.allocator);
    defer arena.deinit();
    const l = try Layer.init(arena.allocator(), shapes[0], 64);
    const m = try l.cache(&.{}, null);
    const none = [_]Seq{ .{ .tokens = 0, .slot = 1 }, .{ .past = 9, .tokens = 0 } };
    try testing.expectEqual(0, (try l.run(kernels.attention, .whole, &none, m)).len);
    try testing.expectEqual(0, (try l.run(kernels.attention, .threes, &.{}, m)).len);
}
