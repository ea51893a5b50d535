//! Native memory: zeroed pages, an account of all of it, and what the machine has.

const std = @import("std");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;
const posix = std.posix;

pub const Pages = []align(std.heap.page_size_min) u8;
pub const none: Pages = &.{};

/// Bytes held by buffers and plans, and bytes of mapped files.
pub var allocated: std.atomic.Value(u64) = .init(0);
pub var mapped: std.atomic.Value(u64) = .init(0);

const huge_page = 2 << 20;
/// More than any machine has: sums of such sizes stay far from overflow.
const bytes_max = 1 << 46;

/// Zeroed pages that cost memory only once they are touched. `what` names them in the sentence.
pub fn map(bytes: u64, huge: bool, what: []const u8, f: *Failure) Rejected!Pages {
    try check(bytes, what, f);
    const advise = huge and bytes >= huge_page;
    // The system places whole huge pages where they can be some, other lengths anywhere.
    const unit: u64 = if (advise) huge_page else std.heap.page_size_min;
    const length = std.mem.alignForward(u64, @max(bytes, 1), unit);
    const pages = posix.mmap(
        null,
        length,
        .{ .READ = true, .WRITE = true },
        .{ .TYPE = .PRIVATE, .ANONYMOUS = true, .NORESERVE = true },
        -1,
        0,
    ) catch return f.set(.memory, "The system refused {d} bytes for {s}", .{ bytes, what });
    if (advise) posix.madvise(pages.ptr, length, posix.MADV.HUGEPAGE) catch {};
    _ = allocated.fetchAdd(length, .monotonic);
    return pages;
}

pub fn unmap(pages: Pages) void {
    if (pages.len == 0) return;
    _ = allocated.fetchSub(pages.len, .monotonic);
    posix.munmap(pages);
}

/// Says that memory is too small before it is taken. Pages that are held but were never touched
/// still look available to the system, so all that is held must fit the machine as well.
pub fn check(bytes: u64, what: []const u8, f: *Failure) Rejected!void {
    const free = available();
    const room = @min(free, limit() -| allocated.load(.monotonic));
    if (bytes <= room and bytes < bytes_max) return;
    return f.set(.memory, "Expected {d} MiB of memory for {s} but found {d} MiB available", .{
        bytes >> 20, what, room >> 20,
    });
}

/// Bytes that the system could give now: what is free, and caches it would drop, within the limit
/// of the control group.
pub fn available() u64 {
    const free = meminfo("MemAvailable:") orelse bytes_max;
    const group = groupLimit() orelse return free;
    return @min(free, group.limit -| (group.used -| group.reclaimable));
}

/// Memory of the machine.
pub fn total() u64 {
    return meminfo("MemTotal:") orelse 0;
}

fn limit() u64 {
    const machine = meminfo("MemTotal:") orelse bytes_max;
    const group = groupLimit() orelse return machine;
    return @min(machine, group.limit);
}

const Group = struct { limit: u64, used: u64, reclaimable: u64 };

/// The control group's limit, of version 2 or 1; null where there is none.
fn groupLimit() ?Group {
    const v2 = "/sys/fs/cgroup/";
    const v1 = "/sys/fs/cgroup/memory/";
    const paths = [_][3][:0]const u8{
        .{ v2 ++ "memory.max", v2 ++ "memory.current", v2 ++ "memory.stat" },
        .{ v1 ++ "memory.limit_in_bytes", v1 ++ "memory.usage_in_bytes", v1 ++ "memory.stat" },
    };
    for (paths) |path| {
        const most = readNumber(path[0]) orelse continue;
        if (most >= bytes_max) continue;
        var text: [8192]u8 = undefined;
        const stat = readSmall(path[2], &text) orelse "";
        return .{
            .limit = most,
            .used = readNumber(path[1]) orelse 0,
            .reclaimable = numberAfter(stat, "\ninactive_file ") orelse 0,
        };
    }
    return null;
}

fn meminfo(name: []const u8) ?u64 {
    var text: [4096]u8 = undefined;
    const content = readSmall("/proc/meminfo", &text) orelse return null;
    return (numberAfter(content, name) orelse return null) * 1024;
}

fn numberAfter(text: []const u8, name: []const u8) ?u64 {
    const at = std.mem.indexOf(u8, text, name) orelse return null;
    const rest = std.mem.trimStart(u8, text[at + name.len ..], " ");
    const end = std.mem.indexOfAny(u8, rest, " \n") orelse rest.len;
    return std.fmt.parseInt(u64, rest[0..end], 10) catch null;
}

fn readNumber(path: [:0]const u8) ?u64 {
    var text: [64]u8 = undefined;
    const content = readSmall(path, &text) orelse return null;
    return std.fmt.parseInt(u64, std.mem.trim(u8, content, " \n"), 10) catch null;
}

/// The start of a small file.
pub fn readSmall(path: [:0]const u8, into: []u8) ?[]const u8 {
    const fd = std.c.open(path, .{ .ACCMODE = .RDONLY, .CLOEXEC = true });
    if (fd < 0) return null;
    defer _ = std.c.close(fd);
    const n = std.c.read(fd, into.ptr, into.len);
    return if (n < 0) null else into[0..@intCast(n)];
}

test "numbers after names" {
    const text = "MemTotal:       16 kB\nMemFree: 7 kB\ninactive_file 12";
    try std.testing.expectEqual(16, numberAfter(text, "MemTotal:"));
    try std.testing.expectEqual(12, numberAfter(text, "\ninactive_file "));
    try std.testing.expectEqual(null, numberAfter(text, "SwapFree:"));
}

test "pages are zeroed and accounted, and too many are refused with the numbers" {
    var f: Failure = .{};
    const before = allocated.load(.monotonic);
    const pages = try map(100_000, true, "a test", &f);
    for (pages) |byte| try std.testing.expectEqual(0, byte);
    try std.testing.expect(allocated.load(.monotonic) >= before + 100_000);
    unmap(pages);
    try std.testing.expectEqual(before, allocated.load(.monotonic));
    for ([_]u64{ 1 << 45, 1 << 63, std.math.maxInt(u64) }) |bytes| {
        try std.testing.expectError(error.Rejected, map(bytes, false, "a test", &f));
        try std.testing.expectEqual(.memory, f.status);
        try std.testing.expect(std.mem.indexOf(u8, f.text(), "for a test but found") != null);
    }
}
