//! Hopper's scan run on the CPU, as `linear_sm90_test.zig`, against the recurrence in f64.

const std = @import("std");
const testing = std.testing;
const support = @import("support.zig");
const Error = support.Error;
const Map = support.Map;
const allocator = testing.allocator;
const heads = support.heads;
const matrix = support.matrix;
const value = support.value;

const Scan = extern struct {
    x: Map,
    b: Map,
    c: Map,
    dt: [*]const u16,
    a_log: [*]const f32,
    d: [*]const f32,
    dt_bias: [*]const f32,
    state: *anyopaque,
    seq_start: [*]const u32,
    past_len: [*]const u32,
    slots: [*]const u32,
    y: [*]u16,
    slot_stride: i64 = state_size,
    dt_stride: i32 = scan_heads,
    y_stride: i32 = scan_width,
    heads: i32 = scan_heads,
    groups: i32 = 1,
    dt_min: f32 = 0,
    dt_max: f32 = std.math.inf(f32),
};
const scan_heads = 2;
const channels = 64;
const state_dim = 128;
const scan_width = scan_heads * channels;
const state_size = scan_heads * channels * state_dim;
const a_log = [scan_heads]f32{ -0.5, 1.2 };
const skips = [scan_heads]f32{ 0.7, -1.1 };
const dt_bias = [scan_heads]f32{ -1.5, -0.3 };

const Tokens = struct {
    n: usize,
    x: []u16,
    b: []u16,
    c: []u16,
    dt: []u16,

    fn make(n: usize) !Tokens {
        return .{
            .n = n,
            .x = try matrix(n * scan_width),
            .b = try matrix(n * state_dim),
            .c = try matrix(n * state_dim),
            .dt = try matrix(n * scan_heads),
        };
    }
    fn free(t: Tokens) void {
        for ([_][]u16{ t.x, t.b, t.c, t.dt }) |of| allocator.free(of);
    }
    /// Scans tokens [from, to) behind `state`, as the second of two sequences, of which the first
    /// has none; its state is in slot 0.
    fn scan(t: Tokens, comptime S: type, from: usize, to: usize, state: []S, y: []u16) void {
        const n = to - from;
        const call: Scan = .{
            .x = .of(t.x[from * scan_width ..], n, scan_width, 64),
            .b = .of(t.b[from * state_dim ..], n, state_dim, 64),
            .c = .of(t.c[from * state_dim ..], n, state_dim, 64),
            .dt = t.dt.ptr + from * scan_heads,
            .a_log = &a_log,
            .d = &skips,
            .dt_bias = &dt_bias,
            .state = state.ptr,
            .seq_start = &[_]u32{ 0, 0, @intCast(n) },
            .past_len = &[_]u32{ 0, @intCast(from) },
            .slots = &[_]u32{ 1, 0 },
            .y = y.ptr + from * scan_width,
        };
        const name = if (S == f32) "ssd_sm90_bf16" else "ssd_sm90_bf16_bf16";
        support.bamba_emulate_sm90(name, &call, scan_heads, 2);
    }
    /// The recurrence of one head in f64; its results, and its state behind all tokens.
    fn want(t: Tokens, head: usize, y: []f64, state: *[channels][state_dim]f64) void {
        state.* = @splat(@splat(0));
        const slope = -@exp(@as(f64, a_log[head]));
        for (0..t.n) |i| {
            const raw = value(t.dt[i * scan_heads + head]) + dt_bias[head];
            const dt = std.math.log1p(@exp(raw));
            const decay = @exp(dt * slope);
            for (state, 0..) |*row, p| {
                const x = value(t.x[i * scan_width + head * channels + p]);
                var sum = skips[head] * x;
                for (row, 0..) |*h, e| {
                    h.* = h.* * decay + dt * x * value(t.b[i * state_dim + e]);
                    sum += h.* * value(t.c[i * state_dim + e]);
                }
                y[i * channels + p] = sum;
            }
        }
    }
};

test "ssm_scan_sm90: near the recurrence, with the same bits when cut behind a chunk" {
    for ([_]usize{ 1, 64, 450 }) |n| { // of f32 states; 450 tokens go round the ring of four chunks
        const t = try Tokens.make(n);
        defer t.free();
        const state = try allocator.alloc(f32, 2 * state_size);
        defer allocator.free(state);
        @memset(state, std.math.nan(f32));
        const y = try allocator.alloc(u16, n * scan_width);
        defer allocator.free(y);
        t.scan(f32, 0, n, state, y);
        const wanted = try allocator.alloc(f64, n * channels);
        defer allocator.free(wanted);
        var off_y: Error = .{};
        var off_state: Error = .{};
        for (0..scan_heads) |head| {
            var last: [channels][state_dim]f64 = undefined;
            t.want(head, wanted, &last);
            for (wanted, 0..) |v, i| {
                const at = i / channels * scan_width + head * channels + i % channels;
                off_y.add(value(y[at]), v);
            }
            for (0..channels) |p| for (0..state_dim) |e| {
                off_state.add(state[(head * channels + p) * state_dim + e], last[p][e]);
            };
        }
        try off_y.expect(1e-2);
        try off_state.expect(1e-2);
        if (n > 128) try sameWhenCut(f32, t, 128, state, y);
    }
}
fn sameWhenCut(comptime S: type, t: Tokens, cut: usize, state: []const S, y: []const u16) !void {
    const again = try allocator.alloc(S, 2 * state_size);
    defer allocator.free(again);
    @memset(std.mem.sliceAsBytes(again), 0xff);
    const part = try allocator.alloc(u16, y.len);
    defer allocator.free(part);
    t.scan(S, 0, cut, again, part);
    t.scan(S, cut, t.n, again, part);
    try testing.expectEqualSlices(u16, y, part);
    const bits = std.mem.sliceAsBytes(state[0..state_size]);
    try testing.expectEqualSlices(u8, bits, std.mem.sliceAsBytes(again[0..state_size]));
}

test "ssm_scan_sm90: states of bf16 are rounded behind each chunk, so that cuts change nothing" {
    const t = try Tokens.make(150);
    defer t.free();
    const state = try allocator.alloc(u16, 2 * state_size);
    defer allocator.free(state);
    const y = try allocator.alloc(u16, t.n * scan_width);
    defer allocator.free(y);
    t.scan(u16, 0, t.n, state, y);
    try sameWhenCut(u16, t, 64, state, y);
}
