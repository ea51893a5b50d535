//! Plans: commands that were checked and resolved once, with all the memory that a run needs. This
//! file makes them; `execute.zig` runs them on the CPU, `cuda/execute.zig` on a GPU.

const std = @import("std");
const command = @import("command");
const abi = @import("abi.zig");
const buffer = @import("buffer.zig");
const cuda = @import("cuda/execute.zig");
const device_file = @import("device.zig");
const exchange = @import("exchange.zig");
const execute = @import("execute.zig");
const file = @import("file.zig");
const handle = @import("handle.zig");
const kernel = @import("cpu/kernel.zig");
const region = @import("region.zig");
const status = @import("status.zig");
const validate = @import("validate.zig");
const Device = device_file.Device;
const Failure = status.Failure;
const Rejected = status.Rejected;
const Task = kernel.Task;
const allocator = std.heap.c_allocator;

/// What the operands of one job's runs lie in.
pub const Binding = struct {
    /// Distinguishes this job from all others, so that a plan knows whose addresses it holds.
    id: u64,
    /// The step buffer's arrays as the device sees them, and as the job's thread does.
    step: kernel.Step,
    host: kernel.Step,
    state: ?[*]u8,
    kv: ?[*]u8,
    output: ?[*]u8,
    /// Pages that the key/value buffer has.
    pages: u64,
};

/// What only one kind of device needs.
const Body = union(enum) {
    none,
    cpu: execute.Body,
    cuda: cuda.Body,

    fn free(b: *Body) void {
        switch (b.*) {
            .none => {},
            inline else => |*of| of.free(),
        }
    }
};

/// An operand whose address is known only when a run starts.
pub const Late = struct { task: u32, place: u32, space: command.Space, offset: u64 };

pub const Plan = struct {
    pub const kind = handle.Kind.plan;
    object: handle.Object = .{ .kind = kind, .destroy = destroy },
    device: *Device,
    header: command.PlanHeader,
    needs: validate.Needs = .{},
    tasks: []Task = &.{},
    late: std.ArrayList(Late) = .empty,
    /// Buffers and files of the weights, which live as long as the plan.
    users: std.ArrayList(*handle.Object) = .empty,
    step: kernel.Step = undefined,
    /// The run whose addresses the tasks hold; 0 where none has run.
    bound: u64 = 0,
    arena: region.Region = .none,
    body: Body = .none,

    /// Points the operands that change from job to job at their memory.
    pub fn bind(p: *Plan, binding: *const Binding) void {
        if (p.bound == binding.id) return;
        p.bound = binding.id;
        p.step = binding.step;
        for (p.late.items) |late| {
            p.tasks[late.task].data[late.place] = switch (late.space) {
                .arena, .weight => unreachable,
                .output => binding.output.? + late.offset,
                .state => binding.state.? + late.offset,
                .kv => binding.kv.? + late.offset,
                .step => stepArray(&p.step, late.offset),
            };
        }
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
        p.arena.free();
        p.body.free();
        allocator.free(p.tasks);
        p.device.object.release();
        allocator.destroy(p);
    }
};

fn stepArray(step: *const kernel.Step, field: u64) ?[*]u8 {
    inline for (@typeInfo(command.StepField).@"enum".fields) |f| {
        if (f.value == field) return @ptrCast(@field(step, f.name));
    }
    unreachable;
}

/// `bamba_plan_create`
pub fn create(of: u32, data: []const u8, out: []u8, f: *Failure) Rejected!void {
    try exchange.room(out, exchange.handle_and_size_bytes, f);
    const device = try handle.get(Device, of, f);
    defer device.object.release();
    // What was checked must not change any more.
    const bytes = allocator.dupe(u8, data) catch return f.memory(data.len);
    defer allocator.free(bytes);
    const resolver: validate.Resolver = .{
        .weightBytes = weightBytes,
        .device = device.deviceKind(),
    };
    const checked = try validate.plan(allocator, bytes, abi.hash, resolver, f);
    const plan = try make(device, checked, f);
    const held = plan.arena.len() + switch (plan.body) {
        .none => 0,
        .cpu => |b| b.work.len,
        .cuda => |b| b.work.len(),
    };
    return exchange.giveHandleAndSize(&plan.object, held, out, f);
}

fn weightBytes(_: ?*anyopaque, h: u32) ?u64 {
    var ignored: Failure = .{};
    const object = handle.getAny(h, &ignored) catch return null;
    defer object.release();
    return if (weightMemory(object)) |m| m.len else null;
}

/// Where a weight may lie. The addresses are those of the device that owns the buffer.
fn weightMemory(object: *handle.Object) ?[]const u8 {
    switch (object.kind) {
        .buffer => {
            const b: *buffer.Buffer = @alignCast(@fieldParentPtr("object", object));
            return b.memory.ptr()[0..b.bytes];
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
    plan.arena = try .make(device.gpu, plan.header.arena_bytes, true, "a plan's activations", f);
    for (plan.tasks, checked.commands, 0..) |*task, c, i|
        try resolve(plan, task, @intCast(i), c, checked.operands, f);
    plan.body = if (device.gpu) |gpu|
        .{ .cuda = try .make(plan, gpu, f) }
    else
        .{ .cpu = try .make(plan, f) };
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
            .arena => plan.arena.ptr() + operand.offset,
            .weight => try weight(plan, operand, f),
            .output, .state, .kv, .step => late: {
                plan.late.append(allocator, .{
                    .task = index,
                    .place = @intCast(place),
                    .space = operand.space,
                    .offset = operand.offset,
                }) catch return f.memory(@sizeOf(Late));
                // Any address: kernels ask about their needs now, and only whether it is given.
                break :late plan.arena.ptr();
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
        if (ownerOf(object) != plan.device.gpu) return f.set(
            .invalid,
            "Expected a weight on the plan's device but found {t} {d} on another",
            .{ object.kind, operand.buffer },
        );
        plan.users.ensureUnusedCapacity(allocator, 1) catch return f.memory(@sizeOf(usize));
    }
    const kept = std.mem.indexOfScalar(*handle.Object, plan.users.items, object) != null;
    if (kept) object.release() else plan.users.appendAssumeCapacity(object);
    return @constCast(weightMemory(object).?.ptr) + operand.offset;
}

/// The GPU in whose memory a weight lies; null for the host's.
fn ownerOf(object: *handle.Object) ?*@import("cuda/main.zig").Gpu {
    if (object.kind != .buffer) return null;
    const b: *buffer.Buffer = @alignCast(@fieldParentPtr("object", object));
    return b.memory.owner();
}
