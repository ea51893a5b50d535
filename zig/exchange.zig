//! How arguments of exports are read and results written: sizes first, then versions, then values.

const std = @import("std");
const abi = @import("abi.zig");
const handle = @import("handle.zig");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;

/// Reads a struct of options, which begins with its size and the hash of the declarations.
pub fn options(comptime T: type, data: []const u8, f: *Failure) Rejected!T {
    const name = shortName(T);
    if (data.len != @sizeOf(T)) return f.set(
        .version,
        "Expected {d} bytes of {s} but found {d}",
        .{ @sizeOf(T), name, data.len },
    );
    const size = std.mem.readInt(u32, data[0..4], .little);
    const hash = std.mem.readInt(u32, data[4..8], .little);
    if (size != @sizeOf(T)) return f.set(
        .version,
        "Expected struct_size {d} in {s} but found {d}",
        .{ @sizeOf(T), name, size },
    );
    if (hash != abi.hash) return f.set(
        .version,
        "Expected {s} of ABI {x} but found {x}: the library and its bindings are of two versions",
        .{ name, abi.hash, hash },
    );
    return status.readStruct(T, data[0..@sizeOf(T)], name, null, f);
}

/// The i-th of some structs that follow one another, at any alignment.
pub fn item(comptime T: type, data: []const u8, i: usize, f: *Failure) Rejected!T {
    return status.readStruct(T, data[i * @sizeOf(T) ..][0..@sizeOf(T)], shortName(T), i, f);
}

/// How many whole structs some bytes hold.
pub fn count(comptime T: type, data: []const u8, f: *Failure) Rejected!usize {
    if (data.len % @sizeOf(T) == 0) return data.len / @sizeOf(T);
    return f.set(
        .invalid,
        "Expected whole {s} of {d} bytes but found {d} bytes",
        .{ shortName(T), @sizeOf(T), data.len },
    );
}

/// Checks that results fit.
pub fn room(out: []const u8, bytes: usize, f: *Failure) Rejected!void {
    if (out.len >= bytes) return;
    return f.set(.invalid, "Expected room for {d} bytes of results but found {d}", .{
        bytes, out.len,
    });
}

/// Gives the object a handle; takes over the caller's use of it, also when it fails.
pub fn giveHandle(object: *handle.Object, out: []u8, f: *Failure) Rejected!void {
    const given = try handle.add(object, f);
    std.mem.writeInt(u32, out[0..4], given, .little);
}

pub const handle_bytes = 4;
pub const handle_and_size_bytes = 16;

/// As `giveHandle`, and a size: {handle u32, pad u32, bytes u64}.
pub fn giveHandleAndSize(
    object: *handle.Object,
    bytes: u64,
    out: []u8,
    f: *Failure,
) Rejected!void {
    try giveHandle(object, out, f);
    std.mem.writeInt(u32, out[4..8], 0, .little);
    std.mem.writeInt(u64, out[8..16], bytes, .little);
}

fn shortName(comptime T: type) []const u8 {
    const full = @typeName(T);
    return full[if (std.mem.lastIndexOfScalar(u8, full, '.')) |dot| dot + 1 else 0..];
}
