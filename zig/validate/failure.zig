//! What a refused thing leaves behind: a status and one sentence with the found value.

const std = @import("std");
const status_file = @import("../status.zig");
const Status = status_file.Status;

pub const Rejected = error{Rejected};

/// Filled by the first check that fails.
pub const Failure = struct {
    status: Status = .ok,
    message: status_file.Message = .{},

    /// Keeps the sentence and gives the error to return.
    pub fn set(f: *Failure, status: Status, comptime format: []const u8, values: anytype) Rejected {
        f.status = f.message.fail(status, format, values);
        return error.Rejected;
    }

    pub fn text(f: *const Failure) []const u8 {
        return f.message.slice();
    }

    pub fn memory(f: *Failure, bytes: u64) Rejected {
        return f.set(.memory, "Cannot get {d} bytes of memory to check the request", .{bytes});
    }
};

/// Reads a struct at any alignment, its enum fields checked. `what` names it in the sentence, and
/// so does `index` where it is not null.
pub fn readStruct(
    comptime T: type,
    bytes: *const [@sizeOf(T)]u8,
    what: []const u8,
    index: ?usize,
    f: *Failure,
) Rejected!T {
    inline for (comptime std.meta.fieldNames(T)) |name| {
        const Field = @FieldType(T, name);
        if (@typeInfo(Field) == .@"enum") {
            const Int = @typeInfo(Field).@"enum".tag_type;
            const found = std.mem.bytesToValue(Int, bytes[@offsetOf(T, name)..][0..@sizeOf(Int)]);
            if (std.enums.fromInt(Field, found) == null) return wrongEnum(
                f,
                name,
                what,
                index,
                std.meta.fieldNames(Field).len,
                found,
            );
        }
    }
    return std.mem.bytesToValue(T, bytes);
}

fn wrongEnum(
    f: *Failure,
    name: []const u8,
    what: []const u8,
    index: ?usize,
    count: usize,
    found: anytype,
) Rejected {
    const format = "to be one of {d} known values but found {d}";
    if (index) |i| {
        const values = .{ name, what, i, count, found };
        return f.set(.invalid, "Expected {s} of {s} {d} " ++ format, values);
    }
    return f.set(.invalid, "Expected {s} of {s} " ++ format, .{ name, what, count, found });
}

test "the sentence of a wrong enum" {
    const command = @import("command");
    var f: Failure = .{};
    var c = std.mem.zeroes(command.Command);
    std.mem.asBytes(&c)[0] = 200;
    const found = readStruct(command.Command, std.mem.asBytes(&c), "command", 7, &f);
    try std.testing.expectEqual(error.Rejected, found);
    const want = "Expected op of command 7 to be one of 23 known values but found 200";
    try std.testing.expectEqualStrings(want, f.text());
    try std.testing.expectEqual(Status.invalid, f.status);
}
