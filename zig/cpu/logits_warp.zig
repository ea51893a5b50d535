//! logits_warp: temperature, top-k, top-p, min-p and typical-p, in HF's order and by HF's rules;
//! removed ids (and NaN) get -inf, at least one id stays. Row r belongs to sequence r.
//!
//! - top-k keeps everything that is not below the k-th score, so ties at the edge stay.
//! - top-p keeps the best ids until their mass reaches p, the one that reaches it included. Of
//!   equal scores the larger id counts as better, as after a stable sort.
//! - min-p keeps ids of at least min_p times the best probability.
//! - typical-p keeps ids whose surprise is nearest to the entropy until their mass reaches p.
//!
//! Nothing is sorted: three walks over the ids that are left, each adding weights into buckets by
//! some bits of the score, find where the wanted mass is reached. Masses are f32 and their sums f64
//! in the order of ids, so a row's result depends on nothing else. The result may lie exactly where
//! the scores lie.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const rows = @import("row.zig");
const Task = kernel.Task;
const Sampling = command.Sampling;
const L = simd.L;

pub const logits_warp = kernel.Kernel{ .units = units, .run = run, .scratch = scratchBytes };

const removed = -std.math.inf(f32);
const Buckets = [2048]f64;

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    _ = phase;
    return @intCast(t.rows(1));
}
fn scratchBytes(t: *const Task) callconv(.c) usize {
    return @sizeOf(Buckets) + 3 * 4 * t.cols(0);
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = phase;
    const n = t.cols(1);
    const words: [*]u32 = @ptrCast(@alignCast(scratch + @sizeOf(Buckets)));
    for (begin..end) |r| {
        if (r >= t.step.n_seqs) return;
        const s = t.step.sampling.?[r];
        var left: Left = .{
            .n = 0,
            .ids = words,
            .scores = @ptrCast(words + n),
            .masses = @ptrCast(words + 2 * n),
            .buckets = @ptrCast(@alignCast(scratch)),
        };
        left.take(t.row(0, r)[0..n], s.temperature);
        left.warp(s);
        left.put(t.row(1, r)[0..n]);
    }
}

/// An order of f32 as unsigned numbers; 0 and -0 are the same.
fn ordered(x: f32) u32 {
    const u: u32 = @bitCast(x + 0.0);
    return if (u >> 31 == 0) u | 0x8000_0000 else ~u;
}

/// Where the wanted mass is reached: at the key, when everything above it has `above`.
const Crossing = struct { key: u32, above: f64 };

/// The ids that are left of one row, rising.
const Left = struct {
    n: usize,
    ids: [*]u32,
    scores: [*]f32,
    /// e^(score - best)
    masses: [*]f32,
    buckets: *Buckets,

    fn take(l: *Left, x: []const f32, temperature: f32) void {
        for (x, 0..) |v, i| {
            const score = if (temperature == 1) v else v / temperature;
            l.ids[l.n] = @intCast(i);
            l.scores[l.n] = score;
            l.n += @intFromBool(score > removed);
        }
    }

    fn put(l: *const Left, out: []f32) void {
        @memset(out, removed);
        for (l.ids[0..l.n], l.scores[0..l.n]) |id, score| out[id] = score;
    }

    fn warp(l: *Left, s: Sampling) void {
        if (l.n == 0) return;
        if (s.top_k > 0 and s.top_k < l.n) l.topK(s.top_k);
        if (s.top_p >= 1 and s.min_p <= 0 and s.typical_p >= 1) return;
        l.weigh();
        if (s.top_p < 1) l.topP(s.top_p);
        if (s.min_p > 0) l.keep(MinP{ .least = @min(s.min_p, 1) });
        if (s.typical_p < 1) l.typicalP(s.typical_p);
    }

    fn weigh(l: *Left) void {
        const max = rows.largest(l.n, l.scores);
        const m = simd.splat(max);
        var i: usize = 0;
        while (i < l.n) : (i += L) {
            const v = rows.part(l.scores + i, l.n - i);
            // Where the best is infinite, so is the difference of others, but not its own.
            const d = @select(f32, v == m, simd.zero, v - m);
            rows.stPart(l.masses + i, simd.exp(d), l.n - i);
        }
    }
    fn total(l: *const Left) f64 {
        var sum: f64 = 0;
        for (l.masses[0..l.n]) |m| sum += m;
        return sum;
    }

    /// Drops the ids that `rule` does not keep.
    fn keep(l: *Left, rule: anytype) void {
        var n: usize = 0;
        for (0..l.n) |i| {
            const stays = rule.keeps(l, i);
            l.ids[n] = l.ids[i];
            l.scores[n] = l.scores[i];
            l.masses[n] = l.masses[i];
            n += @intFromBool(stays);
        }
        l.n = n;
    }

    fn topK(l: *Left, k: u32) void {
        const at = l.crossing(ByScore{ .count = true }, @floatFromInt(k)) orelse return;
        l.keep(AtLeast{ .key = at.key });
    }

    fn topP(l: *Left, p: f32) void {
        const target = @as(f64, p) * l.total();
        const at = l.crossing(ByScore{ .count = false }, target) orelse return;
        var above = at.above;
        var i = l.n;
        var first: usize = 0;
        while (i > 0) {
            i -= 1;
            if (ordered(l.scores[i]) != at.key) continue;
            first = i;
            above += l.masses[i];
            if (above >= target) break;
        }
        l.keep(From{ .key = at.key, .first = first });
    }

    fn typicalP(l: *Left, p: f32) void {
        const sum = l.total();
        const max = rows.largest(l.n, l.scores);
        var entropy: f64 = 0;
        for (l.scores[0..l.n], l.masses[0..l.n]) |score, m| {
            if (m > 0) entropy -= m / sum * (distance(score, max) - @log(sum));
        }
        const by: BySurprise = .{ .max = max, .shift = @floatCast(entropy - @log(sum)) };
        const at = l.crossing(by, @as(f64, p) * sum) orelse return;
        l.keep(Typical{ .by = by, .key = at.key });
    }

    /// Adds weights from the highest key downwards until they reach `target`; null where all
    /// together do not.
    fn crossing(l: *const Left, by: anytype, target: f64) ?Crossing {
        var found: Crossing = .{ .key = 0, .above = 0 };
        var mask: u32 = 0;
        inline for (.{ .{ 21, 11 }, .{ 10, 11 }, .{ 0, 10 } }) |level| {
            const shift = level[0];
            const size = 1 << level[1];
            const buckets = l.buckets[0..size];
            @memset(buckets, 0);
            for (0..l.n) |i| {
                const key = by.key(l, i);
                if (key & mask == found.key) buckets[key >> shift & (size - 1)] += by.weight(l, i);
            }
            const b = descend(buckets, &found.above, target) orelse return null;
            // Parts sum up a little otherwise than the whole: at finer levels the last one counts.
            if (mask == 0 and found.above + buckets[b] < target) return null;
            found.key |= @as(u32, @intCast(b)) << shift;
            mask |= (size - 1) << shift;
        }
        return found;
    }
    /// The highest bucket that brings `above` to the target, or else the lowest one with a weight.
    fn descend(buckets: []const f64, above: *f64, target: f64) ?usize {
        var last: ?usize = null;
        var before = above.*;
        var b = buckets.len;
        while (b > 0) {
            b -= 1;
            if (buckets[b] <= 0) continue;
            before = above.*;
            last = b;
            if (above.* + buckets[b] >= target) return b;
            above.* += buckets[b];
        }
        above.* = before;
        return last;
    }
};

fn distance(score: f32, max: f32) f32 {
    return if (score == max) 0 else score - max;
}

const ByScore = struct {
    count: bool,
    inline fn key(_: ByScore, l: *const Left, i: usize) u32 {
        return ordered(l.scores[i]);
    }
    inline fn weight(by: ByScore, l: *const Left, i: usize) f64 {
        return if (by.count) 1 else l.masses[i];
    }
};
/// How far -log p is from the entropy; the nearest has the highest key.
const BySurprise = struct {
    max: f32,
    /// entropy - log of the masses' sum
    shift: f32,
    inline fn key(by: BySurprise, l: *const Left, i: usize) u32 {
        return ~@as(u32, @bitCast(@abs(-distance(l.scores[i], by.max) - by.shift)));
    }
    inline fn weight(_: BySurprise, l: *const Left, i: usize) f64 {
        return l.masses[i];
    }
};
const AtLeast = struct {
    key: u32,
    inline fn keeps(rule: AtLeast, l: *const Left, i: usize) bool {
        return ordered(l.scores[i]) >= rule.key;
    }
};
const From = struct {
    key: u32,
    first: usize,
    inline fn keeps(rule: From, l: *const Left, i: usize) bool {
        const key = ordered(l.scores[i]);
        return key > rule.key or (key == rule.key and i >= rule.first);
    }
};
const MinP = struct {
    least: f32,
    inline fn keeps(rule: MinP, l: *const Left, i: usize) bool {
        return l.masses[i] >= rule.least;
    }
};
const Typical = struct {
    by: BySurprise,
    key: u32,
    inline fn keeps(rule: Typical, l: *const Left, i: usize) bool {
        return rule.by.key(l, i) >= rule.key;
    }
};

test {
    _ = @import("logits_warp_test.zig");
}
