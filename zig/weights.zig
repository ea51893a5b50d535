//! Brings tensors from files into buffers on all threads of a device, converted and repacked on the
//! way. The file is read in parts that fit a cache, so that no more of it than that is ever
//! resident.

const std = @import("std");
const command = @import("command");
const buffer = @import("buffer.zig");
const cuda = @import("cuda/main.zig");
const exchange = @import("exchange.zig");
const file = @import("file.zig");
const handle = @import("handle.zig");
const job = @import("job.zig");
const block = @import("cpu/block.zig");
const load_item = @import("load_item.zig");
const load_scales = @import("load_scales.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const sync = @import("sync.zig");
const Item = load_item.Item;
const Pack = @import("cpu/level.zig").Pack;
const Failure = status.Failure;
const LoadItem = command.LoadItem;
const Rejected = status.Rejected;
const allocator = std.heap.c_allocator;

/// Parts between two chances for other jobs of the device.
const turn_parts = 128;
/// And of a GPU, whose link should not stand still between them.
const gpu_turn_parts = 1024;

pub const Load = struct {
    items: std.ArrayList(Item) = .empty,
    n_parts: u64 = 0,
    /// Room for one part of the file for each thread.
    parts: memory.Pages = memory.none,
    part_room: u64 = 0,
    /// Where the parts go to a GPU, which copies them from pinned memory: each thread has two
    /// places and fills one while the other is copied.
    gpu: ?*cuda.Gpu = null,
    uploads: []cuda.Upload = &.{},
    registered: bool = false,

    pub fn release(l: *Load) void {
        for (l.items.items) |item| item.release();
        l.items.deinit(allocator);
        for (l.uploads) |*upload| upload.free();
        allocator.free(l.uploads);
        if (l.registered) l.gpu.?.unregister(l.parts);
        memory.unmap(l.parts);
    }

    pub fn run(l: *Load, c: *job.Context, f: *Failure) Rejected!void {
        const pool = &c.device.pool;
        const turn: u64 = if (l.gpu != null) gpu_turn_parts else turn_parts;
        // Not behind every turn: what is on its way keeps the link busy while the next one begins.
        errdefer for (l.uploads) |*upload| {
            var other: Failure = .{};
            upload.finish(&other) catch {};
        };
        var begin: u64 = 0;
        while (begin < l.n_parts) : (begin += turn) {
            if (!pool.turn.lock(&c.cancel)) break;
            defer pool.turn.unlock();
            var shared: Shared = .{
                .load = l,
                .context = c,
                .next = .init(begin),
                .end = @min(begin + turn, l.n_parts),
            };
            if (begin == 0) if (l.gpu) |gpu| {
                pool.together(&shared, Shared.touch);
                l.registered = gpu.register(l.parts);
            };
            pool.together(&shared, Shared.thread);
            if (shared.failed.load(.acquire)) {
                f.* = shared.failure;
                return error.Rejected;
            }
        }
        if (c.cancelled()) return f.set(.cancelled, "The loading was cancelled", .{});
        for (l.uploads) |*upload| try upload.finish(f);
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
        const scales = if (raw.scales_file == 0) null else handle.get(
            file.File,
            raw.scales_file,
            f,
        ) catch |e| {
            from.object.release();
            to.object.release();
            return e;
        };
        const on_gpu = c.device.gpu != null;
        const item: Item = .init(raw, from, scales, to, l.n_parts, on_gpu);
        l.items.appendAssumeCapacity(item);
        try load_item.check(c, raw, from, scales, to, i, f);
        l.n_parts += item.n_parts;
        c.total += raw.src_bytes;
        if (c.device.gpu != null)
            l.part_room = @max(l.part_room, item.staging())
        else if (item.converts()) l.part_room = @max(l.part_room, item.room());
    }
    l.part_room = std.mem.alignForward(u64, l.part_room, std.heap.page_size_min);
    if (l.part_room == 0) return l;
    const n_threads = c.device.n_threads;
    const places: u64 = if (c.device.gpu != null) 2 * n_threads else n_threads;
    l.parts = try memory.map(places * l.part_room, true, "loading", f);
    if (c.device.gpu) |gpu| {
        l.gpu = gpu;
        const uploads = allocator.alloc(cuda.Upload, n_threads) catch
            return f.memory(n_threads * @sizeOf(cuda.Upload));
        @memset(uploads, .{});
        l.uploads = uploads;
        for (uploads, 0..) |*upload, i|
            try upload.init(gpu, l.parts[2 * i * l.part_room ..][0 .. 2 * l.part_room], f);
    }
    return l;
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

    /// Has the system bring a thread's two places: who pins them would bring them all alone.
    fn touch(s: *Shared, index: u32) void {
        const l = s.load;
        const own = l.parts[2 * index * l.part_room ..][0 .. 2 * l.part_room];
        var at: usize = 0;
        while (at < own.len) : (at += std.heap.page_size_min) own[at] = 0;
    }

    fn thread(s: *Shared, index: u32) void {
        const l = s.load;
        const room = if (l.part_room == 0 or l.gpu != null)
            l.parts
        else
            l.parts[index * l.part_room ..][0..l.part_room];
        while (!s.context.cancelled() and !s.failed.load(.monotonic)) {
            const part = s.next.fetchAdd(1, .monotonic);
            if (part >= s.end) return;
            const item = l.items.items[find(l.items.items, part)];
            var f: Failure = .{};
            s.bring(item, part - item.first_part, index, room, &f) catch s.fail(&f);
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

    fn bring(
        s: *Shared,
        item: Item,
        part: u64,
        thread_index: u32,
        room: []u8,
        f: *Failure,
    ) Rejected!void {
        const raw = item.raw;
        const row = item.rowOf(part);
        const rows = item.rowOf(part + 1) - row;
        const dst = item.buffer.memory.ptr() + raw.dst_offset;
        if (s.load.gpu != null and raw.dst_dtype == .f8_e4m3) {
            try sendEights(item, row, rows, &s.load.uploads[thread_index], f);
        } else if (s.load.gpu != null) {
            try s.send(item, row, rows, &s.load.uploads[thread_index], f);
        } else if (!item.converts()) {
            const at = dst + row * item.outBytes();
            try read(item, row, at[0 .. rows * item.rowBytes()], f);
        } else {
            try read(item, row, room[0 .. rows * item.rowBytes()], f);
            if (raw.layout == .row_major) {
                const at = dst + row * item.outBytes();
                try s.convert(item, row, rows, at, raw.dst_dtype, room.ptr, f);
                transform(raw.transform, at, rows * item.cols);
            } else try s.pack(item, row, rows, room, f);
        }
        _ = s.context.done.fetchAdd(rows * item.rowBytes(), .monotonic);
    }

    /// Brings rows to a GPU by way of pinned memory.
    fn send(
        s: *Shared,
        item: Item,
        row: u64,
        rows: u64,
        through: *cuda.Upload,
        f: *Failure,
    ) Rejected!void {
        const raw = item.raw;
        const room = try through.next(f);
        var ready = room[0 .. rows * item.rowBytes()];
        try read(item, row, ready, f);
        if (raw.layout == .panel) {
            ready = try s.packForGpu(item, row, rows, room, f);
        } else if (item.converts()) {
            ready = room[item.readRoom()..][0 .. rows * item.outBytes()];
            try s.convert(item, row, rows, ready.ptr, raw.dst_dtype, room.ptr, f);
            transform(raw.transform, ready.ptr, rows * item.cols);
        }
        const to = @intFromPtr(item.buffer.memory.ptr()) + raw.dst_offset + row * item.outBytes();
        try through.start(to, ready, f);
    }

    /// The same of f8_e4m3: the scales of all rows lie in front of the first.
    fn sendEights(
        item: Item,
        row: u64,
        rows: u64,
        through: *cuda.Upload,
        f: *Failure,
    ) Rejected!void {
        const room = try through.next(f);
        try read(item, row, room[0 .. rows * item.rowBytes()], f);
        const made = try load_scales.eights(item, row, rows, room, f);
        const to = @intFromPtr(item.buffer.memory.ptr()) + item.raw.dst_offset;
        const scales = std.mem.sliceAsBytes(made.scales);
        try through.along(to + row * @sizeOf(f32), scales, f);
        const first = std.mem.alignForward(u64, item.raw.rows, command.panel) * @sizeOf(f32);
        try through.start(to + first + row * item.cols, made.numbers, f);
    }

    /// Converts rows that lie as they are in the file; those with scales one by one.
    fn convert(
        s: *Shared,
        item: Item,
        row: u64,
        rows: u64,
        dst: [*]u8,
        to: command.DType,
        src: [*]const u8,
        f: *Failure,
    ) Rejected!void {
        const change = s.context.device.kernels.convert;
        const from = item.raw.src_dtype;
        if (from != .f8_e4m3) return change(dst, to, src, from, rows * item.cols, 1);
        const out_bytes = block.rowBytes(to, item.cols);
        var scales: [load_scales.some]f32 = undefined;
        for (0..rows) |r| {
            const at = r % scales.len;
            if (at == 0)
                try load_scales.read(item, row + r, scales[0..@min(scales.len, rows - r)], f);
            const numbers = src + r * item.rowBytes();
            change(dst + r * out_bytes, to, numbers, from, item.cols, scales[at]);
        }
    }

    /// Packs blocks of rows that lie in `room` into a GPU's panels, behind them.
    fn packForGpu(
        s: *Shared,
        item: Item,
        row: u64,
        rows: u64,
        room: []u8,
        f: *Failure,
    ) Rejected![]u8 {
        const to = item.raw.dst_dtype;
        var from = room.ptr;
        if (item.becomes()) {
            from = room.ptr + item.readRoom();
            try s.convert(item, row, rows, from, to, room.ptr, f);
        }
        const padded = std.mem.alignForward(u64, rows, command.panel);
        const ready = room[item.arrival()..][0 .. padded * item.outBytes()];
        var done: u64 = 0;
        while (done < rows) : (done += command.panel) {
            const n = @min(command.panel, rows - done);
            const at = done * item.outBytes();
            cuda.blocks.pack(to, ready.ptr + at, from + at, n, item.cols);
        }
        return ready;
    }

    /// Packs rows that lie in `room` into their panels.
    fn pack(
        s: *Shared,
        item: Item,
        row: u64,
        rows: u64,
        room: []u8,
        f: *Failure,
    ) Rejected!void {
        const raw = item.raw;
        const kernels = s.context.device.kernels;
        const panel = kernels.panel_bytes(raw.dst_dtype, command.panel, raw.cols);
        const from = item.packedFrom();
        const dst = item.buffer.memory.ptr() + raw.dst_offset + row / command.panel * panel;
        var ready = room.ptr;
        if (raw.dst_dtype == .f8_e4m3) {
            const made = try load_scales.eights(item, row, rows, room, f);
            load_scales.intoPanels(item, made.scales, dst);
            ready = made.numbers.ptr;
        } else if (item.becomes()) {
            ready = room.ptr + item.readRoom();
            try s.convert(item, row, rows, ready, from, room.ptr, f);
        }
        const job_of_pack: Pack = .{
            .dst = dst,
            .src = ready,
            .dst_dtype = raw.dst_dtype,
            .src_dtype = from,
            .rows = @intCast(rows),
            .cols = raw.cols,
        };
        kernels.pack(&job_of_pack, 0, @intCast((rows + command.panel - 1) / command.panel));
    }
};

/// Reads rows from `row` on, each from where it stands in the file.
fn read(item: Item, row: u64, out: []u8, f: *Failure) Rejected!void {
    const raw = item.raw;
    const bytes = item.rowBytes();
    if (!load_item.reorders(raw)) return item.file.read(raw.src_offset + row * bytes, out, f);
    for (0..out.len / bytes) |i| {
        const at = raw.src_offset + item.sourceRow(row + i) * bytes;
        try item.file.read(at, out[i * bytes ..][0..bytes], f);
    }
}

/// The transforms of single values, which are f32.
fn transform(how: command.Transform, at: [*]u8, n: u64) void {
    const values: [*]align(1) f32 = @ptrCast(at);
    for (values[0..n]) |*v| v.* = switch (how) {
        .negative_exp => -@exp(v.*),
        .log_negative => @log(-v.*),
        .none, .rope_to_pairs, .rope_to_halves => return,
    };
}
