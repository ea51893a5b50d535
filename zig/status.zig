//! What a failed call leaves behind: a status and a sentence.

const std = @import("std");
const command = @import("command");
pub const Status = command.Status;

/// A sentence for the caller, kept for each job and for the library's last failed call.
pub const Message = struct {
    text: [400]u8 = undefined,
    len: usize = 0,

    /// Stores a sentence, cut to what fits, and gives the status back.
    pub fn fail(m: *Message, status: Status, comptime format: []const u8, args: anytype) Status {
        var writer = std.Io.Writer.fixed(&m.text);
        writer.print(format, args) catch {};
        m.len = writer.end;
        return status;
    }
    pub fn slice(m: *const Message) []const u8 {
        return m.text[0..m.len];
    }
};
