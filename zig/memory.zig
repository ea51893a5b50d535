//! Native memory: zeroed buffers and files mapped read-only, with an account of all of it.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const handle = @import("handle.zig");
const status = @import("status.zig");
const Message = status.Message;
const Status = status.Status;
const posix = std.posix;

/// Bytes held by buffers and plans, and bytes of mapped files.
pub var allocated: std.atomic.Value(u64) = .init(0);
pub var mapped: std.atomic.Value(u64) = .init(0);

const huge_page = 2 << 20;
const madv_dontneed = 4;
const madv_hugepage = 14;
extern "c" fn madvise(*anyopaque, usize, c_int) c_int;

/// Memory that the system could give now, in bytes: what is free, and caches it would drop, within
/// the limit of the control group.
pub fn available() u64 {
    const free = meminfo("MemAvailable:") orelse return std.math.maxInt(u64);
    const limit = readNumber("/sys/fs/cgroup/memory.max") orelse return free;
    const used = readNumber("/sys/fs/cgroup/memory.current") orelse return free;
    return @min(free, limit -| used);
}

pub fn total() u64 {
    return meminfo("MemTotal:") orelse 0;
}

fn meminfo(name: []const u8) ?u64 {
    var text: [4096]u8 = undefined;
    const content = readSmall("/proc/meminfo", &text) orelse return null;
    const at = std.mem.indexOf(u8, content, name) orelse return null;
    const rest = std.mem.trimStart(u8, content[at + name.len ..], " ");
    const end = std.mem.indexOfScalar(u8, rest, ' ') orelse return null;
    return (std.fmt.parseInt(u64, rest[0..end], 10) catch return null) * 1024;
}

fn readNumber(path: [*:0]const u8) ?u64 {
    var text: [64]u8 = undefined;
    const content = readSmall(path, &text) orelse return null;
    return std.fmt.parseInt(u64, std.mem.trim(u8, content, " \n"), 10) catch null;
}

/// The start of a small file.
pub fn readSmall(path: [*:0]const u8, into: []u8) ?[]const u8 {
    const fd = std.c.open(path, .{ .ACCMODE = .RDONLY, .CLOEXEC = true });
    if (fd < 0) return null;
    defer _ = std.c.close(fd);
    const n = std.c.read(fd, into.ptr, into.len);
    return if (n < 0) null else into[0..@intCast(n)];
}

/// Zeroed pages that cost memory only once they are touched. Null when the system refuses.
pub fn map(bytes: u64, huge: bool) ?[]align(std.heap.page_size_min) u8 {
    const length = std.mem.alignForward(u64, @max(bytes, 1), std.heap.page_size_min);
    const pages = posix.mmap(
        null,
        length,
        .{ .READ = true, .WRITE = true },
        .{ .TYPE = .PRIVATE, .ANONYMOUS = true, .NORESERVE = true },
        -1,
        0,
    ) catch return null;
    if (huge and length >= huge_page) _ = madvise(pages.ptr, length, madv_hugepage);
    _ = allocated.fetchAdd(length, .monotonic);
    return pages;
}

pub fn unmap(pages: []align(std.heap.page_size_min) u8) void {
    _ = allocated.fetchSub(pages.len, .monotonic);
    posix.munmap(pages);
}

/// Says that memory is too small before it is taken.
pub fn check(bytes: u64, what: []const u8, message: *Message) Status {
    const free = available();
    if (bytes <= free) return .ok;
    return message.fail(.memory, "Expected {d} MiB of free memory for {s} but found {d} MiB", .{
        bytes >> 20, what, free >> 20,
    });
}

pub const Buffer = struct {
    pub const kind = handle.Kind.buffer;
    object: handle.Object = .{ .kind = .buffer, .destroy = destroy },
    pages: []align(std.heap.page_size_min) u8,
    bytes: u64,

    pub fn create(bytes: u64, huge: bool, message: *Message) ?*Buffer {
        if (check(bytes, "a buffer", message) != .ok) return null;
        const pages = map(bytes, huge) orelse {
            _ = message.fail(.memory, "The system refused {d} bytes for a buffer", .{bytes});
            return null;
        };
        const b = std.heap.c_allocator.create(Buffer) catch {
            unmap(pages);
            _ = message.fail(.memory, "No memory is left", .{});
            return null;
        };
        b.* = .{ .pages = pages, .bytes = bytes };
        return b;
    }
    fn destroy(object: *handle.Object) void {
        const b: *Buffer = @fieldParentPtr("object", object);
        unmap(b.pages);
        std.heap.c_allocator.destroy(b);
    }
};

pub const File = struct {
    pub const kind = handle.Kind.file;
    object: handle.Object = .{ .kind = .file, .destroy = destroy },
    pages: []align(std.heap.page_size_min) const u8,
    bytes: u64,

    pub fn open(path: []const u8, message: *Message) ?*File {
        var name: [4096]u8 = undefined;
        if (path.len == 0 or path.len >= name.len or std.mem.indexOfScalar(u8, path, 0) != null) {
            _ = message.fail(.invalid, "Expected a path of 1 to 4095 bytes but found {d}", .{path.len});
            return null;
        }
        @memcpy(name[0..path.len], path);
        name[path.len] = 0;
        const fd = std.c.open(name[0..path.len :0], .{ .ACCMODE = .RDONLY, .CLOEXEC = true });
        if (fd < 0) {
            _ = message.fail(.io, "Cannot open {s}", .{path});
            return null;
        }
        defer _ = std.c.close(fd);
        const size = std.c.lseek(fd, 0, std.c.SEEK.END);
        if (size <= 0) {
            _ = message.fail(.io, "Cannot map {s}: it is empty or no file", .{path});
            return null;
        }
        const bytes: u64 = @intCast(size);
        const pages = posix.mmap(null, bytes, .{ .READ = true }, .{ .TYPE = .PRIVATE }, fd, 0) catch {
            _ = message.fail(.io, "Cannot map {s} of {d} bytes", .{ path, bytes });
            return null;
        };
        const f = std.heap.c_allocator.create(File) catch {
            posix.munmap(pages);
            _ = message.fail(.memory, "No memory is left", .{});
            return null;
        };
        f.* = .{ .pages = pages, .bytes = bytes };
        _ = mapped.fetchAdd(bytes, .monotonic);
        return f;
    }
    /// Gives pages back that were read and are not needed again; whole pages inside the span only.
    pub fn giveBack(f: *File, offset: u64, length: u64) void {
        const begin = std.mem.alignForward(u64, offset, std.heap.page_size_min);
        const end = std.mem.alignBackward(u64, offset + length, std.heap.page_size_min);
        if (end > begin) _ = madvise(@constCast(f.pages.ptr + begin), end - begin, madv_dontneed);
    }
    fn destroy(object: *handle.Object) void {
        const f: *File = @fieldParentPtr("object", object);
        _ = mapped.fetchSub(f.bytes, .monotonic);
        posix.munmap(f.pages);
        std.heap.c_allocator.destroy(f);
    }
};
