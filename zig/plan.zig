//! Plans: commands that were checked and resolved once, with all the memory that a run needs. This
//! file makes them; `execute.zig` runs them.

const std = @import("std");
const command = @import("command");
const abi = @import("abi.zig");
const buffer = @import("buffer.zig");
const device_file = @import("device.zig");
const exchange = @import("exchange.zig");
const file = @import("file.zig");
const handle = @import("handle.zig");
const kernel = @import("cpu/kernel.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const validate = @import("validate.zig");
const Device = device_file.Device;
const Failure = status.Failure;
const Kernel = kernel.Kernel;
const Rejected = status.Rejected;
const Task = kernel.Task;
const allocator = std.heap.c_allocator;
const cache_line = std.atomic.cache_line;

/// A counter of the units that threads have taken of one phase.
pub const Counter = struct { next: std.atomic.Value(u32) align(cache_line) = .init(0) };

/// An operand whose address is known only when a run starts.
pub const Late = struct { task: u32, place: u32, space: command.Space, offset: u64 };

pub const Plan = struct {
    pub const kind = handle.Kind.plan;
    object: handle.Object = .{ .kind = kind, .destroy = destroy },
    device: *Device,
    header: command.PlanHeader,
    needs: validate.Needs = .{},
    tasks: []Task = &.{},
    kernels: []*const Kernel = &.{},
    late: std.ArrayList(Late) = .empty,
    /// Buffers and files of the weights, which live as long as the plan.
    users: std.ArrayList(*handle.Object) = .empty,
    step: kernel.Step = undefined,
    /// The run whose addresses the tasks hold; 0 where none has run.
    bound: u64 = 0,
    arena: memory.Pages = memory.none,
    /// The shared workspace, then each thread's scratch.
    work: memory.Pages = memory.none,
    scratch_offset: usize = 0,
    scratch_bytes: usize = 0,
    /// One for each phase of each command.
    counters: []Counter = &.{},

    pub fn scratch(p: *const Plan, thread: u32) [*]u8 {
        return p.work.ptr + p.scratch_offset + thread * p.scratch_bytes;
    }

    /// Fails where a file whose weights are used in place became shorter.
    pub fn checkFiles(p: *const Plan, f: *Failure) Rejected!void {
        for (p.users.items) |user| {
            if (user.kind != .file) continue;
            const of: *file.File = @alignCast(@fieldParentPtr("object", user));
            try of.checkWhole(f);
        }
    }

    fn destroy(object: *handle.Object) void {
        const p: *Plan = @alignCast(@fieldParentPtr("object", object));
        for (p.users.items) |user| user.release();
        p.users.deinit(allocator);
        p.late.deinit(allocator);
        memory.unmap(p.arena);
        memory.unmap(p.work);
        allocator.free(p.counters);
        allocator.free(p.kernels);
        allocator.free(p.tasks);
        p.device.object.release();
        allocator.destroy(p);
    }
};

/// `bamba_plan_create`
pub fn create(of: u32, data: []const u8, out: []u8, f: *Failure) Rejected!void {
    try exchange.room(out, exchange.handle_and_size_bytes, f);
    const device = try handle.get(Device, of, f);
    defer device.object.release();
    // What was checked must not change any more.
    const bytes = allocator.dupe(u8, data) catch return f.memory(data.len);
    defer allocator.free(bytes);
    const resolver: validate.Resolver = .{ .weightBytes = weightBytes };
    const checked = try validate.plan(allocator, bytes, abi.hash, resolver, f);
    const plan = try make(device, checked, f);
    const held = plan.arena.len + plan.work.len;
    return exchange.giveHandleAndSize(&plan.object, held, out, f);
}

fn weightBytes(_: ?*anyopaque, h: u32) ?u64 {
    var ignored: Failure = .{};
    const object = handle.getAny(h, &ignored) catch return null;
    defer object.release();
    return if (weightMemory(object)) |m| m.len else null;
}

fn weightMemory(object: *handle.Object) ?[]const u8 {
    switch (object.kind) {
        .buffer => {
            const b: *buffer.Buffer = @alignCast(@fieldParentPtr("object", object));
            return b.pages[0..b.bytes];
        },
        .file => {
            const of: *file.File = @alignCast(@fieldParentPtr("object", object));
            return of.pages;
        },
        else => return null,
    }
}

fn make(device: *Device, checked: validate.Plan, f: *Failure) Rejected!*Plan {
    const plan = allocator.create(Plan) catch return f.memory(@sizeOf(Plan));
    device.object.retain();
    plan.* = .{ .device = device, .header = checked.header, .needs = checked.needs };
    errdefer plan.object.release();
    const n = checked.commands.len;
    plan.tasks = allocator.alloc(Task, n) catch return f.memory(n * @sizeOf(Task));
    plan.kernels = allocator.alloc(*const Kernel, n) catch return f.memory(8 * n);
    plan.arena = try memory.map(plan.header.arena_bytes, true, "a plan's activations", f);
    var n_phases: usize = 0;
    var workspace: usize = 0;
    for (plan.tasks, plan.kernels, checked.commands, 0..) |*task, *k, c, i| {
        k.* = &device.kernels.kernels[@intFromEnum(c.op)];
        try resolve(plan, task, @intCast(i), c, checked.operands, f);
        n_phases += k.*.n_phases;
        if (k.*.workspace) |of| workspace = @max(workspace, of(task));
        if (k.*.scratch) |of| plan.scratch_bytes = @max(plan.scratch_bytes, of(task));
    }
    // Whole cache lines, and one between threads, so that they share none.
    plan.scratch_offset = std.mem.alignForward(usize, workspace, cache_line);
    plan.scratch_bytes = std.mem.alignForward(usize, plan.scratch_bytes, cache_line) + cache_line;
    const work = plan.scratch_offset + plan.scratch_bytes * device.n_threads;
    plan.work = try memory.map(work, true, "a plan's workspace", f);
    plan.counters = allocator.alloc(Counter, n_phases) catch
        return f.memory(n_phases * @sizeOf(Counter));
    for (plan.tasks) |*task| task.workspace = plan.work.ptr;
    return plan;
}

fn resolve(
    plan: *Plan,
    task: *Task,
    index: u32,
    c: command.Command,
    operands: []align(1) const command.Operand,
    f: *Failure,
) Rejected!void {
    const header = plan.header;
    task.* = std.mem.zeroes(Task);
    task.op = c.op;
    task.n_operands = c.n_operands;
    task.attrs = c.attrs;
    task.step = &plan.step;
    task.slot_bytes = header.slot_bytes;
    task.page_bytes = header.page_bytes;
    task.n_threads = plan.device.n_threads;
    task.capacity = .{ 1, header.max_tokens, header.max_seqs, header.max_logits };
    for (c.operands[0..c.n_operands], 0..) |at, place| {
        if (at == command.absent) continue;
        const operand = operands[at];
        task.operands[place] = operand;
        task.data[place] = switch (operand.space) {
            .arena => plan.arena.ptr + operand.offset,
            .weight => try weight(plan, operand, f),
            .output, .state, .kv, .step => late: {
                plan.late.append(allocator, .{
                    .task = index,
                    .place = @intCast(place),
                    .space = operand.space,
                    .offset = operand.offset,
                }) catch return f.memory(@sizeOf(Late));
                // Any address: kernels ask about their needs now, and only whether it is given.
                break :late plan.arena.ptr;
            },
        };
    }
}

fn weight(plan: *Plan, operand: command.Operand, f: *Failure) Rejected![*]u8 {
    const object = try handle.getAny(operand.buffer, f);
    {
        errdefer object.release();
        if (weightMemory(object) == null)
            return f.set(.stale, "Expected a buffer or file but found {d}", .{operand.buffer});
        plan.users.ensureUnusedCapacity(allocator, 1) catch return f.memory(@sizeOf(usize));
    }
    const kept = std.mem.indexOfScalar(*handle.Object, plan.users.items, object) != null;
    if (kept) object.release() else plan.users.appendAssumeCapacity(object);
    return @constCast(weightMemory(object).?.ptr) + operand.offset;
}
