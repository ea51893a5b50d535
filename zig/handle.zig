//! Handles: what JavaScript holds instead of pointers. A handle is a slot and a generation, so that
//! one which names nothing any more is an answer and not a crash.

const std = @import("std");
const status = @import("status.zig");
const sync = @import("sync.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;

pub const Kind = enum(u8) { device, buffer, file, plan, job };

/// The head of everything a handle can name. Destroyed when its last user lets go.
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
pub const n_slots = 1 << slot_bits;
const n_generations = 1 << (32 - slot_bits);

const Slot = struct { object: ?*Object = null, generation: u32 = 1, next_free: u32 = 0 };
var slots: [n_slots]Slot = @splat(.{});
/// Free slots wait in a queue, so that a slot's generations last long.
var first_free: u32 = 0;
var last_free: u32 = 0;
/// Slot 0 is never used: handle 0 means "none".
var n_used: u32 = 1;
var n_of_kind: [@typeInfo(Kind).@"enum".fields.len]u32 = @splat(0);
var mutex: sync.Mutex = .{};

/// Gives the object a handle, which takes over the object's first use, also when it fails.
pub fn add(object: *Object, f: *Failure) Rejected!u32 {
    if (take(object)) |handle| return handle;
    object.release();
    return f.set(.memory, "Expected at most {d} things at once but found one more", .{n_slots - 1});
}

fn take(object: *Object) ?u32 {
    mutex.lock();
    defer mutex.unlock();
    var index = first_free;
    if (n_used < n_slots) {
        index = n_used;
        n_used += 1;
    } else {
        if (index == 0) return null;
        first_free = slots[index].next_free;
        if (first_free == 0) last_free = 0;
    }
    slots[index].object = object;
    n_of_kind[@intFromEnum(object.kind)] += 1;
    return slots[index].generation << slot_bits | index;
}

/// The object with one more user.
pub fn get(comptime T: type, handle: u32, f: *Failure) Rejected!*T {
    const found = getAny(handle, f) catch return f.set(
        .stale,
        "Expected a {t} but found handle {d}, which names nothing",
        .{ T.kind, handle },
    );
    if (found.kind == T.kind) return @alignCast(@fieldParentPtr("object", found));
    defer found.release();
    return f.set(
        .stale,
        "Expected a {t} but found handle {d}, which names a {t}",
        .{ T.kind, handle, found.kind },
    );
}

/// An object of any kind with one more user.
pub fn getAny(handle: u32, f: *Failure) Rejected!*Object {
    mutex.lock();
    defer mutex.unlock();
    const object = find(handle) orelse return f.set(
        .stale,
        "Expected a handle but found {d}, which names nothing",
        .{handle},
    );
    object.retain();
    return object;
}

/// Takes the handle away. The caller releases what it gets.
pub fn remove(handle: u32, f: *Failure) Rejected!*Object {
    mutex.lock();
    defer mutex.unlock();
    const object = find(handle) orelse return f.set(
        .stale,
        "Expected something to free but found handle {d}, which names nothing",
        .{handle},
    );
    const index = handle % n_slots;
    const slot = &slots[index];
    const next = (slot.generation + 1) % n_generations;
    slot.* = .{ .generation = if (next == 0) 1 else next };
    if (last_free == 0) first_free = index else slots[last_free].next_free = index;
    last_free = index;
    n_of_kind[@intFromEnum(object.kind)] -= 1;
    return object;
}

/// How many objects of a kind have handles.
pub fn count(kind: Kind) u32 {
    mutex.lock();
    defer mutex.unlock();
    return n_of_kind[@intFromEnum(kind)];
}

fn find(handle: u32) ?*Object {
    const slot = &slots[handle % n_slots];
    if (slot.generation != handle >> slot_bits) return null;
    return slot.object;
}
