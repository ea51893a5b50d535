//! Brings tensors from mapped files into buffers, converting and repacking on all threads, and gives
//! the files' pages back as it goes.

const std = @import("std");
const command = @import("command");
const device_file = @import("device.zig");
const handle = @import("handle.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const Device = device_file.Device;
const DType = command.DType;
const Message = status.Message;
const Status = status.Status;

/// Source bytes that one thread takes at a time; file pages go back after each such part.
const part_bytes: u64 = 4 << 20;

/// One checked item.
pub const Item = struct {
    file: *memory.File,
    buffer: *memory.Buffer,
    raw: command.LoadItem,

    pub fn release(item: Item) void {
        item.file.object.release();
        item.buffer.object.release();
    }
};

pub fn dtypeBytes(dtype: DType) u64 {
    return switch (dtype) {
        .f32, .i32 => 4,
        .bf16, .f16 => 2,
    };
}

/// Checks an item and holds on to its file and buffer.
pub fn check(device: *Device, raw: command.LoadItem, index: usize, message: *Message) ?Item {
    const file = handle.get(memory.File, raw.file) orelse {
        _ = message.fail(.stale, "Expected a file in item {d} but found handle {d}", .{ index, raw.file });
        return null;
    };
    const buffer = handle.get(memory.Buffer, raw.buffer) orelse {
        file.object.release();
        _ = message.fail(.stale, "Expected a buffer in item {d} but found handle {d}", .{ index, raw.buffer });
        return null;
    };
    const item: Item = .{ .file = file, .buffer = buffer, .raw = raw };
    if (checkSpans(device, item, index, message) == .ok) return item;
    item.release();
    return null;
}

fn checkSpans(device: *Device, item: Item, index: usize, message: *Message) Status {
    const raw = item.raw;
    if (raw.rows == 0 or raw.cols == 0) {
        return message.fail(.range, "Expected rows and columns in item {d} but found {d} x {d}", .{
            index, raw.rows, raw.cols,
        });
    }
    const from_i32 = raw.src_dtype == .i32 or raw.dst_dtype == .i32;
    if (from_i32 and (raw.src_dtype != raw.dst_dtype or raw.layout != .row_major)) {
        return message.fail(.type, "Cannot convert i32 in item {d}", .{index});
    }
    const n = @as(u64, raw.rows) * raw.cols;
    const src = std.math.mul(u64, n, dtypeBytes(raw.src_dtype)) catch std.math.maxInt(u64);
    if (raw.src_bytes != src) {
        return message.fail(.range, "Expected {d} bytes for item {d} but found {d}", .{
            src, index, raw.src_bytes,
        });
    }
    const dst: u64 = if (n > 1 << 48) std.math.maxInt(u64) else switch (raw.layout) {
        .row_major => n * dtypeBytes(raw.dst_dtype),
        .panel => device.kernels.panel_bytes(raw.dst_dtype, raw.rows, raw.cols),
    };
    if (raw.src_offset > item.file.bytes or src > item.file.bytes - raw.src_offset) {
        return message.fail(.range, "Item {d} ends after the {d} bytes of its file", .{
            index, item.file.bytes,
        });
    }
    if (raw.dst_offset > item.buffer.bytes or dst > item.buffer.bytes - raw.dst_offset) {
        return message.fail(.range, "Item {d} ends after the {d} bytes of its buffer", .{
            index, item.buffer.bytes,
        });
    }
    if (raw.dst_offset % 64 != 0) {
        return message.fail(.invalid, "Expected an offset at a multiple of 64 in item {d} but found {d}", .{
            index, raw.dst_offset,
        });
    }
    return .ok;
}

/// What the threads of one load share.
pub const Load = struct {
    device: *Device,
    items: []const Item,
    cancel: *const std.atomic.Value(bool),
    done: *std.atomic.Value(u64),
    next: std.atomic.Value(u64) = .init(0),

    pub fn run(l: *Load) !void {
        l.device.pool.turn.lock();
        defer l.device.pool.turn.unlock();
        try l.device.pool.together(l, thread);
    }

    /// Takes part after part, counted over all items.
    fn thread(context: *anyopaque, _: u32) void {
        const l: *Load = @ptrCast(@alignCast(context));
        while (!l.cancel.load(.monotonic)) {
            var part = l.next.fetchAdd(1, .monotonic);
            for (l.items) |item| {
                const n = parts(item.raw);
                if (part < n) {
                    l.one(item, part, n);
                    break;
                }
                part -= n;
            } else return;
        }
    }

    fn one(l: *Load, item: Item, part: u64, n: u64) void {
        const raw = item.raw;
        const src = item.file.pages.ptr + raw.src_offset;
        const dst = item.buffer.pages.ptr + raw.dst_offset;
        const from = dtypeBytes(raw.src_dtype);
        // Rows (of 16 where they become panels) that this part covers.
        const grain: u64 = if (raw.layout == .panel) command.panel else 1;
        const groups = (raw.rows + grain - 1) / grain;
        const begin = groups * part / n;
        const end = groups * (part + 1) / n;
        const first = begin * grain * raw.cols;
        const last = @min(end * grain, raw.rows) * raw.cols;
        if (raw.layout == .panel) {
            l.device.kernels.pack(&.{
                .dst = dst,
                .src = src,
                .dst_dtype = raw.dst_dtype,
                .src_dtype = raw.src_dtype,
                .rows = raw.rows,
                .cols = raw.cols,
            }, @intCast(begin), @intCast(end));
        } else {
            const to = dst + first * dtypeBytes(raw.dst_dtype);
            l.device.kernels.convert(to, raw.dst_dtype, src + first * from, raw.src_dtype, last - first);
        }
        item.file.giveBack(raw.src_offset + first * from, (last - first) * from);
        _ = l.done.fetchAdd((last - first) * from, .monotonic);
    }
};

fn parts(raw: command.LoadItem) u64 {
    return @min(@max(1, raw.src_bytes / part_bytes), raw.rows / command.panel + 1);
}
