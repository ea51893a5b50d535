//! What the products of a chain are to its kernels (kernels/chain.cuh), and where results pass from
//! one to the next: in cells, of which a launch has one set.

const std = @import("std");
const command = @import("command");
const decode = @import("linear_decode.zig");
const k = @import("kernel.zig");
const ring_file = @import("chain_ring.zig");
const ssm = @import("ssm.zig");
const Args = decode.Args;

/// Products of one launch, and updates of states between them.
pub const most = 40;
pub const states_most = 10;
pub const none: i32 = -1;

pub const Product = extern struct {
    of: Args,
    x_cells: i32 = none,
    residual_cells: i32 = none,
    out_cells: i32 = none,
    gate_cells: i32 = none,
    /// Which state is updated with its result.
    state: i32 = none,
    /// Whether its rows come from the last one on.
    backwards: i32 = 0,
};
pub const State = extern struct {
    of: ssm.UpdateArgs,
    x_cells: i32 = none,
    dt_cells: i32 = none,
    y_cells: i32 = none,
    dtype: i32,
};
pub const ChainArgs = extern struct {
    of: [most]Product,
    states: [states_most]State,
    cells: ?[*]u8,
    turn: ?[*]u8,
    set: i32,
    count: i32,
    ring: i32,
    budget: i32,
    ahead: i32,
};

/// Cells of a line of L2: where others begin elsewhere, a layer takes 0.6 us more.
pub const line = 64;

/// Products that follow each other, and states between them: what of both, from the first on, may
/// be one launch, and where their results pass. What `kept` (of states `ys_kept`) leaves out
/// nobody reads behind the launch, so that it need not go to memory.
pub const Wiring = struct {
    of: []Product,
    kept: []const bool,
    states: []State,
    ys_kept: []const bool,
    set: i32,
    used: i32 = 0,

    pub const Fit = struct { products: usize, states: usize };

    pub fn run(w: *Wiring) Fit {
        var n_states: usize = 0;
        for (w.of, 0..) |*p, i| {
            p.* = .{ .of = p.of, .state = p.state };
            const ring: ring_file.Ring = .of(w.of[0 .. i + 1]);
            const met = for (0..i) |e| {
                if (!w.apart(e, i)) break true;
            } else false;
            const alike = ring_file.kernelOf(p.of.dtype) == ring_file.kernelOf(w.of[0].of.dtype);
            const goes = alike and ring_file.fits(&p.of) and ring.holds and !met;
            if (!goes or (i > 0 and !w.x(i)) or !w.residual(i))
                return .{ .products = i, .states = n_states };
            if (p.state == none) continue;
            if (!w.update(i)) return .{ .products = i + 1, .states = n_states };
            n_states += 1;
        }
        return .{ .products = w.of.len, .states = n_states };
    }

    /// Cells for n values, from a line of L2 on; null where there are none left.
    fn take(w: *Wiring, n: i32) ?i32 {
        const cells = std.mem.alignForward(i32, n, line);
        if (w.used + cells > w.set) return null;
        w.used += cells;
        return w.used - cells;
    }
    /// x is the result before, or the y of a state behind it, or that of the product before, as a
    /// chain begins: queries, keys and values.
    fn x(w: *Wiring, i: usize) bool {
        const before, const p = .{ &w.of[i - 1], &w.of[i] };
        const a, const b = .{ &p.of, &before.of };
        if (before.state != none) return w.y(before, p);
        if (a.mode != 2 and a.x == b.x and a.x != b.out and a.k == b.k) {
            if (before.x_cells != none) return false;
            for (w.of[0..i]) |*earlier| if (earlier.of.out == a.x) return false;
            return true;
        }
        const passed = a.mode != 2 and a.x == b.out and a.k == b.n;
        if (!passed or b.out_f32 != 0) return false;
        before.out_cells = w.take(b.n) orelse return false;
        p.x_cells = before.out_cells;
        return true;
    }
    fn y(w: *Wiring, before: *Product, p: *Product) bool {
        const a, const s = .{ &p.of, &w.states[@intCast(before.state)] };
        if (a.mode != 2 or a.x != s.of.y or a.k != s.of.heads * ssm.fast_head_dim) return false;
        const gate = place(before, a.gate, a.k) orelse return false;
        if (@mod(gate, 8) != 0) return false;
        s.y_cells = w.take(a.k) orelse return false;
        p.x_cells = s.y_cells;
        p.gate_cells = before.out_cells + gate;
        return true;
    }
    /// A state is updated with what product i gives. Its y may go to memory when all blocks have
    /// read the first x there.
    fn update(w: *Wiring, i: usize) bool {
        const p = &w.of[i];
        const s = &w.states[@intCast(p.state)];
        s.* = .{ .of = s.of, .dtype = s.dtype };
        if (p.of.out_f32 != 0 or (i == 0 and w.ys_kept[@intCast(p.state)])) return false;
        const row = place(p, s.of.x, s.of.conv_dim) orelse return false;
        const dt = place(p, s.of.dt, s.of.heads) orelse return false;
        p.out_cells = w.take(p.of.n) orelse return false;
        // What a state waits for lies behind the gate.
        p.backwards = @intFromBool(row > 0);
        s.x_cells = p.out_cells + row;
        s.dt_cells = p.out_cells + dt;
        return true;
    }
    /// What a product adds has passed by, or nobody has written it.
    fn residual(w: *Wiring, i: usize) bool {
        const p = &w.of[i];
        if (p.of.residual == null) return true;
        for (w.of[0..i]) |*earlier| {
            if (earlier.of.out == p.of.residual) p.residual_cells = earlier.out_cells;
        }
        if (p.residual_cells != none) return true;
        for (w.of[0..i]) |*earlier| if (earlier.of.out == p.of.residual) return false;
        return true;
    }
    /// Whether a later product's result and what it adds are an earlier result or apart from it,
    /// as far as these are kept in memory.
    fn apart(w: *const Wiring, earlier: usize, later: usize) bool {
        if (!w.kept[earlier]) return true;
        const e, const l = .{ &w.of[earlier].of, &w.of[later].of };
        const same = e.n == l.n and e.out == l.out;
        if (w.kept[later] and !same and meet(e, l.out, l)) return false;
        if (l.residual == null or !meet(e, l.residual, l)) return true;
        return e.n == l.n and e.out == l.residual;
    }
};

/// Which element of a product's row lies at `to`, where n lie from there on.
fn place(p: *const Product, to: ?[*]u8, n: i32) ?i32 {
    const begin, const at = .{ @intFromPtr(p.of.out.?), @intFromPtr(to.?) };
    if (at < begin or (at - begin) / 2 + @as(usize, @intCast(n)) > p.of.n) return null;
    return @intCast((at - begin) / 2);
}
fn meet(e: *const Args, to: ?[*]u8, l: *const Args) bool {
    const begin, const end = range(e.out, e);
    const other_begin, const other_end = range(to, l);
    return begin < other_end and other_begin < end;
}
/// Bytes of a row as long as the product's.
fn range(to: ?[*]u8, a: *const Args) [2]usize {
    const begin = @intFromPtr(to.?);
    const elements: usize = @intCast(a.n);
    return .{ begin, begin + elements * (if (a.out_f32 != 0) @as(usize, 4) else 2) };
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

fn example(x: usize, out: usize, n: i32, cols: i32, residual: usize) Product {
    return .{ .of = .{
        .w = null,
        .x = @ptrFromInt(x),
        .bias = null,
        .residual = @ptrFromInt(residual),
        .out = @ptrFromInt(out),
        .batch = 1,
        .n = n,
        .k = cols,
        .x_stride = cols,
        .residual_stride = if (residual == 0) 0 else n,
        .out_stride = n,
        .dtype = .q8_0,
    } };
}

/// How many products, and states with them, go together; all results are kept but those named.
fn wire(of: []Product, states: []State, set: i32, left_out: []const usize) Wiring.Fit {
    var kept: [most]bool = @splat(true);
    for (left_out) |i| kept[i] = false;
    var w: Wiring = .{
        .of = of,
        .kept = &kept,
        .states = states,
        .ys_kept = &@as([states_most]bool, @splat(false)),
        .set = set,
    };
    return w.run();
}

fn expectFit(products: usize, states: usize, fit: Wiring.Fit) !void {
    try testing.expectEqual(Wiring.Fit{ .products = products, .states = states }, fit);
}

test "results pass to the next product, and to whom adds them" {
    var of = [_]Product{
        example(0x10000, 0x20000, 64, 128, 0x20000),
        example(0x20000, 0x30000, 256, 64, 0),
        example(0x30000, 0x20000, 64, 256, 0x20000),
        example(0x20000, 0x40000, 512, 64, 0),
    };
    try testing.expectEqual(4, wire(&of, &.{}, 1024, &.{}).products);
    const wanted = [_][3]i32{ .{ -1, -1, 0 }, .{ 0, -1, 64 }, .{ 64, 0, 320 }, .{ 320, -1, -1 } };
    for (of, wanted) |p, w|
        try testing.expectEqual(w, .{ p.x_cells, p.residual_cells, p.out_cells });
}

test "a state takes what passes, and gives the next product its x" {
    // 128 of gate, 128 + 2 * 128 of x, B and C, and 2 of dt
    var of = [_]Product{
        example(0x20000, 0x30000, 514, 128, 0),
        example(0x40000, 0x20000, 128, 128, 0x20000),
    };
    of[1].of.mode = 2;
    of[1].of.gate = @ptrFromInt(0x30000);
    of[0].state = 0;
    var states = [_]State{.{ .of = std.mem.zeroes(ssm.UpdateArgs), .dtype = 0 }};
    const s = &states[0].of;
    s.x = @ptrFromInt(0x30000 + 2 * 128);
    s.dt = @ptrFromInt(0x30000 + 2 * 512);
    s.y = @ptrFromInt(0x40000);
    s.heads = 2;
    s.conv_dim = 384;
    try expectFit(2, 1, wire(&of, &states, 704, &.{}));
    const cells = .{ states[0].x_cells, states[0].dt_cells, states[0].y_cells };
    try testing.expectEqual(.{ 128, 512, 576 }, cells);
    const passed = .{ of[0].out_cells, of[0].backwards, of[1].x_cells, of[1].gate_cells };
    try testing.expectEqual(.{ 0, 1, 576, 0 }, passed);
    // no cells left for y, or for what it is made of; dt from elsewhere
    try expectFit(1, 1, wire(&of, &states, 703, &.{}));
    try expectFit(1, 0, wire(&of, &states, 575, &.{}));
    s.dt = @ptrFromInt(0x30000 + 2 * 513);
    try expectFit(1, 0, wire(&of, &states, 704, &.{}));
}

test "a chain may begin with products of the same x" {
    var of = [_]Product{
        example(0x20000, 0x30000, 32, 128, 0),
        example(0x20000, 0x30040, 16, 128, 0),
        example(0x20000, 0x30060, 16, 128, 0),
        example(0x30060, 0x40000, 16, 16, 0),
        example(0x30060, 0x50000, 16, 16, 0),
    };
    try testing.expectEqual(4, wire(&of, &.{}, 64, &.{}).products);
    for (of[0..3]) |p| try testing.expectEqual(none, p.x_cells);
    try testing.expectEqual(.{ 0, 0 }, .{ of[2].out_cells, of[3].x_cells });
}

test "weights of one kernel go together" {
    const first = example(0x10000, 0x20000, 64, 128, 0);
    const next = example(0x20000, 0x30000, 64, 64, 0);
    const Case = struct { of: [2]command.DType, swiglu: i32 = 0, count: usize };
    const cases = [_]Case{
        .{ .of = .{ .q8_0, .q4_k }, .count = 2 },
        .{ .of = .{ .bf16, .bf16 }, .count = 2 },
        .{ .of = .{ .f8_e4m3, .f8_e4m3 }, .swiglu = 1, .count = 2 },
        .{ .of = .{ .bf16, .f8_e4m3 }, .count = 1 },
        .{ .of = .{ .f8_e4m3, .q8_0 }, .count = 1 },
        .{ .of = .{ .f16, .f16 }, .count = 0 },
    };
    for (cases) |c| {
        var of = [_]Product{ first, next };
        for (&of, c.of) |*p, dtype| p.of.dtype = dtype;
        of[1].of.swiglu = c.swiglu;
        try testing.expectEqual(c.count, wire(&of, &.{}, 64, &.{}).products);
    }
    // eights of rows
    var odd = next.of;
    odd.dtype = .bf16;
    odd.n = 63;
    try testing.expect(ring_file.fits(&odd));
    odd.swiglu = 1;
    try testing.expect(!ring_file.fits(&odd));
}

test "a chain ends where cells end, or values come from elsewhere" {
    const first = example(0x10000, 0x20000, 64, 128, 0);
    const Case = struct { next: Product, set: i32, left_out: []const usize = &.{}, count: usize };
    const cases = [_]Case{
        .{ .next = example(0x20000, 0x30000, 64, 64, 0), .set = 64, .count = 2 },
        .{ .next = example(0x20000, 0x30000, 64, 64, 0), .set = 63, .count = 1 },
        .{ .next = example(0x30000, 0x40000, 64, 64, 0), .set = 64, .count = 1 },
        // it adds half of the first result
        .{ .next = example(0x20000, 0x30000, 64, 64, 0x20040), .set = 64, .count = 1 },
        // it writes over half of it, which does not matter where that is not in memory
        .{ .next = example(0x20000, 0x20040, 64, 64, 0), .set = 64, .count = 1 },
        .{ .next = example(0x20000, 0x20040, 64, 64, 0), .set = 64, .left_out = &.{0}, .count = 2 },
    };
    for (cases) |c| {
        var of = [_]Product{ first, c.next };
        try testing.expectEqual(c.count, wire(&of, &.{}, c.set, c.left_out).products);
    }
}
