//! A pool of threads that work together on one thing at a time: every thread runs the same function,
//! takes units from a shared counter and meets the others at barriers.

const std = @import("std");
const sync = @import("sync.zig");

/// Spins of a waiting thread before it gives its core away, and before it sleeps.
const spins_hot = 2000;
const yields_max = 200;

pub const max_threads = 256;

pub const Pool = struct {
    n_threads: u32,
    /// One run at a time, in the order of asking.
    turn: sync.TicketLock = .{},
    workers: [max_threads]std.Thread = undefined,
    n_started: u32 = 0,
    mutex: sync.Mutex = .{},
    wake: sync.Condition = .{},
    epoch: std.atomic.Value(u32) = .init(0),
    sleeping: std.atomic.Value(u32) = .init(0),
    stopping: bool = false,
    work: Work = undefined,
    running: std.atomic.Value(u32) = .init(0),
    barrier: Barrier = .{},

    const Work = struct { context: *anyopaque, run: *const fn (*anyopaque, u32) void };

    /// Runs `run(context, i)` on every thread i, the caller's being 0; returns when all have ended.
    /// The caller holds `turn`.
    pub fn together(p: *Pool, context: *anyopaque, run: *const fn (*anyopaque, u32) void) !void {
        try p.start();
        p.barrier.n_threads = p.n_started + 1;
        if (p.n_started > 0) {
            p.work = .{ .context = context, .run = run };
            p.running.store(p.n_started, .monotonic);
            _ = p.epoch.fetchAdd(1, .seq_cst);
            if (p.sleeping.load(.seq_cst) > 0) {
                p.mutex.lock();
                p.wake.broadcast();
                p.mutex.unlock();
            }
        }
        run(context, 0);
        var waited: u32 = 0;
        while (p.running.load(.acquire) != 0) relax(&waited);
    }

    /// Threads that take part, the caller's included.
    pub fn width(p: *const Pool) u32 {
        return p.n_started + 1;
    }

    fn start(p: *Pool) !void {
        while (p.n_started + 1 < p.n_threads) : (p.n_started += 1) {
            p.workers[p.n_started] = try std.Thread.spawn(
                .{ .stack_size = 1 << 20 },
                serve,
                .{ p, p.n_started + 1, p.epoch.load(.monotonic) },
            );
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
        var waited: u32 = 0;
        while (waited < spins_hot + yields_max) {
            if (p.epoch.load(.acquire) != seen) return;
            relax(&waited);
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
    phase: std.atomic.Value(u32) = .init(0),

    pub fn meet(b: *Barrier, context: anytype, comptime last: fn (@TypeOf(context)) void) void {
        const phase = b.phase.load(.monotonic);
        if (b.arrived.fetchAdd(1, .acq_rel) + 1 == b.n_threads) {
            b.arrived.store(0, .monotonic);
            last(context);
            b.phase.store(phase +% 1, .release);
            return;
        }
        var waited: u32 = 0;
        while (b.phase.load(.acquire) == phase) relax(&waited);
    }
};

/// Waits a little: hot at first, then leaving the core to whoever else wants it.
fn relax(waited: *u32) void {
    waited.* +|= 1;
    if (waited.* < spins_hot) std.atomic.spinLoopHint() else std.Thread.yield() catch {};
}
