//! Jobs: native threads that run a plan many times, load weights or measure the machine, while
//! JavaScript goes on. Results wait in a ring; when it is full the job waits.

const std = @import("std");
const command = @import("command");
const decode = @import("decode.zig");
const device_file = @import("device.zig");
const exchange = @import("exchange.zig");
const handle = @import("handle.zig");
const measure = @import("measure.zig");
const ring = @import("ring.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
const weights = @import("weights.zig");
const Device = device_file.Device;
const Failure = status.Failure;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

const stack_bytes = 1 << 20;

/// What a job's thread sees of its job.
pub const Context = struct {
    id: u64,
    device: *Device,
    cancel: sync.Flag = .init(false),
    /// Bytes loaded or steps done.
    done: std.atomic.Value(u64) = .init(0),
    total: u64 = 0,
    /// When the job will have ended, by `sync.nowNs`; 0 where that is not known.
    expected: std.atomic.Value(u64) = .init(0),
    mutex: sync.Mutex = .{},
    changed: sync.Condition = .{},
    ring: ring.Ring = .{},

    pub fn cancelled(c: *const Context) bool {
        return c.cancel.load(.acquire);
    }

    /// Tells those who wait that something is new.
    pub fn tell(c: *Context) void {
        c.mutex.lock();
        defer c.mutex.unlock();
        c.changed.broadcast();
    }

    /// Puts one entry into the ring; waits while it is full. False once cancelled.
    pub fn push(c: *Context, values: []const i32) bool {
        c.mutex.lock();
        defer c.mutex.unlock();
        while (c.ring.full() and !c.cancelled()) c.changed.wait(&c.mutex);
        if (c.cancelled()) return false;
        c.ring.put(values);
        c.changed.broadcast();
        return true;
    }
};

const Work = union(command.JobKind) {
    run: decode.Decode,
    load: weights.Load,
    measure: void,
    profile: decode.Decode,

    fn release(w: *Work) void {
        switch (w.*) {
            .run, .profile => |*d| d.release(),
            .load => |*l| l.release(),
            .measure => {},
        }
    }
};

pub const Job = struct {
    pub const kind = handle.Kind.job;
    object: handle.Object = .{ .kind = kind, .destroy = destroy },
    context: Context,
    work: Work,
    thread: std.Thread = undefined,
    state: command.JobState = .running,
    /// Guarded by the context's mutex, as `state` and the ring are.
    failure: Failure = .{},

    fn run(j: *Job) void {
        const c = &j.context;
        var f: Failure = .{};
        const result = switch (j.work) {
            .run => |*d| d.run(c, &f),
            .load => |*l| l.run(c, &f),
            .measure => measure.run(c, &f),
            .profile => |*d| d.profile(c, &f),
        };
        c.mutex.lock();
        defer c.mutex.unlock();
        j.state = .done;
        result catch {
            j.state = if (f.status == .cancelled) .cancelled else .failed;
            j.failure = f;
        };
        c.changed.broadcast();
    }

    fn cancel(j: *Job) void {
        j.context.cancel.store(true, .release);
        j.context.tell();
        j.context.device.pool.turn.nudge();
    }

    /// Cancels the job and waits for its thread.
    pub fn stop(j: *Job) void {
        j.cancel();
        j.thread.join();
    }

    fn destroy(object: *handle.Object) void {
        const j: *Job = @alignCast(@fieldParentPtr("object", object));
        j.work.release();
        j.context.ring.free();
        j.context.device.object.release();
        allocator.destroy(j);
    }
};

var next_id: std.atomic.Value(u64) = .init(1);

/// `bamba_job_start`: checks everything, takes hold of all that is named, and starts the thread.
pub fn start(o_bytes: []const u8, data: []const u8, out: []u8, f: *Failure) Rejected!void {
    try exchange.room(out, exchange.handle_bytes, f);
    const o = try exchange.options(command.JobOptions, o_bytes, f);
    const j = try make(o, data, f);
    j.thread = std.Thread.spawn(.{ .stack_size = stack_bytes }, Job.run, .{j}) catch |reason| {
        j.object.release();
        return f.set(.memory, "Cannot start a thread for the job: {t}", .{reason});
    };
    // A use of our own: whoever has the handle may free it before this call returns.
    j.object.retain();
    defer j.object.release();
    errdefer j.stop();
    return exchange.giveHandle(&j.object, out, f);
}

fn make(o: command.JobOptions, data: []const u8, f: *Failure) Rejected!*Job {
    const device = try handle.get(Device, o.device, f);
    errdefer device.object.release();
    const j = allocator.create(Job) catch return f.memory(@sizeOf(Job));
    errdefer allocator.destroy(j);
    const id = next_id.fetchAdd(1, .monotonic);
    j.* = .{ .context = .{ .id = id, .device = device }, .work = undefined };
    j.context.changed.init();
    j.work = switch (o.kind) {
        .run => .{ .run = try decode.prepare(&j.context, o, data, f) },
        .load => .{ .load = try weights.prepare(&j.context, data, f) },
        .measure => .{ .measure = try measure.prepare(&j.context, data, f) },
        .profile => .{ .profile = try decode.prepare(&j.context, o, data, f) },
    };
    return j;
}

/// `bamba_job_wait`: reports, and hands out as many whole entries as fit. Waits up to `timeout_ms`
/// for some, or for the end.
pub fn wait(h: u32, timeout_ms: u32, out: []u8, f: *Failure) Rejected!void {
    const j = try handle.get(Job, h, f);
    defer j.object.release();
    const c = &j.context;
    const head = @sizeOf(command.JobReport);
    try exchange.room(out, head + c.ring.entryBytes(), f);
    const now = sync.nowNs();
    const near = nearEnd(now, c.expected.load(.monotonic));
    const deadline = now + @max(near, @as(u64, timeout_ms) * std.time.ns_per_ms);
    c.mutex.lock();
    defer c.mutex.unlock();
    while (c.ring.empty() and j.state == .running) {
        if (deadline == now or sync.nowNs() >= deadline) break;
        c.changed.waitUntil(&c.mutex, deadline);
    }
    const n_values = c.ring.take(out[head..]);
    if (n_values > 0) c.changed.broadcast();
    // A job that has ended well or badly goes on "running" until its last value is fetched.
    const ended = c.ring.empty() or j.state == .cancelled;
    const report: command.JobReport = .{
        .state = if (ended) j.state else .running,
        .status = if (ended) j.failure.status else .ok,
        .n_values = @intCast(n_values),
        .reserved = 0,
        .done = c.done.load(.monotonic),
        .total = c.total,
    };
    @memcpy(out[0..head], std.mem.asBytes(&report));
}

/// How long a look at a job waits that will end before a timer of 1 ms would bring the next look.
fn nearEnd(now: u64, expected: u64) u64 {
    const look_ns = 3 * std.time.ns_per_ms / 2; // a timer of 1 ms, and its delay
    if (expected == 0 or now + look_ns < expected or now > expected + 2 * look_ns) return 0;
    return expected -| now + look_ns / 2;
}

test "a look waits for an end that is near, for no longer than another look would take" {
    const ms = std.time.ns_per_ms;
    const expectEqual = std.testing.expectEqual;
    try expectEqual(0, nearEnd(100 * ms, 0));
    try expectEqual(0, nearEnd(100 * ms, 102 * ms));
    try expectEqual(ms + 3 * ms / 4, nearEnd(100 * ms, 101 * ms));
    try expectEqual(3 * ms / 4, nearEnd(100 * ms, 99 * ms));
    try expectEqual(0, nearEnd(100 * ms, 96 * ms));
}

/// `bamba_job_cancel`
pub fn cancel(h: u32, f: *Failure) Rejected!void {
    const j = try handle.get(Job, h, f);
    defer j.object.release();
    j.cancel();
}

/// `bamba_free`, of handles of every kind.
pub fn free(h: u32, f: *Failure) Rejected!void {
    const object = try handle.remove(h, f);
    defer object.release();
    if (object.kind != .job) return;
    const j: *Job = @alignCast(@fieldParentPtr("object", object));
    j.stop();
}

/// `bamba_error` of a job: the bytes of its sentence, 0 where it has not failed.
pub fn copyError(h: u32, out: []u8, f: *Failure) Rejected!i32 {
    const j = try handle.get(Job, h, f);
    defer j.object.release();
    j.context.mutex.lock();
    defer j.context.mutex.unlock();
    return status.copyText(&j.failure, out);
}
