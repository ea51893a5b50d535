//! What a kernel's file needs to launch: a stream of one GPU that remembers the first failure, so
//! that a chain of launches is checked once, at its end.

const std = @import("std");
const driver = @import("driver.zig");
const gpu_file = @import("gpu.zig");
const images = @import("images.zig");
const Gpu = gpu_file.Gpu;
const Step = @import("../cpu/kernel.zig").Step;

/// What a launch may ask for beside its grid.
pub const Extra = struct { shared_bytes: u32 = 0, cluster: u32 = 0 };

pub const Stream = struct {
    gpu: *Gpu,
    /// The run's step in the host's memory: a task's step holds addresses of the GPU.
    host: *const Step,
    /// Memory for values between the kernels of one link.
    spare: ?[*]u8 = null,
    /// Where results of a chain's products pass: `chain_products.zig`.
    cells: ?[*]u8 = null,
    cells_set: u32 = 0,
    /// Pages in the run's key/value buffer.
    pages: u64 = 0,
    /// Whether kernels may not be chosen by the number of rows.
    invariant: bool = false,
    result: driver.Result = driver.ok,
    /// The kernel that failed first.
    failed: []const u8 = "",

    /// Enqueues `name` of kernels/<stem>.cu. `args` is a tuple of the kernel's parameters.
    pub fn launch(
        s: *Stream,
        comptime stem: []const u8,
        comptime name: [:0]const u8,
        grid: [3]u32,
        threads: u32,
        args: anytype,
        extra: Extra,
    ) void {
        if (grid[0] == 0 or grid[1] == 0 or grid[2] == 0) return;
        const found = s.find(stem, name, extra.shared_bytes) orelse return;
        const pointers = addresses(&args);
        var attributes = [_]driver.Attribute{ .overlap, .cluster(extra.cluster) };
        const config: driver.LaunchConfig = .{
            .grid = grid,
            .block = .{ threads, 1, 1 },
            .shared_bytes = extra.shared_bytes,
            .stream = s.gpu.stream,
            .attributes = &attributes,
            // Only code for Hopper waits for the launch before it; code without must not overlap.
            .n_attributes = if (s.gpu.capability != 90) 0 else if (extra.cluster > 0) 2 else 1,
        };
        const r = s.gpu.api.cuLaunchKernelEx(&config, found, &pointers, null);
        if (r != driver.ok) s.fail(r, name);
    }

    /// Clusters of a kernel that the GPU runs at once; 0 where it does not say.
    pub fn atOnce(
        s: *Stream,
        comptime stem: []const u8,
        comptime name: [:0]const u8,
        threads: u32,
        extra: Extra,
    ) u32 {
        const found = s.find(stem, name, extra.shared_bytes) orelse return 0;
        var attributes = [_]driver.Attribute{.cluster(extra.cluster)};
        const config: driver.LaunchConfig = .{
            .grid = .{ extra.cluster * s.gpu.multiprocessors, 1, 1 },
            .block = .{ threads, 1, 1 },
            .shared_bytes = extra.shared_bytes,
            .stream = s.gpu.stream,
            .attributes = &attributes,
            .n_attributes = 1,
        };
        var n: c_int = 0;
        const r = s.gpu.api.cuOccupancyMaxActiveClusters(&n, found, &config);
        return if (r == driver.ok) @intCast(@max(n, 0)) else 0;
    }

    /// A kernel that may have so much shared memory; null where anything failed.
    fn find(
        s: *Stream,
        comptime stem: []const u8,
        comptime name: [:0]const u8,
        shared_bytes: u32,
    ) ?driver.Handle {
        if (s.result != driver.ok) return null;
        // A variable of each kernel: its function on each GPU, and the shared memory it may have.
        const Found = struct {
            const unique = stem ++ "." ++ name;
            var functions: [gpu_file.max_gpus]driver.Handle = @splat(null);
            var shared: [gpu_file.max_gpus]u32 = @splat(0);
        };
        _ = Found.unique;
        const at = s.gpu.ordinal;
        if (Found.functions[at] == null) {
            const function, const result = s.gpu.function(comptime images.indexOf(stem), name);
            if (result != driver.ok) {
                s.fail(result, name);
                return null;
            }
            Found.functions[at] = function;
        }
        if (shared_bytes > Found.shared[at]) {
            const r = s.gpu.api.cuFuncSetAttribute(
                Found.functions[at],
                driver.function_shared_memory,
                @intCast(shared_bytes),
            );
            if (r != driver.ok) {
                s.fail(r, name);
                return null;
            }
            Found.shared[at] = shared_bytes;
        }
        return Found.functions[at];
    }

    /// Describes a bf16 matrix of `rows` x `cols`, `stride` elements from row to row, in boxes of
    /// columns x rows with a swizzle of 128 bytes.
    pub fn map(
        s: *Stream,
        to: ?[*]u8,
        n_rows: u64,
        n_cols: u64,
        stride: u64,
        box: [2]u32,
    ) driver.TensorMap {
        return s.encode(.bf16, promote_256, to, 2, .{ n_cols, n_rows }, .{stride * 2}, box);
    }
    /// The same of a matrix of single bytes.
    pub fn mapBytes(
        s: *Stream,
        to: ?[*]u8,
        n_rows: u64,
        n_cols: u64,
        stride: u64,
        box: [2]u32,
    ) driver.TensorMap {
        return s.encode(.uint8, promote_256, to, 2, .{ n_cols, n_rows }, .{stride}, box);
    }
    /// The same of a matrix that is read once, of bf16 or bytes.
    pub fn mapOnce(
        s: *Stream,
        comptime element: Element,
        to: ?[*]u8,
        n_rows: u64,
        n_cols: u64,
        stride: u64,
        box: [2]u32,
    ) driver.TensorMap {
        const strides = .{stride * element.bytes()};
        return s.encode(element, promote_none, to, 2, .{ n_cols, n_rows }, strides, box);
    }
    /// Of two matrices alike that are read once, eight rows of each in turns, those first that lie
    /// first in memory; in boxes of 128 bytes x `eights` times eight rows of each.
    pub fn mapPairs(
        s: *Stream,
        comptime element: Element,
        one: ?[*]u8,
        other: ?[*]u8,
        n_rows: u64,
        n_cols: u64,
        stride: u64,
        eights: u32,
    ) driver.TensorMap {
        const at = [2]u64{ @intFromPtr(one.?), @intFromPtr(other.?) };
        const apart = @max(at[0], at[1]) - @min(at[0], at[1]);
        const to: [*]u8 = if (at[0] < at[1]) one.? else other.?;
        const sizes = [4]u64{ n_cols, 8, 2, n_rows / 8 };
        const bytes = element.bytes();
        const strides = [3]u64{ stride * bytes, apart, stride * bytes * 8 };
        const box = [4]u32{ 128 / bytes, 8, 2, eights };
        return s.encode(element, promote_none, to, 4, sizes, strides, box);
    }

    pub const Element = enum(c_int) {
        uint8 = 0,
        bf16 = 9,
        pub fn bytes(e: Element) u32 {
            return if (e == .uint8) 1 else 2;
        }
    };
    /// What L2 asks memory for when a piece of 128 bytes is missing.
    const promote_none = 0;
    const promote_256 = 3;

    fn encode(
        s: *Stream,
        element: Element,
        promotion: c_int,
        to: ?[*]u8,
        comptime n_dims: c_uint,
        sizes: [n_dims]u64,
        strides: [n_dims - 1]u64,
        box: [n_dims]u32,
    ) driver.TensorMap {
        const swizzle_128 = 3;
        var m: driver.TensorMap = .{};
        if (s.result != driver.ok) return m;
        const r = s.gpu.api.cuTensorMapEncodeTiled(
            &m,
            @intFromEnum(element),
            n_dims,
            @intFromPtr(to.?),
            &sizes,
            &strides,
            &box,
            &@as([n_dims]u32, @splat(1)),
            0,
            swizzle_128,
            promotion,
            0,
        );
        if (r != driver.ok) s.fail(r, "to describe a matrix");
        return m;
    }

    /// Tokens of the longest sequence of the run.
    pub fn longest(s: *const Stream) u32 {
        const step = s.host;
        const start = step.seq_start orelse return step.n_tokens;
        var most: u32 = 0;
        for (0..step.n_seqs) |i| most = @max(most, start[i + 1] - start[i]);
        return most;
    }

    /// Whether the rows whose logits are wanted are all rows, in order.
    pub fn takesAllRows(s: *const Stream) bool {
        const step = s.host;
        const rows = step.logit_rows orelse return false;
        if (step.n_logits != step.n_tokens) return false;
        for (rows[0..step.n_logits], 0..) |row, i| if (row != i) return false;
        return true;
    }

    /// Sets bytes to zero, in order with the launches.
    pub fn clear(s: *Stream, to: [*]u8, bytes: u64) void {
        if (s.result != driver.ok) return;
        const r = s.gpu.api.cuMemsetD8Async(@intFromPtr(to), 0, bytes, s.gpu.stream);
        if (r != driver.ok) s.fail(r, "clear");
    }

    fn fail(s: *Stream, result: driver.Result, name: []const u8) void {
        s.result = result;
        s.failed = name;
    }
};

fn addresses(args: anytype) [args.len]?*const anyopaque {
    var pointers: [args.len]?*const anyopaque = undefined;
    inline for (0..args.len) |i| pointers[i] = &args[i];
    return pointers;
}

/// n elements in blocks of `size`.
pub fn blocks(n: usize, size: usize) u32 {
    return @intCast((n + size - 1) / size);
}
