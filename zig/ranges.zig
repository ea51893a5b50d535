//! Who does which units of a phase. Every thread has a range of its own, of which it takes runs
//! from the front; once it has none left it takes from the ends of the others'. So a thread walks
//! on through memory that no other touches, knows beforehand where it will begin, and meets a cache
//! line of another's only near the end of a phase. With one counter for all, threads that share no
//! cache (two cores of a Zen 4 on different dies, whose memory is the faster for it) waited for
//! that line before each run, and began their streams anew: 4 % of a token in q4_0.

const std = @import("std");
const cache_line = std.atomic.cache_line;

/// A thread takes this part of what is left of its range: large runs at first and single units at
/// the end, so that others find something to take while it is late.
const part_taken = 4;

/// Phases whose ranges are there at a time.
const slots = 8;

/// Units [next, end).
pub const Range = packed struct(u64) {
    next: u32,
    end: u32,

    fn len(r: Range) u32 {
        return r.end - r.next;
    }
};

/// One thread's ranges of the phases around the present one. They take one cache line again and
/// again, so that it stays in reach while weights pass through the caches.
pub const Ring = struct {
    ranges: [slots]std.atomic.Value(u64) align(cache_line) = @splat(.init(0)),

    /// Gives thread `index` of `width` its range of phase number n. A barrier follows before any
    /// thread asks for it.
    pub fn offer(r: *Ring, n: usize, units: u32, index: u32, width: u32) void {
        const range: Range = .{
            .next = start(units, index, width),
            .end = start(units, index + 1, width),
        };
        r.ranges[n % slots].store(@bitCast(range), .monotonic);
    }
    /// The next run of the thread's own range.
    pub fn take(r: *Ring, n: usize) ?Range {
        return cut(&r.ranges[n % slots], front);
    }
    /// A run of another thread's range.
    pub fn steal(r: *Ring, n: usize) ?Range {
        return cut(&r.ranges[n % slots], back);
    }
};

/// Where the range of a thread starts.
pub fn start(units: u32, index: u32, width: u32) u32 {
    return @intCast((@as(u64, units) * index + width - 1) / width);
}

/// Both answer what is taken, and what is left.
fn front(all: Range) [2]Range {
    const middle = all.next + @max(1, all.len() / part_taken);
    return .{ .{ .next = all.next, .end = middle }, .{ .next = middle, .end = all.end } };
}
fn back(all: Range) [2]Range {
    const middle = all.end - (all.len() + 1) / 2;
    return .{ .{ .next = middle, .end = all.end }, .{ .next = all.next, .end = middle } };
}

fn cut(from: *std.atomic.Value(u64), comptime by: fn (Range) [2]Range) ?Range {
    var seen = from.load(.monotonic);
    while (true) {
        const all: Range = @bitCast(seen);
        if (all.next >= all.end) return null;
        const taken, const left = by(all);
        seen = from.cmpxchgWeak(seen, @bitCast(left), .monotonic, .monotonic) orelse return taken;
    }
}

test "every unit is taken once, by however many threads and in whatever order" {
    const testing = std.testing;
    var rings: [5]Ring = @splat(.{});
    for ([_]u32{ 0, 1, 2, 4, 5, 7, 100, 1001 }) |units| for (1..6) |width| for (0..11) |n| {
        var done: [1001]u8 = @splat(0);
        for (0..width) |index|
            rings[index].offer(n, units, @intCast(index), @intCast(width));
        // Takes and steals by turns.
        var turn: usize = n;
        while (true) : (turn += 1) {
            const ring = &rings[turn % width];
            const found = if (turn % 3 == 0) ring.take(n) else ring.steal(n);
            const range = found orelse if (turn > 4000) break else continue;
            for (range.next..range.end) |unit| done[unit] += 1;
        }
        for (done, 0..) |times, unit|
            try testing.expectEqual(@as(u8, @intFromBool(unit < units)), times);
    };
}
