//! Freed memory of a GPU that the next who asks for as much gets: giving and taking back a cache
//! cost half a millisecond, of the 17 that a prompt of 512 ids takes. What waits here is a small
//! part of the card; the oldest goes first.

const std = @import("std");
const sync = @import("../sync.zig");

/// Of the card's memory, at most this part is kept.
const part_kept = 64;
const most = 32;

const Block = struct { address: u64, bytes: u64 };

pub const Spares = struct {
    mutex: sync.Mutex = .{},
    blocks: [most]Block = undefined,
    count: usize = 0,
    bytes: u64 = 0,

    /// Bytes that are asked of the driver: sizes that come back, at most an eighth more.
    pub fn room(bytes: u64, total: u64) u64 {
        const wanted = @max(bytes, 4096);
        if (wanted > total / part_kept) return wanted;
        return std.mem.alignForward(u64, wanted, std.math.floorPowerOfTwo(u64, wanted) / 8);
    }

    /// A block of exactly so many bytes, the newest; it holds what its last owner left.
    pub fn take(s: *Spares, bytes: u64) ?u64 {
        s.mutex.lock();
        defer s.mutex.unlock();
        var i = s.count;
        while (i > 0) {
            i -= 1;
            if (s.blocks[i].bytes == bytes) return s.remove(i).address;
        }
        return null;
    }

    /// Keeps a block; gives those that go back to the driver for it, the block itself among them
    /// where it is too large.
    pub fn keep(s: *Spares, address: u64, bytes: u64, total: u64, out: *[most + 1]u64) []u64 {
        s.mutex.lock();
        defer s.mutex.unlock();
        out[0] = address;
        if (bytes > total / part_kept) return out[0..1];
        var n: usize = 0;
        while (s.count == most or s.bytes + bytes > total / part_kept) : (n += 1)
            out[n] = s.remove(0).address;
        s.blocks[s.count] = .{ .address = address, .bytes = bytes };
        s.count += 1;
        s.bytes += bytes;
        return out[0..n];
    }

    /// Gives up all blocks.
    pub fn drop(s: *Spares, out: *[most + 1]u64) []u64 {
        s.mutex.lock();
        defer s.mutex.unlock();
        const n = s.count;
        for (out[0..n]) |*address| address.* = s.remove(0).address;
        return out[0..n];
    }

    pub fn held(s: *Spares) u64 {
        s.mutex.lock();
        defer s.mutex.unlock();
        return s.bytes;
    }

    fn remove(s: *Spares, i: usize) Block {
        const block = s.blocks[i];
        std.mem.copyForwards(Block, s.blocks[i .. s.count - 1], s.blocks[i + 1 .. s.count]);
        s.count -= 1;
        s.bytes -= block.bytes;
        return block;
    }
};

pub const Addresses = [most + 1]u64;

test "freed memory comes back to who asks for as much, and the oldest goes first" {
    const expectEqual = std.testing.expectEqual;
    const total = 64 * 1000;
    var s: Spares = .{};
    var out: Addresses = undefined;
    try expectEqual(0, s.keep(1, 400, total, &out).len);
    try expectEqual(0, s.keep(2, 400, total, &out).len);
    try expectEqual(null, s.take(399));
    try expectEqual(2, s.take(400));
    try expectEqual(0, s.keep(2, 400, total, &out).len);
    try std.testing.expectEqualSlices(u64, &.{1}, s.keep(3, 600, total, &out));
    try std.testing.expectEqualSlices(u64, &.{4}, s.keep(4, 1001, total, &out));
    try expectEqual(1000, s.held());
    try std.testing.expectEqualSlices(u64, &.{ 2, 3 }, s.drop(&out));
    try expectEqual(0, s.held());
    try expectEqual(4096, Spares.room(1, 1 << 30));
    try expectEqual(5120, Spares.room(5000, 1 << 30));
    try expectEqual((1 << 30) + 1, Spares.room((1 << 30) + 1, 1 << 30));
}
