//! Prints `src/native/bindings.gen.ts` from the declarations of `command.zig`, by reflection.

const std = @import("std");
const command = @import("command");
const abi = @import("abi.zig");

pub fn main(init: std.process.Init) !void {
    var buffer: [4096]u8 = undefined;
    var file = std.Io.File.stdout().writer(init.io, &buffer);
    const w = &file.interface;
    try w.print(
        \\// Printed by `zig build bindings` from zig/command.zig; do not edit.
        \\
        \\/** Hash of all declarations of zig/command.zig, compared with the library's at load. */
        \\export const abi_hash = {d};
        \\
        \\
    , .{abi.hash});
    inline for (@typeInfo(command).@"struct".decls) |decl| {
        const value = @field(command, decl.name);
        switch (@TypeOf(value)) {
            type => try printType(w, decl.name, value),
            u32, comptime_int => try w.print("export const {s} = {d};\n", .{ decl.name, value }),
            else => @compileError("no TypeScript for " ++ decl.name),
        }
    }
    try w.flush();
}

fn printType(w: *std.Io.Writer, comptime name: []const u8, comptime T: type) !void {
    if (comptime std.mem.eql(u8, name, "functions")) return printFunctions(w);
    switch (@typeInfo(T)) {
        .@"enum" => |e| {
            try w.print("export const {s} = {{\n", .{name});
            inline for (e.fields) |f| try w.print("  {s}: {d},\n", .{ f.name, f.value });
            try w.print("}} as const;\n\n", .{});
        },
        .@"struct" => |s| {
            const head = "export const {s} = {{\n  size: {d},\n  fields: {{\n";
            try w.print(head, .{ name, @sizeOf(T) });
            inline for (s.fields) |f| {
                try w.print("    {s}: {{ offset: {d}, ", .{ f.name, @offsetOf(T, f.name) });
                switch (@typeInfo(f.type)) {
                    .array => |a| try w.print(
                        "type: \"{s}\", length: {d} }},\n",
                        .{ tsType(a.child), a.len },
                    ),
                    else => try w.print("type: \"{s}\" }},\n", .{tsType(f.type)}),
                }
            }
            try w.print("  }},\n}} as const;\n\n", .{});
        },
        else => {},
    }
}

fn tsType(comptime T: type) []const u8 {
    return switch (@typeInfo(T)) {
        .int, .float => @typeName(T),
        .@"enum" => |e| @typeName(e.tag_type),
        .pointer => "buffer",
        else => @compileError("no TypeScript for " ++ @typeName(T)),
    };
}

fn printFunctions(w: *std.Io.Writer) !void {
    try w.print("export const symbols = {{\n", .{});
    inline for (@typeInfo(command.functions).@"struct".decls) |decl| {
        const f = @typeInfo(@field(command.functions, decl.name)).@"fn";
        try w.print("  {s}: {{ parameters: [", .{decl.name});
        inline for (f.params, 0..) |p, i| {
            try w.print("{s}\"{s}\"", .{ if (i > 0) ", " else "", comptime tsType(p.type.?) });
        }
        try w.print("], result: \"{s}\" }},\n", .{comptime tsType(f.return_type.?)});
    }
    try w.print("}} as const;\n", .{});
}
