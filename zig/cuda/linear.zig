//! linear, bf16 throughout: up to 8 rows kernels/linear_decode.cu, on Hopper up to 128 rows
//! linear_batch_sm90.cu and above that linear_gemm_sm90.cu. Other dtypes, shapes and cards: the
//! plain twin, which adds over k upwards as the CPU does. On a GPU weights lie in rows.

const command = @import("command");
const k = @import("kernel.zig");
const Extra = @import("stream.zig").Extra;
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{ .linear = k.Kernel{ .launch = linear } };

fn linear(t: *const Task, s: *Stream) void {
    const rows = k.rows(t, 0);
    if (rows == 0) return;
    const bf16 = k.dtype(t, 0) == .bf16 and k.dtype(t, 1) == .bf16;
    if (bf16 and t.cols(0) % 8 == 0 and k.aligned(t, &.{ 0, 3, 4 }) and weightAligned(t)) {
        const hopper = s.gpu.capability == 90 and t.cols(4) % 8 == 0;
        const narrow = k.dtype(t, 4) == .bf16;
        if (rows <= 8) return decode(t, s);
        if (hopper and (rows <= 128 or !narrow)) return batch(t, s);
        if (hopper) return gemm(t, s);
    }
    plain(t, s);
}

fn weightAligned(t: *const Task) bool {
    return @intFromPtr(t.data[1].?) % 16 == 0 and t.stride(1) == t.cols(0);
}

// ---- 1 to 8 rows ---------------------------------------------------------------------------

const DecodeArgs = extern struct {
    w: ?[*]u8,
    w2: ?[*]u8 = null,
    x: ?[*]u8,
    gate: ?[*]u8 = null,
    norm_weight: ?[*]u8 = null,
    bias: ?[*]u8,
    residual: ?[*]u8,
    out: ?[*]u8,
    batch: i32,
    n: i32,
    k: i32,
    x_stride: i32,
    gate_stride: i32 = 0,
    residual_stride: i32,
    out_stride: i32,
    eps: f32 = 0,
};

const slot_bytes = 16384;
/// Dynamic shared memory with which two blocks fit a multiprocessor.
const decode_room = 115712 - 8832;

fn decode(t: *const Task, s: *Stream) void {
    const rows = k.rows(t, 0);
    const a: DecodeArgs = .{
        .w = k.at(t, 1),
        .x = k.at(t, 0),
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = k.at(t, 4),
        .batch = @intCast(rows),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .x_stride = k.stride(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = k.stride(t, 4),
    };
    const tiles = k.blocks(t.cols(4), 16);
    const grid = [3]u32{ @min(tiles, 2 * s.gpu.multiprocessors), 1, 1 };
    const x_bytes: u32 = @intCast(rows * (t.cols(0) + 32) * 2);
    switch (k.dtype(t, 4)) {
        inline .f32, .bf16 => |d| {
            inline for (.{ 5, 4 }) |slots| if (x_bytes + slots * slot_bytes <= decode_room) {
                const name = comptime k.name("gemv_{d}_{t}", .{ slots, d });
                const extra: Extra = .{ .shared_bytes = slots * slot_bytes + x_bytes };
                return s.launch("linear_decode", name, grid, 256, .{a}, extra);
            };
            const extra: Extra = .{ .shared_bytes = 6 * slot_bytes };
            s.launch("linear_decode", "gemv_6_direct_" ++ @tagName(d), grid, 256, .{a}, extra);
        },
        else => unreachable,
    }
}

// ---- Hopper, up to 128 rows ----------------------------------------------------------------

const BatchArgs = extern struct {
    bias: ?[*]u8,
    residual: ?[*]u8,
    out: ?[*]u8,
    rows_ptr: ?[*]u8 = null,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out_stride: i32,
};
const batch_shared_bytes = 99456;

/// Rows beyond the widest kernel's run in further tiles.
fn fits(rows: u32, tokens: u32) bool {
    return rows <= tokens or tokens == 128;
}

fn batch(t: *const Task, s: *Stream) void {
    const rows = k.rows(t, 0);
    const n = t.cols(4);
    const a: BatchArgs = .{
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = k.at(t, 4),
        .m = @intCast(rows),
        .n = @intCast(n),
        .k = k.cols(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = k.stride(t, 4),
    };
    const extra: Extra = .{ .shared_bytes = batch_shared_bytes, .cluster = 4 };
    const weight = s.map(k.at(t, 1), n, t.cols(0), t.stride(1), .{ 64, 128 });
    switch (k.dtype(t, 4)) {
        inline .f32, .bf16 => |d| inline for (.{ 16, 32, 64, 128 }) |tokens| {
            if (fits(rows, tokens)) {
                const x = s.map(k.at(t, 0), rows, t.cols(0), t.stride(0), .{ 64, tokens });
                const grid = [3]u32{ 4 * k.blocks(n, 128), k.blocks(rows, tokens), 1 };
                const name = comptime k.name("linear_batch_{d}_{t}", .{ tokens, d });
                const args = .{ x, weight, weight, a };
                return s.launch("linear_batch_sm90", name, grid, 288, args, extra);
            }
        },
        else => unreachable,
    }
}

// ---- Hopper, many rows ---------------------------------------------------------------------

const GemmArgs = extern struct {
    bias: ?[*]u8,
    residual: ?[*]u8,
    rows_ptr: ?[*]u8 = null,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
};
const gemm_shared_bytes = 230656;

fn gemm(t: *const Task, s: *Stream) void {
    const rows = k.rows(t, 0);
    const n = t.cols(4);
    const clusters = s.gpu.multiprocessors / 2;
    // Narrow tiles where wide ones would leave clusters without work.
    const wide = k.blocks(rows, 256) * k.blocks(n, 256) >= clusters * 3 / 4;
    const box: u32 = if (wide) 128 else 64;
    const a: GemmArgs = .{
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .m = @intCast(rows),
        .n = @intCast(n),
        .k = k.cols(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
    };
    const weight = s.map(k.at(t, 1), n, t.cols(0), t.stride(1), .{ 64, box });
    const args = .{
        s.map(k.at(t, 0), rows, t.cols(0), t.stride(0), .{ 64, 128 }),
        weight,
        weight,
        s.map(k.at(t, 4), rows, n, t.stride(4), .{ 64, 64 }),
        a,
    };
    const pairs = k.blocks(rows, 256) * k.blocks(n, 2 * box);
    const grid = [3]u32{ 2 * @min(clusters, pairs), 1, 1 };
    const extra: Extra = .{ .shared_bytes = gemm_shared_bytes, .cluster = 2 };
    if (wide) return s.launch("linear_gemm_sm90", "gemm_256_sm90_bf16", grid, 384, args, extra);
    s.launch("linear_gemm_sm90", "gemm_128_sm90_bf16", grid, 384, args, extra);
}

// ---- any -----------------------------------------------------------------------------------

const PlainArgs = extern struct {
    x: ?[*]u8,
    w: ?[*]u8,
    bias: ?[*]u8,
    residual: ?[*]u8,
    out: ?[*]u8,
    rows_ptr: ?[*]u8 = null,
    m: i32,
    n: i32,
    k: i32,
    x_stride: i32,
    residual_stride: i32,
    out_stride: i32,
};

fn plain(t: *const Task, s: *Stream) void {
    const a: PlainArgs = .{
        .x = k.at(t, 0),
        .w = k.at(t, 1),
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = k.at(t, 4),
        .m = @intCast(k.rows(t, 0)),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .x_stride = k.stride(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = k.stride(t, 4),
    };
    const grid = [3]u32{ k.blocks(t.cols(4), 64), k.blocks(k.rows(t, 0), 64), 1 };
    const weight = k.dtype(t, 1);
    const out = k.dtype(t, 4);
    const stem = "reference";
    if (k.dtype(t, 0) == .bf16) return switch (out) {
        .f32 => s.launch(stem, "linear_ref_bf16_bf16_f32", grid, 256, .{a}, .{}),
        else => s.launch(stem, "linear_ref_bf16_bf16_bf16", grid, 256, .{a}, .{}),
    };
    switch (weight) {
        inline .f32, .bf16, .f16 => |w| {
            const name = "linear_ref_f32_" ++ @tagName(w) ++ "_f32";
            s.launch(stem, name, grid, 256, .{a}, .{});
        },
        else => unreachable,
    }
}
