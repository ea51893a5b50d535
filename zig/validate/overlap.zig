//! Checks that what is written lies beside what is read, or exactly upon it where an operation
//! allows that; and that the states of different layers lie beside each other.

const std = @import("std");
const command = @import("command");
const failure = @import("failure.zig");
const extent = @import("plan.zig").extent;
const Failure = failure.Failure;
const Rejected = failure.Rejected;
const Operand = command.Operand;

pub const Relation = enum { apart, same, partly };

/// How two checked operands lie to each other. Column slices of one matrix are apart although their
/// bytes interleave.
pub fn relation(a: Operand, b: Operand) Relation {
    if (a.space != b.space or (a.space == .weight and a.buffer != b.buffer)) return .apart;
    if (a.space == .step) return if (a.offset == b.offset) .same else .apart;
    if (a.offset + extent(a) <= b.offset or b.offset + extent(b) <= a.offset) return .apart;
    const alike = a.row_stride == b.row_stride and a.dtype == b.dtype and a.rank == b.rank;
    if (!alike or a.layout != b.layout) return .partly;
    if (a.offset == b.offset and std.meta.eql(a.shape, b.shape)) return .same;
    const low = if (a.offset < b.offset) a else b;
    const high = if (a.offset < b.offset) b else a;
    if (a.rank != 2 or a.layout != .row_major) return .partly;
    const size: u64 = if (a.dtype == .f32 or a.dtype == .i32) 4 else 2;
    const stride = low.row_stride * size;
    const from = (high.offset - low.offset) % stride;
    const beside = from >= low.shape[1] * size and from + high.shape[1] * size <= stride;
    return if (beside) .apart else .partly;
}

/// Places in a slot, or in a page, are shared by commands of one layer as a whole or not at all.
pub fn states(
    gpa: std.mem.Allocator,
    operands: []align(1) const Operand,
    f: *Failure,
) Rejected!void {
    const places = gpa.alloc(Place, operands.len) catch
        return f.memory(operands.len * @sizeOf(Place));
    defer gpa.free(places);
    inline for (.{ command.Space.state, command.Space.kv }) |space| {
        var n: usize = 0;
        for (operands, 0..) |o, i| {
            if (o.space != space) continue;
            places[n] = .{ .begin = o.offset, .end = @intCast(o.offset + extent(o)), .index = i };
            n += 1;
        }
        std.mem.sortUnstable(Place, places[0..n], {}, Place.before);
        for (1..@max(1, n)) |i| {
            const a = places[i - 1];
            const b = places[i];
            if (b.begin >= a.end or (a.begin == b.begin and a.end == b.end)) continue;
            return f.set(
                .invalid,
                "Expected operands {d} and {d} to have places of their own in the {t} " ++
                    "but found bytes {d} to {d} and {d} to {d}",
                .{ a.index, b.index, space, a.begin, a.end, b.begin, b.end },
            );
        }
    }
}

const Place = struct {
    begin: u64,
    end: u64,
    index: usize,
    fn before(_: void, a: Place, b: Place) bool {
        if (a.begin != b.begin) return a.begin < b.begin;
        return if (a.end != b.end) a.end < b.end else a.index < b.index;
    }
};

test "column slices are apart, shifted ones overlap" {
    const expectEqual = std.testing.expectEqual;
    var a = std.mem.zeroes(Operand);
    a.space = .arena;
    a.rank = 2;
    a.shape = .{ 4, 3, 1, 1 };
    a.row_stride = 8;
    var b = a;
    try expectEqual(Relation.same, relation(a, b));
    b.offset = 3 * 4;
    try expectEqual(Relation.apart, relation(a, b));
    b.shape[1] = 5;
    try expectEqual(Relation.apart, relation(a, b));
    try expectEqual(Relation.apart, relation(b, a));
    b.offset = 2 * 4;
    try expectEqual(Relation.partly, relation(a, b));
    b.offset = 4 * 4; // its last columns are a's first of the next row
    try expectEqual(Relation.partly, relation(a, b));
    b.offset = 27 * 4;
    try expectEqual(Relation.apart, relation(a, b));
    b.space = .output;
    b.offset = 0;
    try expectEqual(Relation.apart, relation(a, b));
}
