//! Weights on their way up: a thread's two places in pinned memory, of which one is filled while
//! the other is copied.

const driver = @import("driver.zig");
const gpu_file = @import("gpu.zig");
const status = @import("../status.zig");
const Failure = status.Failure;
const Gpu = gpu_file.Gpu;
const Rejected = status.Rejected;

pub const Upload = struct {
    gpu: ?*Gpu = null,
    places: [2][]u8 = @splat(&.{}),
    events: [2]driver.Handle = @splat(null),
    stream: driver.Handle = null,
    /// The place that is filled next.
    at: u1 = 0,

    /// `room`: of both places.
    pub fn init(u: *Upload, gpu: *Gpu, room: []u8, f: *Failure) Rejected!void {
        const half = room.len / 2;
        u.gpu = gpu;
        u.places = .{ room[0..half], room[half..][0..half] };
        gpu.enter();
        const non_blocking = driver.stream_non_blocking;
        try gpu.check(gpu.api.cuStreamCreate(&u.stream, non_blocking), "to make a stream", f);
        for (&u.events) |*event| {
            const made = gpu.api.cuEventCreate(event, driver.event_no_time);
            try gpu.check(made, "to make an event", f);
        }
    }

    pub fn free(u: *Upload) void {
        const gpu = u.gpu orelse return;
        gpu.enter();
        for (u.events) |event| if (event != null) {
            _ = gpu.api.cuEventDestroy_v2(event);
        };
        if (u.stream != null) _ = gpu.api.cuStreamDestroy_v2(u.stream);
    }

    /// The next place, once what lay there has been copied.
    pub fn next(u: *Upload, f: *Failure) Rejected![]u8 {
        const gpu = u.gpu.?;
        gpu.enter();
        try gpu.check(gpu.api.cuEventSynchronize(u.events[u.at]), "a write", f);
        return u.places[u.at];
    }

    /// Starts to copy bytes of the place that `next` gave, and is done with it.
    pub fn start(u: *Upload, to: driver.Address, from: []const u8, f: *Failure) Rejected!void {
        const gpu = u.gpu.?;
        try u.along(to, from, f);
        const marked = gpu.api.cuEventRecordWithFlags(u.events[u.at], u.stream, 0);
        try gpu.check(marked, "a write", f);
        u.at ^= 1;
    }

    /// Starts to copy other bytes of it, before `start`.
    pub fn along(u: *Upload, to: driver.Address, from: []const u8, f: *Failure) Rejected!void {
        const gpu = u.gpu.?;
        const sent = gpu.api.cuMemcpyHtoDAsync_v2(to, from.ptr, from.len, u.stream);
        try gpu.check(sent, "a write", f);
    }

    /// Waits for all copies.
    pub fn finish(u: *Upload, f: *Failure) Rejected!void {
        const gpu = u.gpu.?;
        gpu.enter();
        try gpu.check(gpu.api.cuStreamSynchronize(u.stream), "a write", f);
    }
};
