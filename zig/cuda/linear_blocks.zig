//! linear with weights in blocks: a few rows kernels/blocks_decode.cu, more of them on Hopper
//! blocks_gemm_sm90.cu (on other cards `linear_mma.zig`), f32 activations the plain twin in
//! blocks.cu.

const block = @import("../cpu/block.zig");
const command = @import("command");
const decode_file = @import("linear_decode.zig");
const k = @import("kernel.zig");
const shared = @import("linear_plain.zig");
const order = @import("blocks.zig");
const products = @import("chain_products.zig");
const sm90 = @import("linear_sm90.zig");
const Extra = @import("stream.zig").Extra;
const Args = decode_file.Args;
const DType = command.DType;
const Stream = k.Stream;
const Task = k.Task;

/// Rows that one launch of the decode kernels takes.
const rows_max = 4;
/// Rows above which Hopper's product of many rows is faster.
const few_rows = 3;
/// Shared memory of a multiprocessor that two blocks share, and what each has beside the dynamic.
const half_room = 115712;
const static_bytes = 2688;
const static_bytes_several = 10496;
/// Dynamic shared memory of one block that every card since Ampere has.
const room = 99 * 1024 - static_bytes_several;
const room_hopper = 227 * 1024 - static_bytes_several;

/// Stages of the ring, for one row and for several: kernels/blocks_decode.cu.
fn stages(dtype: DType, several: bool) u32 {
    return switch (dtype) {
        .q8_0, .q4_k => if (several) 3 else 4,
        .q4_0 => if (several) 4 else 8,
        .q5_k, .q6_k => if (several) 2 else 3,
        else => unreachable,
    };
}

fn sharedBytes(a: *const Args, several: bool) u32 {
    const step = 16 * block.rowBytes(a.dtype, order.columns(a.dtype));
    const cols: u32 = @intCast(a.k);
    const rows: u32 = @intCast(a.batch);
    return @intCast(8 * step * stages(a.dtype, several) + rows * (2 * cols + cols / 4));
}

fn roomOf(s: *const Stream) u32 {
    return if (s.gpu.capability == 90) room_hopper else room;
}

/// Whether one launch takes the product.
pub fn fits(a: *const Args, s: *const Stream) bool {
    return a.batch <= few_rows and sharedBytes(a, a.batch > 1) <= roomOf(s);
}

/// One launch where all rows fit, else several.
pub fn decode(comptime mode: decode_file.Mode, a: Args, f32_out: bool, s: *Stream) void {
    var part = a;
    decode_file.describe(mode, f32_out, &part);
    if (products.takesSingle(&part, s)) return products.single(part, s);
    var done: i32 = 0;
    while (done < a.batch) : (done += part.batch) {
        part.batch = @min(rows_max, a.batch - done);
        while (part.batch > 1 and sharedBytes(&part, true) > roomOf(s)) part.batch -= 1;
        part.x = k.advance(a.x, done, a.x_stride, 2);
        part.gate = k.advance(a.gate, done, a.gate_stride, 2);
        part.residual = k.advance(a.residual, done, a.residual_stride, 2);
        part.out = k.advance(a.out, done, a.out_stride, if (f32_out) 4 else 2);
        once(part, s);
    }
}

fn once(a: Args, s: *Stream) void {
    const several = a.batch > 1 or sharedBytes(&a, false) + static_bytes > half_room;
    const panels = k.blocks(@intCast(a.n), command.panel);
    const grid = [3]u32{ @min(panels, 2 * s.gpu.multiprocessors), 1, 1 };
    const extra: Extra = .{ .shared_bytes = sharedBytes(&a, several) };
    const stem = "blocks_decode";
    switch (a.dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            if (several)
                return s.launch(stem, "blocks_decode_rows_" ++ @tagName(d), grid, 256, .{a}, extra);
            s.launch(stem, "blocks_decode_" ++ @tagName(d), grid, 256, .{a}, extra);
        },
        else => unreachable,
    }
}

const GemmArgs = extern struct {
    w: ?[*]u8,
    w2: ?[*]u8,
    bias: ?[*]u8,
    residual: ?[*]u8,
    out: ?[*]u8,
    m: i32,
    n: i32,
    k: i32,
    residual_stride: i32,
    out_stride: i32,
    swiglu: i32,
    out_f32: i32,
    /// Parts of k, each of a block of its own, and where those meet; or 0.
    split: i32,
    sums: ?[*]u8,
};

/// Above so many rows a tile takes 256.
const few_rows_max = 128;
/// Blocks that run at once on the largest card: with few rows two a multiprocessor, as which they
/// are counted for 128 as well, so that bits do not depend on the number of rows.
const places = 132;
fn placesFor(rows: usize) u32 {
    return if (rows > few_rows_max) places else 2 * places;
}
/// Parts of k that run at once; 0 where tiles alone are enough, and with SwiGLU.
fn splitOf(p: sm90.Product) u32 {
    if (p.up != null) return 0;
    const rows = k.rows(p.of, 0);
    const turns = if (rows > few_rows_max) k.blocks(rows, 256) else 1;
    const tiles = turns * k.blocks(p.of.cols(4), 128);
    const steps = p.of.cols(0) / order.columns(k.dtype(p.of, 1));
    var split: u32 = 8;
    while (split * tiles > placesFor(rows) or split > steps) split /= 2;
    return if (split > 1) split else 0;
}
/// Memory for the sums of a product whose k several blocks have parts of.
pub fn workspace(t: *const Task) usize {
    const rows: usize = @min(t.operands[0].shape[0], few_rows_max);
    return 2 * places * 128 * @sizeOf(f32) * tileOf(rows);
}
/// Rows of a tile for up to 128 rows.
fn tileOf(rows: usize) usize {
    return if (rows <= 16) 16 else if (rows <= 64) 64 else 128;
}

/// On Hopper: rows in tiles of 16, 64, 128 or 256.
pub fn gemm(p: sm90.Product, s: *Stream) void {
    const t = p.of;
    const rows = k.rows(t, 0);
    const two = p.up != null;
    const split = splitOf(p);
    const a: GemmArgs = .{
        .w = k.at(t, 1),
        .w2 = if (p.up) |up| k.at(up, 1) else null,
        .bias = k.at(t, 2),
        .residual = k.at(t, 3),
        .out = p.out,
        .m = @intCast(rows),
        .n = k.cols(t, 4),
        .k = k.cols(t, 0),
        .residual_stride = if (t.has(3)) k.stride(t, 3) else 0,
        .out_stride = p.out_stride,
        .swiglu = @intFromBool(two),
        .out_f32 = @intFromBool(p.f32_out),
        .split = @intCast(split),
        .sums = t.workspace,
    };
    const tiles = k.blocks(t.cols(4), if (two) 64 else 128);
    // The widest where it leaves few multiprocessors without work.
    const enough = tiles * k.blocks(rows, 256) >= s.gpu.multiprocessors * 3 / 4;
    const wide = rows > few_rows_max and (enough or split > 0);
    inline for (.{ 16, 64, 128, 256 }) |tokens| {
        const chosen = if (tokens >= 128) wide == (tokens == 256) else rows <= tokens;
        if (chosen) return switch (k.dtype(t, 1)) {
            inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
                const name = comptime k.name("blocks_gemm_{d}_{t}", .{ tokens, d });
                const x = s.map(k.at(t, 0), rows, t.cols(0), t.stride(0), .{ 64, tokens });
                const cluster: u32 = if (tokens == 256 or split > 0) 0 else 4;
                const ranks = @max(cluster, split, 1);
                const grid = [3]u32{ ranks * tiles, k.blocks(rows, tokens), 1 };
                const threads = if (tokens >= 128) 384 else 288;
                s.launch("blocks_gemm_sm90", name, grid, threads, .{ x, a }, .{
                    .shared_bytes = if (tokens >= 128) 231424 else 114688,
                    .cluster = cluster,
                });
            },
            else => unreachable,
        };
    }
}

/// Any rows, card and dtypes.
pub fn plain(t: *const Task, s: *Stream) void {
    const a = shared.argsOf(t);
    const grid = shared.grid(t);
    switch (k.dtype(t, 1)) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            const stem = "blocks";
            const name = comptime k.name("blocks_linear_{s}_{t}_{s}", .{ "bf16", d, "bf16" });
            const to_f32 = comptime k.name("blocks_linear_{s}_{t}_{s}", .{ "bf16", d, "f32" });
            const from_f32 = comptime k.name("blocks_linear_{s}_{t}_{s}", .{ "f32", d, "f32" });
            if (k.dtype(t, 0) == .f32) return s.launch(stem, from_f32, grid, 256, .{a}, .{});
            if (k.dtype(t, 4) == .f32) return s.launch(stem, to_f32, grid, 256, .{a}, .{});
            s.launch(stem, name, grid, 256, .{a}, .{});
        },
        else => unreachable,
    }
}
