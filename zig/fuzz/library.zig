//! Fuzzes the library's exports: calls in any order with live, freed and invented handles, options
//! and data that lie, weights that end outside their file. Every call must answer; none may crash.

const std = @import("std");
const command = @import("command");
const block = @import("../cpu/block.zig");
const example = @import("../example_plan.zig");
const lib = @import("../lib.zig");
const mutation = @import("mutate.zig");
const Random = std.Random;

const Kind = enum { device, buffer, file, plan, job };
const Known = struct { handle: u32, kind: Kind };
/// Bytes of the file that weights come from.
const file_bytes = 20_000;
/// Larger arenas are not asked for: a job may fill its arena.
const arena_max = 16 << 20;

pub const Counts = struct { calls: u64 = 0, succeeded: u64 = 0, jobs: u64 = 0 };

pub const Fuzzer = struct {
    arena: std.heap.ArenaAllocator,
    counts: Counts = .{},
    known: [48]Known = undefined,
    n_known: usize = 0,
    device: u32 = 0,
    file: u32 = 0,
    weights: u32 = 0,
    /// States, pages and outputs, by `command.JobOptions`.
    buffers: [3]u32 = undefined,
    plans: [2]u32 = undefined,
    plan_bytes: [2][]u8 = undefined,
    step_bytes: [2][]u8 = undefined,
    path: [:0]u8 = undefined,
    /// What a call is given, changed before it.
    data: [65536]u8 align(64) = undefined,
    out: [4096]u8 align(8) = undefined,

    /// Opens one honest thing of each kind; they stay open for the whole run.
    pub fn init(f: *Fuzzer, gpa: std.mem.Allocator) !void {
        f.* = .{ .arena = .init(gpa) };
        const a = f.arena.allocator();
        f.device = try f.open(lib.bamba_device_open, command.DeviceOptions, .{ .threads = 2 });
        f.path = try memoryFile(a);
        const path = f.path;
        if (lib.bamba_file_open(path.ptr, @intCast(path.len), &f.out, 16) != 0) return f.refused();
        f.file = f.handle();
        var sizes: example.Sizes = .{};
        for ([_]example.Kind{ .prefill, .decode }, 0..) |kind, i| {
            if (i == 0) {
                const b = try example.build(a, kind);
                sizes = b.sizes;
                f.weights = try f.buffer(sizes.weights);
            }
            var b = try example.buildAt(a, kind, lib.bamba_abi(), f.weights);
            f.plan_bytes[i] = try b.bytes();
            const p = f.plan_bytes[i];
            if (lib.bamba_plan_create(f.device, p.ptr, @intCast(p.len), &f.out, 16) != 0)
                return f.refused();
            f.plans[i] = f.handle();
        }
        const wanted = .{ sizes.slot * example.slots, sizes.page * example.pages, sizes.output };
        inline for (wanted, 0..) |bytes, i| f.buffers[i] = try f.buffer(bytes);
        const prompts = [_]example.Seq{ .{ .tokens = 20, .slot = 1 }, .{ .tokens = 2, .past = 9 } };
        const decoding = [_]example.Seq{ .{ .past = 60, .slot = 3 }, .{ .slot = 1 } };
        f.step_bytes = .{
            try example.stepBytes(a, &prompts),
            try example.stepBytes(a, &decoding),
        };
    }

    pub fn deinit(f: *Fuzzer) void {
        while (f.n_known > 0) f.drop(f.n_known - 1);
        for (f.plans ++ f.buffers ++ .{ f.weights, f.file, f.device }) |h| _ = lib.bamba_free(h);
        f.arena.deinit();
    }

    fn handle(f: *Fuzzer) u32 {
        return std.mem.readInt(u32, f.out[0..4], .little);
    }
    fn open(f: *Fuzzer, call: anytype, comptime T: type, values: anytype) !u32 {
        var o = honest(T, values);
        if (call(std.mem.asBytes(&o), @sizeOf(T), &f.out, 4) != 0) return f.refused();
        return f.handle();
    }
    fn refused(f: *Fuzzer) error{Refused} {
        const n: usize = @intCast(lib.bamba_error(0, &f.out, f.out.len));
        std.debug.print("{s}\n", .{f.out[0..n]});
        return error.Refused;
    }
    fn buffer(f: *Fuzzer, bytes: u64) !u32 {
        const values = .{ .device = f.device, .bytes = bytes };
        return f.open(lib.bamba_buffer_create, command.BufferOptions, values);
    }

    /// A handle of the kind, mostly; else one that is freed, of another kind, or invented.
    fn any(f: *Fuzzer, random: Random, usual: u32) u32 {
        return switch (random.uintLessThan(u8, 16)) {
            0...9 => usual,
            10...13 => if (f.n_known == 0) usual else blk: {
                break :blk f.known[random.uintLessThan(usize, f.n_known)].handle;
            },
            14 => usual +% (random.uintLessThan(u32, 4) << 15), // another generation
            else => random.int(u32) >> random.int(u5),
        };
    }

    fn keep(f: *Fuzzer, status: i32, kind: Kind) void {
        f.count(status);
        if (status < 0) return;
        // Few jobs at once: each has a thread.
        if (kind == .job) for (0..f.n_known) |i| if (f.known[i].kind == .job and i % 4 == 3) {
            f.drop(i);
            break;
        };
        if (f.n_known == f.known.len) f.drop(0);
        f.known[f.n_known] = .{ .handle = f.handle(), .kind = kind };
        f.n_known += 1;
    }
    fn drop(f: *Fuzzer, i: usize) void {
        _ = lib.bamba_free(f.known[i].handle);
        f.n_known -= 1;
        std.mem.copyForwards(Known, f.known[i..f.n_known], f.known[i + 1 .. f.n_known + 1]);
    }
    /// A refused call leaves a sentence.
    fn count(f: *Fuzzer, status: i32) void {
        f.counts.calls += 1;
        f.counts.succeeded += @intFromBool(status >= 0);
        if (status < 0 and lib.bamba_error(0, &f.out, f.out.len) <= 0)
            std.debug.panic("status {d} without a sentence", .{status});
    }

    /// One call.
    pub fn round(f: *Fuzzer, random: Random) void {
        switch (random.uintLessThan(u8, 64)) {
            0 => f.openDevice(random),
            1...4 => f.createBuffer(random),
            5...18 => f.moveBytes(random),
            19...20 => f.openFile(random),
            21...28 => f.createPlan(random),
            29...38 => f.startRun(random),
            39...45 => f.startLoad(random),
            46...53 => f.wait(random),
            54...56 => f.count(lib.bamba_job_cancel(f.any(random, 0))),
            57...61 => f.free(random),
            62 => {
                const room = random.uintLessThan(u32, 4096);
                f.count(lib.bamba_error(f.any(random, 0), &f.out, room));
            },
            else => {
                const len = random.uintLessThan(u32, f.out.len);
                f.count(lib.bamba_info(f.any(random, f.device), &f.out, len));
            },
        }
    }

    /// Puts honest bytes into `data`, often changed; gives the length to claim.
    fn give(f: *Fuzzer, random: Random, bytes: []const u8) u32 {
        @memcpy(f.data[0..bytes.len], bytes);
        if (random.boolean()) mutation.mutate(random, f.data[0..bytes.len]);
        const cut = random.uintLessThan(u8, 16) == 0 and bytes.len > 0;
        return @intCast(if (cut) random.uintLessThan(usize, bytes.len) else bytes.len);
    }

    fn openDevice(f: *Fuzzer, random: Random) void {
        var o = honest(command.DeviceOptions, .{ .threads = random.uintLessThan(u32, 3) });
        const len = f.give(random, std.mem.asBytes(&o));
        f.keep(lib.bamba_device_open(&f.data, len, &f.out, random.uintLessThan(u32, 9)), .device);
    }
    fn createBuffer(f: *Fuzzer, random: Random) void {
        var o = honest(command.BufferOptions, .{ .bytes = random.int(u64) >> random.int(u6) });
        o.device = f.any(random, f.device);
        const len = f.give(random, std.mem.asBytes(&o));
        const room = 4 + random.uintLessThan(u32, 4);
        f.keep(lib.bamba_buffer_create(&f.data, len, &f.out, room), .buffer);
    }
    fn moveBytes(f: *Fuzzer, random: Random) void {
        const spot = f.buffers[random.uintLessThan(usize, f.buffers.len)];
        const length = random.uintLessThan(u32, f.out.len);
        var s: command.Span = .{ .offset = random.uintLessThan(u64, 4096), .bytes = length };
        var c: command.CopySpan = .{
            .src_offset = random.uintLessThan(u64, 4096),
            .dst_offset = random.uintLessThan(u64, 4096),
            .bytes = length,
        };
        switch (random.uintLessThan(u8, 3)) {
            0 => {
                const len = f.give(random, std.mem.asBytes(&s));
                f.count(lib.bamba_buffer_read(f.any(random, spot), &f.data, len, &f.out, length));
            },
            1 => {
                const len = f.give(random, std.mem.asBytes(&s));
                f.count(lib.bamba_buffer_write(f.any(random, spot), &f.data, len, &f.out, length));
            },
            else => {
                const len = f.give(random, std.mem.asBytes(&c));
                const from = f.any(random, spot);
                f.count(lib.bamba_buffer_copy(from, f.any(random, spot), &f.data, len));
            },
        }
    }
    fn openFile(f: *Fuzzer, random: Random) void {
        const len = f.give(random, f.path);
        f.keep(lib.bamba_file_open(&f.data, len, &f.out, 14 + random.uintLessThan(u32, 3)), .file);
    }
    fn createPlan(f: *Fuzzer, random: Random) void {
        const len = f.give(random, f.plan_bytes[random.uintLessThan(usize, 2)]);
        const at = @offsetOf(command.PlanHeader, "arena_bytes");
        const arena = std.mem.readInt(u64, f.data[at..][0..8], .little);
        if (arena > arena_max) return;
        const d = f.any(random, f.device);
        const room = 14 + random.uintLessThan(u32, 3);
        f.keep(lib.bamba_plan_create(d, &f.data, len, &f.out, room), .plan);
    }
    fn startRun(f: *Fuzzer, random: Random) void {
        const which = random.uintLessThan(usize, 2);
        var o = honest(command.JobOptions, .{
            .kind = .run,
            .device = f.any(random, f.device),
            .plan = f.any(random, f.plans[which]),
            .state = f.any(random, f.buffers[0]),
            .kv = f.any(random, f.buffers[1]),
            .output = f.any(random, f.buffers[2]),
            .n_steps = if (which == 1) 1 + random.uintLessThan(u32, 4) else 1,
            .ring_steps = random.uintLessThan(u32, 3),
            .decode = @as(u32, @intCast(which)),
            .poison = random.uintLessThan(u32, 2),
            .batch_invariant = random.uintLessThan(u32, 2),
            .reserved = 0,
        });
        if (random.uintLessThan(u8, 4) == 0) mutation.mutate(random, std.mem.asBytes(&o));
        if (@intFromEnum(o.kind) == @intFromEnum(command.JobKind.measure)) return; // takes long
        const len = f.give(random, f.step_bytes[which]);
        f.startJob(&o, len);
    }
    fn startJob(f: *Fuzzer, o: *command.JobOptions, len: u32) void {
        f.counts.jobs += 1;
        const options = std.mem.asBytes(o);
        f.keep(lib.bamba_job_start(options, options.len, &f.data, len, &f.out, 4), .job);
    }
    fn startLoad(f: *Fuzzer, random: Random) void {
        var items: [3]command.LoadItem = undefined;
        for (&items, 0..) |*item, i| item.* = f.loadItem(random, i);
        var o = honest(command.JobOptions, .{ .kind = .load, .device = f.device });
        const len = f.give(random, std.mem.sliceAsBytes(&items));
        f.startJob(&o, len);
    }
    fn loadItem(f: *Fuzzer, random: Random, i: usize) command.LoadItem {
        const rows = 1 + random.uintLessThan(u32, 30);
        const cols = if (random.boolean()) 256 else 1 + random.uintLessThan(u32, 30);
        const dtypes = [_]command.DType{
            .f32,  .bf16, .f16,  .q8_0,    .q4_0,
            .q4_k, .q5_k, .q6_k, .f8_e4m3,
        };
        const from = dtypes[random.uintLessThan(usize, dtypes.len)];
        const size = @as(u64, rows) * block.rowBytes(from, cols);
        return .{
            .file = f.any(random, f.file),
            .buffer = f.any(random, f.weights),
            .src_offset = random.uintLessThan(u64, file_bytes / 2),
            .src_bytes = size,
            .dst_offset = i * 4096,
            .src_dtype = from,
            .dst_dtype = dtypes[random.uintLessThan(usize, dtypes.len)],
            .layout = if (random.boolean()) .panel else .row_major,
            .rows = rows,
            .cols = cols,
            .transform = random.enumValue(command.Transform),
            .head_rows = random.uintAtMost(u32, rows),
            .rotary_rows = random.uintAtMost(u32, rows),
            .scales_file = if (from == .f8_e4m3) f.any(random, f.file) else 0,
            .scales_dtype = dtypes[random.uintLessThan(usize, 4)],
            .n_scales = if (random.boolean()) 1 else rows,
            .reserved = 0,
            .scales_offset = random.uintLessThan(u64, file_bytes / 2),
        };
    }
    fn wait(f: *Fuzzer, random: Random) void {
        const job = for (f.known[0..f.n_known]) |k| {
            if (k.kind == .job and random.boolean()) break k.handle;
        } else 0;
        const ms = random.uintLessThan(u32, 2);
        const len = random.uintLessThan(u32, f.out.len);
        f.count(lib.bamba_job_wait(f.any(random, job), ms, &f.out, len));
    }
    fn free(f: *Fuzzer, random: Random) void {
        if (f.n_known > 0 and random.uintLessThan(u8, 4) > 0)
            return f.drop(random.uintLessThan(usize, f.n_known));
        const h = random.int(u32) >> random.int(u5);
        for (f.plans ++ f.buffers ++ .{ f.weights, f.file, f.device }) |own| if (own == h) return;
        f.count(lib.bamba_free(h));
    }
};

/// A struct of options with size and ABI filled in and zeros elsewhere.
fn honest(comptime T: type, values: anytype) T {
    var o = std.mem.zeroes(T);
    o.struct_size = @sizeOf(T);
    o.abi = lib.bamba_abi();
    inline for (comptime std.meta.fieldNames(@TypeOf(values))) |name|
        @field(o, name) = @field(values, name);
    if (T == command.BufferOptions) o.bytes = @min(o.bytes, 1 << 40);
    return o;
}

/// The path of a file that lies in memory alone.
fn memoryFile(gpa: std.mem.Allocator) ![:0]u8 {
    const fd = std.os.linux.memfd_create("weights", 0);
    if (std.os.linux.errno(fd) != .SUCCESS) return error.File;
    var bytes: [file_bytes]u8 = undefined;
    for (&bytes, 0..) |*b, i| b.* = @truncate(i * 7);
    if (std.c.write(@intCast(fd), &bytes, bytes.len) != bytes.len) return error.File;
    return std.fmt.allocPrintSentinel(gpa, "/proc/self/fd/{d}", .{fd}, 0);
}

test "calls in any order are answered" {
    const f = try std.testing.allocator.create(Fuzzer);
    defer std.testing.allocator.destroy(f);
    try f.init(std.testing.allocator);
    defer f.deinit();
    for (0..20_000) |i| {
        var prng = Random.DefaultPrng.init(i);
        f.round(prng.random());
    }
    const c = f.counts;
    try std.testing.expect(c.calls > 10_000 and c.jobs > 2_000);
    try std.testing.expect(c.succeeded > c.calls / 10 and c.succeeded < c.calls);
}
