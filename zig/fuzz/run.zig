//! Runs a plan on one thread with its real kernels, on memory that ends where a page begins that
//! nobody may touch: a kernel which reads or writes beyond an accepted operand crashes here.

const std = @import("std");
const command = @import("command");
const kernel = @import("../cpu/kernel.zig");
const validate = @import("../validate.zig");
const Kernel = kernel.Kernel;
const Task = kernel.Task;
const page = std.heap.page_size_min;

const families = .{
    @import("../cpu/attention.zig").kernels,
    @import("../cpu/conv1d.zig").kernels,
    @import("../cpu/elementwise.zig").kernels,
    @import("../cpu/embedding.zig").kernels,
    @import("../cpu/linear.zig").kernels,
    @import("../cpu/loss.zig").kernels,
    @import("../cpu/norm.zig").kernels,
    @import("../cpu/rope.zig").kernels,
    @import("../cpu/sample.zig").kernels,
    @import("../cpu/ssm.zig").kernels,
};

fn kernelOf(op: command.Op) Kernel {
    switch (op) {
        inline else => |known| {
            inline for (families) |family| {
                if (@hasField(@TypeOf(family), @tagName(known)))
                    return @field(family, @tagName(known));
            }
        },
    }
    unreachable;
}

/// Memory before a page that may not be touched.
pub const Guarded = struct {
    all: []align(page) u8,

    pub const max = 1 << 20;

    pub fn init() !Guarded {
        const flags: std.posix.MAP = .{ .TYPE = .PRIVATE, .ANONYMOUS = true };
        const access: std.posix.PROT = .{ .READ = true, .WRITE = true };
        const all = try std.posix.mmap(null, max + page, access, flags, -1, 0);
        if (std.c.mprotect(all[max..].ptr, page, .{}) != 0) return error.Unexpected;
        return .{ .all = all };
    }
    pub fn deinit(g: Guarded) void {
        std.posix.munmap(g.all);
    }
    /// `bytes` bytes, of which the last ones lie before the forbidden page; 64-byte aligned. Null
    /// where they are too many.
    pub fn take(g: Guarded, bytes: u64) ?[*]u8 {
        if (bytes > max) return null;
        return g.all.ptr + max - std.mem.alignForward(usize, bytes, 64);
    }
    /// Mostly numbers as models have them, and some of any bits: infinities, NaN, denormals.
    pub fn fill(g: Guarded, random: std.Random) void {
        for (std.mem.bytesAsSlice(f32, g.all[0..max])) |*x| {
            x.* = random.float(f32) * 2 - 1;
            if (random.uintLessThan(u8, 64) == 0) x.* = @bitCast(random.int(u32));
        }
    }
};

/// Everything that runs need; made once, used for every plan.
pub const Machine = struct {
    arena: Guarded,
    output: Guarded,
    weights: Guarded,
    states: Guarded,
    pages: Guarded,
    workspace: Guarded,
    scratch: Guarded,

    pub fn init(random: std.Random) !Machine {
        var m: Machine = undefined;
        inline for (std.meta.fields(Machine)) |field| @field(m, field.name) = try .init();
        m.weights.fill(random);
        m.states.fill(random);
        m.pages.fill(random);
        return m;
    }
    pub fn deinit(m: Machine) void {
        inline for (std.meta.fields(Machine)) |field| @field(m, field.name).deinit();
    }

    /// Runs an accepted plan on an accepted step buffer once. False where it is too large.
    pub fn run(
        m: Machine,
        plan: validate.Plan,
        sizes: validate.Run,
        weight_bytes: u64,
        step_bytes: []align(64) u8,
    ) bool {
        const h = plan.header;
        const step = view(step_bytes);
        const arena = m.arena.take(h.arena_bytes) orelse return false;
        const output = m.output.take(h.output_bytes) orelse return false;
        const states = m.states.take(sizes.state_bytes.?) orelse return false;
        const pages = m.pages.take(sizes.kv_bytes.?) orelse return false;
        const weights = m.weights.take(weight_bytes).?;
        for (plan.commands) |c| {
            var t = taskOf(plan, c, &step);
            for (c.operands[0..c.n_operands], 0..) |index, i| {
                if (index == command.absent) continue;
                const o = plan.operands[index];
                t.data[i] = switch (o.space) {
                    .weight => weights + o.offset,
                    .arena => arena + o.offset,
                    .output => output + o.offset,
                    .state => states + o.offset,
                    .kv => pages + o.offset,
                    .step => stepArray(&step, o.offset),
                };
            }
            if (!m.execute(&t, kernelOf(c.op))) return false;
        }
        return true;
    }

    fn execute(m: Machine, t: *Task, k: Kernel) bool {
        const wanted = memoryOf(t, k);
        t.workspace = m.workspace.take(wanted[0]) orelse return false;
        const scratch = m.scratch.take(wanted[1]) orelse return false;
        for (0..k.n_phases) |i| {
            const phase: u32 = @intCast(i);
            const n = k.units(t, phase);
            var begin: u32 = 0;
            while (begin < n) : (begin += 3) k.run(t, phase, begin, @min(n, begin + 3), scratch);
        }
        return true;
    }
};

/// A command's task, but for its addresses.
fn taskOf(plan: validate.Plan, c: command.Command, step: *const kernel.Step) Task {
    const h = plan.header;
    var t = std.mem.zeroes(Task);
    t.op = c.op;
    t.n_operands = c.n_operands;
    t.attrs = c.attrs;
    t.step = step;
    t.slot_bytes = h.slot_bytes;
    t.page_bytes = h.page_bytes;
    t.n_threads = 2;
    t.capacity = .{ 1, h.max_tokens, h.max_seqs, h.max_logits };
    for (c.operands[0..c.n_operands], 0..) |index, i| {
        if (index != command.absent) t.operands[i] = plan.operands[index];
    }
    return t;
}

/// Bytes of workspace and scratch.
fn memoryOf(t: *const Task, k: Kernel) [2]usize {
    return .{ if (k.workspace) |f| f(t) else 0, if (k.scratch) |f| f(t) else 0 };
}

/// Asks every kernel of an accepted plan, however large, how much memory it wants.
pub fn askAll(plan: validate.Plan) usize {
    const step = std.mem.zeroes(kernel.Step);
    var most: usize = 0;
    for (plan.commands) |c| {
        var t = taskOf(plan, c, &step);
        for (t.operands[0..c.n_operands], 0..) |_, i| {
            if (c.operands[i] != command.absent) t.data[i] = @ptrFromInt(64);
        }
        for (memoryOf(&t, kernelOf(c.op))) |bytes| most = @max(most, bytes);
    }
    return most;
}

fn view(bytes: []align(64) u8) kernel.Step {
    const h: *const command.StepHeader = @ptrCast(bytes.ptr);
    var step = std.mem.zeroes(kernel.Step);
    inline for (comptime std.meta.fieldNames(command.StepHeader)) |name| {
        if (@hasField(kernel.Step, name)) @field(step, name) = @field(h, name);
    }
    inline for (comptime std.enums.values(command.StepField)) |field| {
        const offset = h.offsets[@intFromEnum(field)];
        if (offset != 0) @field(step, @tagName(field)) = @ptrCast(@alignCast(bytes.ptr + offset));
    }
    return step;
}

fn stepArray(step: *const kernel.Step, field: u64) ?[*]u8 {
    inline for (comptime std.enums.values(command.StepField)) |f| {
        if (@intFromEnum(f) == field) return @ptrCast(@field(step, @tagName(f)));
    }
    unreachable;
}
