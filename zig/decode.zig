//! Jobs that run a plan: once, or in many steps of which each samples the ids that the next is fed.
//! Between steps only the step buffer changes; nothing is allocated.

const std = @import("std");
const command = @import("command");
const buffer = @import("buffer.zig");
const cuda = @import("cuda/session.zig");
const execute = @import("execute.zig");
const handle = @import("handle.zig");
const job = @import("job.zig");
const kernel = @import("cpu/kernel.zig");
const plan_file = @import("plan.zig");
const profiler = @import("cuda/profile.zig");
const ring = @import("ring.zig");
const status = @import("status.zig");
const validate = @import("validate.zig");
const Buffer = buffer.Buffer;
const Failure = status.Failure;
const Plan = plan_file.Plan;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

const step_alignment = 64;
/// As many steps as `validate.step` accepts: more matter only where ids feed the next step.
const steps_max = 1 << 24;

pub const Decode = struct {
    options: command.JobOptions,
    plan: *Plan,
    buffers: [3]?*Buffer,
    /// The step buffer.
    data: []align(step_alignment) u8,

    pub fn release(d: *Decode) void {
        releaseAll(d.buffers);
        d.plan.object.release();
        allocator.free(d.data);
    }

    /// Runs the plan `n_steps` times, or until every sequence has ended.
    pub fn run(d: *Decode, c: *job.Context, f: *Failure) Rejected!void {
        const o = d.options;
        const host = view(d.data, d.data.ptr);
        var on_gpu: ?cuda.Session = null;
        if (c.device.gpu != null) on_gpu = try .begin(d.plan, d.data, o, host.n_seqs, f);
        defer if (on_gpu) |*session| session.end();
        const binding = d.bindingOf(c, host, if (on_gpu) |session| session.step.ptr() else null);
        if (on_gpu) |*session| {
            session.binding = &binding;
            session.expected = &c.expected;
        }
        for (0..o.n_steps) |n| {
            if (on_gpu) |*session| {
                while (session.mayStart(n)) try d.step(c, &binding, session, f);
                try session.finish(n, f);
            } else try d.step(c, &binding, null, f);
            c.done.store(n + 1, .monotonic);
            if (o.decode == 0) continue;
            const going = try advance(&host, d.plan.header, n + 1 < o.n_steps, f);
            if (!c.push(host.sampled.?[0..host.n_seqs])) return cancelled(f);
            if (!going) break;
        }
    }

    /// Times every launch of one run of the plan, alone on the GPU.
    pub fn profile(d: *Decode, c: *job.Context, f: *Failure) Rejected!void {
        const host = view(d.data, d.data.ptr);
        var o = d.options;
        o.n_steps = 1;
        var session: cuda.Session = try .begin(d.plan, d.data, o, host.n_seqs, f);
        defer session.end();
        const binding = d.bindingOf(c, host, session.step.ptr());
        session.binding = &binding;
        try d.step(c, &binding, &session, f); // kernels are loaded, and the step is on the GPU
        const turn = &c.device.pool.turn;
        if (!turn.lock(&c.cancel)) return cancelled(f);
        defer turn.unlock();
        d.plan.bind(&binding);
        try profiler.run(d.plan, &session, c, f);
        c.done.store(1, .monotonic);
    }

    /// Runs one step of the plan, or starts it on the GPU, when it is this job's turn.
    fn step(
        d: *Decode,
        c: *job.Context,
        binding: *const plan_file.Binding,
        session: ?*cuda.Session,
        f: *Failure,
    ) Rejected!void {
        const turn = &c.device.pool.turn;
        if (!turn.lock(&c.cancel)) return cancelled(f);
        defer turn.unlock();
        if (c.cancelled()) return cancelled(f);
        try d.plan.checkFiles(f);
        d.plan.bind(binding);
        if (session) |of| return of.start(f);
        if (!execute.run(d.plan, d.options.poison != 0, &c.cancel)) return cancelled(f);
    }

    /// What the plan's late operands lie in; `on_device`: where the step buffer lies on a GPU.
    fn bindingOf(
        d: *const Decode,
        c: *const job.Context,
        host: kernel.Step,
        on_device: ?[*]u8,
    ) plan_file.Binding {
        return .{
            .id = c.id,
            .step = if (on_device) |base| view(d.data, base) else host,
            .host = host,
            .state = address(d.buffers[0]),
            .kv = address(d.buffers[1]),
            .output = address(d.buffers[2]),
            .pages = (length(d.buffers[1]) orelse 0) / @max(1, d.plan.header.page_bytes),
        };
    }
};

fn cancelled(f: *Failure) Rejected {
    return f.set(.cancelled, "The job was cancelled", .{});
}

/// Finds plan and buffers, checks the step buffer and makes the ring.
pub fn prepare(
    c: *job.Context,
    o: command.JobOptions,
    data: []const u8,
    f: *Failure,
) Rejected!Decode {
    const plan = try handle.get(Plan, o.plan, f);
    errdefer plan.object.release();
    if (plan.device != c.device)
        return f.set(
            .invalid,
            "Expected a plan of device {d} but found one of another",
            .{o.device},
        );
    const buffers = try getAll(.{ o.state, o.kv, o.output }, f);
    errdefer releaseAll(buffers);
    for (buffers) |given| if (given) |b| if (b.memory.owner() != c.device.gpu) return f.set(
        .invalid,
        "Expected state, kv and output on the job's device but found one on another",
        .{},
    );
    const copy = allocator.alignedAlloc(u8, .fromByteUnits(step_alignment), data.len) catch
        return f.memory(data.len);
    errdefer allocator.free(copy);
    @memcpy(copy, data);
    try validate.step(allocator, copy, plan.header, plan.needs, .{
        .state_bytes = length(buffers[0]),
        .kv_bytes = length(buffers[1]),
        .output_bytes = length(buffers[2]),
        .n_steps = if (o.decode != 0) o.n_steps else @min(o.n_steps, steps_max),
        .decode = o.decode != 0,
    }, f);
    c.total = o.n_steps;
    if (o.kind == .profile) {
        if (c.device.gpu == null) return f.set(
            .unsupported,
            "Expected a GPU to profile a plan on but found the CPU",
            .{},
        );
        c.ring = try ring.Ring.make(profiler.entry, plan.body.cuda.links.len, f);
    } else if (o.decode != 0) {
        const n_seqs = view(copy, copy.ptr).n_seqs;
        const steps = if (o.ring_steps == 0) o.n_steps else @min(o.ring_steps, o.n_steps);
        c.ring = try ring.Ring.make(n_seqs, steps, f);
    }
    return .{ .options = o, .plan = plan, .buffers = buffers, .data = copy };
}

fn getAll(handles: [3]u32, f: *Failure) Rejected![3]?*Buffer {
    var found: [3]?*Buffer = @splat(null);
    errdefer releaseAll(found);
    for (handles, &found) |h, *b| {
        if (h != 0) b.* = try handle.get(Buffer, h, f);
    }
    return found;
}

fn releaseAll(buffers: [3]?*Buffer) void {
    for (buffers) |given| if (given) |b| b.object.release();
}

fn length(given: ?*Buffer) ?u64 {
    return if (given) |b| b.bytes else null;
}

fn address(given: ?*Buffer) ?[*]u8 {
    return if (given) |b| b.memory.ptr() else null;
}

/// The arrays of a checked step buffer as pointers into memory of the same layout at `base`.
fn view(data: []align(step_alignment) u8, base: [*]u8) kernel.Step {
    const header: *command.StepHeader = @ptrCast(data.ptr);
    var step = std.mem.zeroes(kernel.Step);
    inline for (.{
        "n_tokens",         "n_seqs", "n_logits",  "max_pages",
        "history_capacity", "n_eos",  "n_bad_ids", "pad_id",
    }) |name| @field(step, name) = @field(header, name);
    inline for (@typeInfo(command.StepField).@"enum".fields) |f| {
        const offset = header.offsets[f.value];
        if (offset != 0) @field(step, f.name) = @ptrCast(@alignCast(base + offset));
    }
    return step;
}

/// Takes note of what was sampled, and makes it the next step's input where there is a next one.
/// Answers whether a sequence goes on.
fn advance(
    step: *const kernel.Step,
    plan: command.PlanHeader,
    more: bool,
    f: *Failure,
) Rejected!bool {
    var going = false;
    for (0..step.n_seqs) |s| {
        const sampled = &step.sampled.?[s];
        const ended = step.sampling.?[s].finished != 0;
        if (ended) sampled.* = step.pad_id;
        const id = sampled.*;
        if (id == -1) return f.set( // as `sample` says it
            .range,
            "Expected a score to choose by but found only NaN or -inf in sequence {d}",
            .{s},
        );
        // A head may have more rows than the vocabulary has ids.
        if (id < 0 or id >= plan.vocab_size) return f.set(
            .range,
            "Expected sampled ids of at least 0 and below {d} but found {d} in sequence {d}",
            .{ plan.vocab_size, id, s },
        );
        if (!ended) try record(step, s, id, f);
        if (!more) continue;
        step.ids.?[s] = if (step.sampling.?[s].finished != 0) step.pad_id else id;
        // An ended sequence stays where it is: its cache is of no use to anybody any more, and it
        // needs no further page.
        if (step.sampling.?[s].finished != 0) continue;
        going = true;
        step.positions.?[s] += 1;
        step.past_len.?[s] += 1;
        if (step.pages != null) try checkPages(step, s, f);
    }
    return going;
}

/// One more id of a sequence: counted, remembered, and looked up among the eos ids.
fn record(step: *const kernel.Step, s: usize, id: i32, f: *Failure) Rejected!void {
    const sampling = &step.sampling.?[s];
    sampling.generated += 1;
    if (step.history) |history| {
        const used = &step.history_len.?[s];
        if (used.* >= step.history_capacity) return f.set(
            .range,
            "Expected room for another id in the history of sequence {d} but found {d} used of {d}",
            .{ s, used.*, step.history_capacity },
        );
        history[s * step.history_capacity + used.*] = id;
        used.* += 1;
    }
    const eos_ids: []const i32 = if (step.eos_ids) |ids| ids[0..step.n_eos] else &.{};
    if (std.mem.indexOfScalar(i32, eos_ids, id) != null) sampling.finished = 1;
}

fn checkPages(step: *const kernel.Step, s: usize, f: *Failure) Rejected!void {
    const room = @as(u64, step.max_pages) * command.page_tokens;
    if (step.past_len.?[s] < room) return;
    return f.set(
        .range,
        "Expected position {d} of sequence {d} within its {d} pages of {d} but found no page",
        .{ step.past_len.?[s], s, step.max_pages, command.page_tokens },
    );
}
