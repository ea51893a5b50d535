//! What this machine can do at best, as the denominator of every share that a benchmark reports:
//! bytes read a second from memory far larger than any cache, and multiply-adds a second in
//! registers: of f32, of pairs of bf16 where the level has them, and of small integers (vpdpbusd,
//! or pairs of i16 into i32, which is what exact products of int8 amount to where there is no
//! instruction for four of them). All threads run a round together; a disturbed round (the thread
//! was off its core) does not count while an undisturbed one is to be had.

const std = @import("std");
const bf16 = @import("bf16.zig");
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
    /// 0 where the level has none
    bf16_rate: f64,
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
    inline for (.{ readPlain, readAhead }) |part| {
        var best: f64 = 0;
        var middle: f64 = 0;
        phase(shared, thread, read_rounds, part, .wall, &best, &middle);
        // Those of thread 0 alone are set.
        if (thread == 0) {
            shared.read_rate = @max(shared.read_rate, best);
            shared.read_median = @max(shared.read_median, middle);
        }
    }
    phase(shared, thread, fma_rounds, fmaPart, .cpu, &shared.fma_rate, null);
    if (simd.has_avx512bf16)
        phase(shared, thread, fma_rounds, bf16Part, .cpu, &shared.bf16_rate, null);
    const bytes = if (simd.has_vnni) foursPart else pairsPart;
    phase(shared, thread, fma_rounds, bytes, .cpu, &shared.int8_rate, null);
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

/// Nothing asked for beforehand, and each line asked for into L2 so many bytes ahead: CPUs differ
/// in which is faster, and a kernel may do either.
const readPlain = Read(0).part;
const readAhead = Read(4096).part;

fn Read(comptime ahead: usize) type {
    return struct {
        fn part(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
            return read(ahead, s, thread, round, slot);
        }
    };
}

/// Reads this thread's share of one part of the memory, in four streams, as the kernels of one row
/// do. Each round takes the next part.
fn read(comptime ahead: usize, s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    const streams = 4;
    const step = 512;
    const parts = @max(1, s.bytes / round_bytes);
    const stream = s.bytes / parts / s.n_threads / streams / step * step;
    const base = s.memory + round % parts * (s.bytes / parts) + thread * stream * streams;
    var bits: [8]U = @splat(@splat(0));
    var i: usize = 0;
    while (i < stream) : (i += step) inline for (0..streams) |q| {
        const p = base + q * stream + i;
        if (ahead > 0) inline for (0..step / 64) |line|
            @prefetch(p + ahead + line * 64, .{ .locality = 2 });
        inline for (0..step / (4 * L)) |l| bits[l % 8] |= simd.ld(U, p + l * 4 * L);
    };
    var all: U = @splat(0);
    inline for (0..8) |l| all |= bits[l];
    slot.sink = @floatFromInt(@reduce(.Or, all) & 1);
    return @floatFromInt(stream * streams);
}

/// Independent sums that hide the latency of a multiply-add, and what they multiply: all of it in
/// registers, since a core that loads an operand for each (as tiles need not) does an eighth less.
const chains = if (simd.has_avx512) 24 else 12;
const operands = if (simd.has_avx512) 6 else 2;
/// Some milliseconds.
const times = 1_000_000;

/// Sums of `step(sum, x, w)`, each over its own start; w is the last of x.
inline fn chain(
    comptime V: type,
    comptime X: type,
    comptime step: fn (V, X, X) callconv(.@"inline") V,
    n: usize,
    x: []X,
    comptime several: usize,
) V {
    var sums: [chains]V = undefined;
    inline for (&sums, 0..) |*sum, i| sum.* = @splat(i);
    for (0..n) |_| {
        // The compiler must not know that nothing changes.
        asm volatile (""
            :
            : [x] "r" (x.ptr),
            : .{ .memory = true });
        const w = x[several];
        inline for (0..chains) |i| sums[i] = step(sums[i], x[i % several], w);
    }
    var all: V = sums[0];
    inline for (1..chains) |i| all = if (V == F) all + sums[i] else all +% sums[i];
    return all;
}

inline fn mulAdd(sum: F, x: F, w: F) F {
    return simd.mulAdd(x, w, sum);
}
inline fn addPairs(sum: simd.I, x: int8.Shorts, w: int8.Shorts) simd.I {
    return sum +% int8.addPairs16(x, w);
}
inline fn addFours(sum: simd.I, x: U, w: U) simd.I {
    return int8.addFours(sum, @bitCast(x), @bitCast(w));
}
/// Pairs of bf16 near one, of any sign.
fn pairsOf(thread: u32) [operands + 1]U {
    var x: [operands + 1]U = undefined;
    for (&x, 0..) |*v, i| v.* = @splat(0x3f80bf80 +% @as(u32, @intCast(i + thread)) * 0x10001);
    return x;
}

fn fmaPart(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    _ = round;
    var x: [operands + 1]F = undefined;
    for (&x, 0..) |*v, i| v.* = @splat(1 / @as(f32, @floatFromInt(s.n_threads + thread + i)));
    slot.sink = simd.sum(chain(F, F, mulAdd, times, &x, operands));
    return 2.0 * times * chains * L;
}

fn bf16Part(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    _ = .{ s, round };
    var x = pairsOf(thread);
    slot.sink = simd.sum(chain(F, U, bf16.dot, times, &x, operands));
    return 2.0 * times * chains * 2 * L;
}

fn pairsPart(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    var x: [chains + 1]int8.Shorts = undefined;
    for (&x, 0..) |*v, i| v.* = @splat(@intCast(thread + i));
    x[chains] = @splat(@intCast(s.n_threads + round));
    // A product and a sum are two instructions here: each sum needs a product of its own.
    const all = chain(simd.I, int8.Shorts, addPairs, times, &x, chains);
    slot.sink = @floatFromInt(@reduce(.Xor, all));
    return 2.0 * times * chains * 2 * L;
}

fn foursPart(s: *const Shared, thread: u32, round: u32, slot: *Slot) f64 {
    _ = .{ s, round };
    var x = pairsOf(thread);
    slot.sink = @floatFromInt(@reduce(.Xor, chain(simd.I, U, addFours, times, &x, operands)));
    return 2.0 * times * chains * 4 * L;
}

/// How many times as fast as those of f32 the multiply-adds of bf16 are: both in turns, the best of
/// short rounds of each, some milliseconds together.
pub fn bf16Gain() callconv(.c) f64 {
    const short = 4000;
    var x: [operands + 1]F = @splat(simd.splat(1));
    var y = pairsOf(0);
    var seconds: [2]f64 = @splat(1);
    for (0..32) |_| {
        const start = now(.MONOTONIC);
        std.mem.doNotOptimizeAway(chain(F, F, mulAdd, short, &x, operands));
        const middle = now(.MONOTONIC);
        std.mem.doNotOptimizeAway(chain(F, U, bf16.dot, short, &y, operands));
        seconds[0] = @min(seconds[0], middle - start);
        seconds[1] = @min(seconds[1], now(.MONOTONIC) - middle);
    }
    // An instruction of bf16 does twice as many.
    return 2 * seconds[0] / seconds[1];
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
    const bf16_least: f64 = if (simd.has_avx512bf16) 1e8 else 0;
    try std.testing.expect(shared.bf16_rate >= bf16_least and shared.bf16_rate < 1e13);
    try std.testing.expect(shared.int8_rate > 1e8 and shared.int8_rate < 1e14);
    try std.testing.expect(shared.read_median > 0 and shared.read_median <= shared.read_rate * 1.5);
}
