//! What tests of chains share (kernels/chain.cuh): the kernels' arguments, and two small layers, as
//! a chain and as its products and states one by one.

const std = @import("std");
const support = @import("support.zig");
const testing = std.testing;
const random = &support.random;

pub const Product = extern struct {
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
    unused: i32 = 0,
    up_first: i32 = 0,
    x_cells: i32 = -1,
    residual_cells: i32 = -1,
    out_cells: i32 = -1,
    gate_cells: i32 = -1,
    state: i32 = -1,
    backwards: i32 = 0,
};
pub const Update = extern struct {
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
pub const State = extern struct {
    of: Update,
    x_cells: i32 = -1,
    dt_cells: i32 = -1,
    y_cells: i32 = -1,
    dtype: i32 = 0,
};
pub const Args = extern struct {
    of: [40]Product,
    states: [10]State,
    cells: [*]u16,
    turn: *[2]u32,
    set: i32 = set,
    count: i32,
    ring: i32,
    budget: i32 = 48 * 1024,
    ahead: i32 = 20 * 1024,
};

pub var past: u32 = 7;
const slot: u32 = 0;
pub const heads = 4; // more than blocks
pub const taps = 4;
pub const hidden = 256;
pub const inner = heads * 64;
pub const wide = 512;
pub const channels = inner + 256;
pub const into = inner + channels + heads;
pub const set = 4096;
/// All that a test makes.
pub var arena: std.heap.ArenaAllocator = undefined;

pub fn row(n: usize) ![]u16 {
    const x = try arena.allocator().alignedAlloc(u16, .@"16", n);
    for (x) |*v| v.* = support.bf16(support.number());
    return x;
}
pub fn floats(n: usize, lo: f32, hi: f32) ![]f32 {
    const x = try arena.allocator().alignedAlloc(f32, .@"16", n);
    for (x) |*v| v.* = lo + (hi - lo) * random.random().float(f32);
    return x;
}

pub var cells: [2 * set]u16 align(16) = @splat(0);
pub var turn: [2]u32 = @splat(0);

/// What passes through memory where it does not through cells.
pub const Values = struct { x: []u16, y: []u16, wide: []u16, into: []u16 };

/// out, gate and up, down and the next in of a layer, and the state behind it.
pub const Layer = struct { of: [4]Product, state: Update, ring: []f32 };

/// Gives weights of a kind, n rows of `cols`.
const Make = fn (kind: usize, n: usize, cols: usize) anyerror![]u8;
/// Runs a chain's kernel.
const Run = fn (of: []const Product, states: []const State) void;

pub fn layer(v: Values, kinds: [4]usize, comptime make: Make) !Layer {
    const sizes = [4][2]usize{
        .{ hidden, inner }, .{ wide, hidden }, .{ hidden, wide }, .{ into, hidden },
    };
    const from = [4][]u16{ v.y, v.x, v.wide, v.x };
    const to = [4][]u16{ v.x, v.wide, v.x, v.into };
    var of: [4]Product = undefined;
    for (&of, sizes, kinds, from, to) |*p, size, kind, x, out| p.* = .{
        .w = (try make(kind, size[0], size[1])).ptr,
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
    of[1].w2 = (try make(kinds[1], wide, hidden)).ptr;
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
pub fn wire(of: []Product, states: []State) void {
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
        p.backwards = 1;
        s.x_cells = p.out_cells + inner;
        s.dt_cells = s.x_cells + channels;
        if (i + 1 == of.len) continue;
        s.of.y = null;
        s.y_cells = used;
        used += inner;
    }
}

/// Whether a product with its norm is near its sum in f64; `number` is what weight k of row i is.
pub fn expectNear(
    comptime kind: usize,
    comptime make: Make,
    comptime number: fn (
        comptime kind: usize,
        w: []const u8,
        size: [2]usize,
        i: usize,
        k: usize,
    ) f64,
    comptime run: Run,
    limit: f64,
) !void {
    const n = 40;
    const cols = 768;
    const w = try make(kind, n, cols);
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
        .type = kind,
    }}, &.{});
    var squares: f64 = 0;
    for (x) |v| squares += support.value(v) * support.value(v);
    const scale = 1 / @sqrt(squares / cols + 1e-5);
    var off: support.Error = .{};
    for (out, 0..) |got, i| {
        var sum: f64 = 0;
        for (x, norm, 0..) |v, by, k|
            sum += support.value(v) * scale * by * number(kind, w, .{ n, cols }, i, k);
        off.add(got, sum);
    }
    try off.expect(limit);
}

/// Two layers as one chain, and as launches of their own: whether all that stays has the same bits.
pub fn expectSameBits(
    kinds: [2][4]usize,
    comptime make: Make,
    comptime run: Run,
) !void {
    const v: Values = .{
        .x = try row(hidden),
        .y = try row(inner),
        .wide = try row(wide),
        .into = try row(into),
    };
    const layers = [_]Layer{ try layer(v, kinds[0], make), try layer(v, kinds[1], make) };
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

/// Two small layers, of one head each, on so many blocks that most have no part in any product:
/// they must not run ahead of their own warps, which update states. As a chain and one by one.
pub fn expectOrder(
    comptime make: Make,
    comptime runOn: fn (n_blocks: c_int, of: []const Product, states: []const State) void,
) !void {
    const one = 64; // a head's channels
    const n = 2 * one + 2 * 128 + 1;
    const x = try row(hidden);
    const before = try arena.allocator().dupe(u16, x);
    var of: [4]Product = undefined;
    var states: [2]State = undefined;
    for (&states, 0..) |*s, l| {
        const first = of[2 * l ..];
        const v: Values = .{ .x = x, .y = try row(inner), .wide = x, .into = try row(into) };
        const made = try layer(v, @splat(0), make);
        first[0] = made.of[3];
        first[0].n = n;
        first[1] = made.of[0];
        first[1].k = one;
        first[1].residual = null;
        s.* = .{ .of = made.state };
        s.of.heads = 1;
        s.of.conv_dim = n - 1 - one;
        s.of.x = v.into[one..].ptr;
        s.of.dt = v.into[n - 1 ..].ptr;
        @memset(s.of.conv_state[0 .. taps * channels], 0.5);
        @memset(s.of.state[0 .. one * 128], 0.25);
        runOn(1, first[0..1], &.{});
        support.bamba_emulate("conv_ssm_update_bf16", &s.of, 1, 1, 1, 256);
        runOn(1, first[1..2], &.{});
        @memset(s.of.conv_state[0 .. taps * channels], 0.5);
        @memset(s.of.state[0 .. one * 128], 0.25);
        const at: i32 = @intCast(l * 1024);
        first[0].out_cells = at;
        first[0].state = @intCast(l);
        first[0].x_cells = if (l == 0) -1 else of[1].out_cells;
        s.x_cells = at + one;
        s.dt_cells = at + n - 1;
        s.y_cells = at + 512;
        first[1].x_cells = s.y_cells;
        first[1].gate_cells = at;
        first[1].out_cells = at + 576;
    }
    const wanted = try arena.allocator().dupe(u16, x);
    @memcpy(x, before);
    runOn(2 + (n + 15) / 16, &of, &states);
    try testing.expectEqualSlices(u16, wanted, x);
}
