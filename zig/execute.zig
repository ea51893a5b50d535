//! Runs of a plan on the CPU: all threads walk through its commands together. `ranges.zig` deals
//! out a phase's units, a barrier ends the phase, and there a cancelled run stops. A product of the
//! x that the product before it had (a layer's gate and up) begins as soon as a thread finds no
//! more to do of that one: no barrier, and x is rounded or packed once.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const kernel = @import("cpu/kernel.zig");
const device_file = @import("device.zig");
const memory = @import("memory.zig");
const plan_file = @import("plan.zig");
const ranges = @import("ranges.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
const overlap = @import("validate/overlap.zig");
const Failure = status.Failure;
const Kernel = kernel.Kernel;
const Plan = plan_file.Plan;
const Rejected = status.Rejected;
const Task = kernel.Task;
const allocator = std.heap.c_allocator;
const cache_line = std.atomic.cache_line;

/// Nanoseconds that runs have spent in each operation, by `command.Op`: with its barriers, as the
/// first thread sees it.
pub var op_ns: [n_ops]std.atomic.Value(u64) = @splat(.init(0));
const n_ops = @typeInfo(command.Op).@"enum".fields.len;

/// One phase of one command, as threads walk through them.
const Phase = struct {
    task: *const Task,
    kernel: *const Kernel,
    number: u32,
    /// Whether threads meet behind it.
    meets: bool = true,
};

/// What a plan has beside its tasks to run on the CPU.
pub const Body = struct {
    phases: std.ArrayList(Phase) = .empty,
    /// The shared workspace, then each thread's scratch.
    work: memory.Pages = memory.none,
    scratch_offset: usize = 0,
    scratch_bytes: usize = 0,
    /// Of each thread.
    rings: []ranges.Ring = &.{},

    pub fn make(plan: *Plan, f: *Failure) Rejected!Body {
        var b: Body = .{};
        errdefer b.free();
        const device = plan.device;
        var workspace: usize = 0;
        for (plan.tasks) |*task| {
            const k = kernelOf(device, task);
            if (k.workspace) |of| workspace = @max(workspace, of(task));
            if (k.scratch) |of| b.scratch_bytes = @max(b.scratch_bytes, of(task));
        }
        try b.lineUp(plan, f);
        // Whole cache lines, and one between threads, so that they share none.
        b.scratch_offset = std.mem.alignForward(usize, workspace, cache_line);
        b.scratch_bytes = std.mem.alignForward(usize, b.scratch_bytes, cache_line) + cache_line;
        const work = b.scratch_offset + b.scratch_bytes * device.n_threads;
        b.work = try memory.map(work, true, "a plan's workspace", f);
        b.rings = allocator.alloc(ranges.Ring, device.n_threads) catch
            return f.memory(device.n_threads * @sizeOf(ranges.Ring));
        for (plan.tasks) |*task| task.workspace = b.work.ptr;
        return b;
    }

    fn lineUp(b: *Body, plan: *const Plan, f: *Failure) Rejected!void {
        var joined = false;
        for (plan.tasks, 0..) |*task, i| {
            const k = kernelOf(plan.device, task);
            // Two at most: a third one is not compared with the first.
            joined = i > 0 and !joined and mayJoin(k, &plan.tasks[i - 1], task);
            if (joined) b.phases.items[b.phases.items.len - 1].meets = false;
            for (if (joined) k.n_phases - 1 else 0..k.n_phases) |number| {
                b.phases.append(allocator, .{
                    .task = task,
                    .kernel = k,
                    .number = @intCast(number),
                }) catch return f.memory(@sizeOf(Phase));
            }
        }
    }

    pub fn free(b: *Body) void {
        memory.unmap(b.work);
        allocator.free(b.rings);
        b.phases.deinit(allocator);
    }

    fn do(b: *const Body, n: usize, range: ranges.Range, thread: u32) void {
        const p = &b.phases.items[n];
        const scratch = b.work.ptr + b.scratch_offset + thread * b.scratch_bytes;
        p.kernel.run(p.task, p.number, range.next, range.end, scratch);
    }
};

/// Runs the plan once, bound to its memory. The caller holds the turn of its device. Answers
/// whether it came to its end: it stops after the phase during which `cancel` is set.
pub fn run(plan: *Plan, poison: bool, cancel: *const sync.Flag) bool {
    const body = &plan.body.cpu;
    // NaN: a value that is read before it is written shows.
    if (poison or builtin.mode == .Debug) @memset(plan.arena.host, 0xff);
    var r: Run = .{ .plan = plan, .body = body, .cancel = cancel };
    const pool = &plan.device.pool;
    pool.start();
    for (0..pool.width()) |index| r.offer(0, @intCast(index));
    pool.together(&r, Run.thread);
    return !r.stop;
}

fn kernelOf(device: *const device_file.Device, task: *const Task) *const Kernel {
    return &device.kernels.kernels[@intFromEnum(task.op)];
}

/// Whether a command may begin while the one before it still runs.
fn mayJoin(k: *const Kernel, before: *const Task, task: *const Task) bool {
    const alike = k.alike orelse return false;
    if (before.op != task.op or !alike(before, task)) return false;
    return leaves(before, task) and leaves(task, before);
}

/// Whether the result of a command, its last operand, lies beside all that another one has.
fn leaves(task: *const Task, other: *const Task) bool {
    const out = task.operands[task.n_operands - 1];
    return for (0..other.n_operands) |i| {
        if (other.has(i) and overlap.relation(out, other.operands[i]) != .apart) break false;
    } else true;
}

const Run = struct {
    plan: *Plan,
    body: *Body,
    cancel: *const sync.Flag,
    stop: bool = false,

    fn thread(r: *Run, index: u32) void {
        const barrier = &r.plan.device.pool.barrier;
        var since = if (index == 0) sync.nowNs() else 0;
        for (r.body.phases.items, 0..) |*p, n| {
            r.share(n, index);
            if (p.meets) {
                r.offer(n + 1, index);
                barrier.meet(r, decide);
                if (r.stop) return;
            }
            if (index != 0 or p.number + 1 < p.kernel.n_phases) continue;
            const now = sync.nowNs();
            _ = op_ns[@intFromEnum(p.task.op)].fetchAdd(now - since, .monotonic);
            since = now;
        }
    }

    fn units(r: *const Run, n: usize) u32 {
        const p = &r.body.phases.items[n];
        return p.kernel.units(p.task, p.number);
    }

    /// Sets a thread's ranges of phase number n, which a barrier separates from the present one,
    /// and of what follows it before the next barrier.
    fn offer(r: *const Run, n: usize, index: u32) void {
        const width = r.plan.device.pool.width();
        for (r.body.phases.items[n..], n..) |*p, at| {
            r.body.rings[index].offer(at, r.units(at), index, width);
            if (p.meets) return;
        }
    }

    /// Does units of phase number n until none are left.
    fn share(r: *const Run, n: usize, index: u32) void {
        const b = r.body;
        const width = r.plan.device.pool.width();
        while (b.rings[index].take(n)) |range| b.do(n, range, index);
        // With a unit for each at most, nobody has one to give away by the time he is asked.
        if (width == 1 or r.units(n) <= width) return;
        for (1..width) |i| {
            const other = &b.rings[(index + i) % width];
            while (other.steal(n)) |range| b.do(n, range, index);
        }
    }

    fn decide(r: *Run) void {
        r.stop = r.cancel.load(.monotonic);
    }
};
