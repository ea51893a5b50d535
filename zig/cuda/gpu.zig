//! A GPU of this process: its context, the memory it gives and the kernels loaded on it. Made once
//! for each ordinal and kept: the driver shares the context with whoever else uses it.

const std = @import("std");
const driver = @import("driver.zig");
const images = @import("images.zig");
const spares_file = @import("spares.zig");
const status = @import("../status.zig");
const sync = @import("../sync.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;
const Result = driver.Result;

pub const max_gpus = 16;
/// Pinned memory through which step buffers and results pass.
pub const staging_bytes = 1 << 20;
/// Steps whose ids may wait in `Results`.
pub const results_depth = 2;
/// Jobs that have `Results` at a time, and sequences of one; others advance on the host.
const results_jobs = 32;
const results_seqs = 1024;

/// Pinned memory that the GPU writes each step's ids into.
pub const Results = struct { ids: [*]i32, place: u5 };

pub const Gpu = struct {
    api: *const driver.Api,
    ordinal: u32,
    context: driver.Handle,
    /// Runs of plans, one after another.
    stream: driver.Handle,
    staging: [*]u8,
    results: [*]i32,
    results_taken: std.atomic.Value(u32) = .init(0),
    name: [64]u8,
    capability: u32,
    multiprocessors: u32,
    total: u64,
    /// Clusters of eight blocks, each with a multiprocessor, that it runs at once: once known.
    eights: ?u32 = null,
    /// Bytes of buffers and plans on it.
    allocated: std.atomic.Value(u64) = .init(0),
    spares: spares_file.Spares = .{},
    modules: [@max(1, images.count)]driver.Handle = @splat(null),

    /// Makes the context the calling thread's.
    pub fn enter(g: *const Gpu) void {
        _ = g.api.cuCtxSetCurrent(g.context);
    }

    /// Turns a result of the driver into a failure with a sentence.
    pub fn check(g: *const Gpu, result: Result, what: []const u8, f: *Failure) Rejected!void {
        if (result == driver.ok) return;
        const code: status.Status = if (result == driver.out_of_memory) .memory else .device_lost;
        const words = driver.words(g.api, result);
        return f.set(code, "GPU {d} failed {s}: {s}", .{ g.ordinal, what, words });
    }

    /// Bytes free on the card, for everybody.
    pub fn available(g: *const Gpu) u64 {
        g.enter();
        var unused: usize = 0;
        var total: usize = 0;
        const told = g.api.cuMemGetInfo_v2(&unused, &total) == driver.ok;
        return if (told) unused + @constCast(g).spares.held() else 0;
    }

    /// Zeroed memory. `what` names it in the sentence where there is too little.
    pub fn allocate(g: *Gpu, bytes: u64, what: []const u8, f: *Failure) Rejected!driver.Address {
        g.enter();
        const room = spares_file.Spares.room(bytes, g.total);
        const address = g.spares.take(room) orelse try g.fresh(room, bytes, what, f);
        errdefer _ = g.api.cuMemFree_v2(address);
        const own = driver.stream_per_thread;
        try g.check(g.api.cuMemsetD8Async(address, 0, room, own), "to clear memory", f);
        try g.check(g.api.cuStreamSynchronize(own), "to clear memory", f);
        _ = g.allocated.fetchAdd(bytes, .monotonic);
        return address;
    }
    fn fresh(g: *Gpu, room: u64, bytes: u64, what: []const u8, f: *Failure) Rejected!u64 {
        var unused: usize = 0;
        var total: usize = 0;
        try g.check(g.api.cuMemGetInfo_v2(&unused, &total), "to tell its memory", f);
        if (room > unused) {
            var dropped: spares_file.Addresses = undefined;
            g.giveBack(g.spares.drop(&dropped));
            try g.check(g.api.cuMemGetInfo_v2(&unused, &total), "to tell its memory", f);
        }
        var address: driver.Address = 0;
        const fits = room <= unused;
        const result = if (fits) g.api.cuMemAlloc_v2(&address, room) else driver.out_of_memory;
        if (result != driver.out_of_memory) try g.check(result, "to give memory", f);
        if (result == driver.ok) return address;
        return f.set(
            .memory,
            "Expected {d} MiB of GPU memory for {s} but found {d} MiB available",
            .{ bytes >> 20, what, unused >> 20 },
        );
    }
    /// Whoever used the memory has ended.
    pub fn free(g: *Gpu, address: driver.Address, bytes: u64) void {
        g.enter();
        var old: spares_file.Addresses = undefined;
        const room = spares_file.Spares.room(bytes, g.total);
        g.giveBack(g.spares.keep(address, room, g.total, &old));
        _ = g.allocated.fetchSub(bytes, .monotonic);
    }
    fn giveBack(g: *Gpu, addresses: []const u64) void {
        for (addresses) |address| _ = g.api.cuMemFree_v2(address);
    }

    /// Copies and waits, on the calling thread's own stream.
    pub fn write(g: *Gpu, to: driver.Address, from: []const u8, f: *Failure) Rejected!void {
        g.enter();
        const own = driver.stream_per_thread;
        try g.check(g.api.cuMemcpyHtoDAsync_v2(to, from.ptr, from.len, own), "a write", f);
        try g.check(g.api.cuStreamSynchronize(own), "a write", f);
    }
    pub fn read(g: *Gpu, from: driver.Address, out: []u8, f: *Failure) Rejected!void {
        g.enter();
        const own = driver.stream_per_thread;
        try g.check(g.api.cuMemcpyDtoHAsync_v2(out.ptr, from, out.len, own), "a read", f);
        try g.check(g.api.cuStreamSynchronize(own), "a read", f);
    }
    pub fn copy(
        g: *Gpu,
        to: driver.Address,
        from: driver.Address,
        bytes: u64,
        f: *Failure,
    ) Rejected!void {
        g.enter();
        const own = driver.stream_per_thread;
        try g.check(g.api.cuMemcpyDtoDAsync_v2(to, from, bytes, own), "a copy", f);
        try g.check(g.api.cuStreamSynchronize(own), "a copy", f);
    }

    /// Pinned memory of the host, for copies at the speed of the link.
    pub fn pinned(g: *Gpu, bytes: u64, f: *Failure) Rejected![]u8 {
        g.enter();
        var address: driver.Handle = null;
        try g.check(g.api.cuMemHostAlloc(&address, bytes, 0), "to pin memory of the host", f);
        return @as([*]u8, @ptrCast(address.?))[0..bytes];
    }
    pub fn unpin(g: *Gpu, pages: []u8) void {
        g.enter();
        _ = g.api.cuMemFreeHost(pages.ptr);
    }

    /// Pins pages that are there already, which of 64 MiB in huge pages takes 1.4 ms where `pinned`
    /// takes 23 and `unpin` 6. Where the system refuses, copies from them work all the same.
    pub fn register(g: *Gpu, pages: []u8) bool {
        g.enter();
        return g.api.cuMemHostRegister_v2(pages.ptr, pages.len, 0) == 0;
    }
    pub fn unregister(g: *Gpu, pages: []u8) void {
        g.enter();
        _ = g.api.cuMemHostUnregister(pages.ptr);
    }

    /// Room for a job's ids; null where there is none.
    pub fn takeResults(g: *Gpu, n_seqs: u32) ?Results {
        if (n_seqs > results_seqs) return null;
        var taken = g.results_taken.load(.monotonic);
        while (~taken != 0) {
            const place: u5 = @intCast(@ctz(~taken));
            const mine = @as(u32, 1) << place;
            taken = g.results_taken.cmpxchgWeak(taken, taken | mine, .acq_rel, .monotonic) orelse
                return .{
                    .ids = g.results + @as(usize, place) * results_depth * results_seqs,
                    .place = place,
                };
        }
        return null;
    }
    pub fn giveResults(g: *Gpu, r: Results) void {
        _ = g.results_taken.fetchAnd(~(@as(u32, 1) << r.place), .acq_rel);
    }

    /// A kernel of an embedded image, loaded with it when first asked for. Not for two threads.
    pub fn function(g: *Gpu, image: usize, name: [*:0]const u8) struct { driver.Handle, Result } {
        if (images.count == 0) unreachable; // no GPU was opened
        if (g.modules[image] == null) {
            const r = g.api.cuModuleLoadData(&g.modules[image], images.all[image].data);
            if (r != driver.ok) return .{ null, r };
        }
        var found: driver.Handle = null;
        const r = g.api.cuModuleGetFunction(&found, g.modules[image], name);
        return .{ found, r };
    }
};

/// What the images' PTX is for.
const ptx_capability = 80;

/// The way to try other cards' kernels on a Hopper, which has none of its own once the driver is
/// told to compile PTX.
fn compilesPtx() bool {
    const text = std.c.getenv("CUDA_FORCE_PTX_JIT") orelse return false;
    return std.mem.eql(u8, std.mem.span(text), "1");
}

var mutex: sync.Mutex = .{};
var gpus: [max_gpus]?*Gpu = @splat(null);
var storage: [max_gpus]Gpu = undefined;

/// 0 where a GPU is usable, else why none is.
pub fn state() i32 {
    if (images.count == 0) return driver.Status.not_built;
    mutex.lock();
    defer mutex.unlock();
    return switch (driver.open()) {
        .api => driver.Status.usable,
        .status => |why| why,
    };
}

pub fn get(ordinal: u32, f: *Failure) Rejected!*Gpu {
    if (images.count == 0) return f.set(.unsupported, "Expected a library built with CUDA but " ++
        "found one built without: run ./dev build --cuda on", .{});
    mutex.lock();
    defer mutex.unlock();
    const api = switch (driver.open()) {
        .api => |api| api,
        .status => |why| return f.set(.unsupported, "Expected a CUDA GPU but found {s}", .{
            switch (why) {
                driver.Status.no_driver => "no NVIDIA driver: libcuda.so.1 is not there",
                driver.Status.old_driver => "an NVIDIA driver older than version 525",
                else => "none: the NVIDIA driver is there but shows no GPU",
            },
        }),
    };
    var count: c_int = 0;
    _ = api.cuDeviceGetCount(&count);
    const most: u32 = @min(max_gpus, @as(u32, @intCast(count)));
    if (ordinal >= most)
        return f.set(.range, "Expected a GPU below {d} but found cuda:{d}", .{ most, ordinal });
    if (gpus[ordinal] == null) {
        storage[ordinal] = try open(api, ordinal, f);
        gpus[ordinal] = &storage[ordinal];
    }
    return gpus[ordinal].?;
}

fn open(api: *const driver.Api, ordinal: u32, f: *Failure) Rejected!Gpu {
    var g: Gpu = .{
        .api = api,
        .ordinal = ordinal,
        .context = null,
        .stream = null,
        .staging = undefined,
        .results = undefined,
        .name = @splat(0),
        .capability = 0,
        .multiprocessors = 0,
        .total = 0,
    };
    var device: c_int = 0;
    try g.check(api.cuDeviceGet(&device, @intCast(ordinal)), "to open", f);
    try g.check(api.cuDeviceGetName(&g.name, g.name.len, device), "to tell its name", f);
    var values: [3]c_int = undefined;
    const wanted = .{ "multiprocessors", "capability_major", "capability_minor" };
    inline for (wanted, &values) |what, *value| try g.check(
        api.cuDeviceGetAttribute(value, @field(driver.attribute, what), device),
        "to tell its properties",
        f,
    );
    g.multiprocessors = @intCast(values[0]);
    g.capability = @intCast(values[1] * 10 + values[2]);
    if (g.capability < 80) return f.set(
        .unsupported,
        "Expected a GPU of compute capability 8.0 or more but found {s} of {d}.{d}",
        .{ std.mem.sliceTo(&g.name, 0), values[1], values[2] },
    );
    if (compilesPtx()) g.capability = ptx_capability;
    try g.check(api.cuDevicePrimaryCtxRetain(&g.context, device), "to make a context", f);
    g.enter();
    var unused: usize = 0;
    var total: usize = 0;
    try g.check(api.cuMemGetInfo_v2(&unused, &total), "to tell its memory", f);
    g.total = total;
    const non_blocking = driver.stream_non_blocking;
    try g.check(api.cuStreamCreate(&g.stream, non_blocking), "to make a stream", f);
    g.staging = (try g.pinned(staging_bytes, f)).ptr;
    const results_bytes = results_jobs * results_depth * results_seqs * @sizeOf(i32);
    g.results = @ptrCast(@alignCast((try g.pinned(results_bytes, f)).ptr));
    return g;
}
