//! linear on Hopper, bf16: up to 128 rows kernels/linear_batch_sm90.cu, above that
//! linear_gemm_sm90.cu. Both take a second matrix for SwiGLU.

const block = @import("../cpu/block.zig");
const blocks = @import("linear_blocks.zig");
const k = @import("kernel.zig");
const Extra = @import("stream.zig").Extra;
const TensorMap = @import("driver.zig").TensorMap;
const Task = k.Task;
const Stream = k.Stream;

/// Above so many rows the tensor cores decide, not the memory.
const batch_rows_max = 128;

fn weightMap(t: *const Task, rows: u32, s: *Stream) TensorMap {
    return s.map(k.at(t, 1), t.cols(4), t.cols(0), t.stride(1), .{ 64, rows });
}

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

/// What the kernels need to know of one product.
pub const Product = struct {
    /// The command: x, weight, bias, residual.
    of: *const Task,
    /// The up projection's, with SwiGLU.
    up: ?*const Task = null,
    out: ?[*]u8,
    out_stride: i32,
    f32_out: bool,
};

pub fn launch(p: Product, s: *Stream) void {
    const rows = k.rows(p.of, 0);
    if (block.is(k.dtype(p.of, 1))) return blocks.gemm(p, s);
    if (rows <= batch_rows_max or p.f32_out) return batch(p, s);
    gemm(p, s);
}

/// Rows beyond the widest kernel's run in further tiles.
fn fits(rows: u32, tokens: u32) bool {
    return rows <= tokens or tokens == batch_rows_max;
}

fn batch(p: Product, s: *Stream) void {
    const t = p.of;
    const rows = k.rows(t, 0);
    const n = t.cols(4);
    const a: BatchArgs = .{
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = p.out,
        .m = @intCast(rows),
        .n = @intCast(n),
        .k = k.cols(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = p.out_stride,
    };
    const extra: Extra = .{ .shared_bytes = batch_shared_bytes, .cluster = 4 };
    const tile: u32 = if (p.up == null) 128 else 64;
    const weight = weightMap(t, tile, s);
    const other = if (p.up) |up| weightMap(up, tile, s) else weight;
    inline for (.{ 8, 16, 32, 64, 128 }) |tokens| if (fits(rows, tokens)) {
        const x = s.map(k.at(t, 0), rows, t.cols(0), t.stride(0), .{ 64, tokens });
        const grid = [3]u32{ 4 * k.blocks(n, tile), k.blocks(rows, tokens), 1 };
        const args = .{ x, weight, other, a };
        const stem = "linear_batch_sm90";
        if (p.up != null) {
            const name = comptime k.name("linear_batch_swiglu_{d}_bf16", .{tokens});
            return s.launch(stem, name, grid, 288, args, extra);
        }
        if (p.f32_out) {
            const name = comptime k.name("linear_batch_{d}_f32", .{tokens});
            return s.launch(stem, name, grid, 288, args, extra);
        }
        const name = comptime k.name("linear_batch_{d}_bf16", .{tokens});
        return s.launch(stem, name, grid, 288, args, extra);
    };
}

const GemmArgs = extern struct {
    bias: ?[*]u8,
    residual: ?[*]u8,
    rows_ptr: ?[*]u8 = null,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out: ?[*]u8,
    out_stride: i32,
};
const gemm_shared_bytes = 230656;

fn gemm(p: Product, s: *Stream) void {
    const t = p.of;
    const rows = k.rows(t, 0);
    const n = t.cols(4);
    const clusters = s.gpu.multiprocessors / 2;
    const columns: usize = if (p.up == null) n else 2 * n;
    // Narrow tiles where wide ones would leave clusters without work.
    const wide = k.blocks(rows, 256) * k.blocks(columns, 256) >= clusters * 3 / 4 and !s.invariant;
    const box: u32 = if (!wide) 64 else if (p.up == null) 128 else swigluBox(rows, n, clusters);
    const a: GemmArgs = .{
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .m = @intCast(rows),
        .n = @intCast(n),
        .k = k.cols(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out = p.out,
        .out_stride = p.out_stride,
    };
    const weight = weightMap(t, box, s);
    const other = if (p.up) |up| weightMap(up, box, s) else weight;
    const x = s.map(k.at(t, 0), rows, t.cols(0), t.stride(0), .{ 64, 128 });
    const out = s.map(p.out, rows, n, @intCast(p.out_stride), .{ 64, 64 });
    const tile: usize = if (p.up == null) 2 * box else box;
    const pairs = k.blocks(rows, 256) * k.blocks(n, tile);
    const grid = [3]u32{ 2 * @min(clusters, pairs), 1, 1 };
    const extra: Extra = .{ .shared_bytes = gemm_shared_bytes, .cluster = 2 };
    const args = .{ x, weight, other, out, a };
    const stem = "linear_gemm_sm90";
    if (s.invariant) { // the order of sums of `batch`
        if (p.up == null) return s.launch(stem, "gemm_parts_sm90_bf16", grid, 384, args, extra);
        return s.launch(stem, "gemm_swiglu_parts_sm90_bf16", grid, 384, args, extra);
    }
    if (p.up != null) {
        if (box == 128) return s.launch(stem, "gemm_swiglu_256_sm90_bf16", grid, 384, args, extra);
        if (box == 112) return s.launch(stem, "gemm_swiglu_224_sm90_bf16", grid, 384, args, extra);
        return s.launch(stem, "gemm_swiglu_128_sm90_bf16", grid, 384, args, extra);
    }
    if (wide) return s.launch(stem, "gemm_256_sm90_bf16", grid, 384, args, extra);
    s.launch(stem, "gemm_128_sm90_bf16", grid, 384, args, extra);
}

/// Outputs of a wide tile, by which all clusters end the sooner: 14336 outputs of 512 rows take 66
/// clusters four rounds of 128 or of 112.
fn swigluBox(rows: u32, n: usize, clusters: u32) u32 {
    const pairs = k.blocks(rows, 256);
    const wide = k.blocks(pairs * k.blocks(n, 128), clusters) * 128;
    const less = k.blocks(pairs * k.blocks(n, 112), clusters) * 112;
    return if (less < wide) 112 else 128;
}
