//! Locks over pthreads, which need no Io table.

const std = @import("std");
const c = std.c;

pub const Mutex = struct {
    raw: c.pthread_mutex_t = .{},

    pub fn lock(m: *Mutex) void {
        _ = c.pthread_mutex_lock(&m.raw);
    }
    pub fn unlock(m: *Mutex) void {
        _ = c.pthread_mutex_unlock(&m.raw);
    }
};

const Attributes = extern struct { raw: [8]u8 align(8) = @splat(0) };
extern "c" fn pthread_condattr_init(*Attributes) c_int;
extern "c" fn pthread_condattr_setclock(*Attributes, c.clockid_t) c_int;
extern "c" fn pthread_cond_init(*c.pthread_cond_t, *const Attributes) c_int;

pub const Condition = struct {
    raw: c.pthread_cond_t = .{},

    /// Makes timed waits count by a clock that nobody sets.
    pub fn init(v: *Condition) void {
        var attributes: Attributes = .{};
        _ = pthread_condattr_init(&attributes);
        _ = pthread_condattr_setclock(&attributes, .MONOTONIC);
        _ = pthread_cond_init(&v.raw, &attributes);
    }
    pub fn wait(v: *Condition, m: *Mutex) void {
        _ = c.pthread_cond_wait(&v.raw, &m.raw);
    }
    /// Waits until a time of `nowNs`. Needs `init`.
    pub fn waitUntil(v: *Condition, m: *Mutex, deadline_ns: u64) void {
        const until: c.timespec = .{
            .sec = @intCast(deadline_ns / std.time.ns_per_s),
            .nsec = @intCast(deadline_ns % std.time.ns_per_s),
        };
        _ = c.pthread_cond_timedwait(&v.raw, &m.raw, &until);
    }
    pub fn signal(v: *Condition) void {
        _ = c.pthread_cond_signal(&v.raw);
    }
    pub fn broadcast(v: *Condition) void {
        _ = c.pthread_cond_broadcast(&v.raw);
    }
};

/// Nanoseconds since some moment in the past.
pub fn nowNs() u64 {
    var t: c.timespec = undefined;
    _ = c.clock_gettime(.MONOTONIC, &t);
    return @as(u64, @intCast(t.sec)) * std.time.ns_per_s + @as(u64, @intCast(t.nsec));
}

pub const Flag = std.atomic.Value(bool);

/// A lock that is granted in the order of asking, and whose waiters can give up.
pub const FairLock = struct {
    mutex: Mutex = .{},
    held: bool = false,
    first: ?*Waiter = null,

    const Waiter = struct {
        changed: Condition = .{},
        granted: bool = false,
        next: ?*Waiter = null,
    };

    /// Waits for its turn. False when `cancel` was set before it came.
    pub fn lock(l: *FairLock, cancel: *const Flag) bool {
        l.mutex.lock();
        defer l.mutex.unlock();
        if (!l.held) {
            l.held = true;
            return true;
        }
        var waiter: Waiter = .{};
        var end = &l.first;
        while (end.*) |other| end = &other.next;
        end.* = &waiter;
        while (!waiter.granted) {
            if (cancel.load(.acquire)) {
                l.drop(&waiter);
                return false;
            }
            waiter.changed.wait(&l.mutex);
        }
        return true;
    }

    pub fn unlock(l: *FairLock) void {
        l.mutex.lock();
        defer l.mutex.unlock();
        if (l.first) |waiter| {
            l.first = waiter.next;
            waiter.granted = true;
            waiter.changed.signal();
        } else l.held = false;
    }

    /// Lets everyone who waits look at his cancel flag.
    pub fn nudge(l: *FairLock) void {
        l.mutex.lock();
        defer l.mutex.unlock();
        var at = l.first;
        while (at) |waiter| : (at = waiter.next) waiter.changed.signal();
    }

    fn drop(l: *FairLock, waiter: *Waiter) void {
        var place = &l.first;
        while (place.*) |other| : (place = &other.next) {
            if (other != waiter) continue;
            place.* = waiter.next;
            return;
        }
    }
};
