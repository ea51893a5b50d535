//! What a failed call leaves behind: a status, and a sentence with the found value. Each job keeps
//! its own; that of the library's last failed call is kept here.

const std = @import("std");
const command = @import("command");
const failure = @import("validate/failure.zig");
const sync = @import("sync.zig");

pub const Status = command.Status;
pub const Failure = failure.Failure;
pub const Rejected = failure.Rejected;
pub const readStruct = failure.readStruct;

/// One sentence, cut to what fits.
pub const Message = struct {
    text: [480]u8 = undefined,
    len: usize = 0,

    /// Writes the sentence and gives the status back.
    pub fn fail(m: *Message, s: Status, comptime format: []const u8, values: anytype) Status {
        var writer: std.Io.Writer = .fixed(&m.text);
        writer.print(format, values) catch {};
        m.len = writer.end;
        return s;
    }
    pub fn slice(m: *const Message) []const u8 {
        return m.text[0..m.len];
    }
};

var mutex: sync.Mutex = .{};
var last: Failure = .{};

/// What an export answers. A failure is kept for `bamba_error(0)`.
pub fn answer(result: Rejected!void, f: *const Failure) i32 {
    result catch {
        mutex.lock();
        defer mutex.unlock();
        last = f.*;
        return @intFromEnum(f.status);
    };
    return 0;
}

/// Copies the sentence of the last failed call, cut to what fits. Answers its bytes.
pub fn copyLast(out: []u8) i32 {
    mutex.lock();
    defer mutex.unlock();
    return copyText(&last, out);
}

pub fn copyText(f: *const Failure, out: []u8) i32 {
    const text = f.text();
    const n = @min(text.len, out.len);
    @memcpy(out[0..n], text[0..n]);
    return @intCast(n);
}
