//! Brings tensors from files into buffers on all threads of a device, converted and repacked on the
//! way. The file is read in parts that fit a cache, so that no more of it than that is ever
//! resident.

const std = @import("std");
const command = @import("command");
const block = @import("cpu/block.zig");
const buffer = @import("buffer.zig");
const exchange = @import("exchange.zig");
const file = @import("file.zig");
const handle = @import("handle.zig");
const job = @import("job.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
const DType = command.DType;
const Pack = @import("cpu/level.zig").Pack;
const Failure = status.Failure;
const LoadItem = command.LoadItem;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

/// Bytes of the file that a thread takes at a time: they stay in its cache until they are packed.
const part_bytes: u64 = 512 << 10;
/// Parts between two chances for other jobs of the device.
const turn_parts = 128;

/// One checked item, cut into parts of whole rows.
const Item = struct {
    raw: LoadItem,
    file: *file.File,
    buffer: *buffer.Buffer,
    /// Where order does not change every element is a row of its own.
    rows: u64,
    cols: u64,
    /// Rows that must stay together: those of a panel.
    group: u64,
    /// Parts of all items before this one, and of this one.
    first_part: u64,
    n_parts: u64,

    fn init(raw: LoadItem, from: *file.File, to: *buffer.Buffer, first_part: u64) Item {
        const is_panel = raw.layout == .panel;
        var item: Item = .{
            .raw = raw,
            .file = from,
            .buffer = to,
            .rows = if (is_panel) raw.rows else @as(u64, raw.rows) * raw.cols,
            .cols = if (is_panel) raw.cols else 1,
            .group = if (is_panel) command.panel else 1,
            .first_part = first_part,
            .n_parts = 0,
        };
        item.n_parts = @max(1, @min(item.groups(), raw.src_bytes / part_bytes));
        return item;
    }
    fn release(item: Item) void {
        item.file.object.release();
        item.buffer.object.release();
    }
    fn groups(item: Item) u64 {
        return item.rows / item.group + @intFromBool(item.rows % item.group != 0);
    }
    fn rowBytes(item: Item) u64 {
        return item.cols * elementBytes(item.raw.src_dtype);
    }
    fn converts(item: Item) bool {
        return item.raw.layout == .panel or item.raw.src_dtype != item.raw.dst_dtype;
    }
    /// The first row of a part; that of the part after the last is the number of rows.
    fn rowOf(item: Item, part: u64) u64 {
        return @min(item.rows, item.groups() * part / item.n_parts * item.group);
    }
    fn largestPart(item: Item) u64 {
        return (item.groups() / item.n_parts + 1) * item.group * item.rowBytes();
    }
};

fn elementBytes(dtype: DType) u64 {
    return switch (dtype) {
        .f32, .i32 => 4,
        .bf16, .f16 => 2,
        .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => unreachable, // not let in by `check`
    };
}

pub const Load = struct {
    items: std.ArrayList(Item) = .empty,
    n_parts: u64 = 0,
    /// Room for one part of the file for each thread.
    parts: memory.Pages = memory.none,
    part_room: u64 = 0,

    pub fn release(l: *Load) void {
        for (l.items.items) |item| item.release();
        l.items.deinit(allocator);
        memory.unmap(l.parts);
    }

    pub fn run(l: *Load, c: *job.Context, f: *Failure) Rejected!void {
        const pool = &c.device.pool;
        var begin: u64 = 0;
        while (begin < l.n_parts) : (begin += turn_parts) {
            if (!pool.turn.lock(&c.cancel)) break;
            defer pool.turn.unlock();
            var shared: Shared = .{
                .load = l,
                .context = c,
                .next = .init(begin),
                .end = @min(begin + turn_parts, l.n_parts),
            };
            pool.together(&shared, Shared.thread);
            if (shared.failed.load(.acquire)) {
                f.* = shared.failure;
                return error.Rejected;
            }
        }
        if (c.cancelled()) return f.set(.cancelled, "The loading was cancelled", .{});
    }
};

/// Checks all items, holds on to their files and buffers, and makes room for the parts.
pub fn prepare(c: *job.Context, data: []const u8, f: *Failure) Rejected!Load {
    var l: Load = .{};
    errdefer l.release();
    const n = try exchange.count(LoadItem, data, f);
    l.items.ensureTotalCapacity(allocator, n) catch return f.memory(n * @sizeOf(Item));
    for (0..n) |i| {
        const raw = try exchange.item(LoadItem, data, i, f);
        const from = try handle.get(file.File, raw.file, f);
        const to = handle.get(buffer.Buffer, raw.buffer, f) catch |e| {
            from.object.release();
            return e;
        };
        const item: Item = .init(raw, from, to, l.n_parts);
        l.items.appendAssumeCapacity(item);
        try check(c, item, i, f);
        l.n_parts += item.n_parts;
        c.total += raw.src_bytes;
        if (item.converts()) l.part_room = @max(l.part_room, item.largestPart());
    }
    l.part_room = std.mem.alignForward(u64, l.part_room, std.heap.page_size_min);
    if (l.part_room > 0)
        l.parts = try memory.map(l.part_room * c.device.n_threads, true, "loading", f);
    return l;
}

fn check(c: *job.Context, item: Item, i: usize, f: *Failure) Rejected!void {
    const raw = item.raw;
    if (raw.rows == 0 or raw.cols == 0) return f.set(
        .range,
        "Expected rows and columns of item {d} but found {d} x {d}",
        .{ i, raw.rows, raw.cols },
    );
    for ([_]DType{ raw.src_dtype, raw.dst_dtype }) |dtype| if (block.is(dtype)) return f.set(
        .unsupported,
        "Expected no weights in blocks, which no kernel takes, but found {t} in item {d}",
        .{ dtype, i },
    );
    const has_i32 = raw.src_dtype == .i32 or raw.dst_dtype == .i32;
    if (has_i32 and item.converts()) return f.set(
        .type,
        "Expected i32 of item {d} to stay as they are but found {t} to become {t} ({t})",
        .{ i, raw.src_dtype, raw.dst_dtype, raw.layout },
    );
    const src = @as(u128, raw.rows) * raw.cols * elementBytes(raw.src_dtype);
    if (raw.src_bytes != src) return f.set(
        .range,
        "Expected {d} bytes of item {d} but found {d}",
        .{ src, i, raw.src_bytes },
    );
    try inside("file", raw.src_offset, src, item.file.bytes, i, f);
    const dst: u128 = switch (raw.layout) {
        .row_major => @as(u128, raw.rows) * raw.cols * elementBytes(raw.dst_dtype),
        // No overflow: the source lies within a file.
        .panel => c.device.kernels.panel_bytes(raw.dst_dtype, raw.rows, raw.cols),
    };
    try inside("buffer", raw.dst_offset, dst, item.buffer.bytes, i, f);
    if (raw.dst_offset % 64 != 0) return f.set(
        .invalid,
        "Expected item {d} at a multiple of 64 bytes in its buffer but found {d}",
        .{ i, raw.dst_offset },
    );
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

/// What the threads of one turn share.
const Shared = struct {
    load: *Load,
    context: *job.Context,
    next: std.atomic.Value(u64),
    end: u64,
    failed: sync.Flag = .init(false),
    mutex: sync.Mutex = .{},
    failure: Failure = .{},

    fn thread(s: *Shared, index: u32) void {
        const l = s.load;
        const room = if (l.part_room == 0)
            l.parts
        else
            l.parts[index * l.part_room ..][0..l.part_room];
        while (!s.context.cancelled() and !s.failed.load(.monotonic)) {
            const part = s.next.fetchAdd(1, .monotonic);
            if (part >= s.end) return;
            const item = l.items.items[find(l.items.items, part)];
            var f: Failure = .{};
            s.bring(item, part - item.first_part, room, &f) catch s.fail(&f);
        }
    }

    fn find(items: []const Item, part: u64) usize {
        const after = std.sort.upperBound(Item, items, part, struct {
            fn order(wanted: u64, item: Item) std.math.Order {
                return std.math.order(wanted, item.first_part);
            }
        }.order);
        return after - 1;
    }

    fn fail(s: *Shared, f: *const Failure) void {
        s.mutex.lock();
        defer s.mutex.unlock();
        if (s.failed.load(.monotonic)) return;
        s.failure = f.*;
        s.failed.store(true, .release);
    }

    fn bring(s: *Shared, item: Item, part: u64, room: []u8, f: *Failure) Rejected!void {
        const raw = item.raw;
        const kernels = s.context.device.kernels;
        const row = item.rowOf(part);
        const rows = item.rowOf(part + 1) - row;
        const bytes = rows * item.rowBytes();
        const from = raw.src_offset + row * item.rowBytes();
        const dst = item.buffer.pages.ptr + raw.dst_offset;
        const element = elementBytes(raw.dst_dtype);
        if (!item.converts()) {
            try item.file.read(from, dst[row * element ..][0..bytes], f);
        } else {
            try item.file.read(from, room[0..bytes], f);
            if (raw.layout == .row_major) {
                kernels.convert(dst + row * element, raw.dst_dtype, room.ptr, raw.src_dtype, rows);
            } else {
                const panel = kernels.panel_bytes(raw.dst_dtype, command.panel, raw.cols);
                const pack: Pack = .{
                    .dst = dst + row / command.panel * panel,
                    .src = room.ptr,
                    .dst_dtype = raw.dst_dtype,
                    .src_dtype = raw.src_dtype,
                    .rows = @intCast(rows),
                    .cols = raw.cols,
                };
                kernels.pack(&pack, 0, @intCast((rows + command.panel - 1) / command.panel));
            }
        }
        _ = s.context.done.fetchAdd(bytes, .monotonic);
    }
};
