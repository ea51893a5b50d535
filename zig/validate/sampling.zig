//! Checks of how ids are chosen: each sequence's rules, its history, eos ids and bad words.

const std = @import("std");
const command = @import("command");
const failure = @import("failure.zig");
const plan_file = @import("plan.zig");
const View = @import("step.zig").View;
const Rejected = failure.Rejected;
const Sampling = command.Sampling;

pub fn check(v: *const View) Rejected!void {
    const h = v.header;
    if (v.has(.sampling)) {
        for (0..h.n_seqs) |s| try checkRules(v, s, v.sampling(s));
    }
    if (v.has(.history_len)) {
        for (0..h.n_seqs) |s| try checkHistory(v, s);
    }
    for (0..h.n_eos) |i| if (!v.isId(v.int(.eos_ids, i))) return v.f.set(
        .range,
        "Expected eos ids of at least 0 and below {d} but found {d}",
        .{ v.plan.vocab_size, v.int(.eos_ids, i) },
    );
    try checkBadWords(v);
    if (v.run.decode and !v.isId(h.pad_id)) return v.f.set(
        .range,
        "Expected a pad id of at least 0 and below {d} but found {d}",
        .{ v.plan.vocab_size, h.pad_id },
    );
}

fn checkRules(v: *const View, seq: usize, s: Sampling) Rejected!void {
    const max = std.math.floatMax(f32);
    const tiny = std.math.floatTrueMin(f32);
    const limits = .{
        .{ "temperature", tiny, max },
        .{ "top_p", 0, 1 },
        .{ "min_p", 0, 1 },
        .{ "typical_p", 0, 1 },
        .{ "repetition_penalty", tiny, max },
    };
    inline for (limits) |limit| {
        const found: f32 = @field(s, limit[0]);
        const low: f32 = limit[1];
        const high: f32 = limit[2];
        // NaN fails both comparisons.
        if (!(found >= low and found <= high)) return v.f.set(
            .range,
            "Expected {s} of sequence {d} to be {s} but found {d}",
            .{ limit[0], seq, if (high == 1) "from 0 to 1" else "positive and finite", found },
        );
    }
    inline for (.{ "do_sample", "finished" }) |name| if (@field(s, name) > 1) return v.f.set(
        .range,
        "Expected {s} of sequence {d} to be 0 or 1 but found {d}",
        .{ name, seq, @field(s, name) },
    );
    if (s.generated > plan_file.rows_max) return v.f.set(
        .range,
        "Expected sequence {d} to have generated at most {d} ids but found {d}",
        .{ seq, plan_file.rows_max, s.generated },
    );
    const needs_history = s.repetition_penalty != 1 or s.no_repeat_ngram_size > 0 or
        v.header.n_bad_ids > 0;
    if (v.needs.processes and needs_history and !v.has(.history_len)) return v.f.set(
        .invalid,
        "Expected a history for the rules of sequence {d} but found none",
        .{seq},
    );
}

fn checkHistory(v: *const View, seq: usize) Rejected!void {
    const capacity: u64 = v.header.history_capacity;
    const used: u64 = v.u(.history_len, seq);
    const added: u64 = if (v.run.decode) v.run.n_steps else 0;
    if (used + added > capacity) return v.f.set(
        .range,
        "Expected room for {d} ids of history and {d} new ones of sequence {d} but found {d}",
        .{ used, added, seq, capacity },
    );
    for (0..used) |i| {
        const id = v.int(.history, seq * capacity + i);
        if (!v.isId(id)) return v.f.set(
            .range,
            "Expected ids of history of at least 0 and below {d} but found {d} in sequence {d}",
            .{ v.plan.vocab_size, id, seq },
        );
    }
}

fn checkBadWords(v: *const View) Rejected!void {
    const n = v.header.n_bad_ids;
    const end: i32 = -1;
    for (0..n) |i| {
        const id = v.int(.bad_ids, i);
        if (id != end and !v.isId(id)) return v.f.set(
            .range,
            "Expected ids of bad words of at least 0 and below {d}, or -1, but found {d}",
            .{ v.plan.vocab_size, id },
        );
    }
    if (n > 0 and v.int(.bad_ids, n - 1) != end) return v.f.set(
        .invalid,
        "Expected bad words to end with -1 but found {d}",
        .{v.int(.bad_ids, n - 1)},
    );
}
