//! The job that measures this machine with a device's threads, or a GPU.

const std = @import("std");
const cpu = @import("cpu/measure.zig");
const cuda = @import("cuda/measure.zig");
const job = @import("job.zig");
const levels = @import("levels.zig");
const memory = @import("memory.zig");
const ring = @import("ring.zig");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

/// The seven rates, as i32.
const n_values = 14;

pub fn prepare(c: *job.Context, data: []const u8, f: *Failure) Rejected!void {
    if (data.len > 0)
        return f.set(.invalid, "Expected no data to measure with but found {d} bytes", .{data.len});
    c.total = 1;
    c.ring = try ring.Ring.make(n_values, 1, f);
}

pub fn run(c: *job.Context, f: *Failure) Rejected!void {
    if (c.device.gpu) |gpu| {
        const turn = &c.device.pool.turn;
        if (!turn.lock(&c.cancel)) return f.set(.cancelled, "Cancelled", .{});
        defer turn.unlock();
        return give(c, try cuda.measure(gpu, f), f);
    }
    const pages = try memory.map(cpu.memory_bytes, true, "a measurement", f);
    defer memory.unmap(pages);
    const shared = allocator.create(cpu.Shared) catch return f.memory(@sizeOf(cpu.Shared));
    defer allocator.destroy(shared);
    const device = c.device;
    if (!device.pool.turn.lock(&c.cancel)) return f.set(.cancelled, "Cancelled", .{});
    {
        defer device.pool.turn.unlock();
        @memset(pages, 1);
        shared.* = std.mem.zeroes(cpu.Shared);
        shared.memory = pages.ptr;
        shared.bytes = pages.len;
        device.pool.start();
        shared.n_threads = @min(device.pool.width(), cpu.max_threads);
        // Of the machine, also where the device was asked to do with less.
        const kernels = levels.find(levels.best()) orelse device.kernels;
        var m: Measurement = .{ .shared = shared, .part = kernels.measure };
        device.pool.together(&m, Measurement.thread);
    }
    return give(c, .{
        .read = shared.read_rate,
        .f32_fma = shared.fma_rate,
        .bf16_dot = shared.bf16_rate,
        .int8_fma = shared.int8_rate,
        .read_median = shared.read_median,
    }, f);
}

fn give(c: *job.Context, rates: cuda.Rates, f: *Failure) Rejected!void {
    c.done.store(1, .monotonic);
    const values: [n_values]i32 = @bitCast(rates);
    if (!c.push(&values)) return f.set(.cancelled, "Cancelled", .{});
}

const Measurement = struct {
    shared: *cpu.Shared,
    part: *const fn (*cpu.Shared, u32) callconv(.c) void,

    fn thread(m: *Measurement, index: u32) void {
        if (index < m.shared.n_threads) m.part(m.shared, index);
    }
};
