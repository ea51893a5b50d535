//! A pool of threads that work together on one thing at a time: every thread runs the same
//! function, takes units of what there is to do and meets the others at barriers. Threads are
//! started by the first work, spin a little after each so that the next finds them awake, and then
//! sleep.

const std = @import("std");
const sync = @import("sync.zig");

/// Looks of a waiting thread before it gives its core away at each, and before it sleeps. The first
/// are some ten microseconds together.
const looks_hot = 1000;
const looks_yielding = 300;

pub const max_threads = 1024;
const cache_line = std.atomic.cache_line;

pub const Pool = struct {
    /// Threads that take part, the caller's included; fewer where the system refuses some.
    n_threads: u32,
    /// One run at a time, in the order of asking.
    turn: sync.FairLock = .{},
    workers: [max_threads]std.Thread = undefined,
    n_started: u32 = 0,
    mutex: sync.Mutex = .{},
    wake: sync.Condition = .{},
    sleeping: std.atomic.Value(u32) = .init(0),
    stopping: bool = false,
    work: Work = undefined,
    epoch: std.atomic.Value(u32) align(cache_line) = .init(0),
    running: std.atomic.Value(u32) align(cache_line) = .init(0),
    barrier: Barrier align(cache_line) = .{},

    const Work = struct { context: *anyopaque, run: *const fn (*anyopaque, u32) void };

    /// Runs `run(context, i)` on every thread i, the caller's being 0; returns when all have ended.
    /// The caller holds `turn`.
    pub fn together(
        p: *Pool,
        context: anytype,
        comptime run: fn (@TypeOf(context), u32) void,
    ) void {
        p.start();
        p.barrier.n_threads = p.width();
        if (p.n_started > 0) {
            const Erased = struct {
                fn call(erased: *anyopaque, index: u32) void {
                    run(@ptrCast(@alignCast(erased)), index);
                }
            };
            p.work = .{ .context = context, .run = Erased.call };
            p.running.store(p.n_started, .monotonic);
            // Either this store is seen by a thread on its way to sleep, or that one is seen here.
            _ = p.epoch.fetchAdd(1, .seq_cst);
            if (p.sleeping.load(.seq_cst) > 0) {
                p.mutex.lock();
                p.wake.broadcast();
                p.mutex.unlock();
            }
        }
        run(context, 0);
        var looks: u32 = 0;
        while (p.running.load(.acquire) != 0) relax(&looks);
    }

    /// Threads that take part in `together`, once `start` has run.
    pub fn width(p: *const Pool) u32 {
        return p.n_started + 1;
    }

    /// Starts what threads are missing.
    pub fn start(p: *Pool) void {
        while (p.n_started + 1 < p.n_threads) : (p.n_started += 1) {
            p.workers[p.n_started] = std.Thread.spawn(
                .{ .stack_size = 1 << 20 },
                serve,
                .{ p, p.n_started + 1, p.epoch.load(.monotonic) },
            ) catch {
                p.n_threads = p.n_started + 1;
                return;
            };
        }
    }

    pub fn stop(p: *Pool) void {
        p.mutex.lock();
        p.stopping = true;
        _ = p.epoch.fetchAdd(1, .seq_cst);
        p.wake.broadcast();
        p.mutex.unlock();
        for (p.workers[0..p.n_started]) |worker| worker.join();
        p.n_started = 0;
    }

    fn serve(p: *Pool, index: u32, first_epoch: u32) void {
        var seen = first_epoch;
        while (true) {
            p.awaitEpoch(seen);
            seen +%= 1;
            if (p.stopping) return;
            p.work.run(p.work.context, index);
            _ = p.running.fetchSub(1, .release);
        }
    }

    fn awaitEpoch(p: *Pool, seen: u32) void {
        var looks: u32 = 0;
        while (looks < looks_hot + looks_yielding) {
            if (p.epoch.load(.acquire) != seen) return;
            relax(&looks);
        }
        p.mutex.lock();
        defer p.mutex.unlock();
        _ = p.sleeping.fetchAdd(1, .seq_cst);
        while (p.epoch.load(.seq_cst) == seen) p.wake.wait(&p.mutex);
        _ = p.sleeping.fetchSub(1, .seq_cst);
    }
};

/// Where all threads of a pool meet. The last one to come may decide something for all.
pub const Barrier = struct {
    n_threads: u32 = 1,
    arrived: std.atomic.Value(u32) = .init(0),
    phase: std.atomic.Value(u32) align(cache_line) = .init(0),

    pub fn meet(b: *Barrier, context: anytype, comptime last: fn (@TypeOf(context)) void) void {
        if (b.n_threads == 1) return last(context);
        const phase = b.phase.load(.monotonic);
        if (b.arrived.fetchAdd(1, .acq_rel) + 1 == b.n_threads) {
            b.arrived.store(0, .monotonic);
            last(context);
            b.phase.store(phase +% 1, .release);
            return;
        }
        var looks: u32 = 0;
        while (b.phase.load(.acquire) == phase) relax(&looks);
    }
};

/// Waits a little: hot at first, then leaving the core to whoever else wants it.
fn relax(looks: *u32) void {
    looks.* +|= 1;
    if (looks.* < looks_hot) std.atomic.spinLoopHint() else std.Thread.yield() catch {};
}
