//! Weights of f8_e4m3 on their way into memory. Their scales, one a row or one for all, are read
//! from a file beside the numbers; other floats get them here: each row its largest value by 448,
//! the largest number there is, and numbers rounded to the nearest, even ones on a tie.

const std = @import("std");
const command = @import("command");
const block = @import("cpu/block.zig");
const load_item = @import("load_item.zig");
const panel = @import("cpu/panel.zig");
const status = @import("status.zig");
const Failure = status.Failure;
const Item = load_item.Item;
const LoadItem = command.LoadItem;
const Rejected = status.Rejected;

/// Scales read at once.
pub const some = 256;

/// Checks item i's scales. @param file_bytes of the file they lie in; null where it names none
pub fn check(raw: LoadItem, file_bytes: ?u64, i: usize, f: *Failure) Rejected!void {
    const bytes = file_bytes orelse return;
    if (raw.src_dtype != .f8_e4m3) return f.set(
        .type,
        "Expected scales only of f8_e4m3 but found some of item {d}, which is {t}",
        .{ i, raw.src_dtype },
    );
    switch (raw.scales_dtype) {
        .f32, .bf16, .f16 => {},
        else => return f.set(
            .type,
            "Expected scales of item {d} to be f32, bf16 or f16 but found {t}",
            .{ i, raw.scales_dtype },
        ),
    }
    if (raw.n_scales != 1 and raw.n_scales != raw.rows) return f.set(
        .range,
        "Expected 1 or {d} scales of item {d} but found {d}",
        .{ raw.rows, i, raw.n_scales },
    );
    const length = @as(u64, raw.n_scales) * block.bytes(raw.scales_dtype);
    if (raw.scales_offset > bytes or length > bytes - raw.scales_offset) return f.set(
        .range,
        "Expected scales of item {d} to lie within the {d} bytes of their file " ++
            "but found {d} bytes at {d}",
        .{ i, bytes, length, raw.scales_offset },
    );
}

/// Fills `out`, at most `some`, with the scales of rows from `row` on.
pub fn read(item: Item, row: u64, out: []f32, f: *Failure) Rejected!void {
    const from = item.scales orelse return @memset(out, 1);
    const raw = item.raw;
    const size = block.bytes(raw.scales_dtype);
    var stored: [some * 4]u8 = undefined;
    if (raw.n_scales == 1) {
        try from.read(raw.scales_offset, stored[0..size], f);
        block.dequantizeRow(raw.scales_dtype, &stored, 1, out.ptr);
        return @memset(out, out[0]);
    }
    if (!load_item.reorders(raw)) {
        try from.read(raw.scales_offset + row * size, stored[0 .. out.len * size], f);
    } else for (0..out.len) |i| {
        const at = raw.scales_offset + item.sourceRow(row + i) * size;
        try from.read(at, stored[i * size ..][0..size], f);
    }
    block.dequantizeRow(raw.scales_dtype, &stored, out.len, out.ptr);
}

/// Rows of f8_e4m3, and the scale of each.
pub const Eights = struct { numbers: []u8, scales: []f32 };

/// Makes them of rows from `row` on, which lie at the start of `room` as the file has them.
pub fn eights(item: Item, row: u64, rows: u64, room: []u8, f: *Failure) Rejected!Eights {
    const scales: [*]f32 = @ptrCast(@alignCast(room.ptr + item.scalesAt()));
    const from = if (item.becomes()) item.readRoom() else 0;
    const made: Eights = .{
        .numbers = room[from..][0 .. rows * item.cols],
        .scales = scales[0..rows],
    };
    if (item.becomes()) {
        for (made.scales, 0..) |*scale, r| {
            const numbers = made.numbers[r * item.cols ..][0..item.cols];
            scale.* = narrow(item.raw.src_dtype, room.ptr + r * item.rowBytes(), numbers) orelse
                return notFinite(item, row + r, f);
        }
        return made;
    }
    try refuseNaN(item, row, made.numbers, f);
    var done: u64 = 0;
    while (done < rows) : (done += some) {
        const n = @min(some, rows - done);
        try read(item, row + done, made.scales[done..][0..n], f);
    }
    return made;
}

fn notFinite(item: Item, row: u64, f: *Failure) Rejected {
    return f.set(
        .range,
        "Expected finite numbers to become f8_e4m3 but found others in row {d} of {d} of a tensor",
        .{ row, item.raw.rows },
    );
}

/// Rounds a row, and gives its scale; null where a number is infinite or none.
fn narrow(from: command.DType, src: [*]const u8, out: []u8) ?f32 {
    var values: [1024]f32 = undefined;
    const bytes = block.bytes(from);
    var top: u32 = 0;
    var at: usize = 0;
    while (at < out.len) : (at += values.len) {
        const n = @min(values.len, out.len - at);
        block.dequantizeRow(from, src + at * bytes, n, &values);
        for (values[0..n]) |v| top = @max(top, @as(u32, @bitCast(v)) & 0x7fff_ffff);
    }
    const largest: f32 = @bitCast(top);
    if (!std.math.isFinite(largest)) return null;
    const scale = largest / 448;
    // A row of zeros, or of numbers too small for a scale, is zeros.
    const up = if (scale >= std.math.floatMin(f32)) 1 / scale else 0;
    at = 0;
    while (at < out.len) : (at += values.len) {
        const n = @min(values.len, out.len - at);
        block.dequantizeRow(from, src + at * bytes, n, &values);
        for (values[0..n], out[at..][0..n]) |v, *o| o.* = nearest(v * up);
    }
    return scale;
}

/// The nearest number of f8_e4m3, at most its largest.
fn nearest(x: f32) u8 {
    const bits: u32 = @bitCast(x);
    const size = bits & 0x7fff_ffff;
    // Below 2^-6 numbers lie 2^-9 apart, as f32 do above 2^14.
    const magic: f32 = 1 << 14;
    const small = @as(u32, @bitCast(@as(f32, @bitCast(size)) + magic)) - @as(u32, @bitCast(magic));
    const large = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) -% (120 << 3);
    const number = if (size < 121 << 23) small else @min(large, 0x7e);
    return @intCast(number | bits >> 31 << 7);
}

/// Writes the scales of some rows into the panels whose first is `panels`.
pub fn intoPanels(item: Item, scales: []const f32, panels: [*]u8) void {
    const one = panel.panelBytes(.f8_e4m3, item.cols);
    var done: u64 = 0;
    while (done < scales.len) : (done += command.panel) {
        var all: [command.panel]f32 = @splat(0);
        const n = @min(command.panel, scales.len - done);
        @memcpy(all[0..n], scales[done..][0..n]);
        const at = panels + done / command.panel * one;
        @memcpy(at[0..panel.scale_bytes], std.mem.asBytes(&all));
    }
}

/// Refuses NaN: the kernels, which shift bits, would take it for a number.
fn refuseNaN(item: Item, row: u64, numbers: []const u8, f: *Failure) Rejected!void {
    var worst: u8 = 0;
    for (numbers) |x| worst = @max(worst, x & 0x7f);
    if (worst < 0x7f) return;
    const at = for (numbers, 0..) |x, i| {
        if (x & 0x7f == 0x7f) break i;
    } else unreachable;
    return f.set(
        .range,
        "Expected numbers of f8_e4m3 but found NaN in row {d} of {d} rows of a tensor",
        .{ row + at / item.cols, item.raw.rows },
    );
}

test "floats become the nearest of f8_e4m3, even ones on a tie" {
    const testing = std.testing;
    for (0..256) |i| {
        const byte: u8 = @intCast(i);
        if (byte & 0x7f == 0x7f) continue;
        const value = block.eight(byte);
        try testing.expectEqual(byte, nearest(value));
        if (byte & 0x7f == 0x7e) continue;
        const next = block.eight(byte + 1);
        const even = if (byte & 1 == 0) byte else byte + 1;
        try testing.expectEqual(even, nearest((value + next) / 2));
        try testing.expectEqual(byte, nearest(value + (next - value) * 0.49));
        try testing.expectEqual(byte + 1, nearest(value + (next - value) * 0.51));
    }
    try testing.expectEqual(@as(u8, 0x7e), nearest(1e9));
    try testing.expectEqual(@as(u8, 0xfe), nearest(-449));
    const row = [_]f32{ 0, -2, 1, 0.0001 };
    var out: [row.len]u8 = undefined;
    const scale = narrow(.f32, std.mem.asBytes(&row), &out).?;
    for (row, out) |x, b|
        try testing.expectApproxEqAbs(x, block.eight(b) * scale, @max(@abs(x) / 16, scale / 1024));
    const endless = [_]f32{ 1, std.math.inf(f32) };
    try testing.expectEqual(null, narrow(.f32, std.mem.asBytes(&endless), out[0..2]));
    const zeros = [_]f32{ 0, -0.0 };
    try testing.expectEqual(0, narrow(.f32, std.mem.asBytes(&zeros), out[0..2]).?);
}
