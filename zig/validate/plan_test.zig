//! Tests of validation: the example passes; each lie about it is refused in the right words.

const std = @import("std");
const command = @import("command");
const validate = @import("../validate.zig");
const example = @import("../example_plan.zig");
const testing = std.testing;
const Operand = command.Operand;
const Command = command.Command;
const PlanHeader = command.PlanHeader;
const StepHeader = command.StepHeader;

var arena_state: std.heap.ArenaAllocator = .init(testing.allocator);
var weight_bytes: u64 = 0;

fn resolver() validate.Resolver {
    return .{ .weightBytes = struct {
        fn of(_: ?*anyopaque, handle: u32) ?u64 {
            return if (handle == example.weights) weight_bytes else null;
        }
    }.of };
}

/// Words of a refusal, or null.
fn refused(bytes: []const u8, f: *validate.Failure) !?validate.Plan {
    return validate.plan(testing.allocator, bytes, example.abi, resolver(), f) catch return null;
}

fn expectRefusal(bytes: []const u8, status: command.Status, words: []const u8) !void {
    var f: validate.Failure = .{};
    if (try refused(bytes, &f)) |_| {
        std.debug.print("accepted where was due: {s}\n", .{words});
        return error.TestUnexpectedResult;
    }
    try testing.expectEqualStrings(words, f.text());
    try testing.expectEqual(status, f.status);
}

/// A plan that can be changed and checked again.
const Lies = struct {
    bytes: []u8,
    builder: example.Builder,

    fn init(kind: example.Kind) !Lies {
        _ = arena_state.reset(.free_all);
        var b = try example.build(arena_state.allocator(), kind);
        weight_bytes = b.sizes.weights;
        return .{ .bytes = try b.bytes(), .builder = b };
    }
    fn header(l: Lies) *align(1) PlanHeader {
        return std.mem.bytesAsValue(PlanHeader, l.bytes[0..@sizeOf(PlanHeader)]);
    }
    fn operands(l: Lies) []align(1) Operand {
        const n = l.builder.operands.items.len * @sizeOf(Operand);
        return std.mem.bytesAsSlice(Operand, l.bytes[@sizeOf(PlanHeader)..][0..n]);
    }
    fn commands(l: Lies) []align(1) Command {
        const at = @sizeOf(PlanHeader) + l.builder.operands.items.len * @sizeOf(Operand);
        return std.mem.bytesAsSlice(Command, l.bytes[at..]);
    }
    /// The first command of an operation, and one of its operands.
    fn find(l: Lies, op: command.Op) usize {
        for (l.builder.commands.items, 0..) |c, i| if (c.op == op) return i;
        unreachable;
    }
    fn operandOf(l: Lies, op: command.Op, i: usize) *align(1) Operand {
        return &l.operands()[l.builder.commands.items[l.find(op)].operands[i]];
    }
};

test "the example passes, for prefill and for decode, and tells what it needs" {
    defer _ = arena_state.reset(.free_all);
    inline for (.{ example.Kind.prefill, .decode }) |kind| {
        const l: Lies = try .init(kind);
        var f: validate.Failure = .{};
        const p = try refused(l.bytes, &f) orelse {
            std.debug.print("{s}\n", .{f.text()});
            return error.TestUnexpectedResult;
        };
        try testing.expectEqual(l.builder.commands.items.len, p.commands.len);
        try testing.expect(p.needs.state and p.needs.kv and p.needs.output and p.needs.samples);
        try testing.expectEqual(kind == .decode, p.needs.one_token);
        try testing.expect(!p.needs.fields.contains(.history));
        for ([_]command.StepField{ .ids, .labels, .pages, .slots, .sampling, .sampled }) |field|
            try testing.expect(p.needs.fields.contains(field));
    }
}

test "headers that lie" {
    defer _ = arena_state.reset(.free_all);
    var l: Lies = try .init(.prefill);
    const bytes = l.bytes;
    const n = bytes.len;
    try expectRefusal(bytes[0..3], .invalid, "Expected a plan of at least 64 bytes but found 3");
    l.header().magic = 1;
    try expectRefusal(bytes, .invalid, "Expected a plan to start with 504d4142 but found 1");
    l = try .init(.prefill);
    l.header().abi = 2;
    try expectRefusal(l.bytes, .version, "Expected a plan for ABI abcd but found one for 2");
    l = try .init(.prefill);
    l.header().n_operands = 0xffff_ffff;
    const many = "Expected at most 65536 operands in a plan but found 4294967295";
    try expectRefusal(l.bytes, .range, many);
    l = try .init(.prefill);
    var words: [200]u8 = undefined;
    try expectRefusal(l.bytes[0 .. n - 1], .invalid, try std.fmt.bufPrint(
        &words,
        "Expected a plan of {d} operands and {d} commands to have {d} bytes but found {d}",
        .{ l.builder.operands.items.len, l.builder.commands.items.len, n, n - 1 },
    ));
    l.header().slot_bytes = 6;
    const odd = "Expected slot_bytes of a plan to be a multiple of 4 " ++
        "up to 17592186044416 but found 6";
    try expectRefusal(l.bytes, .range, odd);
    l = try .init(.prefill);
    l.header().max_tokens = 71;
    const rows = "Expected operand 0 to have the plan's 71 tokens as rows but found 70";
    try expectRefusal(l.bytes, .range, rows);
}

/// Sets one field of one operand of the first command of an operation.
fn lie(op: command.Op, i: usize, comptime field: []const u8, value: anytype) !Lies {
    const l: Lies = try .init(.prefill);
    @field(l.operandOf(op, i), field) = value;
    return l;
}

fn expectLie(l: Lies, status: command.Status, comptime words: []const u8, op: command.Op) !void {
    var text: [300]u8 = undefined;
    // "#" stands for the command's number.
    var number: [12]u8 = undefined;
    const index = try std.fmt.bufPrint(&number, "{d}", .{l.find(op)});
    const n = std.mem.replacementSize(u8, words, "#", index);
    _ = std.mem.replace(u8, words, "#", index, &text);
    try expectRefusal(l.bytes, status, text[0..n]);
}

test "operands that lie about their shape" {
    defer _ = arena_state.reset(.free_all);
    try expectLie(
        try lie(.rms_norm, 1, "shape", [4]u32{ 12, 1, 1, 1 }),
        .range,
        "Expected weight of command # (rms_norm) to have 24 elements but found 12",
        .rms_norm,
    );
    try expectLie(
        try lie(.linear, 1, "shape", [4]u32{ 62, 24, 1, 1 }),
        .range,
        "Expected out of command # (linear) to have 62 columns but found 72",
        .linear,
    );
    try expectLie(
        try lie(.linear, 1, "shape", [4]u32{ 72, 8, 1, 1 }),
        .range,
        "Expected weight of command # (linear) to have 24 columns but found 8",
        .linear,
    );
    try expectLie(
        try lie(.causal_conv1d, 3, "shape", [4]u32{ 2, 44, 1, 1 }),
        .range,
        "Expected conv_state of command # (causal_conv1d) to have 3 as dimension 0 but found 2",
        .causal_conv1d,
    );
    try expectLie(
        try lie(.attention, 1, "shape", [4]u32{ 1, 4, 6, 16 }),
        .range,
        "Expected k_pages of command # (kv_append) to have 2 as dimension 0 but found 1",
        .kv_append,
    );
    try expectLie(
        try lie(.embedding, 1, "shape", [4]u32{ 39, 24, 1, 1 }),
        .range,
        "Expected weight of command # (embedding) to have rows for the 40 ids of the vocabulary " ++
            "but found 39",
        .embedding,
    );
}

test "operands that lie about where they are" {
    defer _ = arena_state.reset(.free_all);
    const huge: u64 = 0xffff_ffff_ffff_ffff;
    for ([_]u64{ huge, huge - 3, 1 << 63 }) |offset| {
        const l = try lie(.silu, 0, "offset", offset);
        var f: validate.Failure = .{};
        try testing.expect(try refused(l.bytes, &f) == null);
        try testing.expectEqual(command.Status.range, f.status);
        try testing.expect(std.mem.indexOf(u8, f.text(), "bytes of its arena") != null);
    }
    var l = try lie(.embedding, 1, "row_stride", @as(u32, 0xffff_ffff));
    var f: validate.Failure = .{};
    try testing.expect(try refused(l.bytes, &f) == null);
    const far = "bytes of its weight but found 335007449";
    try testing.expect(std.mem.indexOf(u8, f.text(), far) != null);
    l = try lie(.embedding, 1, "buffer", @as(u32, 8));
    try expectRefusal(
        l.bytes,
        .stale,
        "Expected operand 1 to name a buffer or file but found handle 8",
    );
    l = try lie(.rms_norm, 2, "offset", @as(u64, 2));
    try expectLie(
        l,
        .range,
        "Expected out of command # (rms_norm) to start at a multiple of 4 bytes but found 2",
        .rms_norm,
    );
}

test "results that overlap what is read" {
    defer _ = arena_state.reset(.free_all);
    var l: Lies = try .init(.prefill);
    l.operandOf(.linear, 4).offset = l.operandOf(.linear, 0).offset + 4;
    try expectLie(
        l,
        .invalid,
        "Expected out of command # (linear) to lie beside x but found that they overlap",
        .linear,
    );
    l = try .init(.prefill);
    l.operandOf(.logits_process, 1).* = l.operandOf(.logits_process, 0).*;
    try expectLie(
        l,
        .invalid,
        "Expected out of command # (logits_process) to lie beside scores " ++
            "but found them in one place",
        .logits_process,
    );
    l = try .init(.prefill);
    l.operandOf(.ssm_scan, 7).offset -= 64;
    var f: validate.Failure = .{};
    try testing.expect(try refused(l.bytes, &f) == null);
    try testing.expect(std.mem.indexOf(u8, f.text(), "places of their own in the state") != null);
}

test "operands of the wrong kind" {
    defer _ = arena_state.reset(.free_all);
    const Case = struct { op: command.Op, i: usize, words: []const u8 };
    const f32_case: []const Case = &.{
        .{ .op = .silu, .i = 0, .words = "to have dtype f32 but found bf16" },
        .{ .op = .rms_norm, .i = 1, .words = "Expected weight of command" },
        .{ .op = .causal_conv1d, .i = 3, .words = "Expected conv_state of command" },
    };
    for (f32_case) |c| try expectWords(try lie(c.op, c.i, "dtype", command.DType.bf16), c.words);
    const q8: command.DType = .q8_0;
    try expectWords(try lie(.ssm_scan, 7, "dtype", q8), "a weight of rank 2 but found rank 3");
    try expectWords(try lie(.attention, 2, "dtype", q8), "of 32 as q8_0 needs but found 6");
    try expectWords(try lie(.attention, 1, "dtype", command.DType.q4_0), "or q8_0 but found q4_0");
    try expectWords(try lie(.silu, 0, "dtype", command.DType.i32), "another dtype than i32");
    try expectWords(try lie(.sample, 1, "dtype", command.DType.f32), "another dtype than f32");
    try expectWords(try lie(.linear, 1, "layout", command.Layout.row_major), "in layout panel");
    try expectWords(try lie(.rms_norm, 1, "layout", command.Layout.panel), "only a weight");
    try expectWords(try lie(.add, 0, "rows", command.Rows.seqs), "the plan's 3 seqs as rows");
    try expectWords(try lie(.sample, 1, "offset", @as(u64, 6)), "the step's sampled but found");
    try expectWords(try lie(.sample, 1, "offset", @as(u64, 15)), "one of 15 arrays of the step");
    try expectWords(try lie(.add, 0, "rank", @as(u32, 5)), "to have rank 1 to 4 but found 5");
    try expectWords(try lie(.add, 0, "rank", @as(u32, 1)), "Expected dimension 1");
    try expectWords(try lie(.add, 0, "row_stride", @as(u32, 3)), "at least 24 elements apart");
    try expectWords(try lie(.add, 0, "buffer", @as(u32, 3)), "to name no buffer but found 3");
    const l: Lies = try .init(.prefill);
    const states = l.builder.commands.items[l.find(.causal_conv1d)].operands[3];
    l.commands()[l.find(.silu)].operands[0] = states;
    try expectWords(l, "in the arena or the output but found state");
    try expectWords(try lie(.rms_norm, 1, "space", command.Space.arena), "to name no buffer");
    try expectWords(try lie(.attention, 1, "space", command.Space.output), "in space kv but found");
}

fn expectWords(l: Lies, words: []const u8) !void {
    var f: validate.Failure = .{};
    if (try refused(l.bytes, &f)) |_| {
        std.debug.print("accepted where was due: {s}\n", .{words});
        return error.TestUnexpectedResult;
    }
    if (std.mem.indexOf(u8, f.text(), words) != null) return;
    std.debug.print("{s}\nis not about: {s}\n", .{ f.text(), words });
    return error.TestUnexpectedResult;
}

fn attrLie(op: command.Op, i: usize, value: u32) !Lies {
    const l: Lies = try .init(.prefill);
    l.commands()[l.find(op)].attrs[i] = value;
    return l;
}

test "commands that lie" {
    defer _ = arena_state.reset(.free_all);
    const nan: u32 = @bitCast(std.math.nan(f32));
    try expectWords(try attrLie(.rms_norm, 0, nan), "Expected eps of command");
    try expectWords(try attrLie(.rms_norm_gated, 1, 0), "to divide the 24 columns but found 0");
    try expectWords(try attrLie(.rms_norm_gated, 1, 5), "to divide the 24 columns but found 5");
    try expectWords(try attrLie(.rope, 0, 3), "to have 3 x 6 columns but found 24");
    try expectWords(try attrLie(.rope, 1, 0), "to have 4 x 0 columns but found 24");
    try expectWords(try attrLie(.causal_conv1d, 0, 2), "Expected activation of command");
    try expectWords(try attrLie(.ssm_scan, 2, 3), "to have 3 x 5 columns but found 10");
    try expectWords(try attrLie(.ssm_scan, 4, nan), "to be at most dt_max, inf, but found nan");
    try expectWords(try attrLie(.attention, 1, 3), "to divide the 4 heads but found 3");
    try expectWords(try attrLie(.attention, 3, nan), "Expected scale of command");
    try expectWords(try attrLie(.attention_probs, 4, 0xffff_ffff), "4 x 4294967295 columns");
    try expectWords(try attrLie(.kv_append, 0, 0), "to have 0 x 6 columns but found 12");
    const l: Lies = try .init(.prefill);
    const c = &l.commands()[l.find(.linear)];
    c.operands[1] = command.absent;
    try expectWords(l, "Expected weight of command 2 (linear) to be given but found none");
    c.operands[1] = 5000;
    try expectWords(l, "operands but found 5000");
    c.operands[1] = l.builder.commands.items[2].operands[1];
    c.n_operands = 13;
    try expectWords(l, "Expected command 2 (linear) to have 5 operands but found 13");
    c.n_operands = 5;
    c.operands[11] = 0;
    try expectWords(l, "Expected operand 11 of command 2 (linear) to be absent but found 0");
    @as(*align(1) u32, @ptrCast(&c.op)).* = 99;
    try expectWords(l, "Expected op of command 2 to be one of 23 known values but found 99");
}
