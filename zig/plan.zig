//! Plans: a list of commands checked and resolved once, with all the memory a run needs.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const abi = @import("abi.zig");
const device_file = @import("device.zig");
const handle = @import("handle.zig");
const kernel = @import("cpu/kernel.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const threads = @import("threads.zig");
const Device = device_file.Device;
const Message = status.Message;
const Status = status.Status;
const Kernel = kernel.Kernel;
const Task = kernel.Task;
const allocator = std.heap.c_allocator;

pub const Plan = struct {
    pub const kind = handle.Kind.plan;
    object: handle.Object = .{ .kind = .plan, .destroy = destroy },
    device: *Device,
    header: command.PlanHeader,
    tasks: []Task,
    kernels: []*const Kernel,
    /// Weights' buffers and files, kept alive as long as the plan.
    users: std.ArrayList(*handle.Object) = .empty,
    step: kernel.Step = undefined,
    arena: []align(std.heap.page_size_min) u8,
    /// The shared workspace, then each thread's scratch.
    work: []align(std.heap.page_size_min) u8,
    scratch_offset: usize,
    scratch_bytes: usize,
    /// One for each phase of each command.
    counters: []std.atomic.Value(u32),

    pub fn bytes(p: *const Plan) u64 {
        return p.arena.len + p.work.len;
    }

    fn destroy(object: *handle.Object) void {
        const p: *Plan = @fieldParentPtr("object", object);
        for (p.users.items) |user| user.release();
        p.users.deinit(allocator);
        memory.unmap(p.arena);
        memory.unmap(p.work);
        allocator.free(p.counters);
        allocator.free(p.kernels);
        allocator.free(p.tasks);
        p.device.object.release();
        allocator.destroy(p);
    }
};

/// Reads a T at a byte offset that need not be aligned.
fn at(comptime T: type, data: []const u8, offset: usize) T {
    var value: T = undefined;
    @memcpy(std.mem.asBytes(&value), data[offset..][0..@sizeOf(T)]);
    return value;
}

fn alignUp(n: usize) usize {
    return std.mem.alignForward(usize, n, 64);
}

/// Makes a plan from its bytes. Null leaves a sentence in `message`.
pub fn create(device: *Device, data: []const u8, message: *Message) ?*Plan {
    const header = at(command.PlanHeader, data, 0);
    const plan = allocator.create(Plan) catch return outOfMemory(message);
    device.object.retain();
    plan.* = .{
        .device = device,
        .header = header,
        .tasks = &.{},
        .kernels = &.{},
        .arena = memory.map(0, false) orelse return outOfMemory(message),
        .work = memory.map(0, false) orelse return outOfMemory(message),
        .scratch_offset = 0,
        .scratch_bytes = 0,
        .counters = &.{},
    };
    if (build(plan, data, message) == .ok) return plan;
    plan.object.release();
    return null;
}

fn outOfMemory(message: *Message) ?*Plan {
    _ = message.fail(.memory, "No memory is left for a plan", .{});
    return null;
}

fn build(plan: *Plan, data: []const u8, message: *Message) Status {
    const header = plan.header;
    const device = plan.device;
    plan.tasks = allocator.alloc(Task, header.n_commands) catch return .memory;
    plan.kernels = allocator.alloc(*const Kernel, header.n_commands) catch return .memory;
    if (memory.check(header.arena_bytes, "a plan", message) != .ok) return .memory;
    memory.unmap(plan.arena);
    plan.arena = memory.map(header.arena_bytes, true) orelse
        return message.fail(.memory, "The system refused {d} bytes for a plan", .{header.arena_bytes});
    const commands_at = @sizeOf(command.PlanHeader) + header.n_operands * @sizeOf(command.Operand);
    var n_phases: usize = 0;
    var workspace: usize = 0;
    for (plan.tasks, plan.kernels, 0..) |*task, *k, i| {
        const c = at(command.Command, data, commands_at + i * @sizeOf(command.Command));
        k.* = &device.kernels.kernels[@intFromEnum(c.op)];
        const resolved = resolve(plan, task, c, data, message);
        if (resolved != .ok) return resolved;
        task.n_threads = device.pool.n_threads;
        n_phases += k.*.n_phases;
        if (k.*.workspace) |f| workspace = @max(workspace, f(task));
        if (k.*.scratch) |f| plan.scratch_bytes = @max(plan.scratch_bytes, f(task));
    }
    plan.scratch_offset = alignUp(workspace);
    plan.scratch_bytes = alignUp(plan.scratch_bytes);
    const work = plan.scratch_offset + plan.scratch_bytes * device.pool.n_threads;
    memory.unmap(plan.work);
    plan.work = memory.map(work, true) orelse
        return message.fail(.memory, "The system refused {d} bytes for a plan", .{work});
    plan.counters = allocator.alloc(std.atomic.Value(u32), n_phases) catch return .memory;
    for (plan.tasks) |*task| task.workspace = plan.work.ptr;
    return .ok;
}

fn resolve(plan: *Plan, task: *Task, c: command.Command, data: []const u8, message: *Message) Status {
    const header = plan.header;
    task.* = std.mem.zeroes(Task);
    task.op = c.op;
    task.n_operands = c.n_operands;
    task.attrs = c.attrs;
    task.step = &plan.step;
    task.slot_bytes = header.slot_bytes;
    task.page_bytes = header.page_bytes;
    task.capacity = .{ 1, header.max_tokens, header.max_seqs, header.max_logits };
    for (c.operands[0..c.n_operands], 0..) |index, i| {
        if (index == command.absent) continue;
        const place = @sizeOf(command.PlanHeader) + index * @sizeOf(command.Operand);
        const operand = at(command.Operand, data, place);
        task.operands[i] = operand;
        task.data[i] = switch (operand.space) {
            .arena => plan.arena.ptr + operand.offset,
            .weight => weight(plan, operand, message) orelse return .stale,
            // Bound when a run starts; until then any address that is not null.
            .output, .state, .kv, .step => @ptrFromInt(64),
        };
    }
    return .ok;
}

fn weight(plan: *Plan, operand: command.Operand, message: *Message) ?[*]u8 {
    if (handle.get(memory.Buffer, operand.buffer)) |buffer| {
        if (keep(plan, &buffer.object)) return buffer.pages.ptr + operand.offset;
    }
    if (handle.get(memory.File, operand.buffer)) |file| {
        if (keep(plan, &file.object)) return @constCast(file.pages.ptr) + operand.offset;
    }
    _ = message.fail(.stale, "Expected a buffer or file but found handle {d}", .{operand.buffer});
    return null;
}

/// Keeps an object as long as the plan; each only once.
fn keep(plan: *Plan, object: *handle.Object) bool {
    for (plan.users.items) |user| {
        if (user != object) continue;
        object.release();
        return true;
    }
    plan.users.append(allocator, object) catch {
        object.release();
        return false;
    };
    return true;
}

/// The buffers of a run.
pub const Bindings = struct { state: ?[*]u8, kv: ?[*]u8, output: ?[*]u8 };

/// Points every operand that depends on the run at its memory.
pub fn bind(plan: *Plan, bindings: Bindings, step: kernel.Step) void {
    plan.step = step;
    for (plan.tasks) |*task| {
        for (0..task.n_operands) |i| {
            if (task.data[i] == null) continue;
            const operand = task.operands[i];
            switch (operand.space) {
                .arena, .weight => {},
                .output => task.data[i] = bindings.output.? + operand.offset,
                .state => task.data[i] = bindings.state.? + operand.offset,
                .kv => task.data[i] = bindings.kv.? + operand.offset,
                .step => task.data[i] = stepArray(&plan.step, operand.offset),
            }
        }
    }
}

fn stepArray(step: *const kernel.Step, field: u64) ?[*]u8 {
    inline for (@typeInfo(command.StepField).@"enum".fields) |f| {
        if (f.value == field) return @ptrCast(@field(step, f.name));
    }
    return null;
}

/// Fills the arena with NaN, so that a value read before it is written shows.
pub fn poison(plan: *Plan) void {
    @memset(plan.arena, 0xff);
}

/// Executes the plan once on all threads of its device, whose turn the caller holds.
/// Stops between two phases once `cancel` is set. Answers whether it ran to its end.
pub fn run(plan: *Plan, cancel: *const std.atomic.Value(bool)) !bool {
    if (builtin.mode == .Debug) poison(plan);
    for (plan.counters) |*counter| counter.store(0, .monotonic);
    var r: Run = .{ .plan = plan, .cancel = cancel };
    try plan.device.pool.together(&r, Run.thread);
    return !r.stop;
}

const Run = struct {
    plan: *Plan,
    cancel: *const std.atomic.Value(bool),
    stop: bool = false,

    fn thread(context: *anyopaque, index: u32) void {
        const r: *Run = @ptrCast(@alignCast(context));
        const plan = r.plan;
        const pool = &plan.device.pool;
        const scratch = plan.work.ptr + plan.scratch_offset + index * plan.scratch_bytes;
        var counter: usize = 0;
        for (plan.tasks, plan.kernels) |*task, k| {
            for (0..k.n_phases) |phase| {
                share(task, k, @intCast(phase), &plan.counters[counter], pool.width(), scratch);
                counter += 1;
                pool.barrier.meet(r, decide);
                if (r.stop) return;
            }
        }
    }

    fn decide(r: *Run) void {
        r.stop = r.cancel.load(.monotonic);
    }
};

/// Takes units of one phase from the shared counter until none are left.
fn share(
    task: *const Task,
    k: *const Kernel,
    phase: u32,
    counter: *std.atomic.Value(u32),
    width: u32,
    scratch: [*]u8,
) void {
    const units = k.units(task, phase);
    const grain = @max(1, units / (width * 8));
    while (true) {
        const begin = counter.fetchAdd(grain, .monotonic);
        if (begin >= units) return;
        k.run(task, phase, begin, @min(units, begin + grain), scratch);
    }
}
