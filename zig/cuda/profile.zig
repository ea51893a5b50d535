//! Where a run's time goes: the plan as a graph with an event behind every launch. Launches do not
//! overlap here, so that the sum is more than the run takes by itself.

const std = @import("std");
const driver = @import("driver.zig");
const gpu_file = @import("gpu.zig");
const job = @import("../job.zig");
const plan_file = @import("../plan.zig");
const products = @import("chain_products.zig");
const session_file = @import("session.zig");
const status = @import("../status.zig");
const Failure = status.Failure;
const Gpu = gpu_file.Gpu;
const Plan = plan_file.Plan;
const Rejected = status.Rejected;
const Session = session_file.Session;
const allocator = std.heap.c_allocator;

/// Values of an entry: first command, commands, nanoseconds.
pub const entry = 3;
const rounds = 5;

/// Runs the plan, whose step is on the GPU, `rounds` times; gives each launch's middle time. The
/// caller holds the turn of the device.
pub fn run(plan: *Plan, s: *Session, c: *job.Context, f: *Failure) Rejected!void {
    const gpu = s.gpu;
    gpu.enter();
    const links = plan.body.cuda.links;
    const events = allocator.alloc(driver.Handle, links.len + 1) catch
        return f.memory(links.len * @sizeOf(driver.Handle));
    defer allocator.free(events);
    @memset(events, null);
    defer for (events) |event| if (event != null) {
        _ = gpu.api.cuEventDestroy_v2(event);
    };
    for (events) |*event|
        try gpu.check(gpu.api.cuEventCreate(event, 0), "to make an event", f);
    const sizes = allocator.alloc(u32, links.len) catch
        return f.memory(links.len * @sizeOf(u32));
    defer allocator.free(sizes);
    const graph = try capture(plan, s, events, sizes, f);
    defer _ = gpu.api.cuGraphExecDestroy(graph);

    const times = allocator.alloc([rounds]f32, links.len) catch
        return f.memory(links.len * rounds * @sizeOf(f32));
    defer allocator.free(times);
    for (0..rounds) |round| {
        try gpu.check(gpu.api.cuGraphLaunch(graph, gpu.stream), "to start a graph", f);
        try gpu.check(gpu.api.cuStreamSynchronize(gpu.stream), "in a run", f);
        for (times, events[0..links.len], events[1..]) |*of, begin, end| {
            const r = gpu.api.cuEventElapsedTime(&of[round], begin, end);
            try gpu.check(r, "to tell a time", f);
        }
    }
    for (times, links, sizes) |*of, link, commands| {
        if (commands == 0) continue; // it went with the link before
        std.mem.sort(f32, of, {}, std.sort.asc(f32));
        const ns: i32 = @intFromFloat(@min(of[rounds / 2] * std.time.ns_per_ms, 2e9));
        const values = [entry]i32{ @intCast(link.first), @intCast(commands), ns };
        if (!c.push(&values)) return f.set(.cancelled, "The job was cancelled", .{});
    }
}

fn capture(
    plan: *Plan,
    s: *Session,
    events: []const driver.Handle,
    sizes: []u32,
    f: *Failure,
) Rejected!driver.Handle {
    const gpu = s.gpu;
    var stream = s.launcher();
    try session_file.begun(gpu, f);
    mark(gpu, events[0]);
    const links = plan.body.cuda.links;
    var at: usize = 0;
    while (at < links.len) {
        const count = products.launch(plan.tasks, links[at..], &stream);
        @memset(sizes[at..][0..count], 0);
        for (links[at..][0..count]) |link| sizes[at] += link.count;
        for (events[at + 1 ..][0..count]) |event| mark(gpu, event);
        at += count;
    }
    return session_file.instantiated(gpu, &stream, f);
}

/// A failure here shows when the capture ends.
fn mark(gpu: *Gpu, event: driver.Handle) void {
    _ = gpu.api.cuEventRecordWithFlags(event, gpu.stream, driver.event_external);
}
