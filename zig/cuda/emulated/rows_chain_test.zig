//! The chain of products of one row with weights in rows, and of states between them
//! (kernels/rows_chain_sm90.cu), run on the CPU: one product against sums in f64, and a chain of
//! two layers against its products and states one by one, bit for bit.

const std = @import("std");
const command = @import("command");
const chain = @import("chain_support.zig");
const support = @import("support.zig");
const testing = std.testing;
const DType = command.DType;
const Product = chain.Product;
const State = chain.State;
const random = &support.random;

const blocks = 3;
const types = [_]DType{ .bf16, .f8_e4m3 };

fn weight(kind: usize, n: usize, cols: usize) anyerror![]u8 {
    if (types[kind] == .bf16) {
        const w = try chain.row(n * cols);
        for (w) |*v| v.* = support.bf16(@floatCast(0.05 * support.value(v.*)));
        return std.mem.sliceAsBytes(w);
    }
    const head = (n + 15) / 16 * 64;
    const w = try chain.arena.allocator().alignedAlloc(u8, .@"16", head + n * cols);
    const scales: [*]f32 = @ptrCast(@alignCast(w.ptr));
    for (0..head / 4) |i| scales[i] = 0.0002 + 0.0002 * random.random().float(f32);
    random.random().bytes(w[head..]);
    for (w[head..]) |*v| if (v.* & 0x7f == 0x7f) {
        v.* ^= 1;
    };
    return w;
}
fn number(comptime kind: usize, w: []const u8, size: [2]usize, i: usize, k: usize) f64 {
    const at = i * size[1] + k;
    if (types[kind] == .bf16)
        return support.value(std.mem.readInt(u16, w[at * 2 ..][0..2], .little));
    const head = (size[0] + 15) / 16 * 64;
    const b: u32 = w[head + at];
    const bits = (b & 0x80) << 24 | (b & 0x7f) << 20;
    const scales: [*]const f32 = @ptrCast(@alignCast(w.ptr));
    return @as(f64, @as(f32, @bitCast(bits))) * 0x1p120 * scales[i];
}
fn mapOf(p: Product) support.Map {
    const e4m3 = types[@intCast(p.type)] == .f8_e4m3;
    const n: usize = @intCast(p.n);
    const head: usize = if (e4m3) (n + 15) / 16 * 64 else 0;
    return .{
        .base = @ptrCast(@alignCast(p.w + head)),
        .other = if (p.swiglu != 0) @ptrCast(@alignCast(p.w2.? + head)) else null,
        .rows = p.n,
        .cols = p.k,
        .stride = p.k,
        .box_cols = if (e4m3) 128 else 64,
        .box_rows = 16,
        .item = if (e4m3) 1 else 2,
    };
}
fn run(of: []const Product, states: []const State) void {
    runOn(blocks, of, states);
}
fn runOn(n_blocks: c_int, of: []const Product, states: []const State) void {
    const Call = extern struct { maps: [40]support.Map, args: chain.Args };
    var call: Call = .{ .maps = undefined, .args = .{
        .of = @splat(of[0]),
        .states = undefined,
        .cells = &chain.cells,
        .turn = &chain.turn,
        .count = @intCast(of.len),
        .ring = 3 * 2048,
    } };
    @memcpy(call.args.of[0..of.len], of);
    @memcpy(call.args.states[0..states.len], states);
    for (of, 0..) |p, i| call.maps[i] = mapOf(p);
    const name = if (of[0].type == 0) "rows_chain_bf16" else "rows_chain_e4m3";
    support.bamba_emulate_sm90(name, &call, n_blocks, 1);
}

test "a product in a chain's kernel is near its sum" {
    chain.arena = .init(testing.allocator);
    defer chain.arena.deinit();
    inline for (0..types.len) |kind| try chain.expectNear(kind, weight, number, run, 3e-3);
}

test "a chain of layers in rows gives the bits of its products and states one by one" {
    chain.arena = .init(testing.allocator);
    defer chain.arena.deinit();
    for (0..types.len) |kind| try chain.expectSameBits(@splat(@splat(kind)), weight, run);
}

test "a block without a part in any product comes to no state before its own warps do" {
    chain.arena = .init(testing.allocator);
    defer chain.arena.deinit();
    try chain.expectOrder(weight, runOn);
}
