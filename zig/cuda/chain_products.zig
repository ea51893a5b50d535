//! Links that follow each other and are products of one row, and updates of states between them,
//! as one launch: kernels/blocks_chain_sm90.cu of weights in blocks, rows_chain_sm90.cu of those in
//! rows (bf16, e4m3). `chain_wire.zig` says which go together.

const std = @import("std");
const chain = @import("chain.zig");
const command = @import("command");
const decode = @import("linear_decode.zig");
const driver = @import("driver.zig");
const fp8 = @import("linear_fp8.zig");
const k = @import("kernel.zig");
const rings = @import("chain_ring.zig");
const ssm = @import("ssm.zig");
const wiring = @import("chain_wire.zig");
const Args = decode.Args;
const Product = wiring.Product;
const State = wiring.State;
const Stream = k.Stream;
const Task = k.Task;

/// In front of the cells: which launch it is, and the blocks that have ended.
const turn_bytes = 2 * wiring.line;

/// Launches the first link, and as many behind it as go into the same launch; gives their number.
pub fn launch(tasks: []const Task, links: []const chain.Link, s: *Stream) usize {
    const link = links[0];
    // What has a row for each of the run's logits has none in a long prompt's first runs.
    if (k.rows(&tasks[link.first + link.count - 1], 0) == 0) return 1;
    const count = together(tasks, links, s);
    if (count == 0) {
        link.launch(tasks[link.first..][0..link.count], s);
        return 1;
    }
    const last = links[count - 1];
    if (last.behind) |behind| behind(tasks[last.first..][0..last.count], s);
    return count;
}
/// Launches products of the first links as one; gives the links' number, 0 where there are not two.
fn together(tasks: []const Task, links: []const chain.Link, s: *Stream) usize {
    if (s.invariant or s.cells == null or !pays(s)) return 0;
    var found: Found = .{};
    found.gather(tasks, links, s);
    // With fewer links more results are read behind the launch.
    var count = found.links;
    while (count > 0) {
        const fit = found.wire(links[0..count], s.cells_set);
        const tried = count;
        while (count > 0 and !found.has(links[0..count], fit)) count -= 1;
        if (count == tried) break;
    }
    if (count == 0 or found.ends[count - 1] < 2) return 0;
    found.leaveOut(found.ends[count - 1]);
    submit(found.of[0..found.ends[count - 1]], &found.states, s);
    return count;
}

/// Links that may go together, as products, and states behind them.
const Found = struct {
    of: [wiring.most]Product = undefined,
    kept: [wiring.most]bool = undefined,
    states: [wiring.states_most]State = undefined,
    ys_kept: [wiring.states_most]bool = undefined,
    /// Products up to each link's end.
    ends: [wiring.most + wiring.states_most]usize = undefined,
    links: usize = 0,

    fn gather(f: *Found, tasks: []const Task, links: []const chain.Link, s: *const Stream) void {
        var n: usize = 0;
        var n_states: usize = 0;
        for (links) |link| {
            const part = tasks[link.first..][0..link.count];
            if (link.state) {
                const free = n_states < wiring.states_most and n > 0;
                if (!free or f.of[n - 1].state != wiring.none) return;
                f.states[n_states] = stateOf(part) orelse return;
                f.of[n - 1].state = @intCast(n_states);
                n_states += 1;
            } else {
                const make = link.product orelse return;
                if (n + link.parts > wiring.most) return;
                for (0..link.parts) |i| f.of[n + i] = .{ .of = make(part, s, i) orelse return };
                n += link.parts;
            }
            f.ends[f.links] = n;
            f.links += 1;
            if (link.behind != null) return;
        }
    }
    /// What of these links may go together.
    fn wire(f: *Found, links: []const chain.Link, set: u32) wiring.Wiring.Fit {
        const last = links[links.len - 1];
        var n: usize = 0;
        var n_states: usize = 0;
        for (links, f.ends[0..links.len]) |link, end| {
            const kept = link.behind != null or link.parts > 1 or
                link.read_last >= last.first + last.count;
            if (link.state) {
                f.of[n - 1].state = @intCast(n_states);
                f.ys_kept[n_states] = kept;
                n_states += 1;
            }
            for (f.of[n..end], f.kept[n..end]) |*p, *k_| {
                p.state = wiring.none;
                k_.* = kept;
            }
            n = end;
        }
        var w: wiring.Wiring = .{
            .of = f.of[0..n],
            .kept = &f.kept,
            .states = &f.states,
            .ys_kept = &f.ys_kept,
            .set = @intCast(set),
        };
        return w.run();
    }
    /// Whether all products and states of these links are among those.
    fn has(f: *const Found, links: []const chain.Link, fit: wiring.Wiring.Fit) bool {
        var n_states: usize = 0;
        for (links) |link| n_states += @intFromBool(link.state);
        return f.ends[links.len - 1] <= fit.products and n_states <= fit.states;
    }
    /// What nobody reads in memory does not go there.
    fn leaveOut(f: *Found, n: usize) void {
        for (f.of[0..n], f.kept[0..n]) |*p, kept| {
            if (!kept) p.of.out = null;
            if (p.state != wiring.none and !f.ys_kept[@intCast(p.state)])
                f.states[@intCast(p.state)].of.y = null;
        }
    }
};
fn stateOf(tasks: []const Task) ?State {
    const a = ssm.chainArguments(tasks) orelse return null;
    return .{ .of = a, .dtype = switch (k.dtype(&tasks[1], 7)) {
        .f32 => 0,
        .bf16 => 1,
        .f16 => 2,
        else => return null,
    } };
}

/// Whether products of one row go in chains: the kernels are Hopper's, where a layer of any weights
/// gains by it (an H100: bf16 4 %, e4m3 10, q8_0 8, q4_k_m 14, q4_k 18; an H200 more).
fn pays(s: *const Stream) bool {
    return s.gpu.capability == 90;
}

/// One row of weights in blocks.
pub fn single(a: Args, s: *Stream) void {
    submit(&.{.{ .of = a }}, &.{}, s);
}
/// Whether `single` takes a product: an H100 gains 0.5 to 3 % of one as large as lm_head.
pub fn takesSingle(a: *const Args, s: *const Stream) bool {
    return pays(s) and rings.fits(a);
}

fn submit(of: []const Product, states: []const State, s: *Stream) void {
    const ring: rings.Ring = .of(of);
    var a: wiring.ChainArgs = .{
        .of = undefined,
        .states = undefined,
        .turn = s.cells,
        .cells = if (s.cells) |cells| cells + turn_bytes else null,
        .set = @intCast(s.cells_set),
        .count = @intCast(of.len),
        .ring = @intCast(ring.bytes),
        .budget = @intCast(ring.budget),
        .ahead = @intCast(ring.ahead),
    };
    @memcpy(a.of[0..of.len], of);
    @memset(a.of[of.len..], of[0]);
    @memset(std.mem.sliceAsBytes(&a.states), 0);
    @memcpy(a.states[0..states.len], states);
    const grid = [3]u32{ s.gpu.multiprocessors, 1, 1 };
    const extra: k.Extra = .{ .shared_bytes = ring.shared_bytes };
    const kernel = rings.kernelOf(of[0].of.dtype).?;
    if (kernel != .blocks) {
        const maps = mapsOf(a.of[0..of.len], s);
        const stem = "rows_chain_sm90";
        if (kernel == .bf16)
            return s.launch(stem, "rows_chain_bf16", grid, rings.threads, .{ maps, a }, extra);
        return s.launch(stem, "rows_chain_e4m3", grid, rings.threads, .{ maps, a }, extra);
    }
    for (a.of[0..of.len]) |*p| p.of.type = kernelType(p.of.dtype);
    s.launch("blocks_chain_sm90", "blocks_chain", grid, rings.threads, .{a}, extra);
}
/// How the products' weights lie in rows, of which a warp takes 16 at a time, 128 bytes of each.
fn mapsOf(of: []Product, s: *Stream) [wiring.most]driver.TensorMap {
    var maps: [wiring.most]driver.TensorMap = @splat(.{});
    for (of, maps[0..of.len]) |*p, *m| m.* = switch (rings.kernelOf(p.of.dtype).?) {
        .bf16 => mapOf(.bf16, &p.of, 0, s),
        .e4m3 => mapOf(.uint8, &p.of, fp8.scaleBytes(@intCast(p.of.n)), s),
        .blocks => unreachable,
    };
    return maps;
}
fn mapOf(comptime element: Stream.Element, a: *Args, begin: u64, s: *Stream) driver.TensorMap {
    const n: u64, const cols: u64 = .{ @intCast(a.n), @intCast(a.k) };
    const w = a.w.? + begin;
    if (a.swiglu == 0) return s.mapOnce(element, w, n, cols, cols, .{ 128 / element.bytes(), 16 });
    a.up_first = @intFromBool(@intFromPtr(a.w2.?) < @intFromPtr(a.w.?));
    return s.mapPairs(element, w, a.w2.? + begin, n, cols, cols, 1);
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
        if (link.product == null or !goes(tasks, link)) continue;
        var sum: u64 = 0;
        for (links[at..@min(at + wiring.most + wiring.states_most, links.len)]) |next| {
            if ((next.product == null and !next.state) or next.behind != null) break;
            const last = &tasks[next.first + next.count - 1];
            const out = last.operands[last.n_operands - 1];
            sum += std.mem.alignForward(u64, out.shape[1], wiring.line);
        }
        set = @max(set, sum);
    }
    return @intCast(set);
}
/// Whether chains have a kernel for the weights of a link's first product.
fn goes(tasks: []const Task, link: chain.Link) bool {
    for (tasks[link.first..][0..link.count]) |*t| {
        if (t.op == .linear) return rings.kernelOf(k.dtype(t, 1)) != null;
    }
    return false;
}
/// Bytes of both sets.
pub fn bytes(set: u32) u64 {
    return turn_bytes + 2 * 2 * @as(u64, set);
}
