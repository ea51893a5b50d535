//! Buffers: zeroed memory that JavaScript names by a handle, reads, writes and copies.

const std = @import("std");
const command = @import("command");
const device = @import("device.zig");
const exchange = @import("exchange.zig");
const file = @import("file.zig");
const handle = @import("handle.zig");
const region = @import("region.zig");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

const huge_pages_flag = 1;

pub const Buffer = struct {
    pub const kind = handle.Kind.buffer;
    object: handle.Object = .{ .kind = kind, .destroy = destroy },
    memory: region.Region,
    bytes: u64,

    fn destroy(object: *handle.Object) void {
        const b: *Buffer = @alignCast(@fieldParentPtr("object", object));
        b.memory.free();
        allocator.destroy(b);
    }
};

/// `bamba_buffer_create`
pub fn create(data: []const u8, out: []u8, f: *Failure) Rejected!void {
    try exchange.room(out, exchange.handle_bytes, f);
    const o = try exchange.options(command.BufferOptions, data, f);
    const of = try handle.get(device.Device, o.device, f);
    defer of.object.release();
    if (o.bytes == 0) return f.set(.range, "Expected a buffer of at least 1 byte but found 0", .{});
    if (o.flags > huge_pages_flag)
        return f.set(
            .invalid,
            "Expected flags 0 or {d} but found {d}",
            .{ huge_pages_flag, o.flags },
        );
    const b = try make(of, o.bytes, o.flags & huge_pages_flag != 0, f);
    return exchange.giveHandle(&b.object, out, f);
}

fn make(of: *device.Device, bytes: u64, huge: bool, f: *Failure) Rejected!*Buffer {
    const b = allocator.create(Buffer) catch return f.memory(@sizeOf(Buffer));
    errdefer allocator.destroy(b);
    b.* = .{ .memory = try .make(of.gpu, bytes, huge, "a buffer", f), .bytes = bytes };
    return b;
}

/// `bamba_buffer_read`, of buffers and files.
pub fn read(h: u32, data: []const u8, out: []u8, f: *Failure) Rejected!void {
    const object = try handle.getAny(h, f);
    defer object.release();
    switch (object.kind) {
        .buffer => {
            const b: *Buffer = @alignCast(@fieldParentPtr("object", object));
            const s = try span(data, b.bytes, out.len, f);
            try b.memory.read(s.offset, out, f);
        },
        .file => {
            const from: *file.File = @alignCast(@fieldParentPtr("object", object));
            const s = try span(data, from.bytes, out.len, f);
            try from.read(s.offset, out, f);
        },
        else => |found| return f.set(
            .stale,
            "Expected a buffer or file but found handle {d}, which names a {t}",
            .{ h, found },
        ),
    }
}

/// `bamba_buffer_write`
pub fn write(h: u32, data: []const u8, from: []const u8, f: *Failure) Rejected!void {
    const b = try handle.get(Buffer, h, f);
    defer b.object.release();
    const s = try span(data, b.bytes, from.len, f);
    try b.memory.write(s.offset, from, f);
}

/// `bamba_buffer_copy`; all spans are checked before the first byte moves.
pub fn copy(src: u32, dst: u32, data: []const u8, f: *Failure) Rejected!void {
    const a = try handle.get(Buffer, src, f);
    defer a.object.release();
    const b = try handle.get(Buffer, dst, f);
    defer b.object.release();
    const n = try exchange.count(command.CopySpan, data, f);
    for (0..n) |i| {
        const c = try exchange.item(command.CopySpan, data, i, f);
        try inside(c.src_offset, c.bytes, a.bytes, f);
        try inside(c.dst_offset, c.bytes, b.bytes, f);
    }
    for (0..n) |i| {
        const c = try exchange.item(command.CopySpan, data, i, f);
        // The bytes may have changed since the check, if another thread writes them.
        try inside(c.src_offset, c.bytes, a.bytes, f);
        try inside(c.dst_offset, c.bytes, b.bytes, f);
        try b.memory.copy(c.dst_offset, a.memory, c.src_offset, c.bytes, f);
    }
}

fn span(data: []const u8, bytes: u64, given: usize, f: *Failure) Rejected!command.Span {
    if (data.len != @sizeOf(command.Span)) return f.set(
        .invalid,
        "Expected a span of {d} bytes but found {d}",
        .{ @sizeOf(command.Span), data.len },
    );
    const s = try exchange.item(command.Span, data, 0, f);
    if (s.bytes != given) return f.set(
        .invalid,
        "Expected {d} bytes of memory for a span of as many bytes but found {d}",
        .{ s.bytes, given },
    );
    try inside(s.offset, s.bytes, bytes, f);
    return s;
}

fn inside(offset: u64, length: u64, bytes: u64, f: *Failure) Rejected!void {
    if (offset <= bytes and length <= bytes - offset) return;
    return f.set(
        .range,
        "Expected {d} bytes from byte {d} on to lie within {d} bytes",
        .{ length, offset, bytes },
    );
}
