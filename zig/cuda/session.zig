//! One job's runs of a plan on a GPU. From its second step on a long job is one graph, captured
//! once and replayed. Where ids are decoded the GPU itself makes each step's ids the next one's
//! input (kernels/advance.cu), so that a step is always waiting behind the one that runs.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const driver = @import("driver.zig");
const execute = @import("execute.zig");
const gpu_file = @import("gpu.zig");
const k = @import("kernel.zig");
const plan_file = @import("../plan.zig");
const region = @import("../region.zig");
const status = @import("../status.zig");
const sync = @import("../sync.zig");
const Failure = status.Failure;
const Gpu = gpu_file.Gpu;
const Plan = plan_file.Plan;
const Rejected = status.Rejected;
const Stream = k.Stream;

/// A job of fewer steps is not worth the time to build a graph.
const graph_steps_min = 8;
/// Steps on the GPU at a time: one that runs, one behind it.
const depth = gpu_file.results_depth;
/// The end of a step is foretold when all but one of so many parts and one have run.
const seen_part = 7;
/// Behind the step buffer: how many steps the GPU has advanced.
const counter_bytes = 64;

pub const Session = struct {
    gpu: *Gpu,
    plan: *Plan,
    binding: *const plan_file.Binding = undefined,
    /// The step buffer on the GPU, and the job's own in the host's memory.
    step: region.Region,
    host: []u8,
    n_steps: usize,
    decode: bool,
    poison: bool,
    invariant: bool,
    graph: driver.Handle = null,
    /// Where the GPU leaves ids; none where the host advances.
    results: ?gpu_file.Results = null,
    events: [depth]driver.Handle = @splat(null),
    started: usize = 0,
    /// Where a job of one step tells when it will have ended.
    expected: ?*std.atomic.Value(u64) = null,
    mark: driver.Handle = null,

    pub fn begin(
        plan: *Plan,
        host: []u8,
        o: command.JobOptions,
        n_seqs: u32,
        f: *Failure,
    ) Rejected!Session {
        const gpu = plan.device.gpu.?;
        var s: Session = .{
            .gpu = gpu,
            .plan = plan,
            .step = try .make(gpu, counterAt(host) + counter_bytes, false, "a step buffer", f),
            .host = host,
            .n_steps = o.n_steps,
            .decode = o.decode != 0,
            .poison = o.poison != 0,
            .invariant = o.batch_invariant != 0,
        };
        errdefer s.end();
        if (s.n_steps == 1) {
            const made = gpu.api.cuEventCreate(&s.mark, driver.event_no_time);
            try gpu.check(made, "to make an event", f);
        }
        if (s.n_steps < graph_steps_min) return s;
        for (&s.events) |*event| {
            const made = gpu.api.cuEventCreate(event, driver.event_sleep_no_time);
            try gpu.check(made, "to make an event", f);
        }
        if (s.decode) s.results = gpu.takeResults(n_seqs);
        return s;
    }

    /// Waits for what was started: a job may end before its last steps do.
    pub fn end(s: *Session) void {
        const gpu = s.gpu;
        gpu.enter();
        if (s.graph != null and s.started > 0)
            _ = gpu.api.cuEventSynchronize(s.events[(s.started - 1) % depth]);
        if (s.graph != null) _ = gpu.api.cuGraphExecDestroy(s.graph);
        for (s.events) |event| if (event != null) {
            _ = gpu.api.cuEventDestroy_v2(event);
        };
        if (s.mark != null) _ = gpu.api.cuEventDestroy_v2(s.mark);
        if (s.results) |results| gpu.giveResults(results);
        s.step.free();
    }

    /// Whether another step may start while `finished` steps have ended.
    pub fn mayStart(s: *const Session, finished: usize) bool {
        if (s.started == s.n_steps) return false;
        const room: usize = if (s.ahead() and finished > 0) depth else 1;
        return s.started < finished + room;
    }

    /// Whether steps follow each other without the host.
    fn ahead(s: *const Session) bool {
        return s.events[0] != null and (!s.decode or s.results != null);
    }

    /// Starts the next step of the plan, which is bound to its memory. The caller holds the turn of
    /// the device.
    pub fn start(s: *Session, f: *Failure) Rejected!void {
        const gpu = s.gpu;
        gpu.enter();
        const first_alone = s.started == 0 or !s.ahead();
        if (first_alone or s.started == 1) try s.upload(f);
        if (s.poison or builtin.mode == .Debug) {
            const arena = @intFromPtr(s.plan.arena.ptr());
            const r = gpu.api.cuMemsetD8Async(arena, 0xff, s.plan.arena.len(), gpu.stream);
            try gpu.check(r, "to poison a plan's memory", f);
        }
        // The first step loads kernels, which a capture must not; the second is worth capturing.
        if (s.events[0] != null and s.started == 1) try s.capture(f);
        if (s.graph != null) {
            try gpu.check(gpu.api.cuGraphLaunch(s.graph, gpu.stream), "to start a graph", f);
        } else {
            try s.launch(f);
        }
        if (first_alone) {
            try s.download(f);
        } else {
            const event = s.events[s.started % depth];
            const r = gpu.api.cuEventRecordWithFlags(event, gpu.stream, 0);
            try gpu.check(r, "to mark a step's end", f);
        }
        s.started += 1;
    }

    /// Launches a step one by one. What is left when most of one has run tells when it ends.
    fn launch(s: *Session, f: *Failure) Rejected!void {
        const gpu = s.gpu;
        const began = sync.nowNs();
        var stream = s.launcher();
        const links = s.plan.body.cuda.links.len;
        const most = execute.launchUntil(s.plan, &stream, 0, links * seen_part / (seen_part + 1));
        if (s.mark != null) _ = gpu.api.cuEventRecordWithFlags(s.mark, gpu.stream, 0);
        _ = execute.launchUntil(s.plan, &stream, most, links);
        try check(&stream, f);
        const expected = s.expected orelse return;
        if (s.mark == null) return;
        try gpu.check(gpu.api.cuEventSynchronize(s.mark), "in a run", f);
        const now = sync.nowNs();
        expected.store(now + (now - began) / seen_part, .monotonic);
    }

    /// Waits for step n, the oldest that has not ended, and fetches what it sampled.
    pub fn finish(s: *Session, n: usize, f: *Failure) Rejected!void {
        if (n == 0 or !s.ahead()) return; // `start` has waited
        s.gpu.enter();
        const ended = s.gpu.api.cuEventSynchronize(s.events[n % depth]);
        try s.gpu.check(ended, "in a run", f);
        const results = s.results orelse return;
        const host = &s.binding.host;
        const ids = results.ids[(n - 1) % depth * host.n_seqs ..][0..host.n_seqs];
        @memcpy(host.sampled.?[0..host.n_seqs], ids);
    }

    pub fn launcher(s: *const Session) Stream {
        return .{
            .gpu = s.gpu,
            .host = &s.binding.host,
            .spare = s.plan.body.cuda.spare.ptr(),
            .cells = if (s.plan.body.cuda.cells_set > 0) s.plan.body.cuda.cells.ptr() else null,
            .cells_set = s.plan.body.cuda.cells_set,
            .pages = s.binding.pages,
            .invariant = s.invariant,
        };
    }

    /// Nobody may overwrite the staging before the copy has ended: the first step is waited for,
    /// the second's upload is at once.
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
        if (s.started == 1 and s.ahead())
            try gpu.check(gpu.api.cuStreamSynchronize(gpu.stream), "to take a step", f);
    }

    /// Waits for the run.
    fn download(s: *Session, f: *Failure) Rejected!void {
        const gpu = s.gpu;
        const host = &s.binding.host;
        if (host.sampled) |sampled| {
            const bytes = host.n_seqs * @sizeOf(i32);
            const from = @intFromPtr(s.binding.step.sampled.?);
            const r = gpu.api.cuMemcpyDtoHAsync_v2(sampled, from, bytes, gpu.stream);
            try gpu.check(r, "to give its ids", f);
        }
        try gpu.check(gpu.api.cuStreamSynchronize(gpu.stream), "in a run", f);
    }

    fn capture(s: *Session, f: *Failure) Rejected!void {
        const gpu = s.gpu;
        var stream = s.launcher();
        try begun(gpu, f);
        execute.launchAll(s.plan, &stream);
        if (s.results) |results| advance(&stream, &s.binding.step, results, counter(s));
        s.graph = try instantiated(gpu, &stream, f);
    }
};

fn counterAt(host: []const u8) u64 {
    return std.mem.alignForward(u64, host.len, counter_bytes);
}
fn counter(s: *const Session) [*]u8 {
    return s.step.ptr() + counterAt(s.host);
}

/// Begins to capture what the stream is given.
pub fn begun(gpu: *Gpu, f: *Failure) Rejected!void {
    const r = gpu.api.cuStreamBeginCapture_v2(gpu.stream, driver.capture_thread_local);
    try gpu.check(r, "to begin a graph", f);
}

/// What was captured, ready to run.
pub fn instantiated(gpu: *Gpu, stream: *const Stream, f: *Failure) Rejected!driver.Handle {
    var graph: driver.Handle = null;
    const ended = gpu.api.cuStreamEndCapture(gpu.stream, &graph);
    try check(stream, f);
    try gpu.check(ended, "to end a graph", f);
    defer _ = gpu.api.cuGraphDestroy(graph);
    var made: driver.Handle = null;
    const r = gpu.api.cuGraphInstantiateWithFlags(&made, graph, 0);
    try gpu.check(r, "to make a graph", f);
    return made;
}

/// Fails as the first launch of a chain did.
pub fn check(stream: *const Stream, f: *Failure) Rejected!void {
    if (stream.result == driver.ok) return;
    const words = driver.words(stream.gpu.api, stream.result);
    return f.set(.device_lost, "GPU {d} failed to start {s}: {s}", .{
        stream.gpu.ordinal, stream.failed, words,
    });
}

const AdvanceArgs = extern struct {
    ids: ?[*]i32,
    positions: ?[*]i32,
    past_len: ?[*]u32,
    sampling: ?[*]u8,
    sampled: ?[*]i32,
    history: ?[*]i32,
    history_len: ?[*]u32,
    eos: ?[*]i32,
    results: [*]i32,
    count: [*]u8,
    n_seqs: i32,
    history_capacity: i32,
    n_eos: i32,
    pad_id: i32,
    depth: i32,
};

fn advance(s: *Stream, step: *const k.Step, results: gpu_file.Results, count: [*]u8) void {
    const a: AdvanceArgs = .{
        .ids = step.ids,
        .positions = step.positions,
        .past_len = step.past_len,
        .sampling = @ptrCast(step.sampling),
        .sampled = step.sampled,
        .history = step.history,
        .history_len = step.history_len,
        .eos = step.eos_ids,
        .results = results.ids,
        .count = count,
        .n_seqs = @intCast(step.n_seqs),
        .history_capacity = @intCast(step.history_capacity),
        .n_eos = @intCast(step.n_eos),
        .pad_id = step.pad_id,
        .depth = depth,
    };
    s.launch("advance", "advance", .{ 1, 1, 1 }, 256, .{a}, .{});
}
