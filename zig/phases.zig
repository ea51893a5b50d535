//! A plan's commands as the phases that the threads of a CPU walk through, and where they meet.
//!
//! As a rule all threads share a phase's units and meet behind it. What a run of one row can do
//! without that:
//! - Products that follow each other and have the same x (a layer's gate and up; q, k and v) begin
//!   as soon as a thread finds no more to do of the one before. x is rounded or packed once.
//! - The norm or SwiGLU whose result only such products read, and its rounding, each thread does
//!   for itself (`alone`), into memory of its own: it needs all of x anyway, and where threads
//!   share no cache half of it would have to come from the others behind a barrier of its own.
//!   Two cores of a Zen 4 on different dies, the 1.2 B shape in q4_0, us: a norm and its rounding
//!   8.1 -> 4.3, a gated one 10.4 -> 7.7, SwiGLU 10.4 -> 9.9, a token 13.90 -> 13.76 ms.

const std = @import("std");
const command = @import("command");
const kernel = @import("cpu/kernel.zig");
const ops = @import("validate/ops.zig");
const overlap = @import("validate/overlap.zig");
const Kernel = kernel.Kernel;
const Op = command.Op;
const Operand = command.Operand;
const Task = kernel.Task;

/// Products that begin without meeting, at most: `ranges.Ring` holds the ranges of two groups.
const most = 3;
/// A thread prepares x for itself where its columns, times the other threads, are no more than
/// these. Each thread goes through some 1300 columns of a SwiGLU and its rounding in a microsecond,
/// and what it saves is two barriers and fetching what others made. (Measured with two threads.)
const alone_columns = 1 << 15;

/// One phase of one command.
pub const Phase = struct {
    task: *const Task,
    kernel: *const Kernel,
    number: u32,
    /// Whether threads meet behind it.
    meets: bool = true,
    /// Whether every thread does all of its units.
    alone: bool = false,
    /// Where it is alone or has products' x from such a phase: the number of its task among those
    /// of which each thread has its own.
    own: ?u32 = null,
    /// Its number among those whose units are shared.
    turn: u32 = 0,
};

/// A task of which each thread has its own, by its number in the plan: it leaves its result in the
/// thread's memory, it is a product of that, or one that only rounds its x there.
pub const Own = struct { task: u32, part: enum { leads, follows, rounds } };

/// Phases in order.
pub const Line = struct {
    phases: std.ArrayList(Phase) = .empty,
    /// Tasks of which each thread has its own, as numbers in the plan.
    own: std.ArrayList(Own) = .empty,

    pub fn free(l: *Line, gpa: std.mem.Allocator) void {
        l.phases.deinit(gpa);
        l.own.deinit(gpa);
    }

    pub fn make(
        gpa: std.mem.Allocator,
        tasks: []const Task,
        kernels: *const [n_ops]Kernel,
    ) error{OutOfMemory}!Line {
        var l: Line = .{};
        errdefer l.free(gpa);
        var at: usize = 0;
        while (at < tasks.len) {
            const group: Group = .of(tasks[at..], kernels);
            for (tasks[at..][0..group.len], at..) |*task, i|
                try l.add(gpa, group, task, @intCast(i), i - at, kernels);
            at += group.len;
        }
        var turn: u32 = 0;
        for (l.phases.items) |*p| {
            p.turn = turn;
            if (!p.alone) turn += 1;
        }
        return l;
    }

    fn add(
        l: *Line,
        gpa: std.mem.Allocator,
        group: Group,
        task: *const Task,
        number: u32,
        at: usize,
        kernels: *const [n_ops]Kernel,
    ) error{OutOfMemory}!void {
        const k = &kernels[@intFromEnum(task.op)];
        const leads = group.leads and at == 0;
        const first = at == @intFromBool(group.leads);
        const own: ?u32 = if (group.alone) @intCast(l.own.items.len) else null;
        if (group.alone) try l.own.append(gpa, .{
            .task = number,
            .part = if (leads) .leads else if (group.leads) .follows else .rounds,
        });
        for (if (leads or first) 0 else k.n_phases - 1..k.n_phases) |n| {
            const last = n + 1 == k.n_phases;
            try l.phases.append(gpa, .{
                .task = task,
                .kernel = k,
                .number = @intCast(n),
                .alone = group.alone and (leads or !last),
                .meets = if (last) at + 1 == group.len else !group.alone,
                .own = own,
            });
        }
    }
};
pub const n_ops = @typeInfo(Op).@"enum".fields.len;

/// Commands that begin without meeting.
const Group = struct {
    len: usize,
    /// Whether the first one makes the x of the others.
    leads: bool = false,
    /// Whether threads prepare x for themselves.
    alone: bool = false,

    fn of(tasks: []const Task, kernels: *const [n_ops]Kernel) Group {
        const lead = &tasks[0];
        if (mayLead(lead) and tasks.len > 1) {
            const n = products(tasks[1..], kernels, lead);
            const x = lead.n_operands - 1;
            if (n > 0 and alone(&tasks[1]) and ends(lead, x, tasks[1 + n ..]))
                return .{ .len = 1 + n, .leads = true, .alone = true };
        }
        const n = products(tasks, kernels, null);
        return .{ .len = @max(1, n), .alone = n > 0 and alone(lead) };
    }
};

/// Whether a command has one row that each thread could make for itself.
fn mayLead(t: *const Task) bool {
    const fit = t.op == .rms_norm or t.op == .rms_norm_gated or t.op == .swiglu;
    return fit and oneRow(t) and here(t);
}
/// Whether a product's x is a row that each thread rounds for itself.
fn alone(t: *const Task) bool {
    return oneRow(t) and here(t) and t.cols(0) * (t.n_threads -| 1) <= alone_columns;
}
fn oneRow(t: *const Task) bool {
    const out = t.operands[t.n_operands - 1];
    return t.capacity[@intFromEnum(out.rows)] == 1 and (out.rows != .fixed or out.shape[0] == 1);
}
/// Whether no address of it changes from job to job.
fn here(t: *const Task) bool {
    return for (t.operands[0..t.n_operands], 0..) |o, i| {
        if (t.has(i) and o.space != .arena and o.space != .weight) break false;
    } else true;
}

/// How many of these commands are products of the same x (the lead's result, if there is one) that
/// may begin while those before them, and the lead, still run.
fn products(tasks: []const Task, kernels: *const [n_ops]Kernel, lead: ?*const Task) usize {
    const first = &tasks[0];
    const alike = kernels[@intFromEnum(first.op)].alike orelse return 0;
    if (lead) |l| if (!takes(first, l)) return 0;
    const n = @min(most, tasks.len);
    return for (tasks[1..n], 1..) |*t, i| {
        if (t.op != first.op or !alike(first, t)) break i;
        if (lead) |l| if (!takes(t, l)) break i;
        const beside = for (tasks[0..i]) |*before| {
            if (!leaves(before, t) or !leaves(t, before)) break false;
        } else true;
        if (!beside) break i;
    } else n;
}

/// Whether a product has the lead's result as x, nowhere else, and leaves its inputs alone.
fn takes(t: *const Task, lead: *const Task) bool {
    const x = lead.operands[lead.n_operands - 1];
    if (overlap.relation(x, t.operands[0]) != .same) return false;
    for (1..t.n_operands) |i| {
        if (t.has(i) and overlap.relation(x, t.operands[i]) != .apart) return false;
    }
    return leaves(t, lead);
}

/// Whether the result of a command, its last operand, lies beside all that another one has.
fn leaves(task: *const Task, other: *const Task) bool {
    const out = task.operands[task.n_operands - 1];
    return for (0..other.n_operands) |i| {
        if (other.has(i) and overlap.relation(out, other.operands[i]) != .apart) break false;
    } else true;
}

/// Whether nobody reads operand i of a command in those that follow, before its memory is written
/// again.
fn ends(t: *const Task, i: usize, following: []const Task) bool {
    const value = t.operands[i];
    for (following) |*later| {
        const slots = ops.signatures.get(later.op);
        for (slots, 0..) |slot, at| {
            const reads = slot.role == .in or slot.role == .in_optional;
            if (reads and later.has(at) and overlap.relation(value, later.operands[at]) != .apart)
                return false;
        }
        for (slots, 0..) |slot, at| {
            const writes = slot.role == .out and later.has(at);
            if (writes and overlap.relation(value, later.operands[at]) != .apart) return true;
        }
    }
    return true;
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

/// Commands of one row, each operand a place of 64 columns in an arena.
const Rows = struct {
    tasks: [5]Task = undefined,
    n: usize = 0,
    row: command.Rows = .fixed,

    fn add(r: *Rows, op: Op, places: []const u64) void {
        const t = &r.tasks[r.n];
        r.n += 1;
        t.* = std.mem.zeroes(Task);
        t.op = op;
        t.n_operands = @intCast(places.len);
        t.n_threads = 2;
        t.capacity = .{ 1, 3, 1, 1 };
        for (places, 0..) |place, i| {
            if (place == absent) continue;
            t.data[i] = @ptrCast(&nothing);
            t.operands[i] = std.mem.zeroes(Operand);
            const o = &t.operands[i];
            o.space = if (place == weight) .weight else .arena;
            o.rows = r.row;
            o.rank = 2;
            o.shape = .{ 1, 64, 1, 1 };
            o.row_stride = 64;
            o.offset = place * 256;
        }
    }
    /// One letter a phase: what a thread does for itself is small, a point is where threads meet.
    fn line(r: *const Rows) ![]const u8 {
        var kernels: [n_ops]Kernel = undefined;
        for (&kernels, 0..) |*k, op| {
            k.* = std.mem.zeroInit(Kernel, .{ .n_phases = 1, .units = one, .run = none });
            if (op != @intFromEnum(Op.linear)) continue;
            k.n_phases = 2;
            k.alike = same;
        }
        var l: Line = try .make(testing.allocator, r.tasks[0..r.n], &kernels);
        defer l.free(testing.allocator);
        var out: std.ArrayList(u8) = .empty;
        defer out.deinit(testing.allocator);
        for (l.phases.items) |p| {
            const letter: u8 = if (p.kernel.n_phases == 1) 'n' else if (p.number == 0) 'r' else 'p';
            try out.append(testing.allocator, if (p.alone) letter else letter - 32);
            if (p.meets) try out.append(testing.allocator, '.');
        }
        return testing.allocator.dupe(u8, out.items);
    }
    fn expect(r: *const Rows, want: []const u8) !void {
        const got = try r.line();
        defer testing.allocator.free(got);
        try testing.expectEqualStrings(want, got);
    }

    const weight = 98;
    var nothing: u8 = 0;
    fn one(_: *const Task, _: u32) callconv(.c) u32 {
        return 1;
    }
    fn none(_: *const Task, _: u32, _: u32, _: u32, _: [*]u8) callconv(.c) void {}
    fn same(before: *const Task, t: *const Task) callconv(.c) bool {
        return before.operands[0].offset == t.operands[0].offset;
    }
    fn norm(r: *Rows, x: u64, out: u64) void {
        r.add(.rms_norm, &.{ x, weight, out });
    }
    fn product(r: *Rows, x: u64, residual: u64, out: u64) void {
        r.add(.linear, &.{ x, weight, absent, residual, out });
    }
};
const absent = 99;

test "one row's norm and rounding are each thread's own where nobody else needs the result" {
    var r: Rows = .{};
    r.norm(0, 1);
    r.product(1, absent, 2);
    r.product(1, absent, 3);
    r.add(.swiglu, &.{ 2, 3, 4 });
    r.product(4, 0, 0);
    try r.expect("nrPP.nrP.");
    // The last product lies upon what a late thread still multiplies.
    r.tasks[4].operands[4].offset = r.tasks[3].operands[0].offset;
    try r.expect("nrPP.N.rP.");
    // The norm's result is wanted once more.
    r.tasks[4].operands[4].offset = 9 * 256;
    r.tasks[3].operands[1].offset = 256;
    try r.expect("N.rPP.nrP.");
}

test "several rows share every phase, and one whose place changes from job to job" {
    var r: Rows = .{ .row = .tokens };
    r.norm(0, 1);
    r.product(1, absent, 2);
    r.product(1, absent, 3);
    try r.expect("N.R.PP.");
    var late: Rows = .{};
    late.norm(0, 1);
    late.product(1, absent, 2);
    try late.expect("nrP.");
    late.tasks[1].operands[4].space = .output;
    try late.expect("N.R.P.");
}

test "products that are not of the same x, or upon each other, meet" {
    var r: Rows = .{};
    r.product(1, absent, 2);
    r.product(1, absent, 3);
    r.product(1, absent, 4);
    r.product(1, absent, 5);
    try r.expect("rPPP.rP.");
    r.tasks[1].operands[0].offset = 7 * 256;
    try r.expect("rP.rP.rPP.");
    r.tasks[3].operands[3] = r.tasks[2].operands[4];
    r.tasks[3].data[3] = r.tasks[3].data[0];
    try r.expect("rP.rP.rP.rP.");
}
