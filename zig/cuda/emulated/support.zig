//! What the tests of kernels on a CPU share: numbers, errors, and a sequence's keys and values.

const std = @import("std");
const block = @import("../../cpu/block.zig");
const panels = @import("../blocks.zig");
const allocator = std.testing.allocator;

pub var random = std.Random.DefaultPrng.init(7);

pub fn number() f32 {
    return random.random().floatNorm(f32);
}
pub fn bf16(v: f32) u16 {
    const bits: u32 = @bitCast(v);
    return @intCast((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
pub fn value(bits: u16) f64 {
    return @as(f32, @bitCast(@as(u32, bits) << 16));
}
pub fn matrix(n: usize) ![]u16 {
    const m = try allocator.alloc(u16, n);
    for (m) |*v| v.* = bf16(number());
    return m;
}

/// A matrix (n, k) in blocks, any bytes whose scales are small numbers: values, and panels of a
/// GPU.
pub fn inBlocks(comptime d: block.DType, n: usize, k: usize) !struct { []f32, []align(16) u8 } {
    const row_bytes = block.rowBytes(d, k);
    const file = try allocator.alloc(u8, n * row_bytes);
    defer allocator.free(file);
    random.random().bytes(file);
    const size = block.bytes(d);
    for (0..file.len / size) |i| {
        const at = file[i * size ..][0..size];
        at[if (d == .q6_k) size - 1 else 1] = 0x2c; // f16 of 1/16
        if (d == .q4_k or d == .q5_k) at[3] = 0x2c;
    }
    const values = try allocator.alloc(f32, n * k);
    const packed_rows = std.mem.alignForward(usize, n, 16);
    const panel_bytes = try allocator.alignedAlloc(u8, .@"16", packed_rows * row_bytes);
    for (0..n) |r|
        block.dequantizeRow(d, file[r * row_bytes ..].ptr, k, values[r * k ..].ptr);
    var r: usize = 0;
    while (r < n) : (r += 16) {
        const to = panel_bytes[r * row_bytes ..].ptr;
        panels.pack(d, to, file[r * row_bytes ..].ptr, @min(16, n - r), k);
    }
    return .{ values, panel_bytes };
}

/// ||got - want|| / ||want|| of all numbers given.
pub const Error = struct {
    off: f64 = 0,
    all: f64 = 0,

    pub fn add(e: *Error, got: f64, want: f64) void {
        e.off += (got - want) * (got - want);
        e.all += want * want;
    }
    pub fn expect(e: Error, limit: f64) !void {
        const found = @sqrt(e.off / e.all);
        if (found <= limit) return;
        std.debug.print("expected an error of at most {e} but found {e}\n", .{ limit, found });
        return error.TestUnexpectedResult;
    }
};

pub fn silu(v: f64) f64 {
    return v / (1 + @exp(-v));
}

pub const hd = 128;
pub const page = 64;
pub const heads = 4;
pub const kv_heads = 2;
pub const max_pages = 4;
pub const page_stride = kv_heads * page * hd + hd;
pub const width = heads * hd;
pub const scale = 0.1;

/// One sequence of `tokens` in all: its queries, and its keys and values in pages in another order.
pub const Sequence = struct {
    tokens: usize,
    q: []u16,
    k: []u16,
    v: []u16,
    pub const order = [max_pages]u32{ 2, 0, 3, 1 };

    pub fn make(tokens: usize) !Sequence {
        return .{
            .tokens = tokens,
            .q = try matrix(tokens * width),
            .k = try matrix(max_pages * page_stride),
            .v = try matrix(max_pages * page_stride),
        };
    }
    pub fn free(s: Sequence) void {
        for ([_][]u16{ s.q, s.k, s.v }) |of| allocator.free(of);
    }
    pub fn row(position: usize, kv: usize) usize {
        return order[position / page] * page_stride + (kv * page + position % page) * hd;
    }
    fn want(s: Sequence, position: usize, head: usize, out: *[hd]f64) void {
        var weights: [max_pages * page]f64 = undefined;
        var sum: f64 = 0;
        const kv = head / (heads / kv_heads);
        for (0..position + 1) |key| {
            var dot: f64 = 0;
            for (0..hd) |c|
                dot += value(s.q[position * width + head * hd + c]) * value(s.k[row(key, kv) + c]);
            weights[key] = @exp(dot * scale);
            sum += weights[key];
        }
        out.* = @splat(0);
        for (0..position + 1) |key| for (out, 0..) |*o, c| {
            o.* += weights[key] / sum * value(s.v[row(key, kv) + c]);
        };
    }
    /// Results of all tokens, near what they should be.
    pub fn check(s: Sequence, out: []const u16) !void {
        var off: Error = .{};
        for (0..s.tokens) |position| for (0..heads) |head| {
            var wanted: [hd]f64 = undefined;
            s.want(position, head, &wanted);
            for (wanted, 0..) |v, c| off.add(value(out[position * width + head * hd + c]), v);
        };
        try off.expect(4e-3);
    }
};

/// Runs a kernel of kernels.cpp with a grid of (x, y, z) blocks.
pub extern fn bamba_emulate(
    name: [*:0]const u8,
    args: *const anyopaque,
    x: c_int,
    y: c_int,
    z: c_int,
    threads: c_int,
) void;

pub extern fn bamba_emulate_sm90(
    name: [*:0]const u8,
    call: *const anyopaque,
    x: c_int,
    y: c_int,
) void;

/// A matrix of bf16 in boxes of 64 columns.
pub const Map = extern struct {
    base: ?[*]const u16,
    /// Whose rows lie between those of `base`, eight of each in turns.
    other: ?[*]const u16 = null,
    rows: i64 = 0,
    cols: i64 = 0,
    stride: i64 = 0,
    box_cols: i32 = 64,
    box_rows: i32 = 0,
    item: i32 = 2,
    unused: i32 = 0,

    pub fn of(base: []const u16, rows: usize, cols: usize, box_rows: i32) Map {
        return .{
            .base = base.ptr,
            .rows = @intCast(rows),
            .cols = @intCast(cols),
            .stride = @intCast(cols),
            .box_rows = box_rows,
        };
    }
};

/// `BatchArgs` of kernels/batch_sm90.cuh.
pub const BatchArgs = extern struct {
    bias: ?[*]const f32,
    residual: ?[*]const u16,
    out: *anyopaque,
    sums: ?[*]f32,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out_stride: i32,
    up_first: i32,
    pushes: i32 = 0,
};
