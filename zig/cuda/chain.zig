//! Neighbouring commands that one kernel does at once, where the values between them are of no use
//! to anybody else: norm and projection, the two halves of a SwiGLU, convolution and SSM update of
//! a token. The plan stays as it was recorded; only the number of launches differs.

const std = @import("std");
const command = @import("command");
const attention = @import("chain_attention.zig");
const decode = @import("linear_decode.zig");
const fp8 = @import("linear_fp8.zig");
const k = @import("kernel.zig");
const linear = @import("linear.zig");
const main = @import("main.zig");
const ssm = @import("ssm.zig");
const products = @import("chain_products.zig");
const ops = @import("../validate/ops.zig");
const readers = @import("readers.zig");
const Bytes = readers.Bytes;
const Stream = k.Stream;
const Task = k.Task;
const inArena = readers.inArena;

/// Part `i` of a link as a product of few rows; null where its kernel is another in this run.
pub const Product = fn (tasks: []const Task, s: *const Stream, i: usize) ?decode.Args;

/// Commands [first, first + count) of a plan, and how they are launched.
pub const Link = struct {
    first: u32,
    count: u32,
    launch: *const fn (tasks: []const Task, s: *Stream) void,
    /// As one product or several, which may go together with others: `chain_products.zig`.
    product: ?*const Product = null,
    parts: u32 = 1,
    /// What `launch` starts behind the product.
    behind: ?*const fn (tasks: []const Task, s: *Stream) void = null,
    /// The update of a state, which may go between products.
    state: bool = false,
    /// The last command that reads its result; none that is known where others may read it.
    read_last: u32 = std.math.maxInt(u32),
};

const Pattern = struct {
    ops: []const command.Op,
    /// Places of the values between: of a task of the chain, the operand it writes.
    between: []const [2]usize,
    fits: *const fn (tasks: []const Task) bool,
    launch: *const fn (tasks: []const Task, s: *Stream) void,
    product: ?*const Product = null,
    behind: ?*const fn (tasks: []const Task, s: *Stream) void = null,
};

/// The longest first.
const patterns = [_]Pattern{
    .{
        .ops = &attention.ops,
        .between = &attention.between,
        .fits = attention.fits,
        .launch = attention.launch,
        .product = attention.asProduct,
        .behind = attention.rotate,
    },
    .{
        .ops = &.{ .rms_norm, .linear, .linear, .swiglu },
        .between = &.{ .{ 0, 2 }, .{ 1, 4 }, .{ 2, 4 } },
        .fits = normSwigluFits,
        .launch = normSwiglu,
        .product = products.rmsSwiglu,
    },
    .{
        .ops = &.{ .rms_norm, .gather_rows, .linear },
        .between = &.{ .{ 0, 2 }, .{ 1, 2 } },
        .fits = normGatherLinearFits,
        .launch = launcher(.rms, products.rmsGathered),
        .product = products.rmsGathered,
    },
    .{
        .ops = &.{ .rms_norm, .linear },
        .between = &.{.{ 0, 2 }},
        .fits = normLinearFits,
        .launch = launcher(.rms, products.rms),
        .product = products.rms,
    },
    .{
        .ops = &.{ .rms_norm_gated, .linear },
        .between = &.{.{ 0, 3 }},
        .fits = gatedLinearFits,
        .launch = launcher(.gated, products.gated),
        .product = products.gated,
    },
    .{
        .ops = &.{ .causal_conv1d_update, .ssm_update },
        .between = &.{.{ 0, 4 }},
        .fits = ssm.chainFits,
        .launch = ssm.chain,
    },
};

/// Cuts a plan's commands into links.
pub fn cut(gpa: std.mem.Allocator, tasks: []const Task) error{OutOfMemory}![]Link {
    var links: std.ArrayList(Link) = .empty;
    errdefer links.deinit(gpa);
    var at: usize = 0;
    while (at < tasks.len) {
        const found = match(tasks, at);
        const count = if (found) |p| p.ops.len else 1;
        const alone: ?*const Product = if (tasks[at].op == .linear) linear.asProduct else null;
        try links.append(gpa, .{
            .first = @intCast(at),
            .count = @intCast(count),
            .launch = if (found) |p| p.launch else single,
            .product = if (found) |p| p.product else alone,
            .parts = if (joins(found)) attention.parts(tasks[at..]) else 1,
            .behind = if (found) |p| p.behind else null,
            .state = if (found) |p| p.launch == ssm.chain else false,
            .read_last = readers.readLast(tasks, at + count - 1),
        });
        at += count;
    }
    return links.toOwnedSlice(gpa);
}

fn joins(found: ?*const Pattern) bool {
    return if (found) |p| p.launch == attention.launch else false;
}

fn match(tasks: []const Task, at: usize) ?*const Pattern {
    next: for (&patterns) |*p| {
        if (at + p.ops.len > tasks.len) continue;
        const part = tasks[at..][0..p.ops.len];
        for (part, p.ops) |*t, op| if (t.op != op) continue :next;
        if (!p.fits(part)) continue;
        for (p.between) |value| {
            if (!readers.ends(&part[value[0]], value[1], tasks[at + p.ops.len ..])) continue :next;
        }
        if (!apart(part)) continue;
        return p;
    }
    return null;
}

/// Whether the chain's result lies beside what its first command reads: blocks of one kernel read
/// and write at the same time, and the plan may have given the one's memory to the other.
fn apart(part: []const Task) bool {
    const first, const last = .{ &part[0], &part[part.len - 1] };
    for (ops.signatures.get(last.op), 0..) |result, i| {
        if (result.role != .out or !inArena(last, i)) continue;
        for (ops.signatures.get(first.op), 0..) |slot, j| {
            const reads = slot.role == .in or slot.role == .in_optional;
            if (!reads or !inArena(first, j)) continue;
            if (Bytes.of(first, j).meets(.of(last, i))) return false;
        }
    }
    return true;
}
/// Bytes that a link needs for a value between its kernels.
pub fn spareBytes(tasks: []const Task, link: Link) usize {
    if (link.launch == attention.launch) return attention.spareBytes(tasks[link.first..]);
    var bytes: usize = 0;
    for (tasks[link.first..][0..link.count]) |*t| bytes = @max(bytes, fp8.taskSpareBytes(t));
    if (link.launch != normSwiglu) return bytes;
    const norm = tasks[link.first].operands[2];
    return @max(bytes, @as(usize, norm.shape[0]) * norm.shape[1] * k.elementBytes(norm.dtype));
}

fn single(tasks: []const Task, s: *Stream) void {
    main.kernels.getPtrConst(tasks[0].op).launch(&tasks[0], s);
}
/// Starts a product where it is one, else its commands one by one.
fn launcher(comptime mode: decode.Mode, comptime product: Product) fn ([]const Task, *Stream) void {
    return struct {
        fn launch(tasks: []const Task, s: *Stream) void {
            if (tasks.len == 2 and fp8.many(&tasks[1], s)) return inEights(tasks, s);
            const a = product(tasks, s, 0) orelse
                return if (mode == .gated) gatedApart(tasks, s) else each(tasks, s);
            decode.launch(mode, a, a.out_f32 != 0, s);
        }
    }.launch;
}
fn gatedApart(tasks: []const Task, s: *Stream) void {
    single(tasks[0..1], s);
    linear.behindStates(&tasks[1], s);
}
fn each(tasks: []const Task, s: *Stream) void {
    for (tasks) |*t| main.kernels.getPtrConst(t.op).launch(t, s);
}

fn same(a: *const Task, i: usize, b: *const Task, j: usize) bool {
    return a.data[i] == b.data[j];
}

// ---- norm, then a projection ---------------------------------------------------------------

fn normLinearFits(tasks: []const Task) bool {
    const norm, const of = .{ &tasks[0], &tasks[1] };
    return same(norm, 2, of, 0) and linear.isFast(of) and k.aligned(norm, &.{0});
}
/// The norm goes with its rows on their way to e4m3.
fn inEights(tasks: []const Task, s: *Stream) void {
    const norm, const of = .{ &tasks[0], &tasks[1] };
    const x = fp8.toEights(.{ .of = of, .norm = norm }, s);
    fp8.product(of, null, x, k.at(of, 4), k.stride(of, 4), s);
}
fn normGatherLinearFits(tasks: []const Task) bool {
    const norm, const gather, const of = .{ &tasks[0], &tasks[1], &tasks[2] };
    return same(norm, 2, gather, 0) and same(gather, 2, of, 0) and linear.isFast(of) and
        k.aligned(norm, &.{0});
}

fn gatedLinearFits(tasks: []const Task) bool {
    const norm, const of = .{ &tasks[0], &tasks[1] };
    return same(norm, 3, of, 0) and linear.isFast(of) and k.dtype(of, 4) == .bf16 and
        norm.attrs[1] == 1 and k.aligned(norm, &.{ 0, 1 });
}

// ---- norm, gate and up projection, SwiGLU --------------------------------------------------

fn normSwigluFits(tasks: []const Task) bool {
    const norm, const gate, const up, const out = .{ &tasks[0], &tasks[1], &tasks[2], &tasks[3] };
    const wired = same(norm, 2, gate, 0) and same(norm, 2, up, 0) and
        same(gate, 4, out, 0) and same(up, 4, out, 1);
    const bare = !gate.has(2) and !gate.has(3) and !up.has(2) and !up.has(3);
    return wired and bare and linear.isFast(gate) and linear.isFast(up) and
        k.dtype(gate, 4) == .bf16 and gate.cols(4) == up.cols(4) and
        k.dtype(gate, 1) == k.dtype(up, 1) and
        k.aligned(norm, &.{0}) and k.aligned(out, &.{2});
}
fn normSwiglu(tasks: []const Task, s: *Stream) void {
    if (products.rmsSwiglu(tasks, s, 0)) |a| return decode.launch(.rms_swiglu, a, false, s);
    const norm, const gate, const up = .{ &tasks[0], &tasks[1], &tasks[2] };
    var a = products.swigluArguments(tasks);
    if (fp8.many(gate, s)) {
        const x = fp8.toEights(.{ .of = gate, .norm = norm }, s);
        return fp8.product(gate, up, x, a.out, a.out_stride, s);
    }
    const few = decode.takes(k.rows(gate, 0), s);
    const eights = k.dtype(gate, 1) == .f8_e4m3;
    const tiles = linear.inTiles(gate) and !(eights and s.gpu.capability == 90);
    const fit = if (few) decode.staged(&a, s) else tiles;
    if (!fit) return each(tasks, s);
    // The plan may have given the norm's place to the result: it gets another.
    var moved: Task = norm.*;
    moved.data[2] = s.spare;
    moved.operands[2].row_stride = moved.operands[2].shape[1];
    single(&.{moved}, s);
    var from: Task = gate.*;
    from.data[0] = moved.data[2];
    from.operands[0] = moved.operands[2];
    if (few) {
        a.x = moved.data[2];
        a.x_stride = k.stride(&moved, 2);
        return decode.launch(.swiglu, a, false, s);
    }
    linear.tiled(.{
        .of = &from,
        .up = up,
        .out = a.out,
        .out_stride = a.out_stride,
        .f32_out = false,
    }, s);
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

/// One row of `cols` bf16 at an address of the arena.
fn place(t: *Task, i: usize, address: usize, cols: u32) void {
    t.data[i] = @ptrFromInt(address);
    t.operands[i] = std.mem.zeroes(command.Operand);
    t.operands[i].space = .arena;
    t.operands[i].dtype = .bf16;
    t.operands[i].shape = .{ 1, cols, 1, 1 };
    t.operands[i].row_stride = cols;
}

/// norm(x) -> v, linear(v) -> y, add(a, b) -> z at the given addresses.
fn three(x: usize, v: usize, y: usize, a: usize) [3]Task {
    var tasks: [3]Task = @splat(std.mem.zeroes(Task));
    for (&tasks, [_]command.Op{ .rms_norm, .linear, .add }, [_]u32{ 3, 5, 3 }) |*t, op, n| {
        t.op = op;
        t.n_operands = n;
    }
    place(&tasks[0], 0, x, 64);
    place(&tasks[0], 1, 0x9000, 64);
    place(&tasks[0], 2, v, 64);
    place(&tasks[1], 0, v, 64);
    place(&tasks[1], 1, 0xa000, 64);
    place(&tasks[1], 4, y, 64);
    place(&tasks[2], 0, a, 64);
    place(&tasks[2], 1, y, 64);
    place(&tasks[2], 2, 0x8000, 64);
    return tasks;
}

test "a norm joins the projection that alone reads it" {
    const Case = struct { x: usize, v: usize, y: usize, a: usize, links: usize };
    const cases = [_]Case{
        .{ .x = 0x1000, .v = 0x2000, .y = 0x3000, .a = 0x1000, .links = 2 },
        // somebody else reads the norm's result
        .{ .x = 0x1000, .v = 0x2000, .y = 0x3000, .a = 0x2000, .links = 3 },
        // the result lies where blocks of the same kernel still read
        .{ .x = 0x1000, .v = 0x2000, .y = 0x1040, .a = 0x4000, .links = 3 },
    };
    for (cases) |c| {
        const tasks = three(c.x, c.v, c.y, c.a);
        const links = try cut(testing.allocator, &tasks);
        defer testing.allocator.free(links);
        try testing.expectEqual(c.links, links.len);
        var next: u32 = 0;
        for (links) |link| {
            try testing.expectEqual(next, link.first);
            next += link.count;
        }
        try testing.expectEqual(tasks.len, next);
    }
}
