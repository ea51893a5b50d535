//! Jobs: native threads that run a plan many times, load weights or measure the machine, while
//! JavaScript goes on. Results wait in a ring; when it is full the job waits.

const std = @import("std");
const command = @import("command");
const abi = @import("abi.zig");
const decode = @import("decode.zig");
const device_file = @import("device.zig");
const handle = @import("handle.zig");
const kernel = @import("cpu/kernel.zig");
const measure = @import("cpu/measure.zig");
const memory = @import("memory.zig");
const plan_file = @import("plan.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
const weights = @import("weights.zig");
const Device = device_file.Device;
const Message = status.Message;
const Plan = plan_file.Plan;
const Status = status.Status;
const allocator = std.heap.c_allocator;

pub const Job = struct {
    pub const kind = handle.Kind.job;
    object: handle.Object = .{ .kind = .job, .destroy = destroy },
    options: command.JobOptions,
    device: *Device,
    plan: ?*Plan = null,
    state: ?*memory.Buffer = null,
    kv: ?*memory.Buffer = null,
    output: ?*memory.Buffer = null,
    items: []weights.Item = &.{},
    /// The step buffer, or what else came with the job.
    data: []align(64) u8,

    thread: std.Thread = undefined,
    mutex: sync.Mutex = .{},
    changed: sync.Condition = .{},
    cancel: std.atomic.Value(bool) = .init(false),
    ended: command.JobState = .running,
    status: Status = .ok,
    message: Message = .{},
    done: std.atomic.Value(u64) = .init(0),
    total: u64 = 0,
    /// Values not fetched yet: a ring of `entry` values a step.
    ring: []i32 = &.{},
    entry: usize = 0,
    read: usize = 0,
    written: usize = 0,

    /// Stops the job and waits for its thread.
    pub fn stop(j: *Job) void {
        j.cancel.store(true, .monotonic);
        j.mutex.lock();
        j.changed.broadcast();
        j.mutex.unlock();
        j.thread.join();
    }

    fn destroy(object: *handle.Object) void {
        const j: *Job = @fieldParentPtr("object", object);
        j.letGo();
        allocator.destroy(j);
    }

    pub fn letGo(j: *Job) void {
        for (j.items) |item| item.release();
        allocator.free(j.items);
        allocator.free(j.ring);
        allocator.free(j.data);
        if (j.plan) |p| p.object.release();
        for ([_]?*memory.Buffer{ j.state, j.kv, j.output }) |b| if (b) |buffer| buffer.object.release();
        j.device.object.release();
    }

    /// Puts one step's values into the ring; waits while it is full. False once cancelled.
    pub fn push(j: *Job, values: []const i32) bool {
        j.mutex.lock();
        defer j.mutex.unlock();
        while (j.written - j.read == j.ring.len / j.entry and !j.cancel.load(.monotonic)) {
            j.changed.wait(&j.mutex);
        }
        if (j.cancel.load(.monotonic)) return false;
        const at = j.written % (j.ring.len / j.entry) * j.entry;
        @memcpy(j.ring[at..][0..j.entry], values[0..j.entry]);
        j.written += 1;
        j.changed.broadcast();
        return true;
    }

    fn main(j: *Job) void {
        const result = switch (j.options.kind) {
            .run => decode.run(j),
            .load => j.load(),
            .measure => j.measureMachine(),
        };
        j.mutex.lock();
        defer j.mutex.unlock();
        j.status = result;
        j.ended = switch (result) {
            .ok => .done,
            .cancelled => .cancelled,
            else => .failed,
        };
        j.changed.broadcast();
    }

    fn load(j: *Job) Status {
        var l: weights.Load = .{
            .device = j.device,
            .items = j.items,
            .cancel = &j.cancel,
            .done = &j.done,
        };
        l.run() catch return j.message.fail(.memory, "No thread could be started", .{});
        return if (j.cancel.load(.monotonic)) .cancelled else .ok;
    }

    fn measureMachine(j: *Job) Status {
        const pages = memory.map(measure.memory_bytes, true) orelse
            return j.message.fail(.memory, "No memory is left to measure with", .{});
        defer memory.unmap(pages);
        @memset(pages, 1);
        const shared = allocator.create(measure.Shared) catch
            return j.message.fail(.memory, "No memory is left", .{});
        defer allocator.destroy(shared);
        shared.* = std.mem.zeroes(measure.Shared);
        shared.memory = pages.ptr;
        shared.bytes = measure.memory_bytes;
        const pool = &j.device.pool;
        pool.turn.lock();
        defer pool.turn.unlock();
        shared.n_threads = pool.n_threads;
        var m: Measurement = .{ .shared = shared, .run = j.device.kernels.measure };
        pool.together(&m, Measurement.thread) catch
            return j.message.fail(.memory, "No thread could be started", .{});
        const rates = [4]f64{ shared.read_rate, shared.fma_rate, 0, 0 };
        const values: [8]i32 = @bitCast(rates);
        return if (j.push(&values)) .ok else .cancelled;
    }
};

const Measurement = struct {
    shared: *measure.Shared,
    run: *const fn (*measure.Shared, u32) callconv(.c) void,

    fn thread(context: *anyopaque, index: u32) void {
        const m: *Measurement = @ptrCast(@alignCast(context));
        m.run(m.shared, index);
    }
};

/// Checks the options, takes hold of all they name and starts the thread.
pub fn start(options: command.JobOptions, data: []const u8, message: *Message) ?*Job {
    const device = handle.get(Device, options.device) orelse {
        _ = message.fail(.stale, "Expected a device but found handle {d}", .{options.device});
        return null;
    };
    const copy = allocator.alignedAlloc(u8, .@"64", data.len) catch {
        device.object.release();
        _ = message.fail(.memory, "No memory is left for a job", .{});
        return null;
    };
    @memcpy(copy, data);
    const j = allocator.create(Job) catch {
        allocator.free(copy);
        device.object.release();
        _ = message.fail(.memory, "No memory is left for a job", .{});
        return null;
    };
    j.* = .{ .options = options, .device = device, .data = copy };
    const checked = switch (options.kind) {
        .run => decode.prepare(j, message),
        .load => prepareLoad(j, message),
        .measure => prepareRing(j, 8, 1, message),
    };
    if (checked == .ok) {
        j.object.retain(); // the thread's
        j.thread = std.Thread.spawn(.{ .stack_size = 1 << 20 }, begin, .{j}) catch {
            _ = message.fail(.memory, "No thread could be started", .{});
            j.object.release();
            j.object.release();
            return null;
        };
        return j;
    }
    j.object.release();
    return null;
}

fn begin(j: *Job) void {
    j.main();
    j.object.release();
}

fn prepareLoad(j: *Job, message: *Message) Status {
    const size = @sizeOf(command.LoadItem);
    if (j.data.len % size != 0) {
        return message.fail(.invalid, "Expected items of {d} bytes but found {d}", .{ size, j.data.len });
    }
    var items: std.ArrayList(weights.Item) = .empty;
    defer j.items = items.toOwnedSlice(allocator) catch &.{};
    for (0..j.data.len / size) |i| {
        var raw: command.LoadItem = undefined;
        @memcpy(std.mem.asBytes(&raw), j.data[i * size ..][0..size]);
        if (!validEnums(raw)) {
            return message.fail(.type, "Item {d} has an unknown dtype or layout", .{i});
        }
        const item = weights.check(j.device, raw, i, message) orelse return .range;
        items.append(allocator, item) catch {
            item.release();
            return message.fail(.memory, "No memory is left", .{});
        };
        j.total += raw.src_bytes;
    }
    return .ok;
}

fn validEnums(raw: command.LoadItem) bool {
    return @intFromEnum(raw.src_dtype) <= 3 and @intFromEnum(raw.dst_dtype) <= 3 and
        @intFromEnum(raw.layout) <= 1;
}

pub fn prepareRing(j: *Job, entry: usize, steps: usize, message: *Message) Status {
    j.entry = entry;
    j.ring = allocator.alloc(i32, entry * steps) catch
        return message.fail(.memory, "No memory is left for {d} steps", .{steps});
    return .ok;
}

/// Reports and hands out values; waits up to `timeout_ms` for something new.
pub fn wait(j: *Job, timeout_ms: u32, out: []u8) void {
    const head = @sizeOf(command.JobReport);
    j.mutex.lock();
    defer j.mutex.unlock();
    if (timeout_ms > 0 and j.written == j.read and j.ended == .running) {
        j.changed.waitMs(&j.mutex, timeout_ms);
    }
    var n_values: usize = 0;
    while (j.read < j.written and head + 4 * (n_values + j.entry) <= out.len) : (j.read += 1) {
        const from = j.read % (j.ring.len / j.entry) * j.entry;
        const bytes = std.mem.sliceAsBytes(j.ring[from..][0..j.entry]);
        @memcpy(out[head + 4 * n_values ..][0..bytes.len], bytes);
        n_values += j.entry;
    }
    if (n_values > 0) j.changed.broadcast();
    const drained = j.read == j.written;
    const report: command.JobReport = .{
        .state = if (drained or j.ended == .cancelled) j.ended else .running,
        .status = j.status,
        .n_values = @intCast(n_values),
        .reserved = 0,
        .done = j.done.load(.monotonic),
        .total = j.total,
    };
    @memcpy(out[0..head], std.mem.asBytes(&report));
}
