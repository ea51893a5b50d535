//! Tests of step buffers: honest ones pass, each lie is refused in the right words.

const std = @import("std");
const command = @import("command");
const validate = @import("../validate.zig");
const example = @import("../example_plan.zig");
const testing = std.testing;
const StepField = command.StepField;
const StepHeader = command.StepHeader;
const Sampling = command.Sampling;

/// A step buffer that can be changed, and what it is checked against.
const Lies = struct {
    arena: std.heap.ArenaAllocator,
    bytes: []align(4) u8,
    plan: command.PlanHeader,
    needs: validate.Needs,
    run: validate.Run,

    fn init(kind: example.Kind, seqs: []const example.Seq) !Lies {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        errdefer arena.deinit();
        var b = try example.build(arena.allocator(), kind);
        const resolver: validate.Resolver = .{ .weightBytes = struct {
            fn of(_: ?*anyopaque, _: u32) ?u64 {
                return 1 << 30;
            }
        }.of };
        var f: validate.Failure = .{};
        const p = try validate.plan(testing.allocator, try b.bytes(), example.abi, resolver, &f);
        const bytes = try example.stepBytes(arena.allocator(), seqs);
        return .{
            .bytes = @alignCast(bytes),
            .arena = arena,
            .plan = p.header,
            .needs = p.needs,
            .run = .{
                .state_bytes = p.header.slot_bytes * example.slots,
                .kv_bytes = p.header.page_bytes * example.pages,
                .output_bytes = p.header.output_bytes,
                .decode = kind == .decode,
                .n_steps = if (kind == .decode) 4 else 1,
            },
        };
    }
    fn deinit(l: *Lies) void {
        l.arena.deinit();
    }
    fn header(l: *Lies) *StepHeader {
        return @ptrCast(l.bytes.ptr);
    }
    fn entry(l: *Lies, field: StepField, i: usize) *u32 {
        const at = l.header().offsets[@intFromEnum(field)] + 4 * i;
        return @ptrCast(@alignCast(l.bytes.ptr + at));
    }
    fn sampling(l: *Lies, seq: usize) *Sampling {
        return @ptrCast(l.entry(.sampling, seq * @sizeOf(Sampling) / 4));
    }
    fn check(l: *Lies, f: *validate.Failure) !void {
        return validate.step(testing.allocator, l.bytes, l.plan, l.needs, l.run, f);
    }
    fn expectWords(l: *Lies, words: []const u8) !void {
        var f: validate.Failure = .{};
        if (l.check(&f)) |_| {
            std.debug.print("accepted where was due: {s}\n", .{words});
            return error.TestUnexpectedResult;
        } else |_| {}
        if (std.mem.indexOf(u8, f.text(), words) != null) return;
        std.debug.print("{s}\nis not about: {s}\n", .{ f.text(), words });
        return error.TestUnexpectedResult;
    }
    /// A lie in one entry, taken back afterwards.
    fn expectEntry(l: *Lies, field: StepField, i: usize, value: u32, words: []const u8) !void {
        const p = l.entry(field, i);
        const before = p.*;
        p.* = value;
        try l.expectWords(words);
        p.* = before;
    }
    fn expectRule(l: *Lies, comptime name: []const u8, value: anytype, words: []const u8) !void {
        const s = l.sampling(1);
        const before = s.*;
        @field(s, name) = value;
        try l.expectWords(words);
        s.* = before;
    }
};

const prompts = [_]example.Seq{
    .{ .tokens = 65, .slot = 2 },
    .{ .tokens = 3, .past = 5, .slot = 0 },
};
const decoding = [_]example.Seq{ .{ .past = 60, .slot = 3 }, .{ .slot = 1 }, .{ .past = 124 } };

test "honest steps pass" {
    for ([_]example.Kind{ .prefill, .decode }) |kind| {
        var l: Lies = try .init(kind, if (kind == .prefill) &prompts else &decoding);
        defer l.deinit();
        var f: validate.Failure = .{};
        l.check(&f) catch {
            std.debug.print("{s}\n", .{f.text()});
            return error.TestUnexpectedResult;
        };
    }
}

test "headers that lie" {
    var l: Lies = try .init(.prefill, &prompts);
    defer l.deinit();
    const h = l.header();
    const honest = h.*;
    const whole = l.bytes;
    l.bytes = whole[0..8];
    try l.expectWords("Expected a step buffer of at least 100 bytes but found 8");
    l.bytes = whole[0 .. whole.len - 4];
    try l.expectWords("as its header says, but found");
    l.bytes = whole;
    h.magic = 7;
    try l.expectWords("Expected a step buffer to start with 53544550 but found 7");
    inline for (.{
        .{ "n_tokens", 71, "Expected 1 to 70 tokens in a step but found 71" },
        .{ "n_tokens", 0, "Expected 1 to 70 tokens in a step but found 0" },
        .{ "n_seqs", 4, "Expected 1 to 3 sequences in a step but found 4" },
        .{ "n_logits", 1, "Expected one row of logits for each of 2 sequences but found 1" },
        .{ "max_pages", 0xffff_ffff, "pages a sequence in a step but found 4294967295" },
        .{ "max_pages", 1 << 24, "Expected pages within bytes" },
        .{ "history_capacity", 1 << 24, "Expected history within bytes" },
        .{ "n_bad_ids", 4, "Expected bad words to end with -1 but found 5" },
    }) |c| {
        h.* = honest;
        @field(h, c[0]) = c[1];
        try l.expectWords(c[2]);
    }
    for (std.enums.values(StepField)) |field| {
        h.* = honest;
        const offset = &h.offsets[@intFromEnum(field)];
        offset.* = 0xffff_fffc;
        try l.expectWords("within bytes");
        offset.* = honest.offsets[@intFromEnum(field)] + 1;
        try l.expectWords("at a multiple of 4");
        offset.* = 4;
        try l.expectWords("within bytes");
        offset.* = honest.offsets[if (field == .ids) 1 else 0];
        try l.expectWords("in the step buffer, from byte");
        offset.* = 0;
        try l.expectWords("but found none");
    }
}

test "sequences, tokens and rows that lie" {
    var l: Lies = try .init(.prefill, &prompts);
    defer l.deinit();
    const minus: u32 = 0xffff_ffff;
    try l.expectEntry(.seq_start, 0, 1, "Expected seq_start to begin with 0 but found 1");
    try l.expectEntry(.seq_start, 1, 0, "to end between tokens 1 and 68 but found 0");
    try l.expectEntry(.seq_start, 1, 69, "to end between tokens 1 and 68 but found 69");
    try l.expectEntry(.seq_start, 2, 67, "Expected sequences for all 68 tokens but found 67");
    try l.expectEntry(.seq_of_token, 65, 0, "token 65 to belong to sequence 1 but found 0");
    try l.expectEntry(.past_len, 0, minus, "at most 16777216 positions but found 4294967360");
    try l.expectEntry(.ids, 67, 40, "below 40 but found 40 as token 67");
    try l.expectEntry(.ids, 3, minus, "below 40 but found -1 as token 3");
    try l.expectEntry(.positions, 3, minus, "but found -1 at token 3");
    try l.expectEntry(.positions, 3, 1 << 24, "but found 16777216 at token 3");
    try l.expectEntry(.logit_rows, 0, 68, "Expected logit_rows below 68 tokens but found 68");
    try l.expectEntry(.logit_rows, 0, 66, "to belong to sequence 0 but found 1");
    try l.expectEntry(.labels, 0, 40, "or -100, but found 40 at row 0");
    try l.expectEntry(.labels, 0, minus, "or -100, but found -1 at row 0");
    try l.expectEntry(.eos_ids, 1, 40, "Expected eos ids of at least 0 and below 40 but found 40");
    try l.expectEntry(.bad_ids, 0, 40, "or -1, but found 40");
    try l.expectEntry(.history, 1, 40, "below 40 but found 40 in sequence 0");
    try l.expectEntry(.history_len, 1, 13, "Expected room for 13 ids of history");
}

test "slots, pages and buffers that lie" {
    var l: Lies = try .init(.prefill, &prompts);
    defer l.deinit();
    try l.expectEntry(.slots, 0, 4, "Expected slots below 4, for which there is room, but found 4");
    try l.expectEntry(.slots, 0, 0, "to have a slot of its own but found slot 0 twice");
    try l.expectEntry(.pages, 1, 8, "but found 8 as page 1 of sequence 0");
    try l.expectEntry(.pages, 2, 1, "to be in one place but found page 1 twice");
    // A page beyond a sequence's positions may name anything.
    l.entry(.pages, 3).* = 0xffff_ffff;
    var f: validate.Failure = .{};
    try l.check(&f);
    // A full page of a common past may be shared as long as nobody writes it.
    l.entry(.past_len, 1).* = 64;
    l.entry(.past_len, 0).* = 64 - 1;
    l.entry(.pages, 3).* = 5;
    l.entry(.pages, 2).* = 0;
    try l.expectWords("to be in one place but found page 0 twice");
    l.entry(.past_len, 0).* = 64;
    try l.expectWords("Expected 3 pages for the 129 positions of sequence 0 but found 2");
    const honest = l.run;
    inline for (.{ "state_bytes", "kv_bytes", "output_bytes" }) |name| {
        l.run = honest;
        @field(l.run, name) = null;
        try l.expectWords("buffer");
    }
    l.run = honest;
    l.entry(.past_len, 0).* = 0;
    l.run.kv_bytes = 0;
    try l.expectWords("for which there is room");
    l.run = honest;
    l.run.n_steps = 0;
    try l.expectWords("Expected 1 to 16777216 steps but found 0");
}

test "shared pages of a full past pass" {
    var l: Lies = try .init(.decode, &.{ .{ .past = 64 }, .{ .past = 65, .slot = 1 } });
    defer l.deinit();
    l.entry(.pages, 2).* = 0;
    var f: validate.Failure = .{};
    try l.check(&f);
    l.entry(.past_len, 0).* = 63;
    try l.expectWords("to be in one place but found page 0 twice");
}

test "decode jobs are checked to their last step" {
    var l: Lies = try .init(.decode, &decoding);
    defer l.deinit();
    l.run.n_steps = 5;
    try l.expectWords("Expected 3 pages for the 129 positions of sequence 2 but found 2");
    l.entry(.past_len, 2).* = 0;
    l.run.n_steps = 9;
    try l.expectWords("for 4 ids of history and 9 new ones of sequence 1 but found 12");
    l.run.n_steps = 4;
    l.header().pad_id = -1;
    try l.expectWords("Expected a pad id of at least 0 and below 40 but found -1");
    l.needs.samples = false;
    try l.expectWords("Expected a plan that samples for a decode job");
    var two: Lies = try .init(.prefill, &prompts);
    defer two.deinit();
    two.run.decode = true;
    two.run.n_steps = 2;
    try two.expectWords("Expected one token for each of 2 sequences but found 68");
    two.run.n_steps = 1;
    var f: validate.Failure = .{};
    try two.check(&f);
}

test "rules that lie" {
    var l: Lies = try .init(.decode, &decoding);
    defer l.deinit();
    const nan = std.math.nan(f32);
    const inf = std.math.inf(f32);
    try l.expectRule("temperature", @as(f32, 0), "Expected temperature of sequence 1");
    try l.expectRule("temperature", nan, "to be positive and finite but found nan");
    try l.expectRule("temperature", inf, "to be positive and finite but found inf");
    try l.expectRule("top_p", @as(f32, 1.5), "Expected top_p of sequence 1 to be from 0 to 1");
    try l.expectRule("min_p", @as(f32, -0.1), "Expected min_p of sequence 1 to be from 0 to 1");
    try l.expectRule("typical_p", nan, "Expected typical_p of sequence 1");
    try l.expectRule("repetition_penalty", @as(f32, -1), "Expected repetition_penalty");
    try l.expectRule("do_sample", 2, "to be 0 or 1 but found 2");
    try l.expectRule("finished", 9, "to be 0 or 1 but found 9");
    try l.expectRule("generated", 0xffff_ffff, "but found 4294967295");
    l.header().offsets[@intFromEnum(StepField.history)] = 0;
    l.header().offsets[@intFromEnum(StepField.history_len)] = 0;
    try l.expectWords("Expected a history for the rules of sequence 0 but found none");
}
