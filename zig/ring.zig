//! A queue of entries of i32 between a job's thread and whoever fetches. Its user holds a lock.

const std = @import("std");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

pub const Ring = struct {
    values: []i32 = &.{},
    /// Values of one entry, entries there is room for, and how many were ever taken and put.
    entry: usize = 0,
    capacity: usize = 0,
    taken: usize = 0,
    written: usize = 0,

    pub fn make(entry: usize, capacity: usize, f: *Failure) Rejected!Ring {
        const n = std.math.mul(usize, entry, capacity) catch std.math.maxInt(usize) / 8;
        const values = allocator.alloc(i32, n) catch return f.memory(n * 4);
        return .{ .values = values, .entry = entry, .capacity = capacity };
    }
    pub fn free(r: *Ring) void {
        allocator.free(r.values);
    }
    pub fn entryBytes(r: *const Ring) usize {
        return r.entry * @sizeOf(i32);
    }
    pub fn empty(r: *const Ring) bool {
        return r.written == r.taken;
    }
    pub fn full(r: *const Ring) bool {
        return r.written - r.taken == r.capacity;
    }
    pub fn put(r: *Ring, values: []const i32) void {
        const at = r.written % r.capacity * r.entry;
        @memcpy(r.values[at..][0..r.entry], values[0..r.entry]);
        r.written += 1;
    }
    /// Moves as many entries as fit. Answers how many values.
    pub fn take(r: *Ring, out: []u8) usize {
        var n: usize = 0;
        while (!r.empty() and out.len - n >= r.entryBytes()) : (n += r.entryBytes()) {
            const at = r.taken % r.capacity * r.entry;
            const bytes = std.mem.sliceAsBytes(r.values[at..][0..r.entry]);
            @memcpy(out[n..][0..bytes.len], bytes);
            r.taken += 1;
        }
        return n / @sizeOf(i32);
    }
};

test "entries leave whole and in order" {
    var f: Failure = .{};
    var r = try Ring.make(3, 4, &f);
    defer r.free();
    var out: [64]u8 align(4) = undefined;
    var next: i32 = 0;
    var seen: i32 = 0;
    for (0..50) |round| {
        while (!r.full() and next < 3 * (2 + @as(i32, @intCast(round)))) : (next += 3) {
            r.put(&.{ next, next + 1, next + 2 });
        }
        const n = r.take(out[0..@min(out.len, 4 * (round % 9))]);
        try std.testing.expectEqual(0, n % 3);
        for (std.mem.bytesAsSlice(i32, out[0 .. 4 * n])) |value| {
            try std.testing.expectEqual(seen, value);
            seen += 1;
        }
    }
    try std.testing.expect(seen > 30);
}
