//! embedding: one row of the table for each token, as f32. The table may be row-major and lie in
//! the mapped file with any alignment, or be the panels of a tied output head. 2 KiB to 16 KiB are
//! read for a token: no share of a run, so this only has to be safe.

const std = @import("std");
const command = @import("command");
const kernel = @import("kernel.zig");
const simd = @import("simd.zig");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const panel = @import("panel.zig");
const Task = kernel.Task;
const DType = command.DType;
const L = simd.L;

pub const kernels = .{ .embedding = kernel.Kernel{ .units = units, .run = run } };

/// Operands of the command.
const IDS = 0;
const WEIGHT = 1;
const OUT = 2;

/// Tokens of a unit.
const tokens = 8;

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    _ = phase;
    return @intCast((t.rows(OUT) + tokens - 1) / tokens);
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    _ = phase;
    _ = scratch;
    const weight = t.operands[WEIGHT];
    const H = t.cols(OUT);
    for (begin * tokens..@min(end * tokens, t.rows(OUT))) |i| {
        const out = t.row(OUT, i);
        // Ids are checked when a job starts; one that was changed meanwhile is held inside.
        const wanted: u32 = @bitCast(t.step.ids.?[i]);
        const id: usize = @min(wanted, weight.shape[0] - 1);
        switch (weight.dtype) {
            inline .f32, .bf16, .f16 => |dtype| if (weight.layout == .panel) {
                fromPanel(dtype, t.data[WEIGHT].?, id, H, out);
            } else {
                fromRow(dtype, t.data[WEIGHT].?, id * weight.row_stride, H, out);
            },
            .i32 => unreachable,
            .f8_e4m3 => for (0..H) |k| {
                out[k] = panel.get(.f8_e4m3, t.data[WEIGHT].?, H, id, k);
            },
            else => |dtype| if (weight.layout == .panel) {
                block_panel.row(dtype, t.data[WEIGHT].?, id, H, out);
            } else {
                const row = t.data[WEIGHT].? + id * block.rowBytes(dtype, H);
                block.dequantizeRow(dtype, row, H, out);
            },
        }
    }
}

fn fromRow(comptime dtype: DType, table: [*]const u8, first: usize, H: usize, out: [*]f32) void {
    const row = table + first * simd.size(dtype);
    var k: usize = 0;
    while (k + L <= H) : (k += L) simd.st(out + k, simd.ldAs(dtype, row, k));
    while (k < H) : (k += 1) out[k] = simd.get(dtype, row, k);
}

fn fromPanel(comptime dtype: DType, table: [*]const u8, id: usize, H: usize, out: [*]f32) void {
    const width = command.panel;
    const at = table + id / width * panel.panelBytes(dtype, H);
    const lane = id % width;
    for (0..H) |k| out[k] = switch (dtype) {
        .bf16 => simd.get(.bf16, at, (k / 2 * width + lane) * 2 + k % 2),
        else => simd.get(dtype, at, k * width + lane),
    };
}

// ---- tests ---------------------------------------------------------------------------------

const testing = std.testing;

/// Runs the kernel over some ids and compares each row with that of `want`.
fn check(
    dtype: DType,
    layout: command.Layout,
    V: usize,
    H: usize,
    data: [*]u8,
    want: []const f32,
) !void {
    const gpa = testing.allocator;
    const n = 19;
    var ids: [n]i32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(i * 7 % V);
    ids[n - 1] = @intCast(V - 1);
    var step: kernel.Step = std.mem.zeroes(kernel.Step);
    step.n_tokens = n;
    step.ids = &ids;
    const gap = 3;
    const out = try gpa.alloc(f32, n * (H + gap));
    defer gpa.free(out);
    @memset(out, -7);
    var t: Task = std.mem.zeroes(Task);
    t.step = &step;
    t.n_operands = 3;
    t.data[WEIGHT] = data;
    t.data[OUT] = @ptrCast(out.ptr);
    t.operands[WEIGHT].dtype = dtype;
    t.operands[WEIGHT].layout = layout;
    t.operands[WEIGHT].shape = .{ @intCast(V), @intCast(H), 1, 1 };
    t.operands[WEIGHT].row_stride = @intCast(H);
    t.operands[OUT].rows = .tokens;
    t.operands[OUT].shape = .{ 64, @intCast(H), 1, 1 };
    t.operands[OUT].row_stride = @intCast(H + gap);
    var none: [1]u8 = undefined;
    const count = units(&t, 0);
    run(&t, 0, 1, count, &none);
    run(&t, 0, 0, 1, &none);
    for (ids, 0..) |id, i| {
        const got = out[i * (H + gap) ..][0 .. H + gap];
        const row: usize = @intCast(id);
        try testing.expectEqualSlices(f32, want[row * H ..][0..H], got[0..H]);
        try testing.expectEqual(@as(f32, -7), got[H]);
    }
}

test "rows of blocks, at any alignment and out of panels" {
    const gpa = testing.allocator;
    var seed = std.Random.DefaultPrng.init(4);
    inline for ([_]DType{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k }) |dtype| {
        const V = 37;
        const H = 2 * comptime block.columns(dtype);
        const table = try gpa.alloc(u8, V * block.rowBytes(dtype, H) + 1);
        defer gpa.free(table);
        // Bytes below 0x70 make no f16 that is infinite.
        for (table) |*byte| byte.* = seed.random().uintLessThan(u8, 0x70);
        const want = try gpa.alloc(f32, V * H);
        defer gpa.free(want);
        block.dequantizeRow(dtype, table.ptr + 1, V * H, want.ptr);
        try check(dtype, .row_major, V, H, table.ptr + 1, want);
        const panels = try gpa.alloc(u8, panel.bytes(dtype, V, H));
        defer gpa.free(panels);
        panel.pack(panels.ptr, dtype, table.ptr + 1, dtype, V, H, 0, panel.count(V));
        try check(dtype, .panel, V, H, panels.ptr, want);
    }
}

test "rows of any dtype, at any alignment, and out of panels" {
    const gpa = testing.allocator;
    inline for ([_]DType{ .f32, .bf16, .f16 }) |dtype| {
        for ([_][2]usize{ .{ 1, 1 }, .{ 3, 2 }, .{ 129, 130 }, .{ 130, 151 }, .{ 16, 64 } }) |s| {
            const V = s[0];
            const H = s[1];
            const table = try gpa.alloc(u8, V * H * simd.size(dtype) + 1);
            defer gpa.free(table);
            const want = try gpa.alloc(f32, V * H);
            defer gpa.free(want);
            for (want, 0..) |*w, i| {
                const x: f32 = @as(f32, @floatFromInt(i % 509)) / 256 - 1;
                const at = table.ptr + 1 + i * simd.size(dtype);
                if (dtype == .f32) simd.st(at, x);
                if (dtype == .bf16) simd.st(at, simd.f2b(x));
                if (dtype == .f16) simd.st(at, simd.f2h(x));
                w.* = simd.get(dtype, table.ptr + 1, i);
            }
            try check(dtype, .row_major, V, H, table.ptr + 1, want);
            const panels = try gpa.alloc(u8, panel.bytes(dtype, V, H));
            defer gpa.free(panels);
            panel.pack(panels.ptr, dtype, table.ptr + 1, dtype, V, H, 0, panel.count(V));
            try check(dtype, .panel, V, H, panels.ptr, want);
        }
    }
}

test "no tokens are no units" {
    var step: kernel.Step = std.mem.zeroes(kernel.Step);
    var t: Task = std.mem.zeroes(Task);
    t.step = &step;
    t.operands[OUT].rows = .tokens;
    try testing.expectEqual(@as(u32, 0), units(&t, 0));
}
