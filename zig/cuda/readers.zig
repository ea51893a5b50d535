//! Who reads a value of the arena: the commands behind it, until something else lies there.

const std = @import("std");
const ops = @import("../validate/ops.zig");
const k = @import("kernel.zig");
const Task = k.Task;

/// Whether nobody reads operand i of `t` any more in the tasks that follow.
pub fn ends(t: *const Task, i: usize, following: []const Task) bool {
    return t.operands[i].space == .arena and reader(.of(t, i), following) == null;
}
/// The last task that reads a value, before something else is written to its place.
fn reader(value: Bytes, following: []const Task) ?usize {
    var last: ?usize = null;
    for (following, 0..) |*later, n| {
        const slots = ops.signatures.get(later.op);
        for (slots, 0..) |slot, at| {
            const reads = slot.role == .in or slot.role == .in_optional;
            if (reads and inArena(later, at) and value.meets(.of(later, at))) last = n;
        }
        for (slots, 0..) |slot, at| {
            const writes = slot.role == .out and inArena(later, at);
            if (writes and value.meets(.of(later, at))) return last;
        }
    }
    return last;
}
/// The last task that reads the result of task `at`; where others may read it, none that is known:
/// the largest number.
pub fn readLast(tasks: []const Task, at: usize) u32 {
    const t = &tasks[at];
    const slots = ops.signatures.get(t.op);
    for (slots, 0..) |slot, i| {
        if (slot.role != .out) continue;
        if (!inArena(t, i)) break;
        const last = reader(.of(t, i), tasks[at + 1 ..]) orelse return @intCast(at);
        return @intCast(at + 1 + last);
    }
    return std.math.maxInt(u32);
}
pub fn inArena(t: *const Task, i: usize) bool {
    return k.at(t, i) != null and t.operands[i].space == .arena;
}

pub const Bytes = struct {
    begin: usize,
    end: usize,

    pub fn of(t: *const Task, i: usize) Bytes {
        const begin = @intFromPtr(t.data[i].?);
        const o = t.operands[i];
        const elements = @as(usize, o.shape[0] - 1) * o.row_stride + o.shape[1];
        return .{ .begin = begin, .end = begin + elements * k.elementBytes(o.dtype) };
    }
    pub fn meets(a: Bytes, b: Bytes) bool {
        return a.begin < b.end and b.begin < a.end;
    }
};
