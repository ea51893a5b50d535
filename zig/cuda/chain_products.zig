//! Links that follow each other and are products of one row with weights in blocks, as one launch:
//! kernels/blocks_chain_sm90.cu. Results pass from one to the next through cells
//! (kernels/chain.cuh).

const std = @import("std");
const block = @import("../cpu/block.zig");
const chain = @import("chain.zig");
const command = @import("command");
const decode = @import("linear_decode.zig");
const k = @import("kernel.zig");
const order = @import("blocks.zig");
const Args = decode.Args;
const Stream = k.Stream;
const Task = k.Task;

/// Products of one launch.
pub const most = 6;
/// Pieces of 2048 columns that a norm may have in front of a product.
const squares = 18;
const threads = 512;
const warps = 16;
/// Dynamic shared memory, beside which a block of ssm_update fits a multiprocessor.
const room = 225 * 1024 - 6016;
/// In front of the cells: which launch it is, and the blocks that have ended.
const turn_bytes = 64;
const none: i32 = -1;

const Product = extern struct {
    of: Args,
    x_cells: i32 = none,
    residual_cells: i32 = none,
    out_cells: i32 = none,
    pad: i32 = 0,
};
const ChainArgs = extern struct {
    of: [most]Product,
    cells: ?[*]u8,
    turn: ?[*]u8,
    set: i32,
    count: i32,
    ring: i32 = 0,
    slot: i32 = 0,
};

/// Launches the first link, and as many behind it as go into the same launch; gives their number.
pub fn launch(tasks: []const Task, links: []const chain.Link, s: *Stream) usize {
    const count = together(tasks, links, s);
    if (count == 0) {
        const link = links[0];
        link.launch(tasks[link.first..][0..link.count], s);
        return 1;
    }
    const last = links[count - 1];
    if (last.behind) |behind| behind(tasks[last.first..][0..last.count], s);
    return count;
}

/// Launches products of the first links as one; gives the links' number, 0 where there are not two.
fn together(tasks: []const Task, links: []const chain.Link, s: *Stream) usize {
    if (!s.gpu.chains or s.invariant or s.cells == null) return 0;
    var of: [most]Product = undefined;
    var ends: [most]usize = undefined; // products up to each link's end
    var count: usize = 0;
    var n: usize = 0;
    adding: for (links) |link| {
        const make = link.product orelse break;
        if (n + link.parts > most) break;
        for (0..link.parts) |i| {
            const part = tasks[link.first..][0..link.count];
            of[n + i] = .{ .of = make(part, s, i) orelse break :adding };
        }
        n += link.parts;
        ends[count] = n;
        count += 1;
        if (link.behind != null) break;
    }
    const wired = wire(of[0..n], s.cells_set);
    while (count > 0 and ends[count - 1] > wired) count -= 1;
    if (count == 0 or ends[count - 1] < 2) return 0;
    submit(of[0..ends[count - 1]], s);
    return count;
}

/// One row of weights in blocks.
pub fn single(a: Args, s: *Stream) void {
    submit(&.{.{ .of = a }}, s);
}
/// Whether `single` takes a product.
pub fn takesSingle(a: *const Args, s: *const Stream) bool {
    return s.gpu.chains and fits(a);
}

fn fits(a: *const Args) bool {
    const cols: u32 = @intCast(a.k);
    if (!block.is(a.dtype) or a.batch != 1) return false;
    if (a.mode != 0 and k.blocks(cols, 2048) > squares) return false;
    return ringSlots(a.dtype, stepBytes(a.dtype), cols) >= 2;
}
fn stepBytes(dtype: command.DType) u32 {
    return @intCast(16 * block.rowBytes(dtype, order.columns(dtype)));
}
fn xBytes(cols: u32) u32 {
    return 2 * cols + cols / 2;
}
/// Slots of a warp's ring. More than these are no faster: what waits in line keeps x waiting, too.
fn ringSlots(dtype: command.DType, slot: u32, cols: u32) u32 {
    const wanted: u32 = if (dtype == .q8_0) 4 else 3;
    return @min(wanted, (room -| xBytes(cols)) / warps / slot);
}

/// How many of the products, from the first on, may be one launch; and where their results pass.
fn wire(of: []Product, set: u32) usize {
    var used: i32 = 0;
    var slot: u32 = 0;
    var cols: u32 = 0;
    for (of, 0..) |*p, i| {
        const a = &p.of;
        if (!fits(a)) return i;
        slot = @max(slot, stepBytes(a.dtype));
        cols = @max(cols, @as(u32, @intCast(a.k)));
        if (ringSlots(of[0].of.dtype, slot, cols) < 2) return i;
        if (i == 0) continue;
        const before = &of[i - 1];
        for (of[0..i]) |*earlier| if (!apart(&earlier.of, a)) return i;
        if (a.mode != 2 and a.x == before.of.x and a.x != before.of.out and a.k == before.of.k) {
            // Of one x, as a chain begins: queries, keys and values.
            if (before.x_cells != none) return i;
            for (of[0..i]) |*earlier| if (earlier.of.out == a.x) return i;
        } else {
            const passed = a.mode != 2 and a.x == before.of.out and a.k == before.of.n;
            const cells = std.mem.alignForward(i32, before.of.n, 8);
            if (!passed or before.of.out_f32 != 0 or used + cells > set) return i;
            before.out_cells = used;
            p.x_cells = used;
            used += cells;
        }
        if (a.residual != null) for (of[0..i]) |*earlier| {
            if (earlier.of.out == a.residual) p.residual_cells = earlier.out_cells;
        };
        // What it adds has passed by, or nobody has written it.
        const added = a.residual != null and p.residual_cells == none;
        if (added) for (of[0..i]) |*earlier| {
            if (earlier.of.out == a.residual) return i;
        };
    }
    return of.len;
}
/// Whether a later product's result and what it adds are an earlier result or apart from it.
fn apart(e: *const Args, l: *const Args) bool {
    if (!(e.n == l.n and e.out == l.out) and meet(e, l.out, l)) return false;
    if (l.residual == null or !meet(e, l.residual, l)) return true;
    return e.n == l.n and e.out == l.residual;
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

fn submit(of: []const Product, s: *Stream) void {
    var a: ChainArgs = .{
        .of = undefined,
        .turn = s.cells,
        .cells = if (s.cells) |cells| cells + turn_bytes else null,
        .set = @intCast(s.cells_set),
        .count = @intCast(of.len),
    };
    @memcpy(a.of[0..of.len], of);
    @memset(a.of[of.len..], of[0]);
    var cols: u32 = 0;
    var slot: u32 = 0;
    for (of) |*p| {
        cols = @max(cols, @as(u32, @intCast(p.of.k)));
        slot = @max(slot, stepBytes(p.of.dtype));
    }
    for (a.of[0..of.len]) |*p| p.of.type = kernelType(p.of.dtype);
    a.slot = @intCast(slot);
    a.ring = @intCast(ringSlots(of[0].of.dtype, slot, cols) * slot);
    const grid = [3]u32{ s.gpu.multiprocessors, 1, 1 };
    const extra: k.Extra = .{
        .shared_bytes = warps * @as(u32, @intCast(a.ring)) + xBytes(cols),
    };
    const stem = "blocks_chain_sm90";
    // Where it helps that L2 gives the weights' place to others first.
    if (of[0].of.dtype != .q8_0)
        return s.launch(stem, "blocks_chain_once", grid, threads, .{a}, extra);
    s.launch(stem, "blocks_chain", grid, threads, .{a}, extra);
}
/// `BlockType` of kernels/blocks.cuh.
fn kernelType(dtype: command.DType) i32 {
    return switch (dtype) {
        .q8_0 => 0,
        .q4_0 => 1,
        .q4_k => 2,
        .q5_k => 3,
        .q6_k => 4,
        else => unreachable,
    };
}

// ---- links as products -----------------------------------------------------------------------

pub fn rms(tasks: []const Task, s: *const Stream, _: usize) ?decode.Args {
    const norm, const of = .{ &tasks[0], &tasks[tasks.len - 1] };
    var a = decode.arguments(of);
    if (!decode.takesNorm(&a, s)) return null;
    decode.takeNorm(&a, norm, 1);
    decode.describe(.rms, k.dtype(of, 4) == .f32, &a);
    return a;
}
/// Where every row is wanted, as when ids are decoded, nothing is gathered.
pub fn rmsGathered(tasks: []const Task, s: *const Stream, i: usize) ?decode.Args {
    return if (s.takesAllRows()) rms(tasks, s, i) else null;
}
pub fn gated(tasks: []const Task, s: *const Stream, _: usize) ?decode.Args {
    const norm, const of = .{ &tasks[0], &tasks[1] };
    var a = decode.arguments(of);
    if (!decode.takesNorm(&a, s)) return null;
    decode.takeNorm(&a, norm, 2);
    a.gate = k.at(norm, 1);
    a.gate_stride = k.stride(norm, 1);
    decode.describe(.gated, false, &a);
    return a;
}
pub fn swigluArguments(tasks: []const Task) decode.Args {
    const gate, const up, const out = .{ &tasks[1], &tasks[2], &tasks[3] };
    var a = decode.arguments(gate);
    a.w2 = k.at(up, 1);
    a.out = k.at(out, 2);
    a.out_stride = k.stride(out, 2);
    return a;
}
pub fn rmsSwiglu(tasks: []const Task, s: *const Stream, _: usize) ?decode.Args {
    var a = swigluArguments(tasks);
    if (!decode.takesNorm(&a, s)) return null;
    decode.takeNorm(&a, &tasks[0], 1);
    decode.describe(.rms_swiglu, false, &a);
    return a;
}

/// Cells of a set that a plan's links need.
pub fn setCells(tasks: []const Task, links: []const chain.Link) u32 {
    var set: u64 = 0;
    for (links, 0..) |link, at| {
        if (link.product == null or !ofBlocks(tasks, link)) continue;
        var sum: u64 = 0;
        for (links[at..@min(at + most - 1, links.len)]) |next| {
            if (next.product == null or next.behind != null) break;
            const last = &tasks[next.first + next.count - 1];
            const out = last.operands[last.n_operands - 1];
            sum += std.mem.alignForward(u64, out.shape[1], 8);
        }
        set = @max(set, sum);
    }
    return @intCast(set);
}
/// Whether a link's first product has weights in blocks.
fn ofBlocks(tasks: []const Task, link: chain.Link) bool {
    for (tasks[link.first..][0..link.count]) |*t| {
        if (t.op == .linear) return block.is(k.dtype(t, 1));
    }
    return false;
}
/// Bytes of both sets.
pub fn bytes(set: u32) u64 {
    return turn_bytes + 2 * 2 * @as(u64, set);
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

test "results pass to the next product, and to whom adds them" {
    var of = [_]Product{
        example(0x10000, 0x20000, 64, 128, 0x20000),
        example(0x20000, 0x30000, 256, 64, 0),
        example(0x30000, 0x20000, 64, 256, 0x20000),
        example(0x20000, 0x40000, 512, 64, 0),
    };
    try testing.expectEqual(4, wire(&of, 1024));
    const wanted = [_][3]i32{ .{ -1, -1, 0 }, .{ 0, -1, 64 }, .{ 64, 0, 320 }, .{ 320, -1, -1 } };
    for (of, wanted) |p, w|
        try testing.expectEqual(w, .{ p.x_cells, p.residual_cells, p.out_cells });
}

test "a chain may begin with products of the same x" {
    var of = [_]Product{
        example(0x20000, 0x30000, 32, 128, 0),
        example(0x20000, 0x30040, 16, 128, 0),
        example(0x20000, 0x30060, 16, 128, 0),
        example(0x30060, 0x40000, 16, 16, 0),
        example(0x30060, 0x50000, 16, 16, 0),
    };
    try testing.expectEqual(4, wire(&of, 64));
    for (of[0..3]) |p| try testing.expectEqual(none, p.x_cells);
    try testing.expectEqual(.{ 0, 0 }, .{ of[2].out_cells, of[3].x_cells });
}

test "a chain ends where cells end, or values come from elsewhere" {
    const first = example(0x10000, 0x20000, 64, 128, 0);
    const cases = [_]struct { next: Product, set: u32, count: usize }{
        .{ .next = example(0x20000, 0x30000, 64, 64, 0), .set = 64, .count = 2 },
        .{ .next = example(0x20000, 0x30000, 64, 64, 0), .set = 63, .count = 1 },
        .{ .next = example(0x30000, 0x40000, 64, 64, 0), .set = 64, .count = 1 },
        // it adds half of the first result
        .{ .next = example(0x20000, 0x30000, 64, 64, 0x20040), .set = 64, .count = 1 },
        // it writes over half of it
        .{ .next = example(0x20000, 0x20040, 64, 64, 0), .set = 64, .count = 1 },
    };
    for (cases) |c| {
        var of = [_]Product{ first, c.next };
        try testing.expectEqual(c.count, wire(&of, c.set));
    }
}
