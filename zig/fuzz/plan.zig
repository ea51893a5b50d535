//! Fuzzes plans and step buffers: honest ones are changed at random and checked; some of those that
//! pass are run on tiny data with the real kernels.

const std = @import("std");
const command = @import("command");
const validate = @import("../validate.zig");
const example = @import("../example_plan.zig");
const mutation = @import("mutate.zig");
const fuzz_run = @import("run.zig");
const Random = std.Random;

/// What happened.
pub const Counts = struct {
    plans: u64 = 0,
    plans_accepted: u64 = 0,
    steps: u64 = 0,
    steps_accepted: u64 = 0,
    runs: u64 = 0,
};

/// One honest plan with honest steps for it, and room to change copies of them.
const Honest = struct {
    plan: []u8,
    weight_bytes: u64,
    steps: [2][]u8,
    plan_copy: []u8,
    step_copy: []align(64) u8,
};

const prompts = [_]example.Seq{
    .{ .tokens = 65, .slot = 2 },
    .{ .tokens = 3, .past = 60, .slot = 0 },
};
const few = [_]example.Seq{.{ .tokens = 2, .past = 1, .slot = 3 }};
const decoding = [_]example.Seq{ .{ .past = 60, .slot = 3 }, .{ .slot = 1 }, .{ .past = 124 } };
const single = [_]example.Seq{.{ .past = 64, .slot = 1 }};

/// Weight bytes of the plan under check.
var resolved_bytes: u64 = 0;
fn weightBytes(_: ?*anyopaque, handle: u32) ?u64 {
    return if (handle == example.weights) resolved_bytes else null;
}

pub const Fuzzer = struct {
    gpa: std.mem.Allocator,
    arena: std.heap.ArenaAllocator,
    honest: [2]Honest,
    machine: fuzz_run.Machine,
    counts: Counts = .{},
    /// One of so many accepted things is run.
    run_one_of: u32,

    pub fn init(gpa: std.mem.Allocator, run_one_of: u32) !Fuzzer {
        var prng = std.Random.DefaultPrng.init(1);
        var f: Fuzzer = .{
            .gpa = gpa,
            .arena = .init(gpa),
            .honest = undefined,
            .machine = try .init(prng.random()),
            .run_one_of = run_one_of,
        };
        const a = f.arena.allocator();
        for (&f.honest, [_]example.Kind{ .prefill, .decode }) |*h, kind| {
            var b = try example.build(a, kind);
            const many: []const example.Seq = if (kind == .prefill) &prompts else &decoding;
            const one: []const example.Seq = if (kind == .prefill) &few else &single;
            h.plan = try b.bytes();
            h.weight_bytes = b.sizes.weights;
            h.steps = .{ try example.stepBytes(a, many), try example.stepBytes(a, one) };
            h.plan_copy = try a.dupe(u8, h.plan);
            h.step_copy = try a.alignedAlloc(u8, .@"64", @max(h.steps[0].len, h.steps[1].len));
        }
        return f;
    }
    pub fn deinit(f: *Fuzzer) void {
        f.machine.deinit();
        f.arena.deinit();
    }

    /// One change of a plan or of a step buffer. Everything follows from the random numbers.
    pub fn round(f: *Fuzzer, random: Random) void {
        const h = &f.honest[random.uintLessThan(usize, 2)];
        @memcpy(h.plan_copy, h.plan);
        const change_plan = random.uintLessThan(u8, 4) > 0;
        if (change_plan) f.changePlan(h, random);
        const bytes = if (change_plan and random.uintLessThan(u8, 32) == 0)
            h.plan_copy[0..random.uintLessThan(usize, h.plan_copy.len)]
        else
            h.plan_copy;
        resolved_bytes = h.weight_bytes;
        const resolver: validate.Resolver = .{ .weightBytes = weightBytes };
        var failure: validate.Failure = .{};
        f.counts.plans += @intFromBool(change_plan);
        const plan = validate.plan(f.gpa, bytes, example.abi, resolver, &failure) catch {
            checkFailure(&failure);
            return;
        };
        if (change_plan) {
            f.counts.plans_accepted += 1;
            std.mem.doNotOptimizeAway(fuzz_run.askAll(plan));
        }
        f.changeStep(h, plan, !change_plan, random);
    }

    fn changePlan(_: *Fuzzer, h: *Honest, random: Random) void {
        const p: command.PlanHeader =
            std.mem.bytesToValue(command.PlanHeader, h.plan[0..@sizeOf(command.PlanHeader)]);
        const operands_at = @sizeOf(command.PlanHeader);
        const commands_at = operands_at + p.n_operands * @sizeOf(command.Operand);
        const c = h.plan_copy;
        switch (random.uintLessThan(u8, 8)) {
            0 => mutation.mutateRecords(command.Operand, random, c[operands_at..commands_at]),
            1 => mutation.mutateRecords(command.Command, random, c[commands_at..]),
            2 => mutation.mutate(random, c[0..operands_at]),
            3, 4 => mutation.mutate(random, c[commands_at..]),
            5, 6 => mutation.mutate(random, c[operands_at..commands_at]),
            else => mutation.mutate(random, c),
        }
    }

    fn changeStep(f: *Fuzzer, h: *Honest, plan: validate.Plan, change: bool, random: Random) void {
        const honest = h.steps[random.uintLessThan(usize, 2)];
        const step = h.step_copy[0..honest.len];
        @memcpy(step, honest);
        if (change) mutation.mutate(random, step);
        const header = plan.header;
        const decode = plan.needs.one_token and random.boolean();
        const run: validate.Run = .{
            .state_bytes = header.slot_bytes *| example.slots,
            .kv_bytes = header.page_bytes *| example.pages,
            .output_bytes = header.output_bytes,
            .decode = decode,
            .n_steps = if (decode) random.uintLessThan(u32, 6) else 1,
        };
        f.counts.steps += @intFromBool(change);
        var failure: validate.Failure = .{};
        validate.step(f.gpa, step, header, plan.needs, run, &failure) catch {
            checkFailure(&failure);
            return;
        };
        if (change) f.counts.steps_accepted += 1;
        if (random.uintLessThan(u32, f.run_one_of) != 0) return;
        f.counts.runs += @intFromBool(f.machine.run(plan, run, h.weight_bytes, step));
    }
};

/// A refusal always has a status and a sentence.
fn checkFailure(failure: *const validate.Failure) void {
    if (failure.status == .ok or !std.mem.startsWith(u8, failure.text(), "Expected ")) {
        std.debug.panic("no sentence: {s}", .{failure.text()});
    }
}

test "mutated plans and steps are refused or run" {
    var f: Fuzzer = try .init(std.testing.allocator, 16);
    defer f.deinit();
    for (0..110_000) |i| {
        var prng = Random.DefaultPrng.init(i);
        f.round(prng.random());
    }
    // Most lies are seen, but not every change is a lie.
    const c = f.counts;
    try std.testing.expect(c.plans > 60_000 and c.steps > 20_000 and c.runs > 100);
    try std.testing.expect(c.plans_accepted < c.plans / 2 and c.plans_accepted > c.plans / 100);
    try std.testing.expect(c.steps_accepted < c.steps * 3 / 4 and c.steps_accepted > c.steps / 100);
}
