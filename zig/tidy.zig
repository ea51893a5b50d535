//! Holds the style of the sources: `tidy [folder of the checkout]` (the folder above, where none is
//! given) names every line that is too wide, has a tab or a space at its end, every function and
//! file that is too long, and every file that no program reaches. Zig below `zig/`, TypeScript
//! below `src/`; the latter's functions are left to the linter. Ends with 1 where it found
//! something.

const std = @import("std");
const Io = std.Io;

const columns_max = 100;
const function_lines_max = 70;
const file_lines_max = 500;

/// Functions that may be longer, each with its reason.
const long_functions = [_][]const u8{
    "build.zig: build", // a list of steps, read from top to bottom
};
/// Files that may be longer, or wider: printed by a program, not written by hand.
const generated = [_][]const u8{"src/native/bindings.gen.ts"};

/// Files that programs, tests and users start from.
const roots = [_][]const u8{
    "zig/build.zig", "zig/lib.zig",      "zig/cpu/main.zig", "zig/bindings.zig",
    "zig/tidy.zig",  "zig/fuzz.zig",     "mod.ts",           "src/cli/main.ts",
    "src/assert.ts", "zig/emulated.zig",
};
/// Modules by name.
const modules = [_][2][]const u8{
    .{ "command", "zig/command.zig" },
    .{ "@std/assert", "src/assert.ts" },
};

const File = struct {
    path: []const u8,
    text: []const u8,
    reached: bool = false,

    fn isZig(f: File) bool {
        return std.mem.endsWith(u8, f.path, ".zig");
    }
};

const Tidy = struct {
    gpa: std.mem.Allocator,
    io: Io,
    root: Io.Dir,
    files: std.ArrayList(File) = .empty,
    found: u32 = 0,

    fn report(t: *Tidy, path: []const u8, line: usize, comptime what: []const u8, v: anytype) void {
        t.found += 1;
        std.debug.print("{s}:{d}: " ++ what ++ "\n", .{ path, line } ++ v);
    }

    /// Reads all sources below a folder.
    fn read(t: *Tidy, folder: []const u8, ending: []const u8) !void {
        var dir = try t.root.openDir(t.io, folder, .{ .iterate = true });
        defer dir.close(t.io);
        var walker = try dir.walk(t.gpa);
        while (try walker.next(t.io)) |entry| {
            if (entry.kind != .file or !std.mem.endsWith(u8, entry.path, ending)) continue;
            if (std.mem.startsWith(u8, entry.path, "zig-out") or entry.path[0] == '.') continue;
            try t.add(try std.fs.path.join(t.gpa, &.{ folder, entry.path }));
        }
        std.mem.sort(File, t.files.items, {}, struct {
            fn before(_: void, a: File, b: File) bool {
                return std.mem.lessThan(u8, a.path, b.path);
            }
        }.before);
    }
    fn add(t: *Tidy, path: []const u8) !void {
        const text = try t.root.readFileAlloc(t.io, path, t.gpa, .limited(1 << 24));
        try t.files.append(t.gpa, .{ .path = path, .text = text });
    }

    fn checkLines(t: *Tidy, f: File) void {
        var lines = std.mem.splitScalar(u8, f.text, '\n');
        var n: usize = 0;
        while (lines.next()) |line| {
            n += 1;
            const width = std.unicode.utf8CountCodepoints(line) catch line.len;
            if (width > columns_max) t.report(f.path, n, "{d} columns", .{width});
            if (std.mem.indexOfScalar(u8, line, '\t') != null) t.report(f.path, n, "a tab", .{});
            if (std.mem.endsWith(u8, line, " ")) t.report(f.path, n, "a space at the end", .{});
        }
        if (n > file_lines_max + 1) t.report(f.path, n, "a file of {d} lines", .{n - 1});
        if (!std.mem.endsWith(u8, f.text, "\n") or std.mem.endsWith(u8, f.text, "\n\n"))
            t.report(f.path, n, "expected one line feed at the end", .{});
    }

    /// Formatted code closes a function with a brace that stands as far in as its first line.
    fn checkFunctions(t: *Tidy, f: File) void {
        var open: [32]Open = undefined;
        var depth: usize = 0;
        var lines = std.mem.splitScalar(u8, f.text, '\n');
        var n: usize = 0;
        while (lines.next()) |line| {
            n += 1;
            const code = std.mem.trimStart(u8, line, " ");
            const indent = line.len - code.len;
            const at_edge = depth > 0 and code.len > 0 and indent == open[depth - 1].indent;
            if (at_edge and code[0] == '}') {
                depth -= 1;
                const lines_long = n - open[depth].line + 1;
                if (lines_long > function_lines_max and !mayBeLong(f.path, open[depth].name))
                    t.report(f.path, open[depth].line, "a function of {d} lines", .{lines_long});
            } else if (functionName(code)) |name| {
                if (hasNoBody(code) or depth == open.len) continue;
                open[depth] = .{ .indent = indent, .line = n, .name = name };
                depth += 1;
            } else if (at_edge and code[0] == ')' and hasNoBody(code)) depth -= 1;
        }
    }

    fn find(t: *Tidy, path: []const u8) ?*File {
        for (t.files.items) |*f| if (std.mem.eql(u8, f.path, path)) return f;
        return null;
    }

    /// Marks a file and all that it imports.
    fn reach(t: *Tidy, path: []const u8) error{OutOfMemory}!void {
        const f = t.find(path) orelse return;
        if (f.reached) return;
        f.reached = true;
        const folder = std.fs.path.dirname(f.path) orelse "";
        var at: usize = 0;
        while (quotedAfter(f.text, &at, if (f.isZig()) &zig_imports else &ts_imports)) |name| {
            for (modules) |module| if (std.mem.eql(u8, module[0], name)) try t.reach(module[1]);
            const full = try std.fs.path.resolve(t.gpa, &.{ "/", folder, name });
            try t.reach(full[1..]);
        }
    }
};

const Open = struct { indent: usize, line: usize, name: []const u8 };

/// A declaration, a function on one line, or one that gives a type: the type's functions count.
fn hasNoBody(code: []const u8) bool {
    const ends = [_][]const u8{ "}", ";", ") type {" };
    for (ends) |end| if (std.mem.endsWith(u8, code, end)) return true;
    return false;
}

fn mayBeLong(path: []const u8, name: []const u8) bool {
    for (long_functions) |entry| {
        const colon = std.mem.indexOf(u8, entry, ": ").?;
        const same_file = std.mem.endsWith(u8, path, entry[0..colon]);
        if (same_file and std.mem.eql(u8, entry[colon + 2 ..], name)) return true;
    }
    return false;
}

/// The name of the function or test that a line begins.
fn functionName(code: []const u8) ?[]const u8 {
    var rest = code;
    if (std.mem.startsWith(u8, rest, "test ")) return rest[5..];
    for ([_][]const u8{ "pub ", "export ", "extern ", "inline ", "noinline " }) |word| {
        if (std.mem.startsWith(u8, rest, word)) rest = rest[word.len..];
    }
    if (!std.mem.startsWith(u8, rest, "fn ")) return null;
    const end = std.mem.indexOfScalar(u8, rest, '(') orelse return null;
    return rest[3..end];
}

const zig_imports = [_][]const u8{"@import(\""};
const ts_imports = [_][]const u8{ "from \"", "import(\"", "import \"", "new URL(\"" };

/// The text in quotes behind the next of `heads`; moves `at` behind it.
fn quotedAfter(text: []const u8, at: *usize, heads: []const []const u8) ?[]const u8 {
    var begin: ?usize = null;
    for (heads) |head| if (std.mem.indexOfPos(u8, text, at.*, head)) |i| {
        if (begin == null or i + head.len < begin.?) begin = i + head.len;
    };
    const from = begin orelse return null;
    const end = std.mem.indexOfScalarPos(u8, text, from, '"') orelse return null;
    at.* = end + 1;
    return text[from..end];
}

pub fn main(init: std.process.Init) !u8 {
    const gpa = init.arena.allocator();
    const arguments = try init.minimal.args.toSlice(gpa);
    const path = if (arguments.len > 1) arguments[1] else "..";
    var t: Tidy = .{
        .gpa = gpa,
        .io = init.io,
        .root = try Io.Dir.cwd().openDir(init.io, path, .{}),
    };
    try t.read("zig", ".zig");
    try t.read("src", ".ts");
    try t.add("mod.ts");
    for (t.files.items) |f| {
        for (generated) |name| {
            if (std.mem.eql(u8, name, f.path)) break;
        } else t.checkLines(f);
        if (f.isZig()) t.checkFunctions(f);
    }
    for (roots) |root| {
        if (t.find(root) == null) t.report(root, 1, "expected this file", .{});
        try t.reach(root);
    }
    for (t.files.items) |f| {
        if (!f.reached) t.report(f.path, 1, "no program reaches this file", .{});
    }
    if (t.found == 0) return 0;
    std.debug.print("tidy: {d} things to tidy\n", .{t.found});
    return 1;
}

test "names of functions" {
    const expectEqual = std.testing.expectEqual;
    try std.testing.expectEqualStrings("a", functionName("pub inline fn a(x: u32) u32 {").?);
    try std.testing.expectEqualStrings("\"b\" {", functionName("test \"b\" {").?);
    try expectEqual(@as(?[]const u8, null), functionName("const f = fn (u32) void;"));
}

test "imports in order" {
    var at: usize = 0;
    const text = "import { a } from \"./a.ts\"; await import(\"b\"); export * from \"../c.ts\";";
    for ([_][]const u8{ "./a.ts", "b", "../c.ts" }) |name|
        try std.testing.expectEqualStrings(name, quotedAfter(text, &at, &ts_imports).?);
    try std.testing.expectEqual(@as(?[]const u8, null), quotedAfter(text, &at, &ts_imports));
}
