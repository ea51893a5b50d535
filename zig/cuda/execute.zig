//! Runs of a plan on a GPU: commands become launches on one stream. A job of many steps is captured
//! once as a graph and replayed, with only the step buffer changing.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const chain = @import("chain.zig");
const driver = @import("driver.zig");
const main = @import("main.zig");
const stream_file = @import("stream.zig");
const kernel = @import("../cpu/kernel.zig");
const gpu_file = @import("gpu.zig");
const plan_file = @import("../plan.zig");
const region = @import("../region.zig");
const status = @import("../status.zig");
const Failure = status.Failure;
const Gpu = gpu_file.Gpu;
const Plan = plan_file.Plan;
const Rejected = status.Rejected;
const Stream = stream_file.Stream;
const allocator = std.heap.c_allocator;

/// A job of fewer steps is not worth the time to build a graph.
const graph_steps_min = 8;

/// What a plan has beside its tasks to run on a GPU.
pub const Body = struct {
    /// Shared by all commands; what one leaves there for itself, no other touches.
    work: region.Region = .none,
    /// The plan's commands as launches: some serve several neighbours.
    links: []chain.Link = &.{},
    spare: region.Region = .none,

    pub fn make(plan: *Plan, gpu: *Gpu, f: *Failure) Rejected!Body {
        var workspace: u64 = 0;
        for (plan.tasks) |*task| {
            const of = main.kernels.get(task.op).workspace orelse continue;
            workspace = @max(workspace, of(task));
        }
        var b: Body = .{};
        errdefer b.free();
        b.links = chain.cut(allocator, plan.tasks) catch return f.memory(plan.tasks.len);
        var spare: u64 = 0;
        for (b.links) |link| spare = @max(spare, chain.spareBytes(plan.tasks, link));
        if (spare > 0) b.spare = try .make(gpu, spare, false, "a plan's workspace", f);
        if (workspace == 0) return b;
        b.work = try .make(gpu, workspace, false, "a plan's workspace", f);
        for (plan.tasks) |*task| task.workspace = b.work.ptr();
        return b;
    }

    pub fn free(b: *Body) void {
        allocator.free(b.links);
        b.spare.free();
        b.work.free();
    }
};

/// One job's runs of a plan.
pub const Session = struct {
    gpu: *Gpu,
    /// The step buffer on the GPU, and the job's own in the host's memory.
    step: region.Region,
    host: []u8,
    graph: driver.Handle = null,
    steps_done: usize = 0,

    pub fn begin(plan: *Plan, host: []u8, f: *Failure) Rejected!Session {
        const gpu = plan.device.gpu.?;
        return .{
            .gpu = gpu,
            .step = try .make(gpu, host.len, false, "a step buffer", f),
            .host = host,
        };
    }

    pub fn end(s: *Session) void {
        s.gpu.enter();
        if (s.graph != null) _ = s.gpu.api.cuGraphExecDestroy(s.graph);
        s.step.free();
    }

    /// Runs the plan, bound to its memory, once, and fetches what it sampled. `n_steps`: of the
    /// whole job. The caller holds the turn of the device.
    pub fn run(
        s: *Session,
        plan: *Plan,
        binding: *const plan_file.Binding,
        n_steps: usize,
        poison: bool,
        f: *Failure,
    ) Rejected!void {
        const gpu = s.gpu;
        gpu.enter();
        try s.upload(f);
        var stream: Stream = .{
            .gpu = gpu,
            .host = &binding.host,
            .spare = plan.body.cuda.spare.ptr(),
            .pages = binding.pages,
        };
        if (poison or builtin.mode == .Debug) {
            const arena = @intFromPtr(plan.arena.ptr());
            const r = gpu.api.cuMemsetD8Async(arena, 0xff, plan.arena.len(), gpu.stream);
            try gpu.check(r, "to poison a plan's memory", f);
        }
        // The first step loads kernels, which a capture must not; the second is worth capturing.
        const captures = n_steps >= graph_steps_min and s.steps_done == 1;
        if (captures and s.graph == null) try s.capture(plan, &stream, f);
        if (s.graph != null) {
            try gpu.check(gpu.api.cuGraphLaunch(s.graph, gpu.stream), "to start a graph", f);
        } else {
            launchAll(plan, &stream);
            try failed(&stream, f);
        }
        try s.download(binding, f);
        s.steps_done += 1;
    }

    fn upload(s: *Session, f: *Failure) Rejected!void {
        const gpu = s.gpu;
        var from: []const u8 = s.host;
        if (s.host.len <= gpu_file.staging_bytes) {
            @memcpy(gpu.staging[0..s.host.len], s.host);
            from = gpu.staging[0..s.host.len];
        }
        const to = @intFromPtr(s.step.ptr());
        const r = gpu.api.cuMemcpyHtoDAsync_v2(to, from.ptr, from.len, gpu.stream);
        try gpu.check(r, "to take a step", f);
    }

    /// Waits for the run.
    fn download(s: *Session, binding: *const plan_file.Binding, f: *Failure) Rejected!void {
        const gpu = s.gpu;
        if (binding.host.sampled) |sampled| {
            const bytes = binding.host.n_seqs * @sizeOf(i32);
            const from = @intFromPtr(binding.step.sampled.?);
            const r = gpu.api.cuMemcpyDtoHAsync_v2(sampled, from, bytes, gpu.stream);
            try gpu.check(r, "to give its ids", f);
        }
        try gpu.check(gpu.api.cuStreamSynchronize(gpu.stream), "in a run", f);
    }

    fn capture(s: *Session, plan: *Plan, stream: *Stream, f: *Failure) Rejected!void {
        const gpu = s.gpu;
        const local = driver.capture_thread_local;
        const begun = gpu.api.cuStreamBeginCapture_v2(gpu.stream, local);
        try gpu.check(begun, "to begin a graph", f);
        launchAll(plan, stream);
        var graph: driver.Handle = null;
        const ended = gpu.api.cuStreamEndCapture(gpu.stream, &graph);
        try failed(stream, f);
        try gpu.check(ended, "to end a graph", f);
        defer _ = gpu.api.cuGraphDestroy(graph);
        const made = gpu.api.cuGraphInstantiateWithFlags(&s.graph, graph, 0);
        try gpu.check(made, "to make a graph", f);
    }
};

fn launchAll(plan: *Plan, stream: *Stream) void {
    for (plan.body.cuda.links) |link|
        link.launch(plan.tasks[link.first..][0..link.count], stream);
}

fn failed(stream: *const Stream, f: *Failure) Rejected!void {
    if (stream.result == driver.ok) return;
    const words = driver.words(stream.gpu.api, stream.result);
    return f.set(.device_lost, "GPU {d} failed to start {s}: {s}", .{
        stream.gpu.ordinal, stream.failed, words,
    });
}
