//! Fuzzing as a program: `fuzz [rounds] [seed] [first]` changes honest plans, step buffers and
//! calls at random and prints one JSON line with what happened. A crash is the finding; every round
//! follows from the seed and its number, so a run from the last printed round on repeats it.

const std = @import("std");
const plans = @import("fuzz/plan.zig");
const library = @import("fuzz/library.zig");

/// As in the library: std's signal stacks would not fit on a job's stack.
pub const std_options: std.Options = .{ .signal_stack_size = null };

/// One round in so many calls the library, the others change plans and steps: a call takes longer.
const library_one_of = 64;
/// One accepted plan or step in so many is run.
const run_one_of = 64;
const report_rounds = 1 << 20;

pub fn main(init: std.process.Init) !void {
    const arguments = try init.minimal.args.toSlice(init.arena.allocator());
    const rounds = try number(arguments, 1, 1_000_000);
    const seed = try number(arguments, 2, 0);
    const first = try number(arguments, 3, 0);
    const gpa = std.heap.c_allocator;
    var p: plans.Fuzzer = try .init(gpa, run_one_of);
    defer p.deinit();
    const l = try gpa.create(library.Fuzzer);
    try l.init(gpa);
    defer l.deinit();
    for (first..first + rounds) |i| {
        if (i % report_rounds == 0) std.debug.print("fuzz: seed {d}, round {d}\n", .{ seed, i });
        var prng = std.Random.DefaultPrng.init(seed << 40 ^ i);
        if (i % library_one_of == 0) l.round(prng.random()) else p.round(prng.random());
    }
    var buffer: [512]u8 = undefined;
    var out = std.Io.File.stdout().writer(init.io, &buffer);
    try out.interface.print(
        "{{\"rounds\":{d},\"seed\":{d},\"plans\":{d},\"plans_accepted\":{d}," ++
            "\"steps\":{d},\"steps_accepted\":{d},\"runs\":{d},\"calls\":{d}," ++
            "\"calls_succeeded\":{d},\"jobs\":{d}}}\n",
        .{
            rounds,             seed,                    p.counts.plans, p.counts.plans_accepted,
            p.counts.steps,     p.counts.steps_accepted, p.counts.runs,  l.counts.calls,
            l.counts.succeeded, l.counts.jobs,
        },
    );
    try out.flush();
}

fn number(arguments: []const [:0]const u8, i: usize, otherwise: u64) !u64 {
    if (i >= arguments.len) return otherwise;
    return std.fmt.parseInt(u64, arguments[i], 10) catch {
        std.debug.print("Expected a number but found {s}\n", .{arguments[i]});
        return error.InvalidArgument;
    };
}

test {
    _ = plans;
    _ = library;
}
