//! A plan on a GPU: the memory it needs beside its activations, and its commands as launches on one
//! stream. `session.zig` runs them.

const std = @import("std");
const chain = @import("chain.zig");
const main = @import("main.zig");
const products = @import("chain_products.zig");
const stream_file = @import("stream.zig");
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

/// What a plan has beside its tasks to run on a GPU.
pub const Body = struct {
    /// Shared by all commands; what one leaves there for itself, no other touches.
    work: region.Region = .none,
    /// The plan's commands as launches: some serve several neighbours.
    links: []chain.Link = &.{},
    spare: region.Region = .none,
    /// Where results of a chain's products pass, and how many at a time.
    cells: region.Region = .none,
    cells_set: u32 = 0,

    pub fn make(plan: *Plan, gpu: *Gpu, f: *Failure) Rejected!Body {
        var workspace: u64 = 0;
        for (plan.tasks) |*task| {
            const of = main.kernels.get(task.op).workspace orelse continue;
            workspace = @max(workspace, of(task, gpu));
        }
        var b: Body = .{};
        errdefer b.free();
        b.links = chain.cut(allocator, plan.tasks) catch return f.memory(plan.tasks.len);
        var spare: u64 = 0;
        for (b.links) |link| spare = @max(spare, chain.spareBytes(plan.tasks, link));
        if (spare > 0) b.spare = try .make(gpu, spare, false, "a plan's workspace", f);
        b.cells_set = products.setCells(plan.tasks, b.links);
        if (b.cells_set > 0)
            b.cells = try .make(gpu, products.bytes(b.cells_set), false, "a plan's workspace", f);
        if (workspace == 0) return b;
        b.work = try .make(gpu, workspace, false, "a plan's workspace", f);
        for (plan.tasks) |*task| task.workspace = b.work.ptr();
        return b;
    }

    pub fn free(b: *Body) void {
        allocator.free(b.links);
        b.spare.free();
        b.cells.free();
        b.work.free();
    }
};

pub fn launchAll(plan: *Plan, stream: *Stream) void {
    _ = launchUntil(plan, stream, 0, plan.body.cuda.links.len);
}

/// Launches links from `first` until `end` or a little further, as some go together. Answers where
/// the next ones begin.
pub fn launchUntil(plan: *Plan, stream: *Stream, first: usize, end: usize) usize {
    const links = plan.body.cuda.links;
    var at = first;
    while (at < end) at += products.launch(plan.tasks, links[at..], stream);
    return at;
}
