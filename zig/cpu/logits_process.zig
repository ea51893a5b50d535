//! logits_process: scores with HF's penalties and bans, in HF's order: repetition penalty,
//! no-repeat n-grams, bad words, minimum length. Banned ids get -inf. Row r belongs to sequence r.
//!
//! Phase 0 copies scores by blocks of columns (8 bytes a score), phase 1 changes the few scores
//! that the history names. The penalty of an id is taken from the input, so that an id which occurs
//! twice is changed once; therefore the result must not lie where the scores lie.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const Task = kernel.Task;
const Sampling = command.Sampling;

pub const logits_process = kernel.Kernel{ .n_phases = 2, .units = units, .run = run };

const ban = -std.math.inf(f32);

/// Columns of a unit of phase 0.
const block = 16384;

fn blocksOf(t: *const Task) usize {
    return (t.cols(1) + block - 1) / block;
}

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    return @intCast(if (phase == 0) t.rows(1) * blocksOf(t) else t.rows(1));
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = scratch;
    const n = blocksOf(t);
    for (begin..end) |unit| {
        if (phase == 0) copy(t, unit / n, unit % n * block) else change(t, unit);
    }
}

fn copy(t: *const Task, r: usize, first: usize) void {
    const n = @min(block, t.cols(1) - first);
    @memcpy((t.row(1, r) + first)[0..n], (t.row(0, r) + first)[0..n]);
}

fn change(t: *const Task, r: usize) void {
    const step = t.step;
    const sampling = step.sampling orelse return;
    if (r >= step.n_seqs) return;
    const s = sampling[r];
    const row: Row = .{ .in = t.row(0, r), .out = t.row(1, r)[0..t.cols(1)] };
    const history = historyOf(step, r);
    if (s.repetition_penalty != 1) row.penalize(history, s.repetition_penalty);
    if (s.no_repeat_ngram_size > 0) row.banRepeats(history, s.no_repeat_ngram_size);
    const eos = if (step.eos_ids) |ids| ids[0..step.n_eos] else &.{};
    if (step.bad_ids) |ids| row.banWords(history, ids[0..step.n_bad_ids], eos);
    if (s.generated < s.min_new_tokens) for (eos) |id| row.set(id, ban);
}

fn historyOf(step: *const kernel.Step, seq: usize) []const i32 {
    const ids = step.history orelse return &.{};
    const lengths = step.history_len orelse return &.{};
    const capacity: usize = step.history_capacity;
    return (ids + seq * capacity)[0..@min(lengths[seq], capacity)];
}

const Row = struct {
    in: [*]const f32,
    out: []f32,

    /// Ids outside the vocabulary name no score.
    fn set(row: Row, id: i32, score: f32) void {
        if (id >= 0 and id < row.out.len) row.out[@intCast(id)] = score;
    }

    /// Every id of the history becomes less likely (by a penalty above 1).
    fn penalize(row: Row, history: []const i32, penalty: f32) void {
        for (history) |id| {
            if (id < 0 or id >= row.out.len) continue;
            const score = row.in[@intCast(id)];
            row.set(id, if (score < 0) score * penalty else score / penalty);
        }
    }

    /// Bans each id that would complete n ids which the history already has.
    fn banRepeats(row: Row, history: []const i32, n: usize) void {
        if (history.len + 1 < n) return;
        const prefix = history[history.len + 1 - n ..];
        var i: usize = 0;
        while (i + n <= history.len) : (i += 1) {
            const same = std.mem.eql(i32, history[i..][0 .. n - 1], prefix);
            if (same) row.set(history[i + n - 1], ban);
        }
    }

    /// `words` are id sequences, each ended by -1. The last id of a sequence is banned when the
    /// history ends with the ids before it. As in HF, a sequence longer than the history is left
    /// alone, and so is one that is nothing but an eos id.
    fn banWords(row: Row, history: []const i32, words: []const i32, eos: []const i32) void {
        var left = words;
        while (std.mem.indexOfScalar(i32, left, -1)) |end| {
            const word = left[0..end];
            left = left[end + 1 ..];
            if (word.len == 0) continue;
            const last = word[word.len - 1];
            if (word.len == 1) {
                if (std.mem.indexOfScalar(i32, eos, last) == null) row.set(last, ban);
            } else if (word.len <= history.len) {
                const before = word[0 .. word.len - 1];
                if (std.mem.endsWith(i32, history, before)) row.set(last, ban);
            }
        }
    }
};

// ---- the scalar twin and tests -------------------------------------------------------------

/// What one sequence brings.
pub const Given = struct {
    sampling: Sampling,
    history: []const i32 = &.{},
    /// Each ended by -1.
    bad: []const i32 = &.{},
    eos: []const i32 = &.{},
};

/// One row, id by id: what HF's processors say about each.
pub fn logitsProcessRef(in: []const f32, g: Given, out: []f32) void {
    const n = g.sampling.no_repeat_ngram_size;
    for (in, out, 0..) |score, *o, i| {
        const id: i32 = @intCast(i);
        o.* = score;
        if (std.mem.indexOfScalar(i32, g.history, id) != null) {
            const p = g.sampling.repetition_penalty;
            o.* = if (score < 0) score * p else score / p;
        }
        if (n > 0 and repeatsRef(g.history, id, n)) o.* = ban;
        var words = std.mem.splitScalar(i32, g.bad, -1);
        while (words.next()) |word| if (badRef(g, word, id)) {
            o.* = ban;
        };
        const young = g.sampling.generated < g.sampling.min_new_tokens;
        if (young and std.mem.indexOfScalar(i32, g.eos, id) != null) o.* = ban;
    }
}
fn repeatsRef(history: []const i32, id: i32, n: usize) bool {
    if (history.len < n) return false;
    for (0..history.len - n + 1) |i| {
        var same = history[i + n - 1] == id;
        for (0..n - 1) |k| same = same and history[i + k] == history[history.len - n + 1 + k];
        if (same) return true;
    }
    return false;
}
fn badRef(g: Given, word: []const i32, id: i32) bool {
    if (word.len == 0 or word[word.len - 1] != id) return false;
    if (word.len == 1) return std.mem.indexOfScalar(i32, g.eos, id) == null;
    if (word.len > g.history.len) return false;
    for (0..word.len - 1) |k| {
        if (g.history[g.history.len - word.len + 1 + k] != word[k]) return false;
    }
    return true;
}

const testing = std.testing;
const case = @import("case.zig");

fn process(gpa: std.mem.Allocator, in: []f32, given: []const Given, order: case.Order) ![]f32 {
    const n = given.len;
    const cols = in.len / n;
    const seqs = try gpa.alloc(case.Seq, n);
    for (seqs) |*s| s.* = .{ .tokens = 1 };
    var c = try case.Case.init(gpa, .logits_process, seqs);
    var capacity: usize = 0;
    for (given) |g| capacity = @max(capacity, g.history.len + 2);
    const sampling = try gpa.alloc(Sampling, n);
    const history = try gpa.alloc(i32, n * capacity);
    const lengths = try gpa.alloc(u32, n);
    @memset(history, 1); // behind a history's end anything may lie
    for (given, 0..) |g, i| {
        sampling[i] = g.sampling;
        @memcpy(history[i * capacity ..][0..g.history.len], g.history);
        lengths[i] = @intCast(g.history.len);
    }
    const s = c.step;
    s.n_logits = @intCast(n);
    s.sampling = sampling.ptr;
    s.history = history.ptr;
    s.history_len = lengths.ptr;
    s.history_capacity = @intCast(capacity);
    s.eos_ids = @constCast(given[0].eos.ptr);
    s.n_eos = @intCast(given[0].eos.len);
    s.bad_ids = @constCast(given[0].bad.ptr);
    s.n_bad_ids = @intCast(given[0].bad.len);
    const out = try gpa.alloc(f32, in.len);
    c.tokens(in.ptr, cols, cols);
    c.tokens(out.ptr, cols, cols);
    for (0..2) |i| c.task.operands[i].rows = .logits;
    c.order = order;
    try c.execute(logits_process);
    return out;
}

fn rules(penalty: f32, ngram: u32, min_new: u32, generated: u32) Sampling {
    var s = std.mem.zeroes(Sampling);
    s.repetition_penalty = penalty;
    s.no_repeat_ngram_size = ngram;
    s.min_new_tokens = min_new;
    s.generated = generated;
    return s;
}

test "all rules together agree with the twin" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    var prng = std.Random.DefaultPrng.init(4);
    const random = prng.random();
    for ([_]usize{ 1, 2, 11, 300, 40_000 }) |cols| for (0..8) |round| {
        const n = 5;
        const in = try gpa.alloc(f32, n * cols);
        case.fill(random, in, 3);
        var given: [n]Given = undefined;
        // Few different ids, so that repeats and bad words happen.
        const ids: i32 = @intCast(@min(cols, 3));
        const eos = [_]i32{ 1, @intCast(cols - 1) };
        const bad = [_]i32{ 0, 1, -1, 2, -1, 1, 1, 0, -1, 1, -1, -1, 0, 2, 1, 0, -1 };
        for (&given, 0..) |*g, i| {
            const history = try gpa.alloc(i32, i * 9 + round % 3);
            for (history) |*id| id.* = random.intRangeLessThan(i32, 0, ids);
            const penalty: f32 = if (i == 1) 1 else 1.3;
            g.* = .{
                .sampling = rules(penalty, @intCast(i), 4, @intCast(i + round % 3)),
                .history = history,
                .eos = &eos,
                .bad = if (round % 2 == 0) &bad else bad[0..3],
            };
        }
        const out = try process(gpa, in, &given, if (round < 4) .backwards else .threes);
        const want = try gpa.alloc(f32, cols);
        for (given, 0..) |g, r| {
            logitsProcessRef(in[r * cols ..][0..cols], g, want);
            try case.expectSameBits(want, out[r * cols ..][0..cols]);
        }
    };
}

test "each rule by hand" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const gpa = arena.allocator();
    var in = [_]f32{ 2, -2, 3, 4, 5, 6 };
    const history = [_]i32{ 0, 1, 0, 1, 0 };
    const t = struct {
        fn one(g: std.mem.Allocator, x: []f32, given: Given) ![]f32 {
            return process(g, x, &.{given}, .whole);
        }
    };
    var out = try t.one(gpa, &in, .{ .sampling = rules(2, 0, 0, 0), .history = &history });
    try testing.expectEqualSlices(f32, &.{ 1, -4, 3, 4, 5, 6 }, out);
    // 0 1 has come after 0: so 1 is banned; nothing came after "1 0" but 1
    out = try t.one(gpa, &in, .{ .sampling = rules(1, 2, 0, 0), .history = &history });
    try testing.expectEqualSlices(f32, &.{ 2, ban, 3, 4, 5, 6 }, out);
    out = try t.one(gpa, &in, .{ .sampling = rules(1, 1, 0, 0), .history = &history });
    try testing.expectEqualSlices(f32, &.{ ban, ban, 3, 4, 5, 6 }, out);
    out = try t.one(gpa, &in, .{ .sampling = rules(1, 6, 0, 0), .history = &history });
    try testing.expectEqualSlices(f32, &in, out);
    // "1 0 5" matches the end, "0 0 4" does not, 3 stands alone, 2 is eos
    out = try t.one(gpa, &in, .{
        .sampling = rules(1, 0, 3, 2),
        .history = &history,
        .bad = &.{ 1, 0, 5, -1, 0, 0, 4, -1, 3, -1, 2, -1 },
        .eos = &.{2},
    });
    try testing.expectEqualSlices(f32, &.{ 2, -2, ban, ban, 5, ban }, out);
    out = try t.one(gpa, &in, .{ .sampling = rules(1, 0, 3, 3), .bad = &.{ 2, -1 }, .eos = &.{2} });
    try testing.expectEqualSlices(f32, &in, out);
}
