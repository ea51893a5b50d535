//! The chain of products of one row with weights in blocks, and of states between them
//! (kernels/blocks_chain_sm90.cu), run on the CPU: one product against sums in f64, and a chain of
//! two layers against its products and states one by one, bit for bit.

const std = @import("std");
const command = @import("command");
const block = @import("../../cpu/block.zig");
const panels = @import("../blocks.zig");
const support = @import("support.zig");
const testing = std.testing;
const DType = command.DType;
const random = &support.random;

const Product = extern struct {
    w: [*]const u8,
    w2: ?[*]const u8 = null,
    x: [*]const u16,
    gate: ?[*]const u16 = null,
    norm_weight: ?[*]const f32 = null,
    bias: ?[*]const f32 = null,
    residual: ?[*]const u16 = null,
    out: ?*anyopaque,
    batch: i32 = 1,
    n: i32,
    k: i32,
    strides: [4]i32 = @splat(0),
    eps: f32 = 1e-5,
    mode: i32 = 0,
    swiglu: i32 = 0,
    out_f32: i32 = 0,
    type: i32,
    unused: [2]i32 = @splat(0),
    x_cells: i32 = -1,
    residual_cells: i32 = -1,
    out_cells: i32 = -1,
    gate_cells: i32 = -1,
    state: i32 = -1,
    first: i32 = 0,
};
const Update = extern struct {
    x: [*]const u16,
    b: ?[*]const u16 = null,
    c: ?[*]const u16 = null,
    dt: [*]const u16,
    a_log: [*]const f32,
    d: [*]const f32,
    dt_bias: [*]const f32,
    state: [*]f32,
    past_len: *const u32 = &past,
    slots: *const u32 = &slot,
    y: ?[*]u16,
    conv_state: [*]f32,
    conv_w: [*]const f32,
    conv_b: [*]const f32,
    slot_strides: [2]i64 = @splat(0),
    strides: [5]i32 = @splat(0),
    heads: i32 = heads,
    groups: i32 = 1,
    width: i32 = taps,
    conv_dim: i32 = channels,
    dt_min: f32 = 0,
    dt_max: f32 = std.math.inf(f32),
    sampling: ?*const anyopaque = null,
};
const State = extern struct {
    of: Update,
    x_cells: i32 = -1,
    dt_cells: i32 = -1,
    y_cells: i32 = -1,
    dtype: i32 = 0,
};
const Args = extern struct {
    of: [40]Product,
    states: [10]State,
    cells: [*]u16,
    turn: *[2]u32,
    set: i32 = set,
    count: i32,
    ring: i32,
    slot: i32,
};

var past: u32 = 7;
const slot: u32 = 0;
const heads = 4; // more than blocks
const taps = 4;
const hidden = 256;
const inner = heads * 64;
const wide = 512;
const channels = inner + 256;
const into = inner + channels + heads;
const set = 4096;
const blocks = 3;
const types = [_]DType{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k };

fn stepBytes(d: DType) usize {
    return 16 * block.rowBytes(d, panels.columns(d));
}

/// All that a test makes.
var arena: std.heap.ArenaAllocator = undefined;

fn weight(d: DType, n: usize, cols: usize) ![]u8 {
    const row_bytes = block.rowBytes(d, cols);
    const src = try arena.allocator().alloc(u8, n * row_bytes);
    random.random().bytes(src);
    // Scales between 2^-6 and 2^-5.
    for (0..src.len / block.bytes(d)) |i| {
        const at = src[i * block.bytes(d) ..][0..block.bytes(d)];
        at[if (d == .q6_k) block.bytes(d) - 1 else 1] = 0x24;
        if (d == .q4_k or d == .q5_k) at[3] = 0x24;
    }
    const count = (n + 15) / 16;
    const w = try arena.allocator().alignedAlloc(u8, .@"16", count * 16 * row_bytes);
    for (0..count) |i| {
        const rows = @min(16, n - i * 16);
        panels.pack(d, w[i * 16 * row_bytes ..].ptr, src[i * 16 * row_bytes ..].ptr, rows, cols);
    }
    return w;
}
fn row(n: usize) ![]u16 {
    const x = try arena.allocator().alignedAlloc(u16, .@"16", n);
    for (x) |*v| v.* = support.bf16(support.number());
    return x;
}
fn floats(n: usize, lo: f32, hi: f32) ![]f32 {
    const x = try arena.allocator().alignedAlloc(f32, .@"16", n);
    for (x) |*v| v.* = lo + (hi - lo) * random.random().float(f32);
    return x;
}

var cells: [2 * set]u16 align(16) = @splat(0);
var turn: [2]u32 = @splat(0);

fn run(of: []const Product, states: []const State) void {
    var largest: usize = 0;
    for (of) |p| largest = @max(largest, stepBytes(types[@intCast(p.type)]));
    var a: Args = .{
        .of = @splat(of[0]),
        .states = undefined,
        .cells = &cells,
        .turn = &turn,
        .count = @intCast(of.len),
        .ring = @intCast(3 * largest),
        .slot = @intCast(largest),
    };
    @memcpy(a.of[0..of.len], of);
    @memcpy(a.states[0..states.len], states);
    support.bamba_emulate_sm90("blocks_chain", &a, blocks, 1);
}

test "a product in a chain's kernel is near its sum" {
    arena = .init(testing.allocator);
    defer arena.deinit();
    const n = 40;
    const cols = 768;
    inline for (types, 0..) |d, t| {
        const w = try weight(d, n, cols);
        const x = try row(cols);
        const norm = try floats(cols, 0.5, 1.5);
        var out: [n]f32 = @splat(std.math.nan(f32));
        run(&.{.{
            .w = w.ptr,
            .x = x.ptr,
            .norm_weight = norm.ptr,
            .out = &out,
            .n = n,
            .k = cols,
            .mode = 1,
            .out_f32 = 1,
            .type = @intCast(t),
        }}, &.{});
        var squares: f64 = 0;
        for (x) |v| squares += support.value(v) * support.value(v);
        const scale = 1 / @sqrt(squares / cols + 1e-5);
        var off: support.Error = .{};
        for (out, 0..) |got, i| {
            var sum: f64 = 0;
            for (x, norm, 0..) |v, by, k| {
                sum += support.value(v) * scale * by * panels.value(d, w, i, k, cols);
            }
            off.add(got, sum);
        }
        try off.expect(5e-5);
    }
}

/// What passes through memory where it does not through cells.
const Values = struct { x: []u16, y: []u16, wide: []u16, into: []u16 };

/// out, gate and up, down and the next in of a layer, and the state behind it.
const Layer = struct { of: [4]Product, state: Update, ring: []f32 };

fn layer(v: Values, kinds: [4]usize) !Layer {
    const sizes = [4][2]usize{
        .{ hidden, inner }, .{ wide, hidden }, .{ hidden, wide }, .{ into, hidden },
    };
    const from = [4][]u16{ v.y, v.x, v.wide, v.x };
    const to = [4][]u16{ v.x, v.wide, v.x, v.into };
    var of: [4]Product = undefined;
    for (&of, sizes, kinds, from, to) |*p, size, kind, x, out| p.* = .{
        .w = (try weight(types[kind], size[0], size[1])).ptr,
        .x = x.ptr,
        .norm_weight = (try floats(size[1], 0.5, 1.5)).ptr,
        .out = out.ptr,
        .n = @intCast(size[0]),
        .k = @intCast(size[1]),
        .mode = 1,
        .type = @intCast(kind),
    };
    of[0].mode = 2;
    of[0].gate = v.into.ptr;
    of[0].residual = v.x.ptr;
    of[0].bias = (try floats(hidden, -1, 1)).ptr;
    of[1].w2 = (try weight(types[kinds[1]], wide, hidden)).ptr;
    of[1].swiglu = 1;
    of[2].mode = 0;
    of[2].residual = v.x.ptr;
    const ring = try floats(taps * channels, -1, 1);
    return .{ .of = of, .ring = ring, .state = .{
        .x = v.into[inner..].ptr,
        .dt = v.into[inner + channels ..].ptr,
        .a_log = (try floats(heads, 0, 2)).ptr,
        .d = (try floats(heads, -1, 1)).ptr,
        .dt_bias = (try floats(heads, -4, -1)).ptr,
        .state = (try floats(heads * 64 * 128, -1, 1)).ptr,
        .y = v.y.ptr,
        .conv_state = ring.ptr,
        .conv_w = (try floats(taps * channels, -0.5, 0.5)).ptr,
        .conv_b = (try floats(channels, -1, 1)).ptr,
    } };
}

/// Where results of layers pass: all from memory as a launch begins, y into memory as it ends.
fn wire(of: []Product, states: []State) void {
    var used: i32 = 0;
    var x: i32 = -1;
    for (of, 0..) |*p, i| {
        const at = i % 4;
        if (at == 0 and i > 0) {
            p.gate_cells = of[i - 1].out_cells;
            p.x_cells = states[i / 4 - 1].y_cells;
        } else if (i > 0) p.x_cells = of[i - 1].out_cells;
        if (at == 0 or at == 2) p.residual_cells = x;
        p.out_cells = used;
        used += std.mem.alignForward(i32, p.n, 8);
        if (at == 0 or at == 2) x = p.out_cells;
        if (at != 3) continue;
        const s = &states[i / 4];
        p.state = @intCast(i / 4);
        p.first = inner / 16;
        s.x_cells = p.out_cells + inner;
        s.dt_cells = s.x_cells + channels;
        if (i + 1 == of.len) continue;
        s.of.y = null;
        s.y_cells = used;
        used += inner;
    }
}

test "a chain of layers gives the bits of its products and states one by one" {
    arena = .init(testing.allocator);
    defer arena.deinit();
    const v: Values = .{
        .x = try row(hidden),
        .y = try row(inner),
        .wide = try row(wide),
        .into = try row(into),
    };
    const layers = [_]Layer{ try layer(v, .{ 0, 2, 1, 4 }), try layer(v, .{ 1, 4, 0, 3 }) };
    const kept = [_][]u8{
        std.mem.sliceAsBytes(v.x),
        std.mem.sliceAsBytes(v.y),
        std.mem.sliceAsBytes(v.into),
        std.mem.sliceAsBytes(layers[0].state.state[0 .. heads * 8192]),
        std.mem.sliceAsBytes(layers[1].state.state[0 .. heads * 8192]),
        std.mem.sliceAsBytes(layers[0].ring),
        std.mem.sliceAsBytes(layers[1].ring),
    };
    var before: [kept.len][]u8 = undefined;
    var wanted: [kept.len][]u8 = undefined;
    for (kept, &before) |now, *b| b.* = try arena.allocator().dupe(u8, now);
    var of = layers[0].of ++ layers[1].of;
    for ([_]u32{ 7, 0 }) |tokens| { // each set of cells in its turn
        past = tokens;
        for (kept, before) |now, b| @memcpy(now, b);
        for (&layers) |*l| {
            for (l.of) |p| run(&.{p}, &.{});
            support.bamba_emulate("conv_ssm_update_bf16", &l.state, heads, 1, 1, 256);
        }
        for (kept, &wanted) |now, *w| w.* = try arena.allocator().dupe(u8, now);
        for (kept, before) |now, b| @memcpy(now, b);
        var states = [_]State{ .{ .of = layers[0].state }, .{ .of = layers[1].state } };
        wire(&of, &states);
        run(&of, &states);
        for (kept, wanted) |now, w| try testing.expectEqualSlices(u8, w, now);
    }
}

test "a chain may begin with products of one x" {
    arena = .init(testing.allocator);
    defer arena.deinit();
    const x = try row(hidden);
    const out = try row(2 * into + hidden);
    const norm = try floats(hidden, 0.5, 1.5);
    var of: [4]Product = undefined;
    const sizes = [4]usize{ into, into, hidden, into };
    for (&of, [_]usize{ 2, 4, 2, 0 }, sizes, 0..) |*p, kind, n, i| p.* = .{
        .w = (try weight(types[kind], n, hidden)).ptr,
        .x = x.ptr,
        .norm_weight = norm.ptr,
        .out = out[if (i < 2) i * into else 2 * into..].ptr,
        .n = @intCast(n),
        .k = hidden,
        .mode = 1,
        .type = @intCast(kind),
    };
    const last = try row(into);
    of[3].x = out[2 * into ..].ptr;
    of[3].out = last.ptr;
    for (of) |p| run(&.{p}, &.{});
    const wanted = try arena.allocator().dupe(u16, last);
    const wanted_out = try arena.allocator().dupe(u16, out);
    @memset(last, 0xffff);
    @memset(out, 0xffff);
    of[2].out_cells = 0;
    of[3].x_cells = 0;
    run(&of, &.{});
    try testing.expectEqualSlices(u16, wanted, last);
    try testing.expectEqualSlices(u16, wanted_out, out);
}
