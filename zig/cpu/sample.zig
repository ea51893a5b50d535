//! sample: the next id of every sequence, from its row of scores.
//!
//! Greedy: the largest score, the smallest id on a tie. Draw: softmax in f32, summed by blocks of
//! columns in one order, and the inverse of the cumulative distribution in the order of ids, at the
//! number that Philox gives for (generated, stream) under the seed: the id depends on the scores,
//! the seed, the stream and `generated`, on nothing else.
//!
//! NaN counts as -inf. Where no score is above -inf the result is -1, which is no id: the job stops
//! and says so. A finished sequence gets `pad_id`. Phase 0 finds each block's largest score, phase
//! 1 sums exponentials, phase 2 chooses: 4 or 8 bytes a score from memory.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const rows = @import("row.zig");
const philox = @import("philox.zig");
const Task = kernel.Task;
const F = simd.F;
const L = simd.L;

pub const kernels = .{
    .logits_process = @import("logits_process.zig").logits_process,
    .logits_warp = @import("logits_warp.zig").logits_warp,
    .sample = kernel.Kernel{ .n_phases = 3, .units = units, .run = run, .workspace = workspace },
};

/// No id can be chosen: all scores are NaN or -inf.
pub const none: i32 = -1;

/// Columns of a block; part of the order of summation.
const block = 8192;
/// What is known of one block of one row.
const Block = extern struct { sum: f64, best: f32, index: u32 };

fn blocksOf(t: *const Task) usize {
    return (t.cols(0) + block - 1) / block;
}
fn blocksOfRow(t: *const Task, r: usize) []Block {
    const all: [*]Block = @ptrCast(@alignCast(t.workspace.?));
    const n = blocksOf(t);
    return all[r * n ..][0..n];
}
fn workspace(t: *const Task) callconv(.c) usize {
    const most = @max(t.capacity[@intFromEnum(t.operands[0].rows)], t.operands[0].shape[0]);
    return most * blocksOf(t) * @sizeOf(Block);
}

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    return @intCast(if (phase == 2) t.rows(0) else t.rows(0) * blocksOf(t));
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = scratch;
    const n = blocksOf(t);
    for (begin..end) |unit| switch (phase) {
        0 => findBest(t, unit / n, unit % n),
        1 => sumBlock(t, unit / n, unit % n),
        else => choose(t, unit),
    };
}

/// The scores of one block.
fn scores(t: *const Task, r: usize, b: usize) []const f32 {
    const first = b * block;
    return t.row(0, r)[first..@min(first + block, t.cols(0))];
}
fn draws(t: *const Task, r: usize) bool {
    const s = t.step.sampling orelse return false;
    return s[r].do_sample != 0 and s[r].finished == 0;
}

fn findBest(t: *const Task, r: usize, b: usize) void {
    const x = scores(t, r, b);
    const best = rows.largest(x.len, x.ptr);
    const index = if (best == -std.math.inf(f32)) 0 else firstEqual(x, best);
    blocksOfRow(t, r)[b] = .{ .sum = 0, .best = best, .index = @intCast(b * block + index) };
}

/// Where `wanted`, which is in x, comes first.
fn firstEqual(x: []const f32, wanted: f32) usize {
    var i: usize = 0;
    while (i + L <= x.len) : (i += L) {
        if (@reduce(.Or, simd.ldF(x.ptr + i) == simd.splat(wanted))) break;
    }
    while (i + 1 < x.len and x[i] != wanted) i += 1;
    return i;
}

fn bestOf(blocks: []const Block) Block {
    var best = blocks[0];
    for (blocks[1..]) |b| if (b.best > best.best) {
        best = b;
    };
    return best;
}

fn sumBlock(t: *const Task, r: usize, b: usize) void {
    if (!draws(t, r)) return;
    const x = scores(t, r, b);
    const blocks = blocksOfRow(t, r);
    const max = bestOf(blocks).best;
    if (max == -std.math.inf(f32)) return;
    var s: rows.Sums = .{};
    var i: usize = 0;
    while (i < x.len) {
        inline for (0..rows.Sums.vectors) |j| {
            if (i < x.len) s.a[j] += weights(x, i, max);
            i += L;
        }
    }
    blocks[b].sum = s.total();
}

/// e^(x - max) of L scores from index i; 0 for NaN and beyond the end, 1 where x is max.
inline fn weights(x: []const f32, i: usize, max: f32) F {
    const m = simd.splat(max);
    const v = rows.partOr(x.ptr + i, x.len - i, -std.math.inf(f32));
    const d = @select(f32, v == m, simd.zero, v - m);
    return @select(f32, v == v, simd.exp(d), simd.zero);
}

fn choose(t: *const Task, r: usize) void {
    if (r >= t.step.n_seqs) return;
    const out = &t.step.sampled.?[r];
    if (t.step.sampling) |s| if (s[r].finished != 0) {
        out.* = t.step.pad_id;
        return;
    };
    const best = bestOf(blocksOfRow(t, r));
    if (best.best == -std.math.inf(f32)) {
        out.* = none;
    } else if (draws(t, r)) {
        out.* = @intCast(draw(t, r, best.best));
    } else out.* = @intCast(best.index);
}

fn draw(t: *const Task, r: usize, max: f32) usize {
    const s = t.step.sampling.?[r];
    const blocks = blocksOfRow(t, r);
    var total: f64 = 0;
    for (blocks) |b| total += b.sum;
    const u = philox.uniform(.{ s.generated, s.stream, 0, 0 }, .{ s.seed_lo, s.seed_hi });
    var left = u * total;
    var last: usize = 0;
    for (blocks, 0..) |b, i| {
        if (b.sum > 0) last = i;
        if (left < b.sum) break;
        left -= b.sum;
    }
    return last * block + inverse(scores(t, r, last), max, left);
}

/// The first index whose weights add up to more than `target`. Where rounding lets none, the last
/// index of any weight.
fn inverse(x: []const f32, max: f32, target: f64) usize {
    var sum: f64 = 0;
    var last: usize = 0;
    var i: usize = 0;
    while (i < x.len) : (i += L) {
        const w: [L]f32 = weights(x, i, max);
        for (w, i..) |v, at| {
            if (v == 0) continue;
            sum += v;
            last = at;
            if (sum > target) return at;
        }
    }
    return last;
}

// ---- the scalar twin and tests -------------------------------------------------------------

/// One row, in f64. `u` in [0, 1) draws; null takes the best.
pub fn sampleRef(x: []const f32, u: ?f64) i32 {
    var best: ?usize = null;
    for (x, 0..) |v, i| {
        if (std.math.isNan(v) or v == -std.math.inf(f32)) continue;
        if (best == null or v > x[best.?]) best = i;
    }
    const max = x[best orelse return none];
    if (u == null) return @intCast(best.?);
    var total: f64 = 0;
    for (x) |v| total += weightRef(v, max);
    var sum: f64 = 0;
    for (x, 0..) |v, i| {
        sum += weightRef(v, max);
        if (sum > u.? * total) return @intCast(i);
    }
    unreachable;
}
fn weightRef(v: f32, max: f32) f64 {
    if (std.math.isNan(v)) return 0;
    return if (v == max) 1 else @exp(@as(f64, v) - max);
}

const testing = std.testing;
const case = @import("case.zig");

/// Samples all rows of x (n, cols) and gives the ids.
fn sampleRows(
    gpa: std.mem.Allocator,
    x: []f32,
    cols: usize,
    order: case.Order,
    sampling: []command.Sampling,
) ![]i32 {
    const n = sampling.len;
    const seqs = try gpa.alloc(case.Seq, n);
    for (seqs) |*s| s.* = .{ .tokens = 1 };
    var c = try case.Case.init(gpa, .sample, seqs);
    const ids = try gpa.alloc(i32, n);
    @memset(ids, -77);
    c.order = order;
    c.step.n_logits = @intCast(n);
    c.step.sampling = sampling.ptr;
    c.step.sampled = ids.ptr;
    c.step.pad_id = 99;
    c.tokens(x.ptr, cols, x.len / n);
    c.task.operands[0].rows = .logits;
    c.task.capacity[3] = @intCast(n + 1);
    c.tokens(@ptrCast(ids.ptr), 1, 1);
    try c.execute(kernels.sample);
    return ids;
}

fn neutral(do_sample: u32) command.Sampling {
    var s = std.mem.zeroes(command.Sampling);
    s.do_sample = do_sample;
    s.temperature = 1;
    s.top_p = 1;
    s.typical_p = 1;
    s.repetition_penalty = 1;
    return s;
}

test "greedy takes the largest score and the smallest id on a tie, never NaN" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    var prng = std.Random.DefaultPrng.init(1);
    for ([_]usize{ 1, 2, 3, 31, 129, 8191, 8192, 8193, 20003 }) |cols| {
        const n = 8;
        const x = try gpa.alloc(f32, n * (cols + 2));
        case.fill(prng.random(), x, 4);
        const stride = cols + 2;
        for (0..n) |r| x[r * stride + prng.random().uintLessThan(usize, cols)] = 5;
        for (0..n) |r| x[r * stride + prng.random().uintLessThan(usize, cols)] = 5;
        for (0..n) |r| x[r * stride + prng.random().uintLessThan(usize, cols)] = case.nan;
        @memset(x[0..cols], -std.math.inf(f32));
        @memset(x[stride..][0..cols], case.nan);
        x[2 * stride + cols - 1] = std.math.inf(f32);
        var sampling: [n]command.Sampling = @splat(neutral(0));
        sampling[n - 1].finished = 1;
        const ids = try sampleRows(gpa, x, cols, .backwards, &sampling);
        for (0..n - 1) |r|
            try testing.expectEqual(sampleRef(x[r * stride ..][0..cols], null), ids[r]);
        try testing.expectEqual(none, ids[0]);
        try testing.expectEqual(none, ids[1]);
        try testing.expectEqual(@as(i32, 99), ids[n - 1]);
    }
}

test "draws agree with the twin, whatever the units, and depend on seed, stream and place" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    var prng = std.Random.DefaultPrng.init(2);
    const n = 64;
    for ([_]usize{ 1, 3, 129, 8193, 40000 }) |cols| {
        const x = try gpa.alloc(f32, n * cols);
        case.fill(prng.random(), x, 5);
        for (x, 0..) |*v, i| if (i % 17 == 3 and cols > 9) {
            v.* = if (i % 2 == 0) -std.math.inf(f32) else case.nan;
        };
        var sampling: [n]command.Sampling = @splat(neutral(1));
        for (&sampling, 0..) |*s, i| {
            s.generated = @intCast(i / 8);
            s.stream = @intCast(i % 8);
            s.seed_lo = 42;
        }
        const ids = try sampleRows(gpa, x, cols, .whole, &sampling);
        const again = try sampleRows(gpa, x, cols, .threes, &sampling);
        try testing.expectEqualSlices(i32, ids, again);
        var same: usize = 0;
        for (ids, sampling, 0..) |id, s, r| {
            const u = philox.uniform(.{ s.generated, s.stream, 0, 0 }, .{ 42, 0 });
            same += @intFromBool(id == sampleRef(x[r * cols ..][0..cols], u));
        }
        try testing.expect(same >= n - 1); // at an edge f32 sums may fall on the other side
    }
}

test "drawn ids have the frequencies of softmax" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const cols = 9;
    const rounds = 40_000;
    const row = [cols]f32{ 0, -1, 2, -std.math.inf(f32), 1.5, case.nan, -3, 0.5, 2 };
    const x = try gpa.alloc(f32, rounds * cols);
    for (x, 0..) |*v, i| v.* = row[i % cols];
    const sampling = try gpa.alloc(command.Sampling, rounds);
    for (sampling, 0..) |*s, i| {
        s.* = neutral(1);
        s.generated = @intCast(i);
        s.seed_hi = 7;
    }
    const ids = try sampleRows(gpa, x, cols, .whole, sampling);
    var counts: [cols]f64 = @splat(0);
    for (ids) |id| counts[@intCast(id)] += 1;
    var total: f64 = 0;
    for (row) |v| total += weightRef(v, 2);
    var chi: f64 = 0;
    for (row, counts) |v, c| {
        const want = weightRef(v, 2) / total * rounds;
        if (want == 0) try testing.expectEqual(@as(f64, 0), c) else {
            chi += (c - want) * (c - want) / want;
        }
    }
    try testing.expect(chi < 26); // 6 degrees of freedom: above it once in 4,000 seeds
}
