//! linear with e4m3 weights. A few rows: kernels/linear_fp8.cu, activations as they are. More on
//! Hopper: the rows become e4m3, each with a scale of its own and with what stands in front of the
//! product (a norm, a gated norm), and are multiplied in e4m3: up to 128 rows by
//! kernels/linear_fp8_batch_sm90.cu, above that by linear_fp8_sm90.cu; on other cards by
//! linear_fp8_mma.cu as they are. What is left takes the plain way. A weight lies as f32 scales of
//! all its rows, whole panels of them, and then the rows.

const std = @import("std");
const command = @import("command");
const decode_file = @import("linear_decode.zig");
const k = @import("kernel.zig");
const mma = @import("linear_mma.zig");
const shares = @import("linear_shares.zig");
const shared = @import("linear_plain.zig");
const sm90 = @import("linear_sm90.zig");
const Args = decode_file.Args;
const Extra = k.Extra;
const Stream = k.Stream;
const Task = k.Task;
const TensorMap = @import("driver.zig").TensorMap;

/// Columns that a row is a multiple of where the fast kernels take it.
pub const columns = 16;
/// Columns of a row that one block turns into e4m3.
const columns_max = 16384;
const slot_bytes = 16384;
/// Dynamic shared memory with which two blocks fit a multiprocessor.
const room = 115712 - 9472;
const pad = 8;

/// Bytes of the scales in front of n rows.
pub fn scaleBytes(n: u64) u64 {
    return std.mem.alignForward(u64, n, command.panel) * @sizeOf(f32);
}

/// Columns that a block's warps take together.
const stride = 1024;

fn xBytes(a: *const Args) u32 {
    const cols = k.blocks(@intCast(a.k), stride) * stride;
    return @as(u32, @intCast(a.batch)) * (cols + pad) * 2;
}
/// Whether x fits shared memory beside the ring, as the norms need.
pub fn staged(a: *const Args) bool {
    return xBytes(a) + 4 * slot_bytes <= room;
}

/// Up to `rows_max` rows in one launch, more in several.
pub fn decode(comptime mode: decode_file.Mode, a: Args, f32_out: bool, s: *Stream) void {
    var part = a;
    part.mode = switch (mode) {
        .plain, .swiglu => 0,
        .rms, .rms_swiglu => 1,
        .gated => 2,
    };
    part.swiglu = @intFromBool(mode == .swiglu or mode == .rms_swiglu);
    part.out_f32 = @intFromBool(f32_out);
    var done: i32 = 0;
    while (done < a.batch) : (done += part.batch) {
        part.batch = @min(decode_file.rows_max, a.batch - done);
        part.x = k.advance(a.x, done, a.x_stride, 2);
        part.gate = k.advance(a.gate, done, a.gate_stride, 2);
        part.residual = k.advance(a.residual, done, a.residual_stride, 2);
        part.out = k.advance(a.out, done, a.out_stride, if (f32_out) 4 else 2);
        once(part, s);
    }
}

fn once(a: Args, s: *Stream) void {
    const tiles = k.blocks(@intCast(a.n), if (a.swiglu != 0) 8 else 16);
    const grid = [3]u32{ @min(tiles, 2 * s.gpu.multiprocessors), 1, 1 };
    inline for (.{ 5, 4 }) |slots| if (xBytes(&a) + slots * slot_bytes <= room) {
        const extra: Extra = .{ .shared_bytes = slots * slot_bytes + xBytes(&a) };
        const name = comptime k.name("fp8_decode_{d}", .{slots});
        return s.launch("linear_fp8", name, grid, 256, .{a}, extra);
    };
    const extra: Extra = .{ .shared_bytes = 6 * slot_bytes };
    s.launch("linear_fp8", "fp8_decode_6_direct", grid, 256, .{a}, extra);
}

/// A product by itself, whose inputs the fast kernels take.
pub fn linear(t: *const Task, s: *Stream) void {
    const f32_out = k.dtype(t, 4) == .f32;
    const hopper = s.gpu.capability == 90;
    if (decode_file.takes(k.rows(t, 0), s) or (f32_out and hopper))
        return decode(.plain, decode_file.arguments(t), f32_out, s);
    const out, const out_stride = .{ k.at(t, 4), k.stride(t, 4) };
    if (many(t, s)) return product(t, null, toEights(.{ .of = t }, s), out, out_stride, s);
    if (hopper or t.cols(4) % 8 != 0) return plain(t, s);
    mma.launch(.{ .of = t, .out = out, .out_stride = out_stride, .f32_out = f32_out }, s);
}

/// Whether a product, whose inputs the fast kernels take, runs in e4m3 throughout.
pub fn many(t: *const Task, s: *const Stream) bool {
    return k.dtype(t, 1) == .f8_e4m3 and s.gpu.capability == 90 and t.cols(4) % 8 == 0 and
        t.cols(0) <= columns_max and k.dtype(t, 4) == .bf16 and
        !decode_file.takes(k.rows(t, 0), s);
}

/// Rows in e4m3 and their scales, in the stream's spare memory.
const Eights = struct { rows: [*]u8, scales: [*]u8 };

/// Bytes of spare memory that so many rows take.
pub fn spareBytes(rows: u64, cols: u64) u64 {
    return scalesAt(rows, cols) + rows * @sizeOf(f32);
}
fn scalesAt(rows: u64, cols: u64) u64 {
    return std.mem.alignForward(u64, rows * cols, 256);
}
/// The same for the product `t`, at its plan's capacity; 0 where it is none of e4m3.
pub fn taskSpareBytes(t: *const Task) u64 {
    if (t.op != .linear or k.dtype(t, 1) != .f8_e4m3) return 0;
    return spareBytes(t.operands[0].shape[0], t.cols(0));
}

const RowsArgs = extern struct {
    x: ?[*]u8,
    gate: ?[*]u8 = null,
    norm_weight: ?[*]u8 = null,
    out: [*]u8,
    scale: [*]u8,
    k: i32,
    x_stride: i32,
    gate_stride: i32 = 0,
    out_stride: i32,
    mode: i32 = 0,
    eps: f32 = 0,
};

/// What becomes e4m3: the input of `of`, or a norm's instead.
pub const From = struct {
    of: *const Task,
    norm: ?*const Task = null,
    /// Bytes of spare memory to leave alone.
    behind: u64 = 0,
};

pub fn toEights(from: From, s: *Stream) Eights {
    const rows = k.rows(from.of, 0);
    const to = s.spare.? + from.behind;
    const cols = from.of.cols(0);
    const made: Eights = .{ .rows = to, .scales = to + scalesAt(rows, cols) };
    var a: RowsArgs = .{
        .x = k.at(from.of, 0),
        .out = made.rows,
        .scale = made.scales,
        .k = @intCast(cols),
        .x_stride = k.stride(from.of, 0),
        .out_stride = @intCast(cols),
    };
    if (from.norm) |norm| {
        const gated = norm.op == .rms_norm_gated;
        a.x = k.at(norm, 0);
        a.x_stride = k.stride(norm, 0);
        a.norm_weight = k.at(norm, if (gated) 2 else 1);
        a.mode = if (gated) 2 else 1;
        a.eps = norm.attrF(0);
        if (gated) {
            a.gate = k.at(norm, 1);
            a.gate_stride = k.stride(norm, 1);
        }
    }
    const grid = [3]u32{ rows, 1, 1 };
    const stem = "linear_fp8_sm90";
    const few = from.norm != null and rows <= sm90.batch_rows_max;
    if (few and cols <= 4096) s.launch(stem, "fp8_rows_few_4_sm90", grid, 256, .{a}, .{}) //
    else if (few and cols <= 8192) s.launch(stem, "fp8_rows_few_8_sm90", grid, 512, .{a}, .{}) //
    else if (cols <= 4096) s.launch(stem, "fp8_rows_4_sm90", grid, 256, .{a}, .{}) //
    else if (cols <= 8192) s.launch(stem, "fp8_rows_8_sm90", grid, 512, .{a}, .{}) //
    else s.launch(stem, "fp8_rows_16_sm90", grid, 512, .{a}, .{});
    return made;
}

const BatchArgs = extern struct {
    of: sm90.BatchArgs,
    x_scale: [*]u8,
    w_scale: ?[*]u8,
    w2_scale: ?[*]u8,
};
fn batch(p: sm90.Product, x: Eights, s: *Stream) void {
    const t = p.of;
    const rows = k.rows(t, 0);
    const n = t.cols(4);
    const cols = t.cols(0);
    const w = k.at(t, 1).?;
    const w2 = if (p.up) |of| k.at(of, 1).? else w;
    const a: BatchArgs = .{
        .of = sm90.batchArgs(p),
        .x_scale = x.scales,
        .w_scale = w,
        .w2_scale = w2,
    };
    const behind = scaleBytes(n);
    const weight = if (p.up == null)
        s.mapOnce(.uint8, w + behind, n, cols, cols, .{ 128, 128 })
    else
        s.mapPairs(.uint8, w + behind, w2 + behind, n, cols, cols, 8);
    inline for (sm90.batch_tokens) |tokens| if (rows <= tokens) {
        const args = .{ s.mapBytes(x.rows, rows, cols, cols, .{ 128, tokens }), weight, a };
        const scales_bytes = 2 * tokens * @sizeOf(f32); // a copy for each half of a block
        const extra: Extra = .{ .shared_bytes = sm90.batchSharedBytes(tokens) + scales_bytes };
        const threads = sm90.batchThreads(tokens);
        const grid = wholeTiles(p, tokens, s) orelse sm90.batchGrid(p, tokens, s);
        const stem = "linear_fp8_batch_sm90";
        const swiglu = comptime k.name("fp8_batch_swiglu_{d}", .{tokens});
        if (p.up != null) return s.launch(stem, swiglu, grid, threads, args, extra);
        const plain_name = comptime k.name("fp8_batch_{d}", .{tokens});
        return s.launch(stem, plain_name, grid, threads, args, extra);
    };
}

/// Blocks that have whole tiles each, and nothing to pass on to others, where most multiprocessors
/// then have a block: gate and up's 224 tiles in 112, a layer of 16 tokens 127.7 -> 126.4 us.
fn wholeTiles(p: sm90.Product, tokens: u32, s: *const Stream) ?[3]u32 {
    if (tokens > whole_tokens_max) return null; // not measured
    const tiles = k.blocks(p.of.cols(4), if (p.up == null) 128 else 64);
    const blocks = k.blocks(tiles, k.blocks(tiles, s.gpu.multiprocessors));
    return if (5 * blocks >= 4 * s.gpu.multiprocessors) .{ blocks, 1, 1 } else null;
}
const whole_tokens_max = 16;

const GemmArgs = extern struct {
    of: sm90.GemmArgs,
    x_scale: [*]u8,
    w_scale: ?[*]u8,
    w2_scale: ?[*]u8,
};
/// The arguments of a kernel for many rows and some of a product's columns.
const Many = struct {
    of: sm90.Product,
    x: Eights,

    pub fn args(m: Many, part: shares.Part, box: u32, s: *Stream) Arguments {
        const t = m.of.of;
        const w = k.at(t, 1).?;
        const w2 = if (m.of.up) |up| k.at(up, 1).? else w;
        const cols = t.cols(0);
        const behind = scaleBytes(t.cols(4)) + part.first * cols;
        const scales = 4 * part.first;
        return .{
            s.mapBytes(m.x.rows, k.rows(t, 0), cols, cols, .{ 128, 128 }),
            s.mapBytes(w + behind, part.count, cols, cols, .{ 128, box }),
            s.mapBytes(w2 + behind, part.count, cols, cols, .{ 128, box }),
            .{
                .of = sm90.partArgs(m.of, part),
                .x_scale = m.x.scales,
                .w_scale = w + scales,
                .w2_scale = w2 + scales,
            },
        };
    }
};
const Arguments = struct { TensorMap, TensorMap, TensorMap, GemmArgs };
const gemm_stem = "linear_fp8_sm90";

/// Of fewer rows two launches take 2 % longer than one.
const shares_rows_min = 2048;

/// Launches a product in two shares; false where one launch does it.
fn inShares(of: Many, s: *Stream) bool {
    if (k.rows(of.of.of, 0) < shares_rows_min) return false;
    const two = of.of.up != null;
    const shape: shares.Shape = .{
        .rows = k.rows(of.of.of, 0),
        .n = of.of.of.cols(4),
        .tile = if (two) 128 else 256,
        .columns = 256,
        .shared_bytes = sm90.gemm_shared_bytes,
    };
    if (two) return shares.launch(gemm_stem, "gemm_swiglu_256", "_e4m3", of, shape, s);
    const bare = sm90.isBare(of.of.of);
    if (bare) return shares.launch(gemm_stem, "gemm_256_bare", "_e4m3", of, shape, s);
    return shares.launch(gemm_stem, "gemm_256", "_e4m3", of, shape, s);
}

/// x times the weight of `t`; with `up` the SwiGLU of both.
pub fn product(
    t: *const Task,
    up: ?*const Task,
    x: Eights,
    out: ?[*]u8,
    out_stride: i32,
    s: *Stream,
) void {
    const rows = k.rows(t, 0);
    const p: sm90.Product = .{
        .of = t,
        .up = up,
        .out = out,
        .out_stride = out_stride,
        .f32_out = false,
    };
    if (rows <= sm90.batch_rows_max and !s.invariant) return batch(p, x, s);
    const n = t.cols(4);
    const clusters = s.gpu.multiprocessors / 2;
    const parts = if (s.invariant) 1 else sm90.splitOf(p, s);
    const wide = parts > 1 or sm90.isWide(t, up, s);
    const box: u32 = if (wide) 128 else 64;
    const of: Many = .{ .of = p, .x = x };
    if (parts == 1 and wide and inShares(of, s)) return;
    const args = of.args(.{ .first = 0, .count = n }, box, s);
    const tile: usize = if (up == null) 2 * box else box;
    const pairs = k.blocks(rows, 256) * k.blocks(n, tile) * parts;
    const grid = [3]u32{ 2 * @min(clusters, pairs), 1, 1 };
    const extra: Extra = .{ .shared_bytes = sm90.gemm_shared_bytes, .cluster = 2 };
    if (parts == 4) return s.launch(gemm_stem, "gemm_split_4_e4m3", grid, 384, args, extra);
    if (parts == 2) return s.launch(gemm_stem, "gemm_split_2_e4m3", grid, 384, args, extra);
    if (up != null) {
        if (wide) return s.launch(gemm_stem, "gemm_swiglu_256_e4m3", grid, 384, args, extra);
        return s.launch(gemm_stem, "gemm_swiglu_128_e4m3", grid, 384, args, extra);
    }
    const bare = "gemm_256_bare_e4m3";
    if (wide and sm90.isBare(t)) return s.launch(gemm_stem, bare, grid, 384, args, extra);
    if (wide) return s.launch(gemm_stem, "gemm_256_e4m3", grid, 384, args, extra);
    s.launch(gemm_stem, "gemm_128_e4m3", grid, 384, args, extra);
}

/// Any rows, card and dtypes.
pub fn plain(t: *const Task, s: *Stream) void {
    const a = shared.argsOf(t);
    const grid = shared.grid(t);
    const stem = "linear_fp8";
    if (k.dtype(t, 0) == .f32) return s.launch(stem, "fp8_linear_f32_f32", grid, 256, .{a}, .{});
    if (k.dtype(t, 4) == .f32) return s.launch(stem, "fp8_linear_bf16_f32", grid, 256, .{a}, .{});
    s.launch(stem, "fp8_linear_bf16_bf16", grid, 256, .{a}, .{});
}
