//! What decoding does around products, on the CPU: rows of a table by id, and states of a batch.

const std = @import("std");
const command = @import("command");
const testing = std.testing;
const ssm = @import("../ssm.zig");
const support = @import("support.zig");
const allocator = testing.allocator;
const bf16 = support.bf16;
const matrix = support.matrix;
const number = support.number;
const value = support.value;

const Rows = extern struct {
    table: *const anyopaque,
    ids: [*]const i32,
    out: [*]u16,
    width: i32,
    table_rows: i32,
    table_stride: i32,
    out_stride: i32,
};

test "one token: rows by id, in pieces of 16 bytes or one by one, zeros where no row is" {
    const ids = [_]i32{ 2, 0, -1, 3, 4 };
    const table_rows = 4;
    const Case = struct { width: usize, stride: usize };
    const cases = [_]Case{
        .{ .width = 4200, .stride = 4208 }, // more pieces than threads have at a time
        .{ .width = 72, .stride = 80 },
        .{ .width = 72, .stride = 76 },
        .{ .width = 7, .stride = 7 },
    };
    for (cases) |c| {
        const table = try matrix(table_rows * c.stride);
        defer allocator.free(table);
        const wide = try allocator.alloc(f32, table.len);
        defer allocator.free(wide);
        for (wide, table) |*w, bits| w.* = @floatCast(value(bits));
        for ([_]bool{ false, true }) |widened| {
            const out = try allocator.alloc(u16, ids.len * c.stride);
            defer allocator.free(out);
            @memset(out, 0xffff);
            const a: Rows = .{
                .table = if (widened) wide.ptr else table.ptr,
                .ids = &ids,
                .out = out.ptr,
                .width = @intCast(c.width),
                .table_rows = table_rows,
                .table_stride = @intCast(c.stride),
                .out_stride = @intCast(c.stride),
            };
            const name = if (widened) "rows_f32_bf16" else "rows_bf16_bf16";
            support.bamba_emulate(name, &a, ids.len, 1, 1, 128);
            for (ids, 0..) |id, r| {
                const got_row = out[r * c.stride ..][0..c.stride];
                const there = id >= 0 and id < table_rows;
                for (got_row[0..c.width], 0..) |got, i| {
                    const at = @as(usize, @intCast(@max(id, 0))) * c.stride + i;
                    try testing.expectEqual(if (there) table[at] else 0, got);
                }
                for (got_row[c.width..]) |untouched| try testing.expectEqual(0xffff, untouched);
            }
        }
    }
}

const heads = 4;
const groups = 2;
const p = ssm.fast_head_dim;
const n = 128;
/// Of x, then B, then C, and of dt behind them.
const row = heads * p + 2 * groups * n + heads;

fn softplus(v: f64) f64 {
    return @log(1 + @exp(v));
}

/// States of three sequences in four slots: a new one, an old one, and one that has ended.
fn update(comptime S: type, comptime name: [*:0]const u8, tolerance: f64) !void {
    const past = [_]u32{ 0, 9, 5 };
    const slots = [_]u32{ 3, 0, 2 };
    var sampling = std.mem.zeroes([3]command.Sampling);
    sampling[2].finished = 1;
    const x = try matrix(3 * row);
    defer allocator.free(x);
    var of_head: [3][heads]f32 = undefined;
    for (&of_head) |*numbers| for (numbers) |*v| {
        v.* = number();
    };
    const state = try allocator.alloc(S, 4 * heads * p * n);
    defer allocator.free(state);
    for (state) |*v| v.* = if (S == f32) number() else bf16(number());
    const before = try allocator.dupe(S, state);
    defer allocator.free(before);
    var y: [3 * heads * p]u16 = undefined;
    const at: [*]u8 = @ptrCast(x.ptr);
    const a: ssm.UpdateArgs = .{
        .x = at,
        .b = at + 2 * heads * p,
        .c = at + 2 * (heads * p + groups * n),
        .dt = at + 2 * (heads * p + 2 * groups * n),
        .a_log = @ptrCast(&of_head[0]),
        .d = @ptrCast(&of_head[1]),
        .dt_bias = @ptrCast(&of_head[2]),
        .state = @ptrCast(state.ptr),
        .past_len = @constCast(&past),
        .slots = @constCast(&slots),
        .y = @ptrCast(&y),
        .slot_stride = heads * p * n,
        .x_stride = row,
        .b_stride = row,
        .c_stride = row,
        .dt_stride = row,
        .y_stride = heads * p,
        .heads = heads,
        .groups = groups,
        .dt_min = 0,
        .dt_max = 100,
        .sampling = @ptrCast(&sampling),
    };
    support.bamba_emulate(name, &a, heads, 3, 1, 256);
    var error_of_y: support.Error = .{};
    for (0..3) |seq| for (0..heads) |head| {
        const own = x[seq * row ..];
        const b = own[heads * p + head / 2 * n ..];
        const c = own[heads * p + (groups + head / 2) * n ..];
        const dt = softplus(value(own[row - heads + head]) + of_head[2][head]);
        const decay = @exp(-dt * @exp(@as(f64, of_head[0][head])));
        for (0..p) |i| {
            const from = ((slots[seq] * heads + head) * p + i) * n;
            var sum: f64 = 0;
            for (0..n) |j| {
                const old: f64 = if (past[seq] == 0) 0 else numberOf(S, before[from + j]);
                const now = old * decay + dt * value(own[head * p + i]) * value(b[j]);
                sum += now * value(c[j]);
                const kept = if (seq == 2) numberOf(S, before[from + j]) else now;
                const size = @max(1, @abs(kept));
                try testing.expect(@abs(numberOf(S, state[from + j]) - kept) < tolerance * size);
            }
            const skip = of_head[1][head] * value(own[head * p + i]);
            error_of_y.add(value(y[(seq * heads + head) * p + i]), sum + skip);
        }
    };
    try error_of_y.expect(4e-3);
    const slot = heads * p * n; // the second, which is nobody's
    try testing.expectEqualSlices(S, before[slot .. 2 * slot], state[slot .. 2 * slot]);
}
fn numberOf(comptime S: type, v: S) f64 {
    return if (S == f32) v else value(v);
}

test "one token: states of a batch, new, old and ended sequences near the recurrence in f64" {
    try update(f32, "ssm_update_bf16", 1e-4);
    try update(u16, "ssm_update_bf16_bf16", 8e-3);
}
