//! Runs of a plan: one step, or many that feed each other. Between steps only the step buffer
//! changes; nothing is allocated.

const std = @import("std");
const command = @import("command");
const handle = @import("handle.zig");
const job_file = @import("job.zig");
const kernel = @import("cpu/kernel.zig");
const memory = @import("memory.zig");
const plan_file = @import("plan.zig");
const status = @import("status.zig");
const Job = job_file.Job;
const Message = status.Message;
const Plan = plan_file.Plan;
const Status = status.Status;

/// Finds plan and buffers, checks the step buffer and makes the ring.
pub fn prepare(j: *Job, message: *Message) Status {
    const o = j.options;
    j.plan = handle.get(Plan, o.plan) orelse
        return message.fail(.stale, "Expected a plan but found handle {d}", .{o.plan});
    if (o.n_steps == 0) return message.fail(.range, "Expected at least one step but found 0", .{});
    inline for (.{ "state", "kv", "output" }) |name| {
        const h = @field(o, name);
        if (h != 0) @field(j, name) = handle.get(memory.Buffer, h) orelse
            return message.fail(.stale, "Expected a buffer for {s} but found handle {d}", .{ name, h });
    }
    const head = j.data;
    if (head.len < @sizeOf(command.StepHeader)) {
        return message.fail(.invalid, "Expected a step buffer but found {d} bytes", .{head.len});
    }
    j.total = o.n_steps;
    if (o.decode == 0) return .ok;
    const header = stepHeader(j);
    const steps = if (o.ring_steps == 0) o.n_steps else @min(o.ring_steps, o.n_steps);
    return job_file.prepareRing(j, header.n_seqs, steps, message);
}

fn stepHeader(j: *Job) *command.StepHeader {
    return @ptrCast(j.data.ptr);
}

/// The step buffer's arrays as pointers.
pub fn view(data: []align(64) u8) kernel.Step {
    const header: *command.StepHeader = @ptrCast(data.ptr);
    var step = std.mem.zeroes(kernel.Step);
    inline for (.{
        "n_tokens",         "n_seqs", "n_logits",  "max_pages",
        "history_capacity", "n_eos",  "n_bad_ids", "pad_id",
    }) |name| @field(step, name) = @field(header, name);
    inline for (@typeInfo(command.StepField).@"enum".fields) |f| {
        const offset = header.offsets[f.value];
        if (offset != 0) @field(step, f.name) = @ptrCast(@alignCast(data.ptr + offset));
    }
    return step;
}

/// Runs the plan `n_steps` times, or until every sequence has ended.
pub fn run(j: *Job) Status {
    const plan = j.plan.?;
    const step = view(j.data);
    const pool = &j.device.pool;
    var n: u32 = 0;
    while (n < j.options.n_steps) : (n += 1) {
        {
            pool.turn.lock();
            defer pool.turn.unlock();
            if (j.cancel.load(.monotonic)) return .cancelled;
            plan_file.bind(plan, .{
                .state = address(j.state),
                .kv = address(j.kv),
                .output = address(j.output),
            }, step);
            if (j.options.poison != 0) plan_file.poison(plan);
            const complete = plan_file.run(plan, &j.cancel) catch
                return j.message.fail(.memory, "No thread could be started", .{});
            if (!complete) return .cancelled;
        }
        j.done.store(n + 1, .monotonic);
        if (j.options.decode == 0) continue;
        const going = advance(&step);
        if (!j.push(step.sampled.?[0..step.n_seqs])) return .cancelled;
        if (!going) break;
    }
    return .ok;
}

fn address(buffer: ?*memory.Buffer) ?[*]u8 {
    return if (buffer) |b| b.pages.ptr else null;
}

/// Makes the sampled ids the next step's input. Answers whether a sequence goes on.
fn advance(step: *const kernel.Step) bool {
    var going = false;
    for (0..step.n_seqs) |s| {
        const sampling = &step.sampling.?[s];
        if (sampling.finished != 0) {
            step.sampled.?[s] = step.pad_id;
        } else {
            const id = step.sampled.?[s];
            sampling.generated += 1;
            if (step.history) |history| {
                const at = &step.history_len.?[s];
                if (at.* < step.history_capacity) {
                    history[s * step.history_capacity + at.*] = id;
                    at.* += 1;
                }
            }
            for (0..step.n_eos) |e| {
                if (step.eos_ids.?[e] == id) sampling.finished = 1;
            }
        }
        if (sampling.finished == 0) going = true;
        if (step.n_tokens == step.n_seqs) {
            if (step.ids) |ids| ids[s] = step.sampled.?[s];
            step.positions.?[s] += 1;
            step.past_len.?[s] += 1;
        }
    }
    return going;
}
