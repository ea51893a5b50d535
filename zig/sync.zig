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

pub const Condition = struct {
    raw: c.pthread_cond_t = .{},

    pub fn wait(v: *Condition, m: *Mutex) void {
        _ = c.pthread_cond_wait(&v.raw, &m.raw);
    }
    pub fn waitMs(v: *Condition, m: *Mutex, timeout_ms: u32) void {
        var until: c.timespec = undefined;
        _ = c.clock_gettime(.REALTIME, &until);
        const nanoseconds = until.nsec + @as(isize, timeout_ms % 1000) * 1_000_000;
        until.sec += timeout_ms / 1000 + @divFloor(nanoseconds, 1_000_000_000);
        until.nsec = @mod(nanoseconds, 1_000_000_000);
        _ = c.pthread_cond_timedwait(&v.raw, &m.raw, &until);
    }
    pub fn broadcast(v: *Condition) void {
        _ = c.pthread_cond_broadcast(&v.raw);
    }
};

/// A lock that is granted in the order of asking.
pub const TicketLock = struct {
    mutex: Mutex = .{},
    turn: Condition = .{},
    next: u64 = 0,
    serving: u64 = 0,

    pub fn lock(l: *TicketLock) void {
        l.mutex.lock();
        defer l.mutex.unlock();
        const ticket = l.next;
        l.next += 1;
        while (l.serving != ticket) l.turn.wait(&l.mutex);
    }
    pub fn unlock(l: *TicketLock) void {
        l.mutex.lock();
        defer l.mutex.unlock();
        l.serving += 1;
        l.turn.broadcast();
    }
};
