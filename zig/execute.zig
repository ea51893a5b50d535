//! One run of a plan: all threads walk through its commands together. A phase's units are taken
//! from a counter, a barrier ends the phase, and there a cancelled run stops.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const kernel = @import("cpu/kernel.zig");
const plan_file = @import("plan.zig");
const sync = @import("sync.zig");
const Kernel = kernel.Kernel;
const Plan = plan_file.Plan;
const Task = kernel.Task;

/// A thread takes so many times from a phase, when all are equally fast.
const takes = 8;

/// What the operands of one job's runs lie in.
pub const Binding = struct {
    /// Distinguishes this job from all others, so that a plan knows whose addresses it holds.
    id: u64,
    step: kernel.Step,
    state: ?[*]u8,
    kv: ?[*]u8,
    output: ?[*]u8,
};

/// Runs the plan once. The caller holds the turn of its device. Answers whether it came to its end:
/// it stops after the phase during which `cancel` is set.
pub fn run(plan: *Plan, binding: *const Binding, poison: bool, cancel: *const sync.Flag) bool {
    bind(plan, binding);
    // NaN: a value that is read before it is written shows.
    if (poison or builtin.mode == .Debug) @memset(plan.arena, 0xff);
    for (plan.counters) |*counter| counter.next.store(0, .monotonic);
    var r: Run = .{ .plan = plan, .cancel = cancel };
    plan.device.pool.together(&r, Run.thread);
    return !r.stop;
}

/// Points the operands that change from job to job at their memory.
fn bind(plan: *Plan, binding: *const Binding) void {
    if (plan.bound == binding.id) return;
    plan.bound = binding.id;
    plan.step = binding.step;
    for (plan.late.items) |late| {
        plan.tasks[late.task].data[late.place] = switch (late.space) {
            .arena, .weight => unreachable,
            .output => binding.output.? + late.offset,
            .state => binding.state.? + late.offset,
            .kv => binding.kv.? + late.offset,
            .step => stepArray(&plan.step, late.offset),
        };
    }
}

fn stepArray(step: *const kernel.Step, field: u64) ?[*]u8 {
    inline for (@typeInfo(command.StepField).@"enum".fields) |f| {
        if (f.value == field) return @ptrCast(@field(step, f.name));
    }
    unreachable;
}

const Run = struct {
    plan: *Plan,
    cancel: *const sync.Flag,
    stop: bool = false,

    fn thread(r: *Run, index: u32) void {
        const plan = r.plan;
        const pool = &plan.device.pool;
        const scratch = plan.scratch(index);
        const width = pool.width();
        var counter: usize = 0;
        for (plan.tasks, plan.kernels) |*task, k| {
            for (0..k.n_phases) |phase| {
                const at = &plan.counters[counter].next;
                counter += 1;
                share(task, k, @intCast(phase), at, width, scratch);
                pool.barrier.meet(r, decide);
                if (r.stop) return;
            }
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
    const grain = @max(1, units / (width * takes));
    while (true) {
        // A counter may pass `units` by one grain for each thread, far from overflow: units are
        // below 2^32 / 16 in any plan that fits memory.
        const begin = counter.fetchAdd(grain, .monotonic);
        if (begin >= units) return;
        k.run(task, phase, begin, @min(units, begin + grain), scratch);
    }
}
