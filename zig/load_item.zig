//! One tensor on its way from a file into a buffer: checked, and cut into parts of whole rows that
//! threads take.

const std = @import("std");
const command = @import("command");
const block = @import("cpu/block.zig");
const buffer = @import("buffer.zig");
const cuda = @import("cuda/main.zig");
const file = @import("file.zig");
const job = @import("job.zig");
const load_scales = @import("load_scales.zig");
const status = @import("status.zig");
const DType = command.DType;
const Failure = status.Failure;
const LoadItem = command.LoadItem;
const Rejected = status.Rejected;

/// Bytes of the file that a thread takes at a time: they stay in its cache until they are packed.
const part_bytes: u64 = 512 << 10;
/// And on the way to a GPU: a copy over the link should be worth its start. On an H100's host,
/// whose link could do 55 GB/s, 2 MiB brought 47 to 48, 1 MiB 42 to 43.
const gpu_part_bytes: u64 = 2 << 20;

pub const Item = struct {
    raw: LoadItem,
    file: *file.File,
    /// That with the rows' scales, where they have any.
    scales: ?*file.File,
    buffer: *buffer.Buffer,
    /// Where rows keep their order and places, a block, or an element where there are none, is a
    /// row of its own.
    rows: u64,
    cols: u64,
    /// Rows that must stay together: those of a panel.
    group: u64,
    /// Parts of all items before this one, and of this one.
    first_part: u64,
    n_parts: u64,

    pub fn init(
        raw: LoadItem,
        from: *file.File,
        scales: ?*file.File,
        to: *buffer.Buffer,
        first_part: u64,
        on_gpu: bool,
    ) Item {
        const is_panel = raw.layout == .panel;
        const unit = @max(block.columns(raw.src_dtype), block.columns(raw.dst_dtype));
        const whole = is_panel or reorders(raw) or raw.src_dtype == .f8_e4m3;
        var item: Item = .{
            .raw = raw,
            .file = from,
            .scales = scales,
            .buffer = to,
            .rows = if (whole) raw.rows else @as(u64, raw.rows) * raw.cols / unit,
            .cols = if (whole) raw.cols else unit,
            .group = if (is_panel) command.panel else 1,
            .first_part = first_part,
            .n_parts = 0,
        };
        const part = if (on_gpu) gpu_part_bytes else part_bytes;
        item.n_parts = @max(1, @min(item.groups(), raw.src_bytes / part));
        return item;
    }
    pub fn release(item: Item) void {
        item.file.object.release();
        if (item.scales) |scales| scales.object.release();
        item.buffer.object.release();
    }
    fn groups(item: Item) u64 {
        return item.rows / item.group + @intFromBool(item.rows % item.group != 0);
    }
    /// Bytes of a row in the file.
    pub fn rowBytes(item: Item) u64 {
        return block.rowBytes(item.raw.src_dtype, item.cols);
    }
    /// Bytes of a row in the buffer, row_major.
    pub fn outBytes(item: Item) u64 {
        return block.rowBytes(item.raw.dst_dtype, item.cols);
    }
    /// Whether bits change or move on the way.
    pub fn converts(item: Item) bool {
        return item.raw.layout == .panel or item.raw.src_dtype != item.raw.dst_dtype or
            item.raw.transform != .none;
    }
    /// The dtype in which rows go into panels: packing changes floats on the way, but no blocks
    /// and no f8_e4m3.
    pub fn packedFrom(item: Item) DType {
        const raw = item.raw;
        if (block.is(raw.dst_dtype) or raw.dst_dtype == .f8_e4m3) return raw.dst_dtype;
        return if (block.is(raw.src_dtype) or raw.src_dtype == .f8_e4m3) .f32 else raw.src_dtype;
    }
    /// Whether a part becomes another dtype before it goes into panels.
    pub fn becomes(item: Item) bool {
        return item.raw.layout == .panel and item.packedFrom() != item.raw.src_dtype;
    }
    /// The first row of a part; that of the part after the last is the number of rows.
    pub fn rowOf(item: Item, part: u64) u64 {
        return @min(item.rows, item.groups() * part / item.n_parts * item.group);
    }
    fn largestRows(item: Item) u64 {
        return (item.groups() / item.n_parts + 1) * item.group;
    }
    /// Bytes of room that a thread needs for a part: as it is in the file, behind that what it
    /// `becomes`, and then the scales of f8_e4m3.
    pub fn room(item: Item) u64 {
        return item.scalesAt() + if (item.raw.dst_dtype == .f8_e4m3) item.largestRows() * 4 else 0;
    }
    /// Where the scales of a part's rows lie in its room.
    pub fn scalesAt(item: Item) u64 {
        const row = block.rowBytes(item.packedFrom(), item.cols);
        const end = item.readRoom() + if (item.becomes()) item.largestRows() * row else 0;
        return std.mem.alignForward(u64, end, 64);
    }
    /// Bytes that a part takes on its way to a GPU: as it is in the file (and `becomes`), and as
    /// it arrives.
    pub fn staging(item: Item) u64 {
        if (item.raw.dst_dtype == .f8_e4m3) return item.room();
        const arrives = item.largestRows() * item.outBytes();
        return item.arrival() + if (item.converts()) arrives else 0;
    }
    /// Where what arrives lies behind what it is made from.
    pub fn arrival(item: Item) u64 {
        return std.mem.alignForward(u64, item.room(), 64);
    }
    pub fn readRoom(item: Item) u64 {
        return std.mem.alignForward(u64, item.largestRows() * item.rowBytes(), 64);
    }
    /// The file's row that becomes row r.
    pub fn sourceRow(item: Item, r: u64) u64 {
        const within = r % item.raw.head_rows;
        const half = item.raw.rotary_rows / 2;
        if (within >= item.raw.rotary_rows) return r;
        return r - within + switch (item.raw.transform) {
            .rope_to_pairs => within / 2 + within % 2 * half,
            .rope_to_halves => within % half * 2 + within / half,
            else => within,
        };
    }
};

pub fn reorders(raw: LoadItem) bool {
    return raw.transform == .rope_to_pairs or raw.transform == .rope_to_halves;
}

/// Checks item i against its file, its buffer and what the conversions can do.
pub fn check(
    c: *job.Context,
    raw: LoadItem,
    from: *const file.File,
    scales: ?*const file.File,
    to: *const buffer.Buffer,
    i: usize,
    f: *Failure,
) Rejected!void {
    if (raw.rows == 0 or raw.cols == 0) return f.set(
        .range,
        "Expected rows and columns of item {d} but found {d} x {d}",
        .{ i, raw.rows, raw.cols },
    );
    try checkTypes(raw, i, f);
    try checkTransform(raw, i, f);
    try load_scales.check(raw, if (scales) |s| s.bytes else null, i, f);
    const src = size(raw, raw.src_dtype);
    if (raw.src_bytes != src) return f.set(
        .range,
        "Expected {d} bytes of item {d} but found {d}",
        .{ src, i, raw.src_bytes },
    );
    try inside("file", raw.src_offset, src, from.bytes, i, f);
    const dst: u128 = switch (raw.layout) {
        .row_major => size(raw, raw.dst_dtype),
        // No overflow: the source lies within a file.
        .panel => c.device.kernels.panel_bytes(raw.dst_dtype, raw.rows, raw.cols),
    };
    try inside("buffer", raw.dst_offset, dst, to.bytes, i, f);
    if (to.memory.owner() != c.device.gpu) return f.set(
        .invalid,
        "Expected the buffer of item {d} on the job's device but found it on another",
        .{i},
    );
    if (c.device.gpu != null) try checkOnGpu(raw, i, f);
    if (raw.dst_offset % 64 != 0) return f.set(
        .invalid,
        "Expected item {d} at a multiple of 64 bytes in its buffer but found {d}",
        .{ i, raw.dst_offset },
    );
}

/// A GPU has weights in rows, those in blocks in panels of whole steps, and f8_e4m3 behind scales.
fn checkOnGpu(raw: LoadItem, i: usize, f: *Failure) Rejected!void {
    const in_panels = block.is(raw.dst_dtype) or raw.dst_dtype == .f8_e4m3;
    if (in_panels != (raw.layout == .panel)) return f.set(
        .type,
        "Expected item {d} of {t} in {s} for a GPU but found {t}",
        .{ i, raw.dst_dtype, if (in_panels) "panels" else "rows", raw.layout },
    );
    const columns = cuda.blocks.columns(raw.dst_dtype);
    if (raw.cols % columns != 0) return f.set(
        .range,
        "Expected columns of item {d} to be a multiple of {d} as {t} needs on a GPU but found {d}",
        .{ i, columns, raw.dst_dtype, raw.cols },
    );
}

fn checkTypes(raw: LoadItem, i: usize, f: *Failure) Rejected!void {
    const changes = raw.src_dtype != raw.dst_dtype or raw.layout == .panel or
        raw.transform != .none;
    if ((raw.src_dtype == .i32 or raw.dst_dtype == .i32) and changes) return f.set(
        .type,
        "Expected i32 of item {d} to stay as they are but found {t} to become {t} ({t})",
        .{ i, raw.src_dtype, raw.dst_dtype, raw.layout },
    );
    const f8: DType = .f8_e4m3;
    const narrows = raw.src_dtype == f8 or !block.is(raw.src_dtype);
    if (raw.dst_dtype == f8 and (!narrows or raw.layout != .panel)) return f.set(
        .type,
        "Expected item {d} to become {t} in panels, of floats, but found {t} to become {t} ({t})",
        .{ i, f8, raw.src_dtype, raw.dst_dtype, raw.layout },
    );
    for ([_]DType{ raw.src_dtype, raw.dst_dtype }) |dtype| {
        const columns = block.columns(dtype);
        if (raw.cols % columns != 0) return f.set(
            .range,
            "Expected columns of item {d} to be a multiple of {d} as {t} needs but found {d}",
            .{ i, columns, dtype, raw.cols },
        );
    }
}

fn checkTransform(raw: LoadItem, i: usize, f: *Failure) Rejected!void {
    switch (raw.transform) {
        .none => {},
        .rope_to_pairs, .rope_to_halves => {
            const fits = raw.head_rows > 0 and raw.rows % raw.head_rows == 0 and
                raw.rotary_rows <= raw.head_rows and raw.rotary_rows % 2 == 0 and
                raw.rotary_rows > 0;
            if (!fits) return f.set(
                .range,
                "Expected {d} rows of item {d} to be whole heads but found {d} rows a head, " ++
                    "of which {d} rotate",
                .{ raw.rows, i, raw.head_rows, raw.rotary_rows },
            );
        },
        .negative_exp, .log_negative => if (raw.dst_dtype != .f32 or raw.layout != .row_major)
            return f.set(
                .type,
                "Expected item {d} to become f32 in rows for {t} but found {t} ({t})",
                .{ i, raw.transform, raw.dst_dtype, raw.layout },
            ),
    }
}

fn size(raw: LoadItem, dtype: DType) u128 {
    const blocks = raw.cols / block.columns(dtype);
    return @as(u128, raw.rows) * blocks * block.bytes(dtype);
}

fn inside(
    what: []const u8,
    at: u64,
    length: u128,
    bytes: u64,
    i: usize,
    f: *Failure,
) Rejected!void {
    if (at + length <= bytes) return;
    return f.set(
        .range,
        "Expected item {d} to lie within the {d} bytes of its {s} but found {d} bytes at {d}",
        .{ i, bytes, what, length, at },
    );
}

test "rows of heads go to pairs and back" {
    var raw = std.mem.zeroes(LoadItem);
    raw.rows = 20;
    raw.cols = 1;
    raw.head_rows = 10;
    raw.rotary_rows = 6;
    raw.transform = .rope_to_pairs;
    const pairs: Item = .init(raw, undefined, null, undefined, 0, false);
    const wanted = [_]u64{ 0, 3, 1, 4, 2, 5, 6, 7, 8, 9 };
    for (wanted, 0..) |from, r| try std.testing.expectEqual(from, pairs.sourceRow(r));
    for (wanted, 0..) |from, r| try std.testing.expectEqual(from + 10, pairs.sourceRow(r + 10));
    raw.transform = .rope_to_halves;
    const halves: Item = .init(raw, undefined, null, undefined, 0, false);
    for (0..20) |r| try std.testing.expectEqual(r, halves.sourceRow(pairs.sourceRow(r)));
}
