//! The hash of everything that `command.zig` declares, by reflection. Both sides compare it when
//! the library is loaded.

const std = @import("std");
const command = @import("command");

pub const hash: u32 = compute();

fn compute() u32 {
    @setEvalBranchQuota(200_000);
    var h: u64 = 0xcbf29ce484222325;
    for (@typeInfo(command).@"struct".decls) |decl| {
        const value = @field(command, decl.name);
        h = text(h, decl.name);
        switch (@TypeOf(value)) {
            type => h = describe(h, value),
            u32, comptime_int => h = number(h, value),
            else => {},
        }
    }
    const folded: u32 = @truncate(h ^ h >> 32);
    return if (folded == 0) 1 else folded;
}

fn describe(h0: u64, comptime T: type) u64 {
    var h = h0;
    switch (@typeInfo(T)) {
        .@"enum" => |e| for (e.fields) |f| {
            h = number(text(h, f.name), @as(u32, @bitCast(@as(i32, @truncate(@as(i64, f.value))))));
        },
        .@"struct" => |s| {
            for (s.fields) |f| {
                h = number(text(text(h, f.name), @typeName(f.type)), @offsetOf(T, f.name));
            }
            for (s.decls) |d| {
                h = text(h, d.name);
                if (@TypeOf(@field(T, d.name)) == type) h = text(h, @typeName(@field(T, d.name)));
            }
        },
        else => h = text(h, @typeName(T)),
    }
    return h;
}

fn text(h0: u64, comptime s: []const u8) u64 {
    var h = h0;
    for (s) |byte| h = (h ^ byte) *% 0x100000001b3;
    return (h ^ 0xff) *% 0x100000001b3;
}

fn number(h0: u64, comptime n: u64) u64 {
    var h = h0;
    for (0..8) |i| h = (h ^ (n >> @intCast(8 * i) & 0xff)) *% 0x100000001b3;
    return h;
}
