//! linear on Hopper, bf16: up to 128 rows kernels/linear_batch_sm90.cu, above that
//! linear_gemm_sm90.cu. Both take a second matrix for SwiGLU. `linear_fp8.zig` has the same tiles.

const block = @import("../cpu/block.zig");
const blocks = @import("linear_blocks.zig");
const k = @import("kernel.zig");
const shares = @import("linear_shares.zig");
const Extra = @import("stream.zig").Extra;
const TensorMap = @import("driver.zig").TensorMap;
const Task = k.Task;
const Stream = k.Stream;

/// Above so many rows the tensor cores decide, not the memory.
pub const batch_rows_max = 128;

fn weightMap(t: *const Task, part: shares.Part, rows: u32, s: *Stream) TensorMap {
    const stride = t.stride(1);
    const first = k.at(t, 1).? + 2 * stride * part.first;
    return s.map(first, part.count, t.cols(0), stride, .{ 64, rows });
}

pub const BatchArgs = extern struct {
    bias: ?[*]u8,
    residual: ?[*]u8,
    out: ?[*]u8,
    /// Where tiles that several blocks have parts of are added up.
    sums: ?[*]u8,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out_stride: i32,
    /// The up projection is the first of each pair of rows.
    up_first: i32,
    /// Weights take the places in L2 of what came before.
    pushes: i32 = 0,
};
/// Of blocks, each with a multiprocessor of the largest card there is.
const batch_blocks_max = 132;
/// Four parts of a tile of 128 outputs, for each token.
const batch_sums_bytes = batch_blocks_max * 4 * 128 * @sizeOf(f32);
pub fn batchSharedBytes(tokens: u32) u32 {
    const beside = 1536; // what aligns the ring, and barriers
    const stage = 128 * 128 + tokens * 128;
    return beside + (224256 - beside) / stage * stage;
}

/// What the kernels need to know of one product.
pub const Product = struct {
    /// The command: x, weight, bias, residual.
    of: *const Task,
    /// The up projection's, with SwiGLU.
    up: ?*const Task = null,
    out: ?[*]u8,
    out_stride: i32,
    f32_out: bool,
    /// States have been updated in front.
    behind_states: bool = false,
};

pub fn launch(p: Product, s: *Stream) void {
    const rows = k.rows(p.of, 0);
    if (block.is(k.dtype(p.of, 1))) return blocks.gemm(p, s);
    if (rows <= batch_rows_max) return batch(p, s);
    if (p.f32_out and (s.invariant or !isWide(p.of, p.up, s))) return batch(p, s);
    gemm(p, s);
}

pub const batch_tokens = [_]u32{ 8, 16, 32, 64, batch_rows_max };
/// Rows beyond the widest kernel's run in further tiles.
fn fits(rows: u32, tokens: u32) bool {
    return rows <= tokens or tokens == batch_rows_max;
}

/// No more blocks than the fullest needs beside it: then fewer tiles have parts in several.
pub fn batchGrid(p: Product, tokens: u32, s: *const Stream) [3]u32 {
    const outputs: usize = if (p.up == null) 128 else 64;
    const parts = 4 * k.blocks(p.of.cols(4), outputs) * k.blocks(k.rows(p.of, 0), tokens);
    const most = k.blocks(parts, @min(s.gpu.multiprocessors, batch_blocks_max));
    return .{ k.blocks(parts, most), 1, 1 };
}
/// Whether weights drive out of L2 what states left there: those of the product behind them, and of
/// few tokens those of gate and up, too, which come next. More tokens leave more than L2 holds.
fn pushes(p: Product, tokens: u32) bool {
    if (p.up != null) return tokens == 16 or tokens == 32;
    return p.behind_states and tokens <= 64;
}
pub fn batchThreads(tokens: u32) u32 {
    return if (tokens == batch_rows_max) 384 else 320;
}
pub fn batchArgs(p: Product) BatchArgs {
    const t = p.of;
    const gate = @intFromPtr(k.at(t, 1));
    return .{
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = p.out,
        .sums = t.workspace,
        .m = @intCast(k.rows(t, 0)),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = p.out_stride,
        .up_first = if (p.up) |up| @intFromBool(@intFromPtr(k.at(up, 1)) < gate) else 0,
    };
}

fn batch(p: Product, s: *Stream) void {
    const t = p.of;
    const rows = k.rows(t, 0);
    const n = t.cols(4);
    const w = k.at(t, 1);
    var a = batchArgs(p);
    const weight = if (p.up) |up|
        s.mapPairs(.bf16, w, k.at(up, 1), n, t.cols(0), t.stride(1), 8)
    else
        s.mapOnce(.bf16, w, n, t.cols(0), t.stride(1), .{ 64, 128 });
    inline for (batch_tokens) |tokens| if (fits(rows, tokens)) {
        a.pushes = @intFromBool(pushes(p, tokens));
        const grid = batchGrid(p, tokens, s);
        const x = s.map(k.at(t, 0), rows, t.cols(0), t.stride(0), .{ 64, tokens });
        const args = .{ x, weight, a };
        const extra: Extra = .{ .shared_bytes = batchSharedBytes(tokens) };
        const threads = batchThreads(tokens);
        const stem = "linear_batch_sm90";
        if (p.up != null) {
            const name = comptime k.name("linear_batch_swiglu_{d}_bf16", .{tokens});
            return s.launch(stem, name, grid, threads, args, extra);
        }
        if (p.f32_out) {
            const name = comptime k.name("linear_batch_{d}_f32", .{tokens});
            return s.launch(stem, name, grid, threads, args, extra);
        }
        const name = comptime k.name("linear_batch_{d}_bf16", .{tokens});
        return s.launch(stem, name, grid, threads, args, extra);
    };
}

pub const GemmArgs = extern struct {
    bias: ?[*]u8,
    residual: ?[*]u8,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out: ?[*]u8,
    out_stride: i32,
    /// Where clusters that share a tile's k add up.
    sums: ?[*]u8,
};
pub const gemm_shared_bytes = 230656;
const cluster_sum_bytes = 2 * 128 * 256 * @sizeOf(f32);
/// Clusters of two blocks, each with a multiprocessor, of the largest card that k is split for.
const split_clusters_max = 66;

pub fn gemmArgs(p: Product) GemmArgs {
    const t = p.of;
    return .{
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .m = @intCast(k.rows(t, 0)),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out = p.out,
        .out_stride = p.out_stride,
        .sums = t.workspace,
    };
}

/// The same for some of its columns, whose results are bf16 where those are not all.
pub fn partArgs(p: Product, part: shares.Part) GemmArgs {
    var a = gemmArgs(p);
    a.n = @intCast(part.count);
    a.out = a.out.? + 2 * part.first;
    if (a.bias) |bias| a.bias = bias + 4 * part.first;
    if (a.residual) |residual| a.residual = residual + 2 * part.first;
    return a;
}
/// The arguments of a kernel for many rows and some of a product's columns.
const Many = struct {
    of: Product,
    x: TensorMap,

    pub fn args(m: Many, part: shares.Part, box: u32, s: *Stream) Arguments {
        const weight = weightMap(m.of.of, part, box, s);
        const other = if (m.of.up) |up| weightMap(up, part, box, s) else weight;
        return .{ m.x, weight, other, partArgs(m.of, part) };
    }
};
const Arguments = struct { TensorMap, TensorMap, TensorMap, GemmArgs };

/// Memory for the sums of a product that several blocks have parts of.
pub fn workspace(t: *const Task, _: *const k.Gpu) usize {
    const w = k.dtype(t, 1);
    if (block.is(w)) return blocks.workspace(t);
    const fast = k.dtype(t, 0) == .bf16 and (w == .bf16 or w == .f8_e4m3);
    if (!fast) return splitBytes(t);
    const tokens = for (batch_tokens) |of| {
        if (fits(t.operands[0].shape[0], of)) break of;
    } else unreachable;
    return @max(@as(usize, tokens) * batch_sums_bytes, splitBytes(t));
}
fn splitBytes(t: *const Task) usize {
    const rows = t.operands[0].shape[0];
    const few = rows > batch_rows_max and rows <= split_rows_max and
        2 * tiles(1, t.cols(4)) <= split_clusters_max;
    const fast = k.dtype(t, 0) == .bf16 and k.dtype(t, 4) == .bf16 and
        (k.dtype(t, 1) == .bf16 or k.dtype(t, 1) == .f8_e4m3);
    return if (few and fast and t.cols(0) >= split_columns_min)
        split_clusters_max * cluster_sum_bytes
    else
        0;
}
const split_rows_max = 512;
/// Each part has columns.
const split_columns_min = 2048;

/// Tiles of a cluster.
fn tiles(rows: usize, n: usize) usize {
    return k.blocks(rows, 256) * k.blocks(n, 256);
}

/// Whether wide tiles leave few clusters without work.
pub fn isWide(t: *const Task, up: ?*const Task, s: *const Stream) bool {
    const columns: usize = if (up == null) t.cols(4) else 2 * t.cols(4);
    return tiles(k.rows(t, 0), columns) >= s.gpu.multiprocessors / 2 * 3 / 4;
}

/// Parts of k that give every cluster a tile, all at once, where tiles alone are too few.
pub fn splitOf(p: Product, s: *const Stream) u32 {
    const t = p.of;
    if (p.up != null or splitBytes(t) == 0) return 1;
    const clusters = @min(s.gpu.multiprocessors / 2, split_clusters_max);
    const of = tiles(k.rows(t, 0), t.cols(4));
    if (4 * of <= clusters) return 4;
    return if (2 * of <= clusters) 2 else 1;
}

/// Whether nothing is added to the products.
pub fn isBare(t: *const Task) bool {
    return k.at(t, 2) == null and k.at(t, 3) == null;
}

const gemm_stem = "linear_gemm_sm90";

/// Launches a product in two shares, in tiles of 2 `box` columns; false where one launch does it.
fn inShares(of: Many, box: u32, s: *Stream) bool {
    const p = of.of;
    if (p.f32_out) return false;
    const shape: shares.Shape = .{
        .rows = k.rows(p.of, 0),
        .n = p.of.cols(4),
        .tile = if (p.up == null) 2 * box else box,
        .columns = 2 * box,
        .shared_bytes = gemm_shared_bytes,
    };
    const tail = "_sm90_bf16";
    if (s.invariant) {
        if (p.up == null) return shares.launch(gemm_stem, "gemm_parts", tail, of, shape, s);
        if (box != 96) return false;
        return shares.launch(gemm_stem, "gemm_swiglu_parts_192", tail, of, shape, s);
    }
    if (p.up != null and box != 128) return false;
    if (p.up != null) return shares.launch(gemm_stem, "gemm_swiglu_256", tail, of, shape, s);
    if (isBare(p.of)) return shares.launch(gemm_stem, "gemm_256_bare", tail, of, shape, s);
    return shares.launch(gemm_stem, "gemm_256", tail, of, shape, s);
}

fn gemm(p: Product, s: *Stream) void {
    const t = p.of;
    const rows = k.rows(t, 0);
    const n = t.cols(4);
    const clusters = s.gpu.multiprocessors / 2;
    const parts = splitOf(p, s);
    const split = if (s.invariant) parts == 4 else parts > 1;
    const wide = split or (isWide(t, p.up, s) and (!s.invariant or p.up != null));
    const box: u32 = if (!wide) 64 else if (p.up == null) 128 else swigluBox(rows, n, clusters, s);
    const x = s.map(k.at(t, 0), rows, t.cols(0), t.stride(0), .{ 64, 128 });
    const of: Many = .{ .of = p, .x = x };
    if (!split and (wide or s.invariant) and inShares(of, box, s)) return;
    const args = of.args(.{ .first = 0, .count = n }, box, s);
    const tile: usize = if (p.up == null) 2 * box else box;
    const pairs = k.blocks(rows, 256) * k.blocks(n, tile) * if (split) parts else 1;
    const grid = [3]u32{ 2 * @min(clusters, pairs), 1, 1 };
    const extra: Extra = .{ .shared_bytes = gemm_shared_bytes, .cluster = 2 };
    const stem = gemm_stem;
    if (split) {
        if (parts == 4) return s.launch(stem, "gemm_split_4_sm90_bf16", grid, 384, args, extra);
        return s.launch(stem, "gemm_split_2_sm90_bf16", grid, 384, args, extra);
    }
    if (s.invariant) { // the order of sums of `batch`
        if (p.up == null) return s.launch(stem, "gemm_parts_sm90_bf16", grid, 384, args, extra);
        const name = "gemm_swiglu_parts_192_sm90_bf16";
        if (box == 96) return s.launch(stem, name, grid, 384, args, extra);
        return s.launch(stem, "gemm_swiglu_parts_128_sm90_bf16", grid, 384, args, extra);
    }
    if (p.up != null) {
        if (box == 128) return s.launch(stem, "gemm_swiglu_256_sm90_bf16", grid, 384, args, extra);
        if (box == 112) return s.launch(stem, "gemm_swiglu_224_sm90_bf16", grid, 384, args, extra);
        return s.launch(stem, "gemm_swiglu_128_sm90_bf16", grid, 384, args, extra);
    }
    if (p.f32_out) return s.launch(stem, "gemm_256_sm90_f32", grid, 384, args, extra);
    const bare = wide and isBare(t);
    if (bare) return s.launch(stem, "gemm_256_bare_sm90_bf16", grid, 384, args, extra);
    if (wide) return s.launch(stem, "gemm_256_sm90_bf16", grid, 384, args, extra);
    s.launch(stem, "gemm_128_sm90_bf16", grid, 384, args, extra);
}

/// Outputs of a wide tile, by which all clusters end the sooner: 14336 outputs of 512 rows take 66
/// clusters four rounds of 128 or of 112.
fn swigluBox(rows: u32, n: usize, clusters: u32, s: *const Stream) u32 {
    const pairs = k.blocks(rows, 256);
    if (s.invariant) { // of 192 and 128 columns; a column of the wider tile takes less time
        const wide = k.blocks(pairs * k.blocks(n, 96), clusters) * 96 * 24;
        const narrow = k.blocks(pairs * k.blocks(n, 64), clusters) * 64 * 25;
        return if (wide < narrow) 96 else 64;
    }
    const wide = k.blocks(pairs * k.blocks(n, 128), clusters) * 128;
    const less = k.blocks(pairs * k.blocks(n, 112), clusters) * 112;
    return if (less < wide) 112 else 128;
}
