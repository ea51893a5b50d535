//! The exports: each checks its own arguments' sizes and hands over. No logic lives here.

const std = @import("std");
const command = @import("command");
const abi = @import("abi.zig");
const device_file = @import("device.zig");
const handle = @import("handle.zig");
const info = @import("info.zig");
const job_file = @import("job.zig");
const memory = @import("memory.zig");
const plan_file = @import("plan.zig");
const pin = @import("pin.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
const Buf = command.Buf;
const Message = status.Message;
const Status = status.Status;

var last_mutex: sync.Mutex = .{};
var last: Message = .{};

/// Keeps the sentence of the library's last failed call.
fn answer(s: Status, message: *const Message) i32 {
    if (s != .ok) {
        last_mutex.lock();
        defer last_mutex.unlock();
        last = message.*;
    }
    return @intFromEnum(s);
}

fn refuse(s: Status, comptime format: []const u8, args: anytype) i32 {
    var message: Message = .{};
    return answer(message.fail(s, format, args), &message);
}

/// Reads a struct that begins with its size and the hash of the declarations.
fn options(comptime T: type, data: Buf, len: u32, message: *Message) ?T {
    if (len != @sizeOf(T)) {
        _ = message.fail(.version, "Expected {d} bytes of {s} but found {d}", .{ @sizeOf(T), @typeName(T), len });
        return null;
    }
    var value: T = undefined;
    @memcpy(std.mem.asBytes(&value), data[0..@sizeOf(T)]);
    if (value.struct_size != @sizeOf(T) or value.abi != abi.hash) {
        _ = message.fail(.version, "{s} is of another version", .{@typeName(T)});
        return null;
    }
    return value;
}

fn giveHandle(object: *handle.Object, out: Buf, message: *Message) i32 {
    const h = handle.add(object) orelse {
        object.release();
        return answer(message.fail(.memory, "No handles are left", .{}), message);
    };
    std.mem.writeInt(u32, out[0..4], h, .little);
    return 0;
}

export fn bamba_abi() u32 {
    return abi.hash;
}

export fn bamba_info(device: u32, out: Buf, len: u32) i32 {
    var message: Message = .{};
    if (len < @sizeOf(command.Info)) return refuse(.invalid, "Expected room for {d} bytes but found {d}", .{ @sizeOf(command.Info), len });
    var value = std.mem.zeroes(command.Info);
    value.struct_size = @sizeOf(command.Info);
    value.abi = abi.hash;
    value.cpu_level = info.cpuLevel();
    if (device != 0) {
        const d = handle.get(device_file.Device, device) orelse
            return answer(message.fail(.stale, "Expected a device but found handle {d}", .{device}), &message);
        defer d.object.release();
        value.cpu_level = d.level;
        value.threads = d.pool.n_threads;
    }
    value.physical_cores = info.physicalCores();
    value.logical_cores = info.logicalCores();
    value.features = info.features();
    value.optimize_debug = @intFromBool(@import("builtin").mode == .Debug);
    value.total_memory = memory.total();
    value.available_memory = memory.available();
    value.allocated = memory.allocated.load(.monotonic);
    value.mapped = memory.mapped.load(.monotonic);
    value.n_buffers = handle.count(.buffer);
    value.n_plans = handle.count(.plan);
    value.n_jobs = handle.count(.job);
    value.n_files = handle.count(.file);
    value.cuda_status = -9;
    info.cpuName(&value.cpu_name);
    @memcpy(out[0..@sizeOf(command.Info)], std.mem.asBytes(&value));
    return 0;
}

export fn bamba_device_open(data: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var message: Message = .{};
    if (out_len < 4) return refuse(.invalid, "Expected room for a handle but found {d} bytes", .{out_len});
    const o = options(command.DeviceOptions, data, len, &message) orelse return answer(.version, &message);
    if (!pin.pinned()) return refuse(.unsupported, "The library cannot be kept in memory", .{});
    const device = device_file.Device.open(o, &message) orelse return answer(.unsupported, &message);
    return giveHandle(&device.object, out, &message);
}

export fn bamba_buffer_create(data: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var message: Message = .{};
    if (out_len < 4) return refuse(.invalid, "Expected room for a handle but found {d} bytes", .{out_len});
    const o = options(command.BufferOptions, data, len, &message) orelse return answer(.version, &message);
    const buffer = memory.Buffer.create(o.bytes, o.flags & 1 != 0, &message) orelse return answer(.memory, &message);
    return giveHandle(&buffer.object, out, &message);
}

fn span(data: Buf, len: u32) ?command.Span {
    if (len != @sizeOf(command.Span)) return null;
    var value: command.Span = undefined;
    @memcpy(std.mem.asBytes(&value), data[0..@sizeOf(command.Span)]);
    return value;
}

fn inside(s: command.Span, bytes: u64, len: u32) bool {
    return s.bytes == len and s.offset <= bytes and s.bytes <= bytes - s.offset;
}

export fn bamba_buffer_read(h: u32, data: Buf, len: u32, out: Buf, out_len: u32) i32 {
    const s = span(data, len) orelse return refuse(.invalid, "Expected a span but found {d} bytes", .{len});
    if (handle.get(memory.Buffer, h)) |b| {
        defer b.object.release();
        if (!inside(s, b.bytes, out_len)) return refuse(.range, "Cannot read {d} bytes at {d} of a buffer of {d}", .{ s.bytes, s.offset, b.bytes });
        @memcpy(out[0..out_len], b.pages[s.offset..][0..out_len]);
        return 0;
    }
    if (handle.get(memory.File, h)) |f| {
        defer f.object.release();
        if (!inside(s, f.bytes, out_len)) return refuse(.range, "Cannot read {d} bytes at {d} of a file of {d}", .{ s.bytes, s.offset, f.bytes });
        @memcpy(out[0..out_len], f.pages[s.offset..][0..out_len]);
        return 0;
    }
    return refuse(.stale, "Expected a buffer or file but found handle {d}", .{h});
}

export fn bamba_buffer_write(h: u32, data: Buf, len: u32, from: Buf, from_len: u32) i32 {
    const s = span(data, len) orelse return refuse(.invalid, "Expected a span but found {d} bytes", .{len});
    const b = handle.get(memory.Buffer, h) orelse return refuse(.stale, "Expected a buffer but found handle {d}", .{h});
    defer b.object.release();
    if (!inside(s, b.bytes, from_len)) return refuse(.range, "Cannot write {d} bytes at {d} of a buffer of {d}", .{ s.bytes, s.offset, b.bytes });
    @memcpy(b.pages[s.offset..][0..from_len], from[0..from_len]);
    return 0;
}

export fn bamba_buffer_copy(src: u32, dst: u32, data: Buf, len: u32) i32 {
    const size = @sizeOf(command.CopySpan);
    if (len % size != 0) return refuse(.invalid, "Expected spans of {d} bytes but found {d}", .{ size, len });
    const a = handle.get(memory.Buffer, src) orelse return refuse(.stale, "Expected a buffer but found handle {d}", .{src});
    defer a.object.release();
    const b = handle.get(memory.Buffer, dst) orelse return refuse(.stale, "Expected a buffer but found handle {d}", .{dst});
    defer b.object.release();
    for (0..len / size) |i| {
        var c: command.CopySpan = undefined;
        @memcpy(std.mem.asBytes(&c), data[i * size ..][0..size]);
        const fits = c.src_offset <= a.bytes and c.bytes <= a.bytes - c.src_offset and
            c.dst_offset <= b.bytes and c.bytes <= b.bytes - c.dst_offset;
        if (!fits) return refuse(.range, "Cannot copy {d} bytes from {d} of {d} to {d} of {d}", .{ c.bytes, c.src_offset, a.bytes, c.dst_offset, b.bytes });
        const to = b.pages[c.dst_offset..][0..c.bytes];
        const from = a.pages[c.src_offset..][0..c.bytes];
        if (@intFromPtr(to.ptr) < @intFromPtr(from.ptr)) std.mem.copyForwards(u8, to, from) else std.mem.copyBackwards(u8, to, from);
    }
    return 0;
}

export fn bamba_file_open(path: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var message: Message = .{};
    if (out_len < 16) return refuse(.invalid, "Expected room for 16 bytes but found {d}", .{out_len});
    const file = memory.File.open(path[0..len], &message) orelse return answer(.io, &message);
    const bytes = file.bytes;
    const code = giveHandle(&file.object, out, &message);
    std.mem.writeInt(u64, out[8..16], bytes, .little);
    return code;
}

export fn bamba_plan_create(device: u32, data: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var message: Message = .{};
    if (out_len < 16) return refuse(.invalid, "Expected room for 16 bytes but found {d}", .{out_len});
    const d = handle.get(device_file.Device, device) orelse return refuse(.stale, "Expected a device but found handle {d}", .{device});
    defer d.object.release();
    const plan = plan_file.create(d, data[0..len], &message) orelse return answer(.invalid, &message);
    const bytes = plan.bytes();
    const code = giveHandle(&plan.object, out, &message);
    std.mem.writeInt(u64, out[8..16], bytes, .little);
    return code;
}

export fn bamba_job_start(data: Buf, len: u32, from: Buf, from_len: u32, out: Buf, out_len: u32) i32 {
    var message: Message = .{};
    if (out_len < 4) return refuse(.invalid, "Expected room for a handle but found {d} bytes", .{out_len});
    const o = options(command.JobOptions, data, len, &message) orelse return answer(.version, &message);
    const j = job_file.start(o, from[0..from_len], &message) orelse return answer(.invalid, &message);
    return giveHandle(&j.object, out, &message);
}

export fn bamba_job_wait(h: u32, timeout_ms: u32, out: Buf, out_len: u32) i32 {
    const j = handle.get(job_file.Job, h) orelse return refuse(.stale, "Expected a job but found handle {d}", .{h});
    defer j.object.release();
    const least = @sizeOf(command.JobReport) + 4 * j.entry;
    if (out_len < least) return refuse(.invalid, "Expected room for {d} bytes but found {d}", .{ least, out_len });
    job_file.wait(j, timeout_ms, out[0..out_len]);
    return 0;
}

export fn bamba_job_cancel(h: u32) i32 {
    const j = handle.get(job_file.Job, h) orelse return refuse(.stale, "Expected a job but found handle {d}", .{h});
    defer j.object.release();
    j.cancel.store(true, .monotonic);
    j.mutex.lock();
    defer j.mutex.unlock();
    j.changed.broadcast();
    return 0;
}

export fn bamba_free(h: u32) i32 {
    const object = handle.remove(h) orelse return refuse(.stale, "Expected something to free but found handle {d}", .{h});
    if (object.kind == .job) {
        const j: *job_file.Job = @fieldParentPtr("object", object);
        j.stop();
    }
    object.release();
    return 0;
}

export fn bamba_error(h: u32, out: Buf, len: u32) i32 {
    if (h != 0) {
        const j = handle.get(job_file.Job, h) orelse return refuse(.stale, "Expected a job but found handle {d}", .{h});
        defer j.object.release();
        j.mutex.lock();
        defer j.mutex.unlock();
        return copyText(j.message.slice(), out, len);
    }
    last_mutex.lock();
    defer last_mutex.unlock();
    return copyText(last.slice(), out, len);
}

fn copyText(text: []const u8, out: Buf, len: u32) i32 {
    const n = @min(text.len, len);
    @memcpy(out[0..n], text[0..n]);
    return @intCast(n);
}
