//! What this machine can do at best, as the denominator of every share that a benchmark reports:
//! bytes read a second from memory far larger than any cache, and multiply-adds a second in
//! registers, of f32 and of small integers (pairs of i16 into i32: what exact products of int8
//! amount to where there is no instruction for four of them). All threads run a round together; a
//! disturbed round (the thread was off its core) does not count while an undisturbed one is to be
//! had.

const std = @import("std");
const int8 = @import("int8.zig");
const simd = @import("simd.zig");
const F = simd.F;
const U = simd.U;
const L = simd.L;

pub const max_threads = 256;
/// Memory that `Shared.memory` should have: when a round comes back to a place, no L3 still has it.
pub const memory_bytes: usize = 512 << 20;

/// A round is short (some milliseconds), so that among other programs some go undisturbed.
const round_bytes: usize = 64 << 20;
const read_rounds = 40;
const fma_rounds = 12;
/// Rounds beyond those, while none was undisturbed.
const patience = 100;

/// What the threads of one measurement share. The caller fills memory (written once, so that pages
/// exist), bytes and n_threads, zeroes the rest, and lets n_threads threads call `run` at once.
pub const Shared = extern struct {
    memory: [*]const u8,
    bytes: usize,
    n_threads: u32,
    arrived: std.atomic.Value(u32),
    turn: std.atomic.Value(u32),
    clean: std.atomic.Value(u32),
    slots: [max_threads]Slot,
    /// Result: bytes a second and multiply-adds a second (two for each), of all threads.
    read_rate: f64,
    fma_rate: f64,
    int8_rate: f64,
    /// The middle of the reading rounds: what memory gives for longer than a moment.
    read_median: f64,
};
const Slot = extern struct {
    begin_s: f64,
    end_s: f64,
    cpu_s: f64,
    /// Keeps the loops' results alive.
    sink: f64,
};

/// One thread's part of the measurement.
pub fn run(shared: *Shared, thread: u32) callconv(.c) void {
    phase(shared, thread, read_rounds, readPart, .wall, &shared.read_rate, &shared.read_median);
    phase(shared, thread, fma_rounds, fmaPart, .cpu, &shared.fma_rate, null);
    phase(shared, thread, fma_rounds, int8Part, .cpu, &shared.int8_rate, null);
}

const Part = fn (shared: *const Shared, thread: u32, round: u32, slot: *Slot) f64;

/// Memory is shared by all threads, so only their common time counts; registers are not, so the
/// time that a thread had a core is exact however busy the machine is.
const Clock = enum { wall, cpu };

fn phase(
    s: *Shared,
    thread: u32,
    rounds: u32,
    comptime part: Part,
    clock: Clock,
    rate: *f64,
    middle: ?*f64,
) void {
    var rates: [read_rounds + patience]f64 = undefined;
    var n_rates: usize = 0;
    const slot = &s.slots[thread];
    var best: f64 = 0;
    var best_disturbed: f64 = 0;
    if (thread == 0) s.clean.store(0, .monotonic);
    var round: u32 = 0;
    while (true) : (round += 1) {
        meet(s);
        const go_on = round < rounds or
            (s.clean.load(.monotonic) == 0 and round < rounds + patience);
        // Nobody may change `clean` before everyone has read it.
        meet(s);
        if (!go_on) break;
        const cpu = now(.THREAD_CPUTIME_ID);
        slot.begin_s = now(.MONOTONIC);
        const work = part(s, thread, round, slot);
        slot.end_s = now(.MONOTONIC);
        slot.cpu_s = now(.THREAD_CPUTIME_ID) - cpu;
        meet(s);
        if (thread != 0) continue;
        var begin: f64 = slot.begin_s;
        var end: f64 = slot.end_s;
        var cpu_max: f64 = 1e-9;
        for (s.slots[0..s.n_threads]) |other| {
            begin = @min(begin, other.begin_s);
            end = @max(end, other.end_s);
            cpu_max = @max(cpu_max, other.cpu_s);
        }
        const all = work * @as(f64, @floatFromInt(s.n_threads));
        const time = if (clock == .cpu) cpu_max else end - begin;
        best_disturbed = @max(best_disturbed, all / time);
        rates[n_rates] = all / time;
        n_rates += 1;
        if (time > 1.05 * cpu_max) continue;
        best = @max(best, all / time);
        _ = s.clean.fetchAdd(1, .monotonic);
    }
    if (thread != 0) return;
    rate.* = if (best > 0) best else best_disturbed;
    std.mem.sort(f64, rates[0..n_rates], {}, std.sort.asc(f64));
    if (middle) |m| m.* = rates[n_rates / 2];
}

/// A barrier that spins, because the rounds must begin together, and yields where cores are few.
fn meet(s: *Shared) void {
    const turn = s.turn.load(.acquire);
    if (s.arrived.fetchAdd(1, .acq_rel) + 1 == s.n_threads) {
        s.arrived.store(0, .monotonic);
        s.turn.store(turn +% 1, .release);
        return;
    }
    var n: u32 = 0;
    while (s.turn.load(.acquire) == turn) {
        n += 1;
        if (n % 4096 == 0) std.Thread.yield() catch {} else std.atomic.spinLoopHint();
    }
}

fn now(clock: std.c.clockid_t) f64 {
    var t: std.c.timespec = undefined;
    _ = std.c.clock_gettime(clock, &t);
    return @as(f64, @floatFromInt(t.sec)) + @as(f64, @floatFromInt(t.nsec)) * 1e-9;
}

/// Reads this thread's share of one part of the memory, in four streams, as the kernels of one row
/// do. Each round takes the next part.
fn readPart(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    const streams = 4;
    const step = 512;
    const parts = @max(1, s.bytes / round_bytes);
    const stream = s.bytes / parts / s.n_threads / streams / step * step;
    const base = s.memory + round % parts * (s.bytes / parts) + thread * stream * streams;
    var bits: [8]U = @splat(@splat(0));
    var i: usize = 0;
    while (i < stream) : (i += step) inline for (0..streams) |q| {
        const p = base + q * stream + i;
        inline for (0..step / (4 * L)) |l| bits[l % 8] |= simd.ld(U, p + l * 4 * L);
    };
    var all: U = @splat(0);
    inline for (0..8) |l| all |= bits[l];
    slot.sink = @floatFromInt(@reduce(.Or, all) & 1);
    return @floatFromInt(stream * streams);
}

/// Some milliseconds of multiply-adds on as many independent sums as hide their latency.
fn fmaPart(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    _ = round;
    const chains = if (simd.has_avx512) 24 else 12;
    const times = 1_000_000;
    // Values that the compiler cannot know, different in each chain, so that it must do them all.
    const x = simd.splat(1 / @as(f32, @floatFromInt(s.n_threads + thread + 1)));
    var sums: [chains]F = undefined;
    inline for (0..chains) |i| sums[i] = x * simd.splat(@floatFromInt(i + 1));
    for (0..times) |_| {
        inline for (0..chains) |i| sums[i] = simd.mulAdd(sums[i], x, x);
    }
    var all = simd.zero;
    inline for (0..chains) |i| all += sums[i];
    slot.sink = simd.sum(all);
    return 2.0 * times * chains * L;
}

/// Some milliseconds of multiply-adds of pairs: one operand in a register, the others in L1, as in
/// the register tiles.
fn int8Part(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    _ = round;
    const chains = if (simd.has_avx512) 24 else 12;
    const times = 1_000_000;
    var x: [chains + 1]int8.Shorts = undefined;
    inline for (&x, 0..) |*v, i| v.* = @splat(@intCast(thread + i));
    x[chains] = @splat(@intCast(s.n_threads));
    var sums: [chains]simd.I = @splat(@splat(0));
    for (0..times) |_| {
        // The compiler must not know that nothing changes.
        asm volatile (""
            :
            : [x] "r" (&x),
            : .{ .memory = true });
        const w = x[chains];
        inline for (0..chains) |i| sums[i] +%= int8.addPairs16(w, x[i]);
    }
    var all: simd.I = @splat(0);
    inline for (0..chains) |i| all +%= sums[i];
    slot.sink = @floatFromInt(@reduce(.Xor, all));
    return 2.0 * times * chains * 2 * L;
}

// ---- tests ---------------------------------------------------------------------------------

test "two threads measure plausible rates together" {
    const gpa = std.testing.allocator;
    // Small memory: the figure is that of a cache then, and the test is quick.
    const memory = try gpa.alloc(u8, 4 << 20);
    defer gpa.free(memory);
    @memset(memory, 1);
    const shared = try gpa.create(Shared);
    defer gpa.destroy(shared);
    shared.* = std.mem.zeroInit(Shared, .{
        .memory = memory.ptr,
        .bytes = memory.len,
        .n_threads = 2,
    });
    const other = try std.Thread.spawn(.{}, run, .{ shared, 1 });
    run(shared, 0);
    other.join();
    try std.testing.expect(shared.read_rate > 1e8 and shared.read_rate < 1e13);
    try std.testing.expect(shared.fma_rate > 1e8 and shared.fma_rate < 1e13);
    try std.testing.expect(shared.int8_rate > 1e8 and shared.int8_rate < 1e14);
    try std.testing.expect(shared.read_median > 0 and shared.read_median <= shared.read_rate * 1.5);
}
