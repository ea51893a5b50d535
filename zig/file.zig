//! Files, mapped read-only so that weights can be used where they lie. What is read once is read by
//! `pread`, which answers where a mapping would crash on a file that became shorter.

const std = @import("std");
const exchange = @import("exchange.zig");
const handle = @import("handle.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;
const c = std.c;

pub const File = struct {
    pub const kind = handle.Kind.file;
    object: handle.Object = .{ .kind = kind, .destroy = destroy },
    fd: c.fd_t,
    pages: []align(std.heap.page_size_min) const u8,
    bytes: u64,

    /// Reads exactly `out.len` bytes, which the caller knows to lie within `bytes`.
    pub fn read(file: *const File, offset: u64, out: []u8, f: *Failure) Rejected!void {
        var n: usize = 0;
        while (n < out.len) {
            const got = c.pread(file.fd, out.ptr + n, out.len - n, @intCast(offset + n));
            if (got < 0) switch (c.errno(got)) {
                .INTR => continue,
                else => |reason| return f.set(
                    .io,
                    "Cannot read {d} bytes from byte {d} on of a file: {t}",
                    .{ out.len, offset, reason },
                ),
            };
            if (got == 0) return f.set(
                .io,
                "Expected a file to keep its {d} bytes but found only {d}: it was cut while in use",
                .{ file.bytes, offset + n },
            );
            n += @intCast(got);
        }
    }

    /// Checks that the file did not become shorter: its mapping must not be touched then.
    pub fn checkWhole(file: *const File, f: *Failure) Rejected!void {
        const now = c.lseek(file.fd, 0, c.SEEK.END);
        if (now >= file.bytes) return;
        return f.set(
            .io,
            "Expected a file to keep its {d} bytes but found only {d}: it was cut while in use",
            .{ file.bytes, @max(now, 0) },
        );
    }

    fn destroy(object: *handle.Object) void {
        const file: *File = @alignCast(@fieldParentPtr("object", object));
        _ = memory.mapped.fetchSub(file.bytes, .monotonic);
        std.posix.munmap(file.pages);
        _ = c.close(file.fd);
        allocator.destroy(file);
    }
};

/// `bamba_file_open`
pub fn open(path: []const u8, out: []u8, f: *Failure) Rejected!void {
    try exchange.room(out, exchange.handle_and_size_bytes, f);
    const file = try make(path, f);
    return exchange.giveHandleAndSize(&file.object, file.bytes, out, f);
}

fn make(path: []const u8, f: *Failure) Rejected!*File {
    var name: [4096]u8 = undefined;
    if (path.len == 0 or path.len >= name.len) return f.set(
        .invalid,
        "Expected a path of 1 to {d} bytes but found {d}",
        .{ name.len - 1, path.len },
    );
    if (std.mem.indexOfScalar(u8, path, 0)) |at|
        return f.set(.invalid, "Expected a path without a zero byte but found one at {d}", .{at});
    @memcpy(name[0..path.len], path);
    name[path.len] = 0;
    // Without O_NONBLOCK a pipe would be waited for.
    const fd = c.open(
        name[0..path.len :0],
        .{ .ACCMODE = .RDONLY, .CLOEXEC = true, .NONBLOCK = true },
    );
    if (fd < 0) return f.set(.io, "Cannot open {s}: {t}", .{ path, c.errno(fd) });
    errdefer _ = c.close(fd);
    // What has no end (a folder, a pipe, a terminal) cannot be mapped either.
    const size = c.lseek(fd, 0, c.SEEK.END);
    if (size <= 0 or size == std.math.maxInt(i64)) return f.set(
        .io,
        "Expected {s} to be a file that is not empty but found {s}",
        .{ path, if (size == 0) "an empty one" else "something else" },
    );
    const bytes: u64 = @intCast(size);
    const map: std.posix.MAP = .{ .TYPE = .PRIVATE };
    const pages = std.posix.mmap(null, bytes, .{ .READ = true }, map, fd, 0) catch |reason|
        return f.set(.io, "Cannot map the {d} bytes of {s}: {t}", .{ bytes, path, reason });
    errdefer std.posix.munmap(pages);
    const file = allocator.create(File) catch return f.memory(@sizeOf(File));
    file.* = .{ .fd = fd, .pages = pages, .bytes = bytes };
    _ = memory.mapped.fetchAdd(bytes, .monotonic);
    return file;
}
