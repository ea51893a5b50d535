//! A device: the kernels of one CPU level and a pool of threads.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const config = @import("config");
const handle = @import("handle.zig");
const info = @import("info.zig");
const status = @import("status.zig");
const threads = @import("threads.zig");
pub const cpu = @import("cpu/level.zig");

const CpuLevel = command.CpuLevel;

/// Levels in this build, by name.
const levels = table: {
    var table: [config.levels.len]struct { CpuLevel, *const cpu.Level } = undefined;
    for (config.levels, 0..) |name, i| {
        const symbol = @extern(*const cpu.Level, .{ .name = name ++ "_level" });
        table[i] = .{ @field(CpuLevel, name), symbol };
    }
    break :table table;
};

pub const Device = struct {
    pub const kind = handle.Kind.device;
    object: handle.Object = .{ .kind = .device, .destroy = destroy },
    level: CpuLevel,
    kernels: *const cpu.Level,
    pool: threads.Pool,

    pub fn open(o: command.DeviceOptions, message: *status.Message) ?*Device {
        if (o.kind != .cpu) {
            _ = message.fail(.unsupported, "This build of the library has no CUDA", .{});
            return null;
        }
        const best = info.cpuLevel();
        const wanted = if (o.level == .auto) best else o.level;
        if (@intFromEnum(wanted) > @intFromEnum(best)) {
            _ = message.fail(.unsupported, "Expected a CPU with level {s} but found {s}", .{
                @tagName(wanted), @tagName(best),
            });
            return null;
        }
        const n_threads = if (o.threads == 0) info.physicalCores() else o.threads;
        if (n_threads > threads.max_threads) {
            _ = message.fail(.range, "Expected at most {d} threads but found {d}", .{
                threads.max_threads, n_threads,
            });
            return null;
        }
        for (levels) |entry| {
            if (entry[0] != wanted) continue;
            const d = std.heap.c_allocator.create(Device) catch {
                _ = message.fail(.memory, "No memory is left", .{});
                return null;
            };
            d.* = .{ .level = wanted, .kernels = entry[1], .pool = .{ .n_threads = n_threads } };
            return d;
        }
        _ = message.fail(.unsupported, "This build of the library has no level {s}", .{@tagName(wanted)});
        return null;
    }

    fn destroy(object: *handle.Object) void {
        const d: *Device = @fieldParentPtr("object", object);
        d.pool.stop();
        std.heap.c_allocator.destroy(d);
    }
};
