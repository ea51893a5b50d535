//! Handles: what JavaScript holds instead of pointers. A handle is a slot and a generation, so that
//! one which names nothing any more is an answer and not a crash.

const std = @import("std");
const sync = @import("sync.zig");

pub const Kind = enum(u8) { none, device, buffer, file, plan, job };

/// The head of everything a handle can name. Freed when the last user lets go.
pub const Object = struct {
    kind: Kind,
    users: std.atomic.Value(u32) = .init(1),
    destroy: *const fn (*Object) void,

    pub fn retain(o: *Object) void {
        _ = o.users.fetchAdd(1, .monotonic);
    }
    pub fn release(o: *Object) void {
        if (o.users.fetchSub(1, .acq_rel) == 1) o.destroy(o);
    }
};

const slot_bits = 15;
const n_slots = 1 << slot_bits;
const n_generations = 1 << (32 - slot_bits);

const Slot = struct { object: ?*Object = null, generation: u32 = 1, next_free: u32 = 0 };
var slots: [n_slots]Slot = @splat(.{});
var first_free: u32 = 0;
var n_used: u32 = 0;
var mutex: sync.Mutex = .{};

/// Gives the object a handle, which owns the object's first use. Null when all are taken.
pub fn add(object: *Object) ?u32 {
    mutex.lock();
    defer mutex.unlock();
    var index = first_free;
    if (index != 0) {
        first_free = slots[index].next_free;
    } else {
        if (n_used + 1 == n_slots) return null;
        n_used += 1; // slot 0 is never used: handle 0 means "none"
        index = n_used;
    }
    slots[index].object = object;
    return slots[index].generation << slot_bits | index;
}

/// The object with one more user, or null for a handle that names nothing of that kind.
pub fn get(comptime T: type, handle: u32) ?*T {
    const object = getAny(handle) orelse return null;
    if (object.kind != T.kind) {
        object.release();
        return null;
    }
    return @fieldParentPtr("object", object);
}

pub fn getAny(handle: u32) ?*Object {
    mutex.lock();
    defer mutex.unlock();
    const object = find(handle) orelse return null;
    object.retain();
    return object;
}

/// Takes the handle away. The caller releases what it gets.
pub fn remove(handle: u32) ?*Object {
    mutex.lock();
    defer mutex.unlock();
    const object = find(handle) orelse return null;
    const index = handle & (n_slots - 1);
    slots[index].object = null;
    slots[index].generation = (slots[index].generation + 1) % n_generations;
    if (slots[index].generation == 0) slots[index].generation = 1;
    slots[index].next_free = first_free;
    first_free = index;
    return object;
}

/// How many objects of a kind have handles.
pub fn count(kind: Kind) u32 {
    mutex.lock();
    defer mutex.unlock();
    var n: u32 = 0;
    for (slots[0 .. n_used + 1]) |slot| {
        if (slot.object) |object| n += @intFromBool(object.kind == kind);
    }
    return n;
}

fn find(handle: u32) ?*Object {
    const slot = &slots[handle & (n_slots - 1)];
    if (slot.generation != handle >> slot_bits) return null;
    return slot.object;
}
