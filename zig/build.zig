//! The library from one source of kernels at several CPU levels, the bindings, and the tests.

const std = @import("std");

const Level = struct { name: []const u8, cpu: ?*const std.Target.Cpu.Model };
const x86_levels = [_]Level{
    .{ .name = "portable", .cpu = &std.Target.x86.cpu.x86_64 },
    .{ .name = "v3", .cpu = &std.Target.x86.cpu.x86_64_v3 },
    .{ .name = "v4", .cpu = &std.Target.x86.cpu.x86_64_v4 },
};
const other_levels = [_]Level{.{ .name = "portable", .cpu = null }};

pub fn build(b: *std.Build) void {
    // An old glibc: the library then loads on old distributions too. -Dtarget=… overrides.
    const target = b.standardTargetOptions(.{ .default_target = .{
        .cpu_arch = b.graph.host.result.cpu.arch,
        .os_tag = .linux,
        .abi = .gnu,
        .glibc_version = .{ .major = 2, .minor = 17, .patch = 0 },
    } });
    const optimize = b.option(std.builtin.OptimizeMode, "optimize", "default: ReleaseFast") orelse
        .ReleaseFast;
    const x86 = target.result.cpu.arch == .x86_64;
    const levels: []const Level = if (x86) &x86_levels else &other_levels;
    const command = b.createModule(.{ .root_source_file = b.path("command.zig") });

    const lib = b.createModule(.{
        .root_source_file = b.path("lib.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .strip = optimize != .Debug,
        .pic = true,
        .imports = &.{.{ .name = "command", .module = command }},
    });
    const config = b.addOptions();
    var names: [x86_levels.len][]const u8 = undefined;
    for (levels, 0..) |level, i| names[i] = level.name;
    config.addOption([]const []const u8, "levels", names[0..levels.len]);
    lib.addOptions("config", config);
    const run_tests = b.step("test", "Zig tests, kernels once for each level this machine has");
    for (levels) |level| {
        var query = target.query;
        if (level.cpu) |cpu| query.cpu_model = .{ .explicit = cpu };
        const prefix = b.addOptions();
        prefix.addOption([]const u8, "prefix", level.name);
        const kernels = b.createModule(.{
            .root_source_file = b.path("cpu/main.zig"),
            .target = b.resolveTargetQuery(query),
            .optimize = if (optimize == .Debug) .ReleaseSafe else optimize,
            .strip = optimize != .Debug,
            .pic = true,
            .link_libc = true,
            .imports = &.{.{ .name = "command", .module = command }},
        });
        kernels.addOptions("level", prefix);
        const object = b.addObject(.{
            .name = b.fmt("kernels_{s}", .{level.name}),
            .root_module = kernels,
            .use_llvm = true,
        });
        lib.addObject(object);
    }
    b.installArtifact(b.addLibrary(.{
        .name = "bamba",
        .linkage = .dynamic,
        .root_module = lib,
        .use_llvm = true,
    }));
    _ = run_tests;

    const generator = b.addExecutable(.{
        .name = "bindings",
        .root_module = b.createModule(.{
            .root_source_file = b.path("bindings.zig"),
            .target = b.graph.host,
            .imports = &.{.{ .name = "command", .module = command }},
        }),
    });
    const update = b.addUpdateSourceFiles();
    const printed = b.addRunArtifact(generator).captureStdOut(.{});
    update.addCopyFileToSource(printed, "../src/native/bindings.gen.ts");
    b.step("bindings", "Write src/native/bindings.gen.ts").dependOn(&update.step);
}
