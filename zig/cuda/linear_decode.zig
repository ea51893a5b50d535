//! linear for 1 to 8 rows of bf16 (kernels/linear_decode.cu), with what may stand in front of it in
//! the same kernel: a norm, a gated norm, and behind it the SwiGLU of two matrices. Weights in
//! blocks have the same in `linear_blocks.zig`, those of e4m3 in `linear_fp8.zig`.

const block = @import("../cpu/block.zig");
const blocks = @import("linear_blocks.zig");
const fp8 = @import("linear_fp8.zig");
const command = @import("command");
const k = @import("kernel.zig");
const Extra = @import("stream.zig").Extra;
const Task = k.Task;
const Stream = k.Stream;

pub const rows_max = 8;
/// Rows for which a norm inside is worth its repetition in every block.
pub const norm_rows_max = 2;
/// Columns that a norm inside may have: kernels keep the squares of 2048 at a time.
const norm_cols_max = 18 * 2048;

pub const Mode = enum { plain, rms, gated, swiglu, rms_swiglu };

pub const Args = extern struct {
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
    // What follows only the kernels for blocks, e4m3 and chains read.
    mode: i32 = 0,
    swiglu: i32 = 0,
    out_f32: i32 = 0,
    /// How the chain's kernel calls the type.
    type: i32 = 0,
    /// Of `w` and `w2`.
    dtype: command.DType,
    /// Whether `w2` lies before `w`: what a chain's kernel for rows asks.
    up_first: i32 = 0,
};

const slot_bytes = 16384;
/// Dynamic shared memory with which two blocks fit a multiprocessor.
const room = 115712 - 8832;

pub fn arguments(t: *const Task) Args {
    return .{
        .w = k.at(t, 1),
        .x = k.at(t, 0),
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = k.at(t, 4),
        .batch = @intCast(k.rows(t, 0)),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .x_stride = k.stride(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = k.stride(t, 4),
        .dtype = k.dtype(t, 1),
    };
}

fn xBytes(a: *const Args) u32 {
    return @intCast(a.batch * (a.k + 32) * 2);
}

/// Whether x fits shared memory beside the ring, as the norms and SwiGLU need.
pub fn staged(a: *const Args, s: *const Stream) bool {
    if (block.is(a.dtype)) return blocks.fits(a, s);
    if (a.dtype == .f8_e4m3) return fp8.staged(a);
    return xBytes(a) + 4 * slot_bytes <= room;
}

/// Whether these kernels are the ones for so many rows: where bits may not depend on the number,
/// the batch's are.
pub fn takes(rows: u32, s: *const Stream) bool {
    return rows <= rows_max and !s.invariant;
}
/// Whether a norm goes inside.
pub fn takesNorm(a: *const Args, s: *const Stream) bool {
    const few = a.batch <= norm_rows_max and a.k <= norm_cols_max;
    return few and staged(a, s) and !s.invariant;
}

/// The same as numbers, for kernels that are told.
pub fn describe(comptime mode: Mode, f32_out: bool, a: *Args) void {
    a.mode = switch (mode) {
        .plain, .swiglu => 0,
        .rms, .rms_swiglu => 1,
        .gated => 2,
    };
    a.swiglu = @intFromBool(mode == .swiglu or mode == .rms_swiglu);
    a.out_f32 = @intFromBool(f32_out);
}

/// Puts the norm's command `norm` in front: its input, and its weight, which is operand `weight`.
pub fn takeNorm(a: *Args, norm: *const Task, weight: usize) void {
    a.x = k.at(norm, 0);
    a.x_stride = k.stride(norm, 0);
    a.norm_weight = k.at(norm, weight);
    a.eps = norm.attrF(0);
}

/// `f32_out`: what becomes scores; only `plain` and `rms` have it.
pub fn launch(comptime mode: Mode, a: Args, f32_out: bool, s: *Stream) void {
    if (block.is(a.dtype)) return blocks.decode(mode, a, f32_out, s);
    if (a.dtype == .f8_e4m3) return fp8.decode(mode, a, f32_out, s);
    const tile: usize = if (mode == .swiglu or mode == .rms_swiglu) 8 else 16;
    const tiles = k.blocks(@intCast(a.n), tile);
    const grid = [3]u32{ @min(tiles, 2 * s.gpu.multiprocessors), 1, 1 };
    const x_bytes = xBytes(&a);
    const middle = if (mode == .plain) "" else "_" ++ @tagName(mode);
    const has_f32 = mode == .plain or mode == .rms;
    inline for (.{ 5, 4 }) |slots| if (x_bytes + slots * slot_bytes <= room) {
        const extra: Extra = .{ .shared_bytes = slots * slot_bytes + x_bytes };
        const stem = comptime k.name("gemv_{d}" ++ middle, .{slots});
        if (has_f32 and f32_out)
            return s.launch("linear_decode", stem ++ "_f32", grid, 256, .{a}, extra);
        return s.launch("linear_decode", stem ++ "_bf16", grid, 256, .{a}, extra);
    };
    if (mode != .plain) unreachable; // `staged` was asked
    const extra: Extra = .{ .shared_bytes = 6 * slot_bytes };
    if (f32_out) return s.launch("linear_decode", "gemv_6_direct_f32", grid, 256, .{a}, extra);
    s.launch("linear_decode", "gemv_6_direct_bf16", grid, 256, .{a}, extra);
}
