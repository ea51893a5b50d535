//! The attention kernel: which rows and pages go together in a unit.
//!
//! Contract: out = softmax(scale q K) V over positions 0 .. own position of the same sequence, K
//! and V read back from the pages; NH / KVH query heads share a key/value head. `attention_rows`
//! works in f32 whatever they are stored as, `attention_bf16` in pairs of bf16 where it may.
//! Softmax is online over blocks of keys; spans of 16 pages are gathered each by itself and merged
//! in order, so that a long context can be shared between threads with the same bits as in one go.
//! Work: 4 hd flops a query head and key; a decoded token reads 2 hd numbers a key and kv head.
//! Ideas: a unit is up to 48 or 96 rows (tokens times the query heads of one kv head) that share
//! every K and V they read; a decoded token's spans are units of their own, merged in a second
//! phase.

const std = @import("std");
const simd = @import("../simd.zig");
const kernel_zig = @import("../kernel.zig");
const pages = @import("pages.zig");
const rows_zig = @import("rows.zig");
const command = @import("command");
const Task = kernel_zig.Task;
const bf16 = @import("bf16.zig");
const q8_rows = @import("q8_rows.zig");
const Part = rows_zig.Part;

const span_tokens = pages.span_tokens;
/// Spans of all heads whose parts fit the workspace: beyond it a sequence is done in one go.
const spans_kept = 256;

/// Which file's rows take the pages.
const Kind = enum { floats, pairs, ints };

pub const Shape = struct {
    heads: usize,
    kv_heads: usize,
    hd: usize,
    /// Query heads a kv head
    group: usize,
    scale: f32,
    kind: Kind,

    pub fn of(t: *const Task) Shape {
        return .{
            .heads = t.attrs[0],
            .kv_heads = t.attrs[1],
            .hd = t.attrs[2],
            .group = t.attrs[0] / t.attrs[1],
            .scale = t.attrF(3),
            .kind = kindOf(t.operands[1].dtype, t.attrs[1], t.attrs[2]),
        };
    }
    fn kindOf(dtype: command.DType, kv_heads: usize, hd: usize) Kind {
        if (dtype == .q8_0) return .ints;
        return if (bf16.takes(dtype, kv_heads, hd)) .pairs else .floats;
    }
    /// The numbers of one kv head's row r (token r / group) of a sequence, in operand i.
    pub fn row(s: Shape, t: *const Task, i: usize, seq: usize, kv_head: usize, r: usize) [*]f32 {
        const token = t.step.seq_start.?[seq] + r / s.group;
        return t.row(i, token) + (kv_head * s.group + r % s.group) * s.hd;
    }
};

/// Rows that go together.
fn mostRows(s: Shape) usize {
    return switch (s.kind) {
        .floats => rows_zig.Rows.rows_max,
        .pairs => bf16.Rows.rows_max,
        .ints => q8_rows.Rows.rows_max,
    };
}

/// How one sequence is cut into units.
const Cut = struct {
    rows: usize,
    tiles: usize,
    spans: usize,
    /// Rows of parts in the workspace before this sequence's; null where spans are not shared out.
    parts: ?usize,

    fn of(t: *const Task, s: Shape, seq: usize, used: *usize) Cut {
        const tokens = pages.tokenCount(t, seq);
        const rows = tokens * s.group;
        const context = t.step.past_len.?[seq] + tokens;
        var c = Cut{
            .rows = rows,
            .tiles = (rows + mostRows(s) - 1) / mostRows(s),
            .spans = (context + span_tokens - 1) / span_tokens,
            .parts = null,
        };
        const wanted = c.spans * tokens * s.heads;
        if (c.tiles != 1 or c.spans < 2 or used.* + wanted > spans_kept * s.heads) return c;
        c.parts = used.*;
        used.* += wanted;
        return c;
    }
    fn units(c: Cut, s: Shape, phase: u32) usize {
        if (phase == 1) return if (c.parts != null) s.kv_heads else 0;
        return s.kv_heads * c.tiles * @as(usize, if (c.parts != null) c.spans else 1);
    }
    /// Row r of a span's part of one kv head, in the workspace.
    fn part(c: Cut, t: *const Task, s: Shape, kv_head: usize, span: usize, r: usize) Part {
        const floats: [*]f32 = @ptrCast(@alignCast(t.workspace.?));
        const index = c.parts.? + (span * s.kv_heads + kv_head) * c.rows + r;
        const p = floats + index * (s.hd + 2);
        return .{ .max = &p[0], .sum = &p[1], .values = p + 2 };
    }
};

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    const s = Shape.of(t);
    var used: usize = 0;
    var n: usize = 0;
    for (0..t.step.n_seqs) |seq| n += Cut.of(t, s, seq, &used).units(s, phase);
    return @intCast(n);
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    const s = Shape.of(t);
    const mem: [*]f32 = @ptrCast(@alignCast(scratch));
    switch (s.kind) {
        .floats => runUnits(rows_zig.Rows, t, s, phase, begin, end, mem),
        .pairs => if (simd.has_avx512bf16) runUnits(bf16.Rows, t, s, phase, begin, end, mem),
        .ints => runUnits(q8_rows.Rows, t, s, phase, begin, end, mem),
    }
}

fn runUnits(
    comptime Rows: type,
    t: *const Task,
    s: Shape,
    phase: u32,
    begin: u32,
    end: u32,
    mem: [*]f32,
) void {
    var used: usize = 0;
    var unit0: usize = 0;
    for (0..t.step.n_seqs) |seq| {
        const c = Cut.of(t, s, seq, &used);
        const n = c.units(s, phase);
        defer unit0 += n;
        if (unit0 >= end) return;
        for (@max(begin, unit0)..@max(begin, @min(end, unit0 + n))) |unit| {
            const i = unit - unit0;
            const kv_head = i % s.kv_heads;
            if (phase == 1) {
                mergeParts(Rows, t, s, c, seq, kv_head);
            } else if (c.parts != null) {
                gatherPart(Rows, t, s, c, seq, kv_head, i / s.kv_heads, mem);
            } else {
                // The last tile sees the most keys: it goes first, so that no thread ends with it.
                const tile = c.tiles - 1 - i / s.kv_heads;
                gatherAll(Rows, t, s, c, seq, kv_head, tile * Rows.rows_max, mem);
            }
        }
    }
}

/// A tile's scaled queries and positions.
fn load(
    comptime Rows: type,
    t: *const Task,
    s: Shape,
    seq: usize,
    kv_head: usize,
    r0: usize,
    n: usize,
    mem: [*]f32,
) Rows {
    const w = Rows.init(n, s.hd, mem);
    for (0..n) |r| {
        w.setQuery(r, s.row(t, 0, seq, kv_head, r0 + r), s.scale);
        w.position[r] = t.step.past_len.?[seq] + (r0 + r) / s.group;
    }
    return w;
}
/// Takes in the pages of one span as far as the rows see them.
fn gather(w: anytype, head: pages.Head, span: usize) void {
    w.clear();
    const end = @min((span + 1) * span_tokens, w.position[w.n - 1] + 1);
    var first = span * span_tokens;
    while (first < end) : (first += @TypeOf(w).block_tokens) w.add(head, first, end);
}
fn write(out: [*]f32, part: Part, hd: usize) void {
    const sum = simd.splat(part.sum.*);
    var d: usize = 0;
    while (d + simd.L <= hd) : (d += simd.L) simd.st(out + d, simd.ldF(part.values + d) / sum);
    while (d < hd) : (d += 1) out[d] = part.values[d] / part.sum.*;
}

/// Rows r0 .. r0 + 48, from the first page to their own positions.
fn gatherAll(
    comptime Rows: type,
    t: *const Task,
    s: Shape,
    c: Cut,
    seq: usize,
    kv_head: usize,
    r0: usize,
    mem: [*]f32,
) void {
    const w = load(Rows, t, s, seq, kv_head, r0, @min(Rows.rows_max, c.rows - r0), mem);
    const head = pages.Head{ .t = t, .seq = seq, .kv_head = kv_head, .hd = s.hd };
    const total = mem + Rows.floats(s.hd);
    const spans = w.position[w.n - 1] / span_tokens + 1;
    for (0..spans) |span| {
        gather(w, head, span);
        for (0..w.n) |r| {
            const p = total + r * (s.hd + 2);
            const sum = Part{ .max = &p[0], .sum = &p[1], .values = p + 2 };
            if (span == 0) copy(sum, w.part(r), s.hd) else Rows.merge(sum, w.part(r), s.hd);
            if (span + 1 == spans) write(s.row(t, 3, seq, kv_head, r0 + r), sum, s.hd);
        }
    }
}
fn copy(to: Part, from: Part, hd: usize) void {
    to.max.* = from.max.*;
    to.sum.* = from.sum.*;
    @memcpy(to.values[0..hd], from.values[0..hd]);
}

/// One span of the sequence's only tile, into the workspace.
fn gatherPart(
    comptime Rows: type,
    t: *const Task,
    s: Shape,
    c: Cut,
    seq: usize,
    kv_head: usize,
    span: usize,
    mem: [*]f32,
) void {
    const w = load(Rows, t, s, seq, kv_head, 0, c.rows, mem);
    gather(w, .{ .t = t, .seq = seq, .kv_head = kv_head, .hd = s.hd }, span);
    for (0..w.n) |r| copy(c.part(t, s, kv_head, span, r), w.part(r), s.hd);
}
/// The spans of one kv head's rows, in order.
fn mergeParts(
    comptime Rows: type,
    t: *const Task,
    s: Shape,
    c: Cut,
    seq: usize,
    kv_head: usize,
) void {
    for (0..c.rows) |r| {
        const sum = c.part(t, s, kv_head, 0, r);
        for (1..c.spans) |span| Rows.merge(sum, c.part(t, s, kv_head, span, r), s.hd);
        write(s.row(t, 3, seq, kv_head, r), sum, s.hd);
    }
}

fn workspace(t: *const Task) callconv(.c) usize {
    const s = Shape.of(t);
    return spans_kept * s.heads * (s.hd + 2) * @sizeOf(f32);
}
fn scratchBytes(t: *const Task) callconv(.c) usize {
    const s = Shape.of(t);
    const rows = switch (s.kind) {
        .floats => rows_zig.Rows.floats(s.hd),
        .pairs => bf16.Rows.floats(s.hd),
        .ints => q8_rows.Rows.floats(s.hd),
    };
    return (rows + mostRows(s) * (s.hd + 2)) * @sizeOf(f32);
}

pub const kernel = kernel_zig.Kernel{
    .n_phases = 2,
    .units = units,
    .run = run,
    .workspace = workspace,
    .scratch = scratchBytes,
};
