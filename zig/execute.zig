//! Runs of a plan on the CPU: all threads walk through its commands together. A phase's units are
//! taken from a counter, a barrier ends the phase, and there a cancelled run stops.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const kernel = @import("cpu/kernel.zig");
const memory = @import("memory.zig");
const plan_file = @import("plan.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
const Failure = status.Failure;
const Kernel = kernel.Kernel;
const Plan = plan_file.Plan;
const Rejected = status.Rejected;
const Task = kernel.Task;
const allocator = std.heap.c_allocator;
const cache_line = std.atomic.cache_line;

/// A thread takes this part of its share of what is left: large runs at first, which memory likes,
/// and single units at the end, so that no thread waits long for another.
const part_taken = 2;

/// Nanoseconds that runs have spent in each operation, by `command.Op`: with its barriers, as the
/// first thread sees it.
pub var op_ns: [n_ops]std.atomic.Value(u64) = @splat(.init(0));
const n_ops = @typeInfo(command.Op).@"enum".fields.len;

/// A counter of the units that threads have taken of one phase.
const Counter = struct { next: std.atomic.Value(u32) align(cache_line) = .init(0) };

/// What a plan has beside its tasks to run on the CPU.
pub const Body = struct {
    /// Of each task.
    kernels: []*const Kernel = &.{},
    /// The shared workspace, then each thread's scratch.
    work: memory.Pages = memory.none,
    scratch_offset: usize = 0,
    scratch_bytes: usize = 0,
    /// One for each phase of each command.
    counters: []Counter = &.{},

    pub fn make(plan: *Plan, f: *Failure) Rejected!Body {
        var b: Body = .{};
        errdefer b.free();
        const device = plan.device;
        const n = plan.tasks.len;
        b.kernels = allocator.alloc(*const Kernel, n) catch return f.memory(8 * n);
        var n_phases: usize = 0;
        var workspace: usize = 0;
        for (plan.tasks, b.kernels) |*task, *k| {
            k.* = &device.kernels.kernels[@intFromEnum(task.op)];
            n_phases += k.*.n_phases;
            if (k.*.workspace) |of| workspace = @max(workspace, of(task));
            if (k.*.scratch) |of| b.scratch_bytes = @max(b.scratch_bytes, of(task));
        }
        // Whole cache lines, and one between threads, so that they share none.
        b.scratch_offset = std.mem.alignForward(usize, workspace, cache_line);
        b.scratch_bytes = std.mem.alignForward(usize, b.scratch_bytes, cache_line) + cache_line;
        const work = b.scratch_offset + b.scratch_bytes * device.n_threads;
        b.work = try memory.map(work, true, "a plan's workspace", f);
        b.counters = allocator.alloc(Counter, n_phases) catch
            return f.memory(n_phases * @sizeOf(Counter));
        for (plan.tasks) |*task| task.workspace = b.work.ptr;
        return b;
    }

    pub fn free(b: *Body) void {
        memory.unmap(b.work);
        allocator.free(b.counters);
        allocator.free(b.kernels);
    }

    fn scratch(b: *const Body, thread: u32) [*]u8 {
        return b.work.ptr + b.scratch_offset + thread * b.scratch_bytes;
    }
};

/// Runs the plan once, bound to its memory. The caller holds the turn of its device. Answers
/// whether it came to its end: it stops after the phase during which `cancel` is set.
pub fn run(plan: *Plan, poison: bool, cancel: *const sync.Flag) bool {
    const body = &plan.body.cpu;
    // NaN: a value that is read before it is written shows.
    if (poison or builtin.mode == .Debug) @memset(plan.arena.host, 0xff);
    for (body.counters) |*counter| counter.next.store(0, .monotonic);
    var r: Run = .{ .plan = plan, .body = body, .cancel = cancel };
    plan.device.pool.together(&r, Run.thread);
    return !r.stop;
}

const Run = struct {
    plan: *Plan,
    body: *Body,
    cancel: *const sync.Flag,
    stop: bool = false,

    fn thread(r: *Run, index: u32) void {
        const body = r.body;
        const pool = &r.plan.device.pool;
        const scratch = body.scratch(index);
        const width = pool.width();
        var counter: usize = 0;
        var since = if (index == 0) sync.nowNs() else 0;
        for (r.plan.tasks, body.kernels) |*task, k| {
            for (0..k.n_phases) |phase| {
                const at = &body.counters[counter].next;
                counter += 1;
                share(task, k, @intCast(phase), at, width, scratch);
                pool.barrier.meet(r, decide);
                if (r.stop) return;
            }
            if (index != 0) continue;
            const now = sync.nowNs();
            _ = op_ns[@intFromEnum(task.op)].fetchAdd(now - since, .monotonic);
            since = now;
        }
    }

    fn decide(r: *Run) void {
        r.stop = r.cancel.load(.monotonic);
    }
};

/// Takes units of one phase until none are left.
fn share(
    task: *const Task,
    k: *const Kernel,
    phase: u32,
    counter: *std.atomic.Value(u32),
    width: u32,
    scratch: [*]u8,
) void {
    const units = k.units(task, phase);
    if (width == 1) {
        if (units > 0) k.run(task, phase, 0, units, scratch);
        return;
    }
    var begin = counter.load(.monotonic);
    while (begin < units) {
        const end = begin + @max(1, (units - begin) / (width * part_taken));
        if (counter.cmpxchgWeak(begin, end, .monotonic, .monotonic)) |other| {
            begin = other;
            continue;
        }
        k.run(task, phase, begin, end, scratch);
        begin = counter.load(.monotonic);
    }
}
