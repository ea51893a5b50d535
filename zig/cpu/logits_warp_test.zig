//! The twin of `logits_warp`: HF's classes step by step, with sorts, in f64; and the tests.

const std = @import("std");
const command = @import("command");
const case = @import("case.zig");
const logits_warp = @import("logits_warp.zig").logits_warp;
const Sampling = command.Sampling;
const testing = std.testing;
const Allocator = std.mem.Allocator;
const removed = -std.math.inf(f32);

/// One row. `slack` is added to every mass that is compared with a limit: results for a small
/// positive and negative slack bound what rounding may decide.
pub fn logitsWarpRef(gpa: Allocator, x: []const f32, s: Sampling, slack: f64, out: []f32) !void {
    for (x, out) |v, *o| o.* = if (std.math.isNan(v)) removed else v / s.temperature;
    const order = try gpa.alloc(usize, x.len);
    for (order, 0..) |*o, i| o.* = i;
    // HF sorts upwards and stably; the last is the best.
    std.mem.sort(usize, order, out, struct {
        fn below(scores: []f32, a: usize, b: usize) bool {
            return scores[a] < scores[b];
        }
    }.below);
    if (s.top_k > 0 and s.top_k < x.len) {
        const least = out[order[x.len - s.top_k]];
        for (out) |*o| if (o.* < least) {
            o.* = removed;
        };
    }
    if (s.top_p < 1) {
        const p = try softmax(gpa, out);
        var sum: f64 = 0;
        for (order[0 .. x.len - 1]) |i| {
            sum += p[i];
            if (sum <= 1 - @as(f64, s.top_p) + slack) out[i] = removed;
        }
    }
    if (s.min_p > 0) {
        const p = try softmax(gpa, out);
        const best = p[order[x.len - 1]];
        for (out, p) |*o, q| if (q < (s.min_p + slack) * best and q < best) {
            o.* = removed;
        };
    }
    if (s.typical_p < 1) try typical(gpa, out, order, s.typical_p, slack);
}

fn softmax(gpa: Allocator, x: []const f32) ![]f64 {
    const p = try gpa.alloc(f64, x.len);
    var sum: f64 = 0;
    const max = std.mem.max(f32, x);
    for (x, p) |v, *q| {
        q.* = @exp(@as(f64, v) - max);
        sum += q.*;
    }
    for (p) |*q| q.* /= sum;
    return p;
}

fn typical(gpa: Allocator, out: []f32, order: []usize, mass: f64, slack: f64) !void {
    const p = try softmax(gpa, out);
    var entropy: f64 = 0;
    for (p) |q| if (q > 0) {
        entropy -= q * @log(q);
    };
    const far = try gpa.alloc(f64, out.len);
    for (p, far) |q, *f| f.* = @abs(-@log(q) - entropy);
    std.mem.sort(usize, order, far, struct {
        fn below(f: []f64, a: usize, b: usize) bool {
            return f[a] < f[b];
        }
    }.below);
    var sum: f64 = 0;
    var last: usize = 0;
    for (order) |i| {
        sum += p[i];
        last += @intFromBool(sum < mass - slack);
    }
    const limit = far[order[@min(last, out.len - 1)]] - slack;
    for (out, far) |*o, f| if (f > limit) {
        o.* = removed;
    };
}

fn neutral() Sampling {
    var s = std.mem.zeroes(Sampling);
    s.temperature = 1;
    s.top_p = 1;
    s.typical_p = 1;
    s.repetition_penalty = 1;
    return s;
}

fn warp(gpa: Allocator, x: []f32, sampling: []Sampling, out: []f32) !void {
    const n = sampling.len;
    const cols = x.len / n;
    const seqs = try gpa.alloc(case.Seq, n);
    for (seqs) |*s| s.* = .{ .tokens = 1 };
    var c = try case.Case.init(gpa, .logits_warp, seqs);
    c.step.n_logits = @intCast(n);
    c.step.sampling = sampling.ptr;
    c.tokens(x.ptr, cols, cols);
    c.tokens(out.ptr, cols, cols);
    for (0..2) |i| c.task.operands[i].rows = .logits;
    c.order = .backwards;
    try c.execute(logits_warp);
}

fn one(gpa: Allocator, x: []const f32, s: Sampling) ![]f32 {
    const out = try gpa.dupe(f32, x);
    var sampling = [_]Sampling{s};
    try warp(gpa, out, &sampling, out);
    return out;
}

/// What is kept must have its score; and lie between what the twin keeps with and without slack.
fn check(gpa: Allocator, x: []const f32, s: Sampling, out: []const f32) !void {
    const most = try gpa.alloc(f32, x.len);
    const least = try gpa.alloc(f32, x.len);
    try logitsWarpRef(gpa, x, s, -1e-5, most);
    try logitsWarpRef(gpa, x, s, 1e-5, least);
    var kept: usize = 0;
    for (x, out, most, least) |v, o, m, l| {
        if (l != removed) try testing.expect(o != removed);
        if (o == removed) continue;
        kept += 1;
        try testing.expect(m != removed);
        try testing.expectEqual(v / s.temperature, o);
    }
    try testing.expect(kept > 0);
}

test "every mixture of rules keeps what the twin keeps" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    var prng = std.Random.DefaultPrng.init(8);
    const random = prng.random();
    for ([_]usize{ 1, 2, 3, 17, 129, 1134, 5000 }) |cols| for (0..24) |round| {
        defer _ = arena.reset(.retain_capacity);
        const n = 4;
        const x = try gpa.alloc(f32, n * cols);
        case.fill(random, x, if (round % 3 == 0) 0.5 else 8);
        // Some ids are banned, and many have equal scores.
        for (x, 0..) |*v, i| {
            if (i % cols > 0 and i % 7 == 0) v.* = removed;
            if (round % 2 == 0) v.* = @round(v.* * 2) / 2;
        }
        var sampling: [n]Sampling = @splat(neutral());
        for (&sampling) |*s| {
            s.temperature = 0.2 + 2 * random.float(f32);
            if (round & 1 != 0) s.top_k = random.intRangeAtMost(u32, 1, 60);
            if (round & 2 != 0) s.top_p = random.float(f32);
            if (round & 4 != 0) s.min_p = random.float(f32) * 0.3;
            // Ties in surprise come in pairs around the entropy: only where scores differ.
            if (round & 8 != 0 and round & 3 == 1) s.typical_p = 0.1 + 0.8 * random.float(f32);
        }
        const out = try gpa.alloc(f32, n * cols);
        try warp(gpa, x, &sampling, out);
        for (sampling, 0..) |s, r|
            try check(gpa, x[r * cols ..][0..cols], s, out[r * cols ..][0..cols]);
    };
}

test "each rule by hand" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const r = removed;
    const log = struct {
        fn of(p: f32) f32 {
            return @log(p);
        }
    }.of;
    var s = neutral();
    s.top_k = 2;
    try testing.expectEqualSlices(f32, &.{ r, 3, r, 4 }, try one(gpa, &.{ 1, 3, 2, 4 }, s));
    // a tie at the edge stays
    try testing.expectEqualSlices(f32, &.{ 3, 3, r, 4 }, try one(gpa, &.{ 3, 3, 2, 4 }, s));
    try testing.expectEqualSlices(f32, &.{ 0, -0.0, r, 4 }, try one(gpa, &.{ 0, -0.0, -1, 4 }, s));
    s.temperature = 0.5;
    try testing.expectEqualSlices(f32, &.{ 6, r, 8 }, try one(gpa, &.{ 3, 2, 4 }, s));
    s = neutral();
    s.top_p = 0.7;
    const p = [_]f32{ log(0.1), log(0.5), log(0.15), log(0.25) };
    try testing.expectEqualSlices(f32, &.{ r, p[1], r, p[3] }, try one(gpa, &p, s));
    s.top_p = 0.4;
    try testing.expectEqualSlices(f32, &.{ r, p[1], r, r }, try one(gpa, &p, s));
    s.top_p = 0;
    try testing.expectEqualSlices(f32, &.{ r, p[1], r, r }, try one(gpa, &p, s));
    // of equal scores the larger id is the better one
    s.top_p = 0.6;
    const ties = [_]f32{ 1, 1, 1, 1 };
    try testing.expectEqualSlices(f32, &.{ r, 1, 1, 1 }, try one(gpa, &ties, s));
    s = neutral();
    s.min_p = 0.4;
    try testing.expectEqualSlices(f32, &.{ r, p[1], r, p[3] }, try one(gpa, &p, s));
    s.min_p = 1;
    try testing.expectEqualSlices(f32, &.{ r, p[1], r, r }, try one(gpa, &p, s));
    s = neutral();
    // surprise 2.3, 0.69, 1.9, 1.39; entropy 1.208: the nearest are ids 3, 1
    s.typical_p = 0.2;
    try testing.expectEqualSlices(f32, &.{ r, r, r, p[3] }, try one(gpa, &p, s));
    s.typical_p = 0.5;
    try testing.expectEqualSlices(f32, &.{ r, p[1], r, p[3] }, try one(gpa, &p, s));
}

test "NaN, infinities and banned rows" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const r = removed;
    const inf = std.math.inf(f32);
    var s = neutral();
    s.top_k = 3;
    s.top_p = 0.9;
    s.min_p = 0.01;
    s.typical_p = 0.9;
    try testing.expectEqualSlices(f32, &.{ r, r, r }, try one(gpa, &.{ r, case.nan, r }, s));
    try testing.expectEqualSlices(f32, &.{ r, 2, r }, try one(gpa, &.{ r, 2, case.nan }, s));
    try testing.expectEqualSlices(f32, &.{ r, inf, r }, try one(gpa, &.{ 1, inf, 3 }, s));
    s = neutral();
    s.temperature = 1e-38;
    s.top_p = 0.5;
    const out = try one(gpa, &.{ 1, -1, 0.5 }, s);
    try testing.expect(out[0] > 0 and out[1] == r);
}

test "a vocabulary of 128k, all scores alike, and no rows" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    const x = try gpa.alloc(f32, 128_000);
    @memset(x, 1.5);
    var s = neutral();
    s.top_p = 0.25;
    const out = try one(gpa, x, s);
    for (out, 0..) |v, i| try testing.expectEqual(if (i < 96_000) removed else 1.5, v);
    s.top_k = 10; // all are tied with the tenth
    try testing.expectEqualSlices(f32, out, try one(gpa, x, s));
    var sampling: [1]Sampling = undefined;
    var c = try case.Case.init(gpa, .logits_warp, &.{});
    c.step.sampling = &sampling;
    c.tokens(x.ptr, 7, 7);
    c.tokens(x.ptr, 7, 7);
    for (0..2) |i| c.task.operands[i].rows = .logits;
    try testing.expectEqual(@as(u32, 0), logits_warp.units(&c.task, 0));
}
