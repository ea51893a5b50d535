//! Runs of a plan on the CPU: all threads walk through its commands together. `ranges.zig` deals
//! out a phase's units, a barrier ends most phases (`phases.zig`), and there a cancelled run stops.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const kernel = @import("cpu/kernel.zig");
const device_file = @import("device.zig");
const memory = @import("memory.zig");
const phases = @import("phases.zig");
const plan_file = @import("plan.zig");
const ranges = @import("ranges.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
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

/// What a plan has beside its tasks to run on the CPU.
pub const Body = struct {
    line: phases.Line = .{},
    /// The tasks of which each thread has its own, one thread's beside another's.
    own: []Task = &.{},
    /// The shared workspace, then what each thread has.
    work: memory.Pages = memory.none,
    room: Room = .{},
    /// Of each thread.
    rings: []ranges.Ring = &.{},

    pub fn make(plan: *Plan, f: *Failure) Rejected!Body {
        var b: Body = .{};
        errdefer b.free();
        const n_threads = plan.device.n_threads;
        b.line = phases.Line.make(allocator, plan.tasks, &plan.device.kernels.kernels) catch
            return f.memory(plan.tasks.len * @sizeOf(phases.Phase));
        b.room = .of(plan, b.line.own.items);
        const bytes = b.room.shared + b.room.all() * n_threads;
        b.work = try memory.map(bytes, true, "a plan's workspace", f);
        b.rings = allocator.alloc(ranges.Ring, n_threads) catch
            return f.memory(n_threads * @sizeOf(ranges.Ring));
        for (plan.tasks) |*task| task.workspace = b.work.ptr;
        const n = b.line.own.items.len * n_threads;
        b.own = allocator.alloc(Task, n) catch return f.memory(n * @sizeOf(Task));
        for (b.own, 0..) |*task, i|
            task.* = b.owned(plan.tasks, b.line.own.items[i / n_threads], i % n_threads);
        return b;
    }

    fn owned(b: *const Body, tasks: []const Task, own: phases.Own, thread: usize) Task {
        var task = tasks[own.task];
        const x = b.work.ptr + b.room.start(thread) + b.room.scratch;
        task.workspace = x + b.room.x;
        switch (own.part) {
            .leads => task.data[task.n_operands - 1] = x,
            .follows => task.data[0] = x,
            .rounds => {},
        }
        return task;
    }

    pub fn free(b: *Body) void {
        memory.unmap(b.work);
        allocator.free(b.rings);
        allocator.free(b.own);
        b.line.free(allocator);
    }

    fn do(b: *const Body, p: *const phases.Phase, range: ranges.Range, thread: u32) void {
        const task = if (p.own) |n| &b.own[n * b.rings.len + thread] else p.task;
        const scratch = b.work.ptr + b.room.start(thread);
        p.kernel.run(task, p.number, range.next, range.end, scratch);
    }
};

/// Bytes of the shared workspace, and of each thread's: scratch, a row of its own, and a workspace
/// for that. All are whole cache lines.
const Room = struct {
    shared: usize = 0,
    scratch: usize = 0,
    x: usize = 0,
    workspace: usize = 0,

    fn of(plan: *const Plan, own: []const phases.Own) Room {
        var r: Room = .{};
        for (plan.tasks) |*task| {
            const k = kernelOf(plan.device, task);
            if (k.workspace) |bytes| r.shared = @max(r.shared, lines(bytes(task)));
            if (k.scratch) |bytes| r.scratch = @max(r.scratch, lines(bytes(task)));
        }
        for (own) |o| {
            const task = &plan.tasks[o.task];
            const k = kernelOf(plan.device, task);
            if (o.part == .leads) r.x = @max(r.x, lines(task.cols(task.n_operands - 1) * 4));
            if (k.workspace) |bytes| r.workspace = @max(r.workspace, lines(bytes(task)));
        }
        return r;
    }
    fn lines(bytes: usize) usize {
        return std.mem.alignForward(usize, bytes, cache_line);
    }
    /// A thread's bytes, and one cache line between threads, so that they share none.
    fn all(r: Room) usize {
        return r.scratch + r.x + r.workspace + cache_line;
    }
    fn start(r: Room, thread: usize) usize {
        return r.shared + thread * r.all();
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

const Run = struct {
    plan: *Plan,
    body: *Body,
    cancel: *const sync.Flag,
    stop: bool = false,

    fn thread(r: *Run, index: u32) void {
        const barrier = &r.plan.device.pool.barrier;
        var since = if (index == 0) sync.nowNs() else 0;
        for (r.body.line.phases.items, 0..) |*p, n| {
            if (p.alone)
                r.body.do(p, .{ .next = 0, .end = units(p) }, index)
            else
                r.share(p, index);
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

    fn units(p: *const phases.Phase) u32 {
        return p.kernel.units(p.task, p.number);
    }

    /// Sets a thread's ranges of phase number n, which a barrier separates from the present one,
    /// and of what follows it before the next barrier.
    fn offer(r: *const Run, n: usize, index: u32) void {
        const width = r.plan.device.pool.width();
        for (r.body.line.phases.items[n..]) |*p| {
            if (!p.alone) r.body.rings[index].offer(p.turn, units(p), index, width);
            if (p.meets) return;
        }
    }

    /// Does units of a phase until none are left.
    fn share(r: *const Run, p: *const phases.Phase, index: u32) void {
        const b = r.body;
        const width = r.plan.device.pool.width();
        while (b.rings[index].take(p.turn)) |range| b.do(p, range, index);
        // With a unit for each at most, nobody has one to give away by the time he is asked.
        if (width == 1 or units(p) <= width) return;
        for (1..width) |i| {
            const other = &b.rings[(index + i) % width];
            while (other.steal(p.turn)) |range| b.do(p, range, index);
        }
    }

    fn decide(r: *Run) void {
        r.stop = r.cancel.load(.monotonic);
    }
};
