//! embedding and gather_rows: kernels/embedding.cu; of tables in blocks kernels/blocks.cu.

const block = @import("../cpu/block.zig");
const k = @import("kernel.zig");
const Task = k.Task;
const Stream = k.Stream;

pub const kernels = .{
    .embedding = k.Kernel{ .launch = embedding },
    .gather_rows = k.Kernel{ .launch = gatherRows },
};

const Args = extern struct {
    table: ?[*]u8,
    ids: ?[*]u8,
    out: ?[*]u8,
    width: i32,
    table_rows: i32,
    table_stride: i32,
    out_stride: i32,
};

fn embedding(t: *const Task, s: *Stream) void {
    if (block.is(k.dtype(t, 1))) return ofBlocks(t, s);
    run(t, s, .{
        .table = k.at(t, 1),
        .ids = k.at(t, 0),
        .out = k.at(t, 2),
        .width = k.cols(t, 2),
        .table_rows = @intCast(t.operands[1].shape[0]),
        .table_stride = k.stride(t, 1),
        .out_stride = k.stride(t, 2),
    }, 1);
}

const BlockArgs = extern struct {
    table: ?[*]u8,
    ids: ?[*]u8,
    out: ?[*]u8,
    width: i32,
    table_rows: i32,
    out_stride: i32,
};

fn ofBlocks(t: *const Task, s: *Stream) void {
    const a: BlockArgs = .{
        .table = k.at(t, 1),
        .ids = k.at(t, 0),
        .out = k.at(t, 2),
        .width = k.cols(t, 2),
        .table_rows = @intCast(t.operands[1].shape[0]),
        .out_stride = k.stride(t, 2),
    };
    const grid = [3]u32{ k.rows(t, 2), 1, 1 };
    switch (k.dtype(t, 1)) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |from| switch (k.dtype(t, 2)) {
            inline .f32, .bf16 => |to| {
                const name = "block_rows_" ++ @tagName(from) ++ "_" ++ @tagName(to);
                s.launch("blocks", name, grid, 128, .{a}, .{});
            },
            else => unreachable,
        },
        else => unreachable,
    }
}

fn gatherRows(t: *const Task, s: *Stream) void {
    run(t, s, .{
        .table = k.at(t, 0),
        .ids = k.at(t, 1),
        .out = k.at(t, 2),
        .width = k.cols(t, 2),
        .table_rows = @intCast(k.rows(t, 0)),
        .table_stride = k.stride(t, 0),
        .out_stride = k.stride(t, 2),
    }, 0);
}

fn run(t: *const Task, s: *Stream, a: Args, table: usize) void {
    const grid = [3]u32{ k.rows(t, 2), 1, 1 };
    switch (k.dtype(t, table)) {
        inline .f32, .bf16, .f16 => |from| switch (k.dtype(t, 2)) {
            inline .f32, .bf16 => |to| {
                const name = "rows_" ++ @tagName(from) ++ "_" ++ @tagName(to);
                s.launch("embedding", name, grid, 128, .{a}, .{});
            },
            else => unreachable,
        },
        else => unreachable,
    }
}
