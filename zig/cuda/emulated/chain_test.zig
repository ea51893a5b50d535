//! The chain of products of one row with weights in blocks, and of states between them
//! (kernels/blocks_chain_sm90.cu), run on the CPU: one product against sums in f64, and a chain of
//! two layers against its products and states one by one, bit for bit.

const std = @import("std");
const command = @import("command");
const block = @import("../../cpu/block.zig");
const chain = @import("chain_support.zig");
const panels = @import("../blocks.zig");
const support = @import("support.zig");
const testing = std.testing;
const DType = command.DType;
const random = &support.random;

const Product = chain.Product;
const State = chain.State;
const hidden = chain.hidden;
const into = chain.into;
const blocks = 3;
const types = [_]DType{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k };

fn stepBytes(d: DType) usize {
    return 16 * block.rowBytes(d, panels.columns(d));
}

fn weight(kind: usize, n: usize, cols: usize) anyerror![]u8 {
    const d = types[kind];
    const row_bytes = block.rowBytes(d, cols);
    const src = try chain.arena.allocator().alloc(u8, n * row_bytes);
    random.random().bytes(src);
    // Scales between 2^-6 and 2^-5.
    for (0..src.len / block.bytes(d)) |i| {
        const at = src[i * block.bytes(d) ..][0..block.bytes(d)];
        at[if (d == .q6_k) block.bytes(d) - 1 else 1] = 0x24;
        if (d == .q4_k or d == .q5_k) at[3] = 0x24;
    }
    const count = (n + 15) / 16;
    const w = try chain.arena.allocator().alignedAlloc(u8, .@"16", count * 16 * row_bytes);
    for (0..count) |i| {
        const rows = @min(16, n - i * 16);
        panels.pack(d, w[i * 16 * row_bytes ..].ptr, src[i * 16 * row_bytes ..].ptr, rows, cols);
    }
    return w;
}
fn number(comptime kind: usize, w: []const u8, size: [2]usize, i: usize, k: usize) f64 {
    return panels.value(types[kind], w, i, k, size[1]);
}

fn run(of: []const Product, states: []const State) void {
    var largest: usize = 0;
    for (of) |p| largest = @max(largest, stepBytes(types[@intCast(p.type)]));
    var a: chain.Args = .{
        .of = @splat(of[0]),
        .states = undefined,
        .cells = &chain.cells,
        .turn = &chain.turn,
        .count = @intCast(of.len),
        .ring = @intCast(std.mem.alignForward(usize, 3 * largest, 64)),
    };
    @memcpy(a.of[0..of.len], of);
    @memcpy(a.states[0..states.len], states);
    support.bamba_emulate_sm90("blocks_chain", &a, blocks, 1);
}

test "a product in a chain's kernel is near its sum" {
    chain.arena = .init(testing.allocator);
    defer chain.arena.deinit();
    inline for (0..types.len) |kind| try chain.expectNear(kind, weight, number, run, 5e-5);
}

test "a chain of layers gives the bits of its products and states one by one" {
    chain.arena = .init(testing.allocator);
    defer chain.arena.deinit();
    try chain.expectSameBits(.{ .{ 0, 2, 1, 4 }, .{ 1, 4, 0, 3 } }, weight, run);
}

test "a chain may begin with products of one x" {
    chain.arena = .init(testing.allocator);
    defer chain.arena.deinit();
    const x = try chain.row(hidden);
    const out = try chain.row(2 * into + hidden);
    const norm = try chain.floats(hidden, 0.5, 1.5);
    var of: [4]Product = undefined;
    const sizes = [4]usize{ into, into, hidden, into };
    for (&of, [_]usize{ 2, 4, 2, 0 }, sizes, 0..) |*p, kind, n, i| p.* = .{
        .w = (try weight(kind, n, hidden)).ptr,
        .x = x.ptr,
        .norm_weight = norm.ptr,
        .out = out[if (i < 2) i * into else 2 * into..].ptr,
        .n = @intCast(n),
        .k = hidden,
        .mode = 1,
        .type = @intCast(kind),
    };
    const last = try chain.row(into);
    of[3].x = out[2 * into ..].ptr;
    of[3].out = last.ptr;
    for (of) |p| run(&.{p}, &.{});
    const wanted = try chain.arena.allocator().dupe(u16, last);
    const wanted_out = try chain.arena.allocator().dupe(u16, out);
    @memset(last, 0xffff);
    @memset(out, 0xffff);
    of[2].out_cells = 0;
    of[3].x_cells = 0;
    run(&of, &.{});
    try testing.expectEqualSlices(u16, wanted, last);
    try testing.expectEqualSlices(u16, wanted_out, out);
}
