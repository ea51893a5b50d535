//! Scales of f8_e4m3 weights on their way into memory: one a row, or one for all, read from a file
//! beside the numbers.

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

/// Writes the scales of some rows into the panels whose first is `panels`.
pub fn intoPanels(item: Item, row: u64, rows: u64, panels: [*]u8, f: *Failure) Rejected!void {
    const one = panel.panelBytes(.f8_e4m3, item.cols);
    var done: u64 = 0;
    while (done < rows) : (done += command.panel) {
        var scales: [command.panel]f32 = @splat(0);
        try read(item, row + done, scales[0..@min(command.panel, rows - done)], f);
        const at = panels + done / command.panel * one;
        @memcpy(at[0..panel.scale_bytes], std.mem.asBytes(&scales));
    }
}

/// Refuses NaN: the kernels, which shift bits, would take it for a number.
pub fn refuseNaN(item: Item, row: u64, numbers: []const u8, f: *Failure) Rejected!void {
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
