//! Kernels for every card since Ampere (kernels/*_mma.cu), run on the CPU by `common.cuh`: their
//! indices, tiles, masks and rings against sums in f64. Hopper's own instructions need a Hopper.

const std = @import("std");
const block = @import("../../cpu/block.zig");
const testing = std.testing;
const support = @import("support.zig");
const Error = support.Error;
const Sequence = support.Sequence;
const allocator = testing.allocator;
const bf16 = support.bf16;
const hd = support.hd;
const heads = support.heads;
const kv_heads = support.kv_heads;
const matrix = support.matrix;
const max_pages = support.max_pages;
const number = support.number;
const page_stride = support.page_stride;
const random = &support.random;
const scale = support.scale;
const silu = support.silu;
const value = support.value;
const width = support.width;

// ---- linear --------------------------------------------------------------------------------

const Linear = extern struct {
    x: [*]const u16,
    w: *const anyopaque,
    w2: ?*const anyopaque = null,
    bias: ?[*]const f32 = null,
    residual: ?[*]const u16 = null,
    out: *anyopaque,
    m: i32,
    n: i32,
    k: i32,
    x_stride: i32,
    residual_stride: i32 = 0,
    out_stride: i32,
    out_f32: i32,
};
const Case = struct { m: usize, n: usize, k: usize, two: bool = false, more: bool = false };

/// x, whose rows lie close, times w, and w2 where the case has two; nothing is added.
fn bare(c: Case, x: []const u16, w: *const anyopaque, w2: *const anyopaque, out: []f32) Linear {
    return .{
        .x = x.ptr,
        .w = w,
        .w2 = if (c.two) w2 else null,
        .out = out.ptr,
        .m = @intCast(c.m),
        .n = @intCast(c.n),
        .k = @intCast(c.k),
        .x_stride = @intCast(c.k),
        .out_stride = @intCast(c.n),
        .out_f32 = 1,
    };
}

/// Starts the kernel of `base` for tiles of `size` rows.
fn multiply(comptime base: []const u8, size: usize, a: *const Linear) void {
    const outputs = if (a.w2 == null) size else size / 2;
    const tiles = std.math.divCeil(usize, @intCast(a.m), size) catch unreachable;
    const across = std.math.divCeil(usize, @intCast(a.n), outputs) catch unreachable;
    const name: [*:0]const u8 = if (a.w2 == null)
        (if (size == 64) base ++ "_64" else base ++ "_128")
    else
        (if (size == 64) base ++ "_64_swiglu" else base ++ "_128_swiglu");
    support.bamba_emulate(name, a, @intCast(tiles * across), 1, 1, 128);
}
test "linear_mma at ugly sizes: near the sums, and the same bits in both tiles" {
    const cases = [_]Case{
        .{ .m = 1, .n = 8, .k = 8 },
        .{ .m = 65, .n = 72, .k = 136, .more = true },
        .{ .m = 130, .n = 136, .k = 40, .two = true },
        .{ .m = 1030, .n = 72, .k = 24 }, // two bands of tiles
    };
    for (cases) |c| try linear(c);
}
fn linear(c: Case) !void {
    const x_stride = c.k + 8;
    const x = try matrix(c.m * x_stride);
    defer allocator.free(x);
    const w = try matrix(c.n * c.k);
    defer allocator.free(w);
    const w2 = try matrix(c.n * c.k);
    defer allocator.free(w2);
    const residual = try matrix(c.m * c.n);
    defer allocator.free(residual);
    const bias = try allocator.alloc(f32, c.n);
    defer allocator.free(bias);
    for (bias) |*b| b.* = number();
    const outs: [2][]f32 = .{
        try allocator.alloc(f32, c.m * c.n),
        try allocator.alloc(f32, c.m * c.n),
    };
    defer for (outs) |out| allocator.free(out);
    for (outs, [_]usize{ 64, 128 }) |out, size| {
        @memset(out, std.math.nan(f32));
        multiply("linear_mma", size, &.{
            .x = x.ptr,
            .w = w.ptr,
            .w2 = if (c.two) w2.ptr else null,
            .bias = if (c.more) bias.ptr else null,
            .residual = if (c.more) residual.ptr else null,
            .out = out.ptr,
            .m = @intCast(c.m),
            .n = @intCast(c.n),
            .k = @intCast(c.k),
            .x_stride = @intCast(x_stride),
            .residual_stride = @intCast(c.n),
            .out_stride = @intCast(c.n),
            .out_f32 = 1,
        });
    }
    try testing.expectEqualSlices(u32, @ptrCast(outs[0]), @ptrCast(outs[1]));
    var off: Error = .{};
    for (0..c.m) |i| for (0..c.n) |j| {
        var sums: [2]f64 = @splat(0);
        for (0..c.k) |e| {
            const v = value(x[i * x_stride + e]);
            sums[0] += v * value(w[j * c.k + e]);
            sums[1] += v * value(w2[j * c.k + e]);
        }
        var want = if (c.two) silu(sums[0]) * sums[1] else sums[0];
        if (c.more) want += bias[j] + value(residual[i * c.n + j]);
        off.add(outs[0][i * c.n + j], want);
    };
    try off.expect(1e-6);
}

test "fp8_mma: products of e4m3 are exact, a row's scale follows" {
    const cases = [_]Case{
        .{ .m = 3, .n = 24, .k = 48 },
        .{ .m = 70, .n = 40, .k = 144, .two = true },
    };
    for (cases) |c| for ([_]usize{ 64, 128 }) |size| try eights(c, size);
}
fn eights(c: Case, size: usize) !void {
    const x = try matrix(c.m * c.k);
    defer allocator.free(x);
    const front = std.mem.alignForward(usize, c.n, 16);
    var w: [2][]f32 = undefined;
    for (&w) |*of| {
        of.* = try allocator.alloc(f32, front + c.n * c.k / 4);
        const bytes = std.mem.sliceAsBytes(of.*[front..]);
        for (bytes) |*b| b.* = while (true) {
            const any = random.random().int(u8);
            if (any & 127 != 127) break any;
        };
        for (of.*[0..front]) |*s| s.* = 0.01 * @abs(number());
    }
    defer for (w) |of| allocator.free(of);
    const out = try allocator.alloc(f32, c.m * c.n);
    defer allocator.free(out);
    multiply("fp8_mma", size, &bare(c, x, w[0].ptr, w[1].ptr, out));
    var off: Error = .{};
    for (0..c.m) |i| for (0..c.n) |j| {
        var sums: [2]f64 = @splat(0);
        for (&sums, w) |*sum, of| {
            const rows = std.mem.sliceAsBytes(of[front..]);
            for (0..c.k) |e| sum.* += value(x[i * c.k + e]) * eighth(rows[j * c.k + e]);
            sum.* *= of[j];
        }
        off.add(out[i * c.n + j], if (c.two) silu(sums[0]) * sums[1] else sums[0]);
    };
    try off.expect(1e-6);
}
fn eighth(bits: u8) f64 {
    const low: f64 = @floatFromInt(bits & 7);
    const exponent: i32 = bits >> 3 & 15;
    const size = if (exponent == 0) low / 512 else std.math.scalbn(8 + low, exponent - 10);
    return if (bits > 127) -size else size;
}

test "blocks_mma: every type's values, rounded to bf16 once" {
    inline for (.{ .q8_0, .q4_0, .q4_k, .q5_k, .q6_k }) |d| {
        try blocks(d, .{ .m = 9, .n = 24, .k = 256 }, 64);
        try blocks(d, .{ .m = 5, .n = 72, .k = 256, .two = true }, 128);
    }
}
fn blocks(comptime d: block.DType, c: Case, size: usize) !void {
    const x = try matrix(c.m * c.k);
    defer allocator.free(x);
    const w, const w_panels = try support.inBlocks(d, c.n, c.k);
    defer allocator.free(w);
    defer allocator.free(w_panels);
    const w2, const w2_panels = try support.inBlocks(d, c.n, c.k);
    defer allocator.free(w2);
    defer allocator.free(w2_panels);
    const out = try allocator.alloc(f32, c.m * c.n);
    defer allocator.free(out);
    const name = "blocks_mma_" ++ @tagName(d);
    multiply(name, size, &bare(c, x, w_panels.ptr, w2_panels.ptr, out));
    var off: Error = .{};
    for (0..c.m) |i| for (0..c.n) |j| {
        var sums: [2]f64 = @splat(0);
        for (0..c.k) |e| {
            const v = value(x[i * c.k + e]);
            sums[0] += v * value(bf16(w[j * c.k + e]));
            sums[1] += v * value(bf16(w2[j * c.k + e]));
        }
        off.add(out[i * c.n + j], if (c.two) silu(sums[0]) * sums[1] else sums[0]);
    };
    try off.expect(1e-5);
}

// ---- attention -----------------------------------------------------------------------------

const Attention = extern struct {
    q: [*]const u16,
    k_pages: [*]const u16,
    v_pages: [*]const u16,
    out: [*]u16,
    seq_start: [*]const u32,
    past_len: [*]const u32,
    pages: [*]const u32,
    page_stride: i64,
    heads: i32,
    kv_heads: i32,
    q_stride: i32,
    out_stride: i32,
    max_pages: i32,
    scale: f32,
};
/// Attention of the tokens from `past` on, given as the second of two sequences, of which the
/// first has none.
fn attend(s: Sequence, past: usize, out: []u16) void {
    const length: u32 = @intCast(s.tokens - past);
    const pages = Sequence.order ++ Sequence.order;
    support.bamba_emulate("attention_mma_bf16", &Attention{
        .q = s.q.ptr + past * width,
        .k_pages = s.k.ptr,
        .v_pages = s.v.ptr,
        .out = out.ptr,
        .seq_start = &[_]u32{ 0, 0, length },
        .past_len = &[_]u32{ 5, @intCast(past) },
        .pages = &pages,
        .page_stride = page_stride,
        .heads = heads,
        .kv_heads = kv_heads,
        .q_stride = width,
        .out_stride = width,
        .max_pages = max_pages,
        .scale = scale,
    }, heads, @intCast((length + 63) / 64), 2, 128);
}
test "attention_mma: near the sums, with the same bits wherever a prompt is cut" {
    for ([_]usize{ 1, 70, 193 }) |tokens| {
        const s = try Sequence.make(tokens);
        defer s.free();
        const whole = try allocator.alloc(u16, tokens * width);
        defer allocator.free(whole);
        attend(s, 0, whole);
        try s.check(whole);
        for ([_]usize{ 1, 64, 100 }) |past| if (past < tokens) {
            const part = try allocator.alloc(u16, (tokens - past) * width);
            defer allocator.free(part);
            attend(s, past, part);
            try testing.expectEqualSlices(u16, whole[past * width ..], part);
        };
    }
}
