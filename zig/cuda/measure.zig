//! What a GPU can do at best: reading and copying its memory, bf16 matrix steps, and the link that
//! brings weights (kernels/peaks.cu).

const std = @import("std");
const driver = @import("driver.zig");
const gpu_file = @import("gpu.zig");
const k = @import("kernel.zig");
const status = @import("../status.zig");
const Failure = status.Failure;
const Gpu = gpu_file.Gpu;
const Rejected = status.Rejected;
const Stream = k.Stream;

/// In the order of `JobKind.measure`.
pub const Rates = extern struct {
    read: f64 = 0,
    f32_fma: f64 = 0,
    bf16_dot: f64 = 0,
    int8_fma: f64 = 0,
    read_median: f64 = 0,
    copy: f64 = 0,
    link: f64 = 0,
};

/// Far more than any cache holds.
const memory_bytes: u64 = 2 << 30;
const link_bytes: u64 = 256 << 20;
const rounds = 12;
const mma_rounds: i32 = 20_000;
const mma_shared_bytes = 65536;
/// Two groups of warps, four steps of 64 x 256 x 16, two operations each.
const mma_round_flop = 2 * 4 * 64 * 256 * 16 * 2;

/// The caller holds the turn of the device.
pub fn measure(gpu: *Gpu, f: *Failure) Rejected!Rates {
    gpu.enter();
    // @min would narrow the type, but kernels take 64 bits
    const bytes: u64 = @min(memory_bytes, gpu.available() / 4) / 4096 * 4096;
    const from = try gpu.allocate(bytes, "a measurement", f);
    defer gpu.free(from, bytes);
    const to = try gpu.allocate(bytes, "a measurement", f);
    defer gpu.free(to, bytes);
    const pinned = try gpu.pinned(link_bytes, f);
    defer gpu.unpin(pinned);
    @memset(pinned, 1);
    var t: Timer = .{ .stream = .{ .gpu = gpu, .host = undefined } };
    defer t.free();
    for (&t.events) |*event|
        try gpu.check(gpu.api.cuEventCreate(event, 0), "to make an event", f);
    const s = &t.stream;
    const words: u64 = bytes / 4;
    const fill = .{ from, words };
    s.launch("peaks", "peak_fill", .{ 32 * gpu.multiprocessors, 1, 1 }, 512, fill, .{});

    var rates: Rates = .{};
    const pieces: u64 = bytes / 16;
    for ([_]u32{ 2, 4, 32 }) |blocks| {
        const grid = [3]u32{ blocks * gpu.multiprocessors, 1, 1 };
        const read = try t.rate(f, bytes, "peak_read", grid, 512, .{ from, pieces, to }, .{});
        rates.read = @max(rates.read, read[0]);
        rates.read_median = @max(rates.read_median, read[1]);
        const copy = try t.rate(f, 2 * bytes, "peak_copy", grid, 512, .{ from, to, pieces }, .{});
        rates.copy = @max(rates.copy, copy[0]);
    }
    if (gpu.capability == 90) {
        var n: i32 = mma_rounds;
        _ = &n; // arguments lie in memory
        const flop: u64 = mma_round_flop * @as(u64, mma_rounds) * gpu.multiprocessors;
        const grid = [3]u32{ gpu.multiprocessors, 1, 1 };
        const extra: k.Extra = .{ .shared_bytes = mma_shared_bytes };
        const mma = try t.rate(f, flop, "peak_mma", grid, 256, .{ to, n }, extra);
        rates.bf16_dot = mma[1];
    }
    var best: f32 = std.math.inf(f32);
    for (0..rounds) |_| {
        try t.mark(0, f);
        const r = gpu.api.cuMemcpyHtoDAsync_v2(to, pinned.ptr, pinned.len, gpu.stream);
        try gpu.check(r, "a write", f);
        best = @min(best, try t.elapsed(f));
    }
    rates.link = @as(f64, @floatFromInt(link_bytes)) / best * 1e3;
    return rates;
}

const Timer = struct {
    stream: Stream,
    events: [2]driver.Handle = @splat(null),

    fn free(t: *Timer) void {
        for (t.events) |event| if (event != null) {
            _ = t.stream.gpu.api.cuEventDestroy_v2(event);
        };
    }

    fn mark(t: *Timer, i: usize, f: *Failure) Rejected!void {
        const gpu = t.stream.gpu;
        const r = gpu.api.cuEventRecordWithFlags(t.events[i], gpu.stream, 0);
        try gpu.check(r, "to mark a time", f);
    }

    /// Milliseconds since mark 0, waited for.
    fn elapsed(t: *Timer, f: *Failure) Rejected!f32 {
        const gpu = t.stream.gpu;
        try t.mark(1, f);
        try gpu.check(gpu.api.cuEventSynchronize(t.events[1]), "in a measurement", f);
        var ms: f32 = 0;
        const r = gpu.api.cuEventElapsedTime(&ms, t.events[0], t.events[1]);
        try gpu.check(r, "to tell a time", f);
        return ms;
    }

    /// Amounts of work a second, the best round's and the middle one's.
    fn rate(
        t: *Timer,
        f: *Failure,
        amount: u64,
        comptime name: [:0]const u8,
        grid: [3]u32,
        threads: u32,
        args: anytype,
        extra: k.Extra,
    ) Rejected![2]f64 {
        var times: [rounds]f32 = undefined;
        for (&times) |*ms| {
            try t.mark(0, f);
            t.stream.launch("peaks", name, grid, threads, args, extra);
            try @import("session.zig").check(&t.stream, f);
            ms.* = try t.elapsed(f);
        }
        std.mem.sort(f32, &times, {}, std.sort.asc(f32));
        const work: f64 = @floatFromInt(amount);
        return .{ work / times[0] * 1e3, work / times[rounds / 2] * 1e3 };
    }
};
