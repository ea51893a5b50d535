//! The library from one source of kernels at several CPU levels, the bindings, and the tests.
//!
//!   zig build                the library, into zig-out/lib
//!   zig build -Dlevel=v4     the same for CPUs of one level only: quick
//!   zig build -Dnvcc=PATH    the same with CUDA kernels, compiled by this nvcc where they changed
//!   zig build test           core and kernels, these once for each level the machine has
//!   zig build test -Dtarget=aarch64-linux-musl    the same, where qemu-aarch64 runs programs
//!   zig build bindings       ../src/native/bindings.gen.ts
//!   zig build tidy | fuzz | overhead

const std = @import("std");
const Build = std.Build;

const Feature = std.Target.x86.Feature;
const Level = struct {
    name: []const u8,
    cpu: ?*const std.Target.Cpu.Model = null,
    /// Instructions beyond those of `cpu`.
    more: []const Feature = &.{},
    /// What the build machine must have to run the level's tests.
    needs: ?Feature = null,
    /// Parts of the names of the tests in which the level differs from the one before; none: all.
    differs: []const []const u8 = &.{},
};
const x86_levels = [_]Level{
    .{ .name = "portable", .cpu = &std.Target.x86.cpu.x86_64 },
    .{ .name = "v3", .cpu = &std.Target.x86.cpu.x86_64_v3, .needs = .avx2 },
    .{ .name = "v4", .cpu = &std.Target.x86.cpu.x86_64_v4, .needs = .avx512vl },
    .{
        .name = "v4_vnni",
        .cpu = &std.Target.x86.cpu.x86_64_v4,
        .more = &.{.avx512vnni},
        .needs = .avx512vnni,
        .differs = &.{ "attention", "block", "int8", "linear", "measure" },
    },
    .{
        .name = "v4_bf16",
        .cpu = &std.Target.x86.cpu.x86_64_v4,
        .more = &.{ .avx512vnni, .avx512bf16 },
        .needs = .avx512bf16,
        .differs = &.{ "attention", "bf16", "linear", "measure" },
    },
};
const other_levels = [_]Level{.{ .name = "portable" }};

const Context = struct {
    b: *Build,
    target: Build.ResolvedTarget,
    optimize: std.builtin.OptimizeMode,
    levels: []const Level,
    filters: []const []const u8,
    command: *Build.Module,
    /// The compiled kernels of ../kernels, or none.
    images: *Build.Module,

    /// A module of this folder.
    fn module(c: Context, root: []const u8, target: Build.ResolvedTarget) *Build.Module {
        return c.b.createModule(.{
            .root_source_file = c.b.path(root),
            .target = target,
            .optimize = c.optimize,
            .link_libc = true,
            .strip = c.optimize != .Debug,
            .pic = true,
            .imports = &.{.{ .name = "command", .module = c.command }},
        });
    }

    /// The core with the kernels of all levels.
    fn core(c: Context, root: []const u8) *Build.Module {
        const made = c.module(root, c.target);
        const names = c.b.allocator.alloc([]const u8, c.levels.len) catch @panic("OOM");
        for (c.levels, names) |level, *name| name.* = level.name;
        const config = c.b.addOptions();
        config.addOption([]const []const u8, "levels", names);
        made.addOptions("config", config);
        made.addImport("kernels", c.images);
        for (c.levels) |level| made.addObject(c.b.addObject(.{
            .name = c.b.fmt("kernels_{s}", .{level.name}),
            .root_module = c.kernels(level),
            .use_llvm = true,
        }));
        return made;
    }

    /// The kernels of one level. In a Debug build they keep their checks but are not slow.
    fn kernels(c: Context, level: Level) *Build.Module {
        var query = c.target.query;
        if (level.cpu) |cpu| query.cpu_model = .{ .explicit = cpu };
        query.cpu_features_add.addFeatureSet(std.Target.x86.featureSet(level.more));
        const made = c.module("cpu/main.zig", c.b.resolveTargetQuery(query));
        made.optimize = if (c.optimize == .Debug) .ReleaseSafe else c.optimize;
        const options = c.b.addOptions();
        options.addOption([]const u8, "prefix", level.name);
        made.addOptions("level", options);
        return made;
    }
};

pub fn build(b: *Build) void {
    const host = b.graph.host.result;
    // An old glibc: the library then loads on old distributions too. -Dtarget=… overrides.
    const target = b.standardTargetOptions(.{ .default_target = .{
        .cpu_arch = host.cpu.arch,
        .os_tag = .linux,
        .abi = .gnu,
        .glibc_version = .{ .major = 2, .minor = 17, .patch = 0 },
    } });
    const optimize = b.option(std.builtin.OptimizeMode, "optimize", "default: ReleaseFast") orelse
        .ReleaseFast;
    const filter = b.option([]const u8, "test-filter", "part of the names of the tests to run");
    const level = b.option([]const u8, "level", "the only CPU level to build; default: all");
    const nvcc = b.option([]const u8, "nvcc", "compiles the CUDA kernels; default: none are built");
    const c: Context = .{
        .b = b,
        .images = cudaImages(b, nvcc),
        .target = target,
        .optimize = optimize,
        .levels = pick(target.result.cpu.arch, level),
        .filters = if (filter) |text|
            b.allocator.dupe([]const u8, &.{text}) catch @panic("OOM")
        else
            &.{},
        .command = b.createModule(.{ .root_source_file = b.path("command.zig") }),
    };
    b.installArtifact(b.addLibrary(.{
        .name = "bamba",
        .linkage = .dynamic,
        .root_module = c.core("lib.zig"),
        .use_llvm = true,
    }));
    addTests(c, b.step("test", "Tests of core and kernels"));
    addBindings(b, c.command);
    addTool(c, "tidy", "Style of the Zig files", "tidy.zig");
    addTool(c, "fuzz", "Mutated plans, commands, handles", "fuzz.zig");
    addTool(c, "overhead", "Cost of a phase and of a run", "testing/overhead.zig");
}

/// All levels, or the one of that name.
fn pick(arch: std.Target.Cpu.Arch, name: ?[]const u8) []const Level {
    const levels: []const Level = if (arch == .x86_64) &x86_levels else &other_levels;
    const wanted = name orelse return levels;
    for (levels, 0..) |level, i|
        if (std.mem.eql(u8, level.name, wanted)) return levels[i..][0..1];
    std.debug.panic("Expected level to be a CPU level of the target but found {s}", .{wanted});
}

/// Files of ../kernels that are compiled.
const cuda_stems = [_][]const u8{
    "advance",               "attention",         "attention_decode",      "attention_sm90",
    "blocks",                "blocks_chain_sm90", "blocks_decode",         "blocks_gemm_sm90",
    "conv1d",                "embedding",         "linear_decode",         "linear_fp8",
    "linear_fp8_batch_sm90", "linear_fp8_sm90",   "logits_process",        "loss",
    "linear_batch_sm90",     "linear_gemm_sm90",  "norm",                  "peaks",
    "reference",             "rope",              "sample",                "ssm_scan_sm90",
    "ssm_update",            "attention_mma",     "blocks_mma",            "linear_mma",
    "linear_fp8_mma",        "attention_combine", "attention_decode_sm90", "rows_chain_sm90",
};
const cuda_headers = [_][]const u8{
    "attention_decode.cuh", "attention_pages.cuh", "batch_sm90.cuh", "blocks.cuh",
    "blocks_int8.cuh",      "chain.cuh",           "chain_ring.cuh", "common.cuh",
    "e4m3.cuh",             "gemm_results.cuh",    "gemm_sm90.cuh",  "hopper.cuh",
    "linear_tile.cuh",      "mma.cuh",             "ssm_update.cuh", "wgmma.cuh",
};
/// Code for Hopper with its own instructions, and PTX that runs on every card since Ampere.
const cuda_targets = [_][]const u8{
    "-gencode", "arch=compute_90a,code=sm_90a",
    "-gencode", "arch=compute_80,code=compute_80",
};

/// A module whose `images` holds stem and bytes of each compiled file.
fn cudaImages(b: *Build, nvcc: ?[]const u8) *Build.Module {
    const files = b.addWriteFiles();
    var data: []const u8 = "";
    var table: []const u8 = "";
    if (nvcc) |compiler| for (cuda_stems) |stem| {
        const image = b.fmt("{s}.fatbin", .{stem});
        const run = b.addSystemCommand(&.{ compiler, "-fatbin", "-std=c++17", "-O3" });
        run.addArgs(&cuda_targets);
        run.addFileArg(b.path(b.fmt("../kernels/{s}.cu", .{stem})));
        for (cuda_headers) |header|
            run.addFileInput(b.path(b.fmt("../kernels/{s}", .{header})));
        // nvcc hands paths to a shell, whose signs an absolute one may hold: "$" above all.
        run.addArgs(&.{ "-o", "/dev/stdout" });
        _ = files.addCopyFile(run.captureStdOut(.{ .basename = image }), image);
        const line = "const {s} align(64) = @embedFile(\"{s}\").*;\n";
        data = b.fmt("{s}" ++ line, .{ data, stem, image });
        table = b.fmt("{s}    .{{ .stem = \"{s}\", .data = &{s} }},\n", .{ table, stem, stem });
    };
    const text = b.fmt(
        \\pub const Image = struct {{ stem: []const u8, data: *const anyopaque }};
        \\{s}pub const images = [_]Image{{
        \\{s}}};
        \\
    , .{ data, table });
    return b.createModule(.{ .root_source_file = files.add("kernels.zig", text) });
}

fn addTests(c: Context, step: *Build.Step) void {
    const b = c.b;
    if (!runsHere(c)) return step.dependOn(Note.create(b, b.fmt(
        "skipped: the tests for {0s} need the program qemu-{0s} (Debian: qemu-user-static)",
        .{@tagName(c.target.result.cpu.arch)},
    )));
    const core = b.addTest(.{
        .name = "core",
        .root_module = c.core("lib.zig"),
        .filters = c.filters,
        .use_llvm = true,
    });
    step.dependOn(&b.addRunArtifact(core).step);
    const fuzz = b.addTest(.{
        .name = "fuzz",
        .root_module = c.core("fuzz.zig"),
        .filters = if (c.filters.len > 0) c.filters else &.{"fuzz."},
        .use_llvm = true,
    });
    step.dependOn(&b.addRunArtifact(fuzz).step);
    if (c.target.result.abi.isGnu()) step.dependOn(addEmulated(c));
    for (c.levels) |level| {
        if (!runs(c, level)) {
            const text = b.fmt("skipped: this machine has no level {s}", .{level.name});
            step.dependOn(Note.create(b, text));
            continue;
        }
        const kernels = b.addTest(.{
            .name = b.fmt("kernels {s}", .{level.name}),
            .root_module = c.kernels(level),
            .filters = if (c.filters.len > 0) c.filters else level.differs,
            .use_llvm = true,
        });
        step.dependOn(&b.addRunArtifact(kernels).step);
    }
}

/// Tests that run CUDA kernels for every card on the CPU: `cuda/emulated/common.cuh`.
fn addEmulated(c: Context) *Build.Step {
    const b = c.b;
    const sources = b.addWriteFiles();
    const kernels = [_][]const u8{
        "attention_combine.cu",     "attention_decode.cu",  "attention_decode.cuh",
        "attention_decode_sm90.cu", "attention_mma.cu",     "attention_sm90.cu",
        "attention_pages.cuh",      "batch_sm90.cuh",       "blocks.cuh",
        "blocks_chain_sm90.cu",     "blocks_gemm_sm90.cu",  "blocks_int8.cuh",
        "blocks_mma.cu",            "chain.cuh",            "chain_ring.cuh",
        "e4m3.cuh",                 "embedding.cu",         "gemm_results.cuh",
        "gemm_sm90.cuh",            "linear_batch_sm90.cu", "linear_fp8_batch_sm90.cu",
        "linear_fp8_mma.cu",        "linear_gemm_sm90.cu",  "linear_mma.cu",
        "mma.cuh",                  "rows_chain_sm90.cu",   "ssm_scan_sm90.cu",
        "ssm_update.cu",            "ssm_update.cuh",
    };
    for (kernels) |name|
        _ = sources.addCopyFile(b.path(b.fmt("../kernels/{s}", .{name})), name);
    for ([_][]const u8{ "common.cuh", "steps.cuh", "hopper.cuh", "wgmma.cuh" }) |name|
        _ = sources.addCopyFile(b.path(b.fmt("cuda/emulated/{s}", .{name})), name);
    const root = c.module("emulated.zig", c.target);
    for ([_][]const u8{ "kernels.cpp", "kernels_sm90.cpp" }) |name| root.addCSourceFile(.{
        .file = sources.addCopyFile(b.path(b.fmt("cuda/emulated/{s}", .{name})), name),
        .flags = &.{ "-std=c++17", "-fno-exceptions", "-fno-sanitize=undefined" },
    });
    const tests = b.addTest(.{
        .name = "emulated kernels",
        .root_module = root,
        .filters = c.filters,
        .use_llvm = true,
    });
    return &b.addRunArtifact(tests).step;
}

/// Whether programs for the target run on the machine that builds: QEMU runs another CPU's.
fn runsHere(c: Context) bool {
    const b = c.b;
    const target = c.target.result;
    if (target.os.tag != b.graph.host.result.os.tag) return false;
    if (target.cpu.arch == b.graph.host.result.cpu.arch) return true;
    const name = b.fmt("qemu-{s}", .{@tagName(target.cpu.arch)});
    _ = b.findProgram(&.{name}, &.{}) catch return false;
    b.enable_qemu = true;
    return true;
}

/// Whether the machine that builds can run this level.
fn runs(c: Context, level: Level) bool {
    const host = c.b.graph.host.result;
    if (c.target.result.cpu.arch != host.cpu.arch) return level.needs == null;
    const needed = level.needs orelse return true;
    return std.Target.x86.featureSetHas(host.cpu.features, needed);
}

/// Says in the output that tests were skipped.
const Note = struct {
    step: Build.Step,
    text: []const u8,

    fn create(b: *Build, text: []const u8) *Build.Step {
        const note = b.allocator.create(Note) catch @panic("OOM");
        note.* = .{
            .step = .init(.{
                .id = .custom,
                .name = "skipped tests",
                .owner = b,
                .makeFn = tell,
            }),
            .text = text,
        };
        return &note.step;
    }
    fn tell(step: *Build.Step, _: Build.Step.MakeOptions) !void {
        const note: *Note = @fieldParentPtr("step", step);
        std.debug.print("{s}\n", .{note.text});
    }
};

fn addBindings(b: *Build, command: *Build.Module) void {
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

/// A program over the core that a step of its name runs.
fn addTool(c: Context, name: []const u8, what: []const u8, root: []const u8) void {
    const b = c.b;
    b.build_root.handle.access(b.graph.io, root, .{}) catch return;
    const tool = b.addExecutable(.{ .name = name, .root_module = c.core(root), .use_llvm = true });
    const run = b.addRunArtifact(tool);
    run.setCwd(b.path("."));
    if (b.args) |args| run.addArgs(args);
    b.step(name, what).dependOn(&run.step);
}
