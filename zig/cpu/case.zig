//! For tests of the sequence kernels: a batch of sequences with past, slots and pages in any order,
//! a task over it, and an executor that poisons all memory a kernel must not rely on and takes the
//! units of a phase in the order asked for.

const std = @import("std");
const command = @import("command");
const kernel_zig = @import("kernel.zig");
const Kernel = kernel_zig.Kernel;
const Task = kernel_zig.Task;
const Operand = command.Operand;
const DType = command.DType;
const Rows = command.Rows;

/// Tokens already cached, new tokens, and the sequence's place in a pool of `slots`.
pub const Seq = struct { past: u32 = 0, tokens: u32, slot: u32 = 0 };
/// All units in one call; each by itself, the last first; or in runs of three.
pub const Order = enum { whole, backwards, threes };

pub const slots = 8;
pub const nan = std.math.nan(f32);

pub const Case = struct {
    gpa: std.mem.Allocator,
    step: *kernel_zig.Step,
    task: Task,
    order: Order = .whole,

    /// Every slot owns the pages slot, slot + slots, slot + 2 slots, ... of a pool.
    pub fn init(gpa: std.mem.Allocator, op: command.Op, seqs: []const Seq) !Case {
        const n = seqs.len;
        var max_pages: u32 = 1;
        for (seqs) |q| max_pages = @max(max_pages, pagesOf(q));
        const start = try gpa.alloc(u32, n + 1);
        const past = try gpa.alloc(u32, n);
        const slot = try gpa.alloc(u32, n);
        const pages = try gpa.alloc(u32, n * max_pages);
        start[0] = 0;
        for (seqs, 0..) |q, i| {
            start[i + 1] = start[i] + q.tokens;
            past[i] = q.past;
            slot[i] = q.slot;
            // Pages that a sequence does not have yet are named by a number that must not be used.
            for (0..max_pages) |p| pages[i * max_pages + p] =
                if (p < pagesOf(q)) pageId(q.slot, @intCast(p)) else 0x00ff_ffff;
        }
        const seq_of = try gpa.alloc(u32, start[n]);
        const positions = try gpa.alloc(i32, start[n]);
        for (seqs, 0..) |q, i| for (0..q.tokens) |k| {
            seq_of[start[i] + k] = @intCast(i);
            positions[start[i] + k] = @intCast(q.past + k);
        };
        const step = try gpa.create(kernel_zig.Step);
        step.* = std.mem.zeroes(kernel_zig.Step);
        step.n_tokens = start[n];
        step.n_seqs = @intCast(n);
        step.max_pages = max_pages;
        step.seq_start = start.ptr;
        step.past_len = past.ptr;
        step.slots = slot.ptr;
        step.pages = pages.ptr;
        step.seq_of_token = seq_of.ptr;
        step.positions = positions.ptr;
        var task = std.mem.zeroes(Task);
        task.op = op;
        task.step = step;
        task.n_threads = 2;
        // Capacities above what is in use.
        task.capacity = .{ 0, step.n_tokens + 5, step.n_seqs + 1, 1 };
        return .{ .gpa = gpa, .step = step, .task = task };
    }

    pub fn pagesOf(q: Seq) u32 {
        return (q.past + q.tokens + command.page_tokens - 1) / command.page_tokens;
    }
    pub fn pageId(slot: u32, page: u32) u32 {
        return slot + page * slots;
    }

    pub fn add(c: *Case, o: Operand, data: ?[*]u8) void {
        c.task.operands[c.task.n_operands] = o;
        c.task.data[c.task.n_operands] = data;
        c.task.n_operands += 1;
    }
    fn operand(space: command.Space, dtype: DType, rows: Rows, shape: [4]u32, stride: u32) Operand {
        var o = std.mem.zeroes(Operand);
        o.space = space;
        o.dtype = dtype;
        o.rows = rows;
        o.rank = 2;
        o.shape = shape;
        o.row_stride = stride;
        return o;
    }
    /// An activation (tokens, cols) with `stride` floats from row to row.
    pub fn tokens(c: *Case, data: [*]f32, cols: usize, stride: usize) void {
        const shape = .{ c.task.capacity[1], @as(u32, @intCast(cols)), 1, 1 };
        c.add(operand(.arena, .f32, .tokens, shape, @intCast(stride)), @ptrCast(data));
    }
    /// A f32 weight (rows, cols).
    pub fn weight(c: *Case, data: ?[]f32, rows: usize, cols: usize) void {
        const shape = .{ @as(u32, @intCast(rows)), @as(u32, @intCast(cols)), 1, 1 };
        const p: ?[*]u8 = if (data) |d| @ptrCast(d.ptr) else null;
        c.add(operand(.weight, .f32, .fixed, shape, @intCast(cols)), p);
    }
    /// A weight (rows, cols) in panels.
    pub fn panels(c: *Case, data: [*]u8, dtype: DType, rows: usize, cols: usize) void {
        const shape = .{ @as(u32, @intCast(rows)), @as(u32, @intCast(cols)), 1, 1 };
        var o = operand(.weight, dtype, .fixed, shape, @intCast(cols));
        o.layout = .panel;
        c.add(o, data);
    }
    /// A state whose slots lie `floats` apart.
    pub fn state(c: *Case, data: [*]f32, floats: usize) void {
        c.task.slot_bytes = floats * @sizeOf(f32);
        const shape = .{ @as(u32, @intCast(floats)), 1, 1, 1 };
        c.add(operand(.state, .f32, .fixed, shape, 1), @ptrCast(data));
    }
    /// Keys or values whose pages lie `page_bytes` apart.
    pub fn kv(c: *Case, data: [*]u8, dtype: DType, page_bytes: usize) void {
        c.task.page_bytes = page_bytes;
        c.add(operand(.kv, dtype, .fixed, .{ 1, 1, 1, 1 }, 1), data);
    }
    pub fn attr(c: *Case, i: usize, value: anytype) void {
        c.task.attrs[i] = switch (@typeInfo(@TypeOf(value))) {
            .float, .comptime_float => @bitCast(@as(f32, value)),
            else => @intCast(value),
        };
    }

    fn poisoned(c: *Case, bytes: usize) ![*]u8 {
        const m = try c.gpa.alignedAlloc(f32, .@"64", bytes / 4 + 16);
        @memset(m, nan);
        return @ptrCast(m.ptr);
    }
    pub fn execute(c: *Case, k: Kernel) !void {
        const t = &c.task;
        t.workspace = try c.poisoned(if (k.workspace) |f| f(t) else 0);
        const scratch = try c.poisoned(if (k.scratch) |f| f(t) else 0);
        for (0..k.n_phases) |i| {
            const phase: u32 = @intCast(i);
            const n = k.units(t, phase);
            switch (c.order) {
                .whole => k.run(t, phase, 0, n, scratch),
                .backwards => for (0..n) |u| {
                    const unit: u32 = @intCast(n - 1 - u);
                    k.run(t, phase, unit, unit + 1, scratch);
                },
                .threes => {
                    var u: u32 = 0;
                    while (u < n) : (u += 3) k.run(t, phase, u, @min(n, u + 3), scratch);
                },
            }
        }
    }
};

/// Numbers between -scale and scale.
pub fn fill(random: std.Random, data: []f32, scale: f32) void {
    for (data) |*x| x.* = (random.float(f32) * 2 - 1) * scale;
}

/// Largest difference, as a share of the largest wanted value; NaN anywhere is an infinite one.
pub fn worst(got: []const f32, want: []const f32) f32 {
    var difference: f32 = 0;
    var size: f32 = 1e-30;
    for (got, want) |g, w| {
        if (std.math.isNan(g) or std.math.isNan(w)) return std.math.inf(f32);
        difference = @max(difference, @abs(g - w));
        size = @max(size, @abs(w));
    }
    return difference / size;
}

pub fn expectSameBits(want: []const f32, got: []const f32) !void {
    for (want, got, 0..) |w, g, i| if (@as(u32, @bitCast(w)) != @as(u32, @bitCast(g))) {
        std.debug.print("element {}: {} is not {}\n", .{ i, g, w });
        return error.TestExpectedEqual;
    };
}
