//! A device: the kernels of one CPU level and a pool of threads; a GPU's device has its GPU beside
//! them, for which the threads load weights.

const std = @import("std");
const command = @import("command");
const cuda = @import("cuda/main.zig");
const exchange = @import("exchange.zig");
const handle = @import("handle.zig");
const info = @import("info.zig");
const levels = @import("levels.zig");
const pin = @import("pin.zig");
const status = @import("status.zig");
const threads = @import("threads.zig");
const cpu = @import("cpu/level.zig");
const CpuLevel = command.CpuLevel;
const Failure = status.Failure;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

pub const Device = struct {
    pub const kind = handle.Kind.device;
    object: handle.Object = .{ .kind = kind, .destroy = destroy },
    level: CpuLevel,
    kernels: *const cpu.Level,
    /// What was asked for; the pool may have fewer.
    n_threads: u32,
    pool: threads.Pool,
    /// Where plans run and buffers lie, unless that is the host.
    gpu: ?*cuda.Gpu,

    pub fn deviceKind(d: *const Device) command.DeviceKind {
        return if (d.gpu == null) .cpu else .cuda;
    }

    fn destroy(object: *handle.Object) void {
        const d: *Device = @alignCast(@fieldParentPtr("object", object));
        d.pool.stop();
        allocator.destroy(d);
    }
};

/// `bamba_device_open`
pub fn open(data: []const u8, out: []u8, f: *Failure) Rejected!void {
    try exchange.room(out, exchange.handle_bytes, f);
    const o = try exchange.options(command.DeviceOptions, data, f);
    const gpu = if (o.kind == .cuda) try cuda.get(o.ordinal, f) else null;
    if (o.kind == .cpu and o.ordinal != 0)
        return f.set(.range, "Expected CPU 0, the only one, but found {d}", .{o.ordinal});
    const n_threads = if (o.threads == 0) info.physicalCores() else o.threads;
    if (n_threads > threads.max_threads) return f.set(
        .range,
        "Expected at most {d} threads but found {d}",
        .{ threads.max_threads, n_threads },
    );
    const level = try choose(o.level, f);
    if (!pin.pinned())
        return f.set(.unsupported, "Cannot keep the library in memory: dlopen refused", .{});
    const d = allocator.create(Device) catch return f.memory(@sizeOf(Device));
    d.* = .{
        .level = level[0],
        .kernels = level[1],
        .n_threads = n_threads,
        .pool = .{ .n_threads = n_threads },
        .gpu = gpu,
    };
    return exchange.giveHandle(&d.object, out, f);
}

fn choose(wanted: CpuLevel, f: *Failure) Rejected!struct { CpuLevel, *const cpu.Level } {
    const strongest = info.strongestLevel();
    if (@intFromEnum(wanted) > @intFromEnum(strongest)) return f.set(
        .unsupported,
        "Expected a CPU of level {t} but found one of level {t}",
        .{ wanted, strongest },
    );
    const name = if (wanted == .auto) levels.best() else wanted;
    if (levels.find(name)) |found| return .{ name, found };
    return f.set(
        .unsupported,
        "Expected kernels of level {t} but found none in this build",
        .{name},
    );
}
