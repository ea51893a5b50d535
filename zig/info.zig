//! What machine this is: CPU level, cores, name, memory.

const std = @import("std");
const builtin = @import("builtin");
const command = @import("command");
const cuda = @import("cuda/main.zig");
const abi = @import("abi.zig");
const device = @import("device.zig");
const exchange = @import("exchange.zig");
const execute = @import("execute.zig");
const handle = @import("handle.zig");
const levels = @import("levels.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;

const x86 = builtin.cpu.arch == .x86_64;

/// `bamba_info`
pub fn tell(of: u32, out: []u8, f: *Failure) Rejected!void {
    try exchange.room(out, @sizeOf(command.Info), f);
    var value = std.mem.zeroes(command.Info);
    value.struct_size = @sizeOf(command.Info);
    value.abi = abi.hash;
    value.cpu_level = levels.best();
    if (of != 0) {
        const d = try handle.get(device.Device, of, f);
        defer d.object.release();
        value.cpu_level = d.level;
        value.threads = d.n_threads;
        if (d.gpu) |gpu| return give(&value, gpu, out);
    }
    value.physical_cores = physicalCores();
    value.logical_cores = logicalCores();
    value.features = features();
    value.optimize_debug = @intFromBool(builtin.mode == .Debug);
    value.total_memory = memory.total();
    value.available_memory = memory.available();
    value.allocated = memory.allocated.load(.monotonic);
    value.mapped = memory.mapped.load(.monotonic);
    value.n_buffers = handle.count(.buffer);
    value.n_plans = handle.count(.plan);
    value.n_jobs = handle.count(.job);
    value.n_files = handle.count(.file);
    value.cuda_status = cuda.state();
    value.bf16_gain = levels.bf16Gain();
    cpuName(&value.cpu_name);
    for (&execute.op_ns, value.op_ns[0..execute.op_ns.len]) |*ns, *to| to.* = ns.load(.monotonic);
    @memcpy(out[0..@sizeOf(command.Info)], std.mem.asBytes(&value));
}

/// The same of a GPU: its memory and name in the place of the host's.
fn give(value: *command.Info, gpu: *cuda.Gpu, out: []u8) void {
    value.physical_cores = physicalCores();
    value.logical_cores = logicalCores();
    value.total_memory = gpu.total;
    value.available_memory = gpu.available();
    value.allocated = gpu.allocated.load(.monotonic);
    value.mapped = memory.mapped.load(.monotonic);
    value.n_buffers = handle.count(.buffer);
    value.n_plans = handle.count(.plan);
    value.n_jobs = handle.count(.job);
    value.n_files = handle.count(.file);
    value.cpu_name = gpu.name;
    @memcpy(out[0..@sizeOf(command.Info)], std.mem.asBytes(value));
}

fn cpuid(leaf: u32, sub: u32) [4]u32 {
    var a: u32 = undefined;
    var b: u32 = undefined;
    var c: u32 = undefined;
    var d: u32 = undefined;
    asm volatile ("cpuid"
        : [a] "={eax}" (a),
          [b] "={ebx}" (b),
          [c] "={ecx}" (c),
          [d] "={edx}" (d),
        : [l] "{eax}" (leaf),
          [s] "{ecx}" (sub),
    );
    return .{ a, b, c, d };
}

fn bit(word: u32, comptime n: u5) bool {
    return word >> n & 1 == 1;
}

/// Instruction sets as `Info.features` numbers them. The flags of CPUID are not enough: XCR0 says
/// whether the system saves the registers.
pub fn features() u32 {
    if (!x86) return 0;
    const one = cpuid(1, 0)[2];
    if (!bit(one, 27)) return 0; // osxsave
    const xcr0 = asm volatile ("xgetbv"
        : [a] "={eax}" (-> u32),
        : [c] "{ecx}" (@as(u32, 0)),
        : .{ .edx = true });
    const seven = cpuid(7, 0);
    const seven_one = if (seven[0] >= 1) cpuid(7, 1) else @as([4]u32, @splat(0));
    const ymm = xcr0 & 0x6 == 0x6;
    const zmm = xcr0 & 0xe6 == 0xe6;
    const tiles = xcr0 & 0x60000 == 0x60000;
    const avx512: u32 = 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31; // f dq cd bw vl
    const found = [_]bool{
        ymm and bit(seven[1], 5),
        ymm and bit(one, 12),
        ymm and bit(one, 29),
        zmm and seven[1] & avx512 == avx512,
        zmm and bit(seven[2], 11),
        zmm and bit(seven_one[0], 5),
        tiles and bit(seven[3], 22),
        tiles and bit(seven[3], 25),
    };
    var mask: u32 = 0;
    for (found, 0..) |has, i| mask |= @as(u32, @intFromBool(has)) << @intCast(i);
    return mask;
}

/// The strongest level whose every instruction this machine has.
pub fn strongestLevel() command.CpuLevel {
    if (!x86) return .portable;
    const mask = features();
    if (mask & 0b111 != 0b111 or !smallExtensions()) return .portable;
    if (mask & 0b1000 == 0) return .v3;
    if (mask & 0b1_0000 == 0) return .v4;
    return if (mask & 0b10_0000 != 0) .v4_bf16 else .v4_vnni;
}

/// The instructions of x86-64-v3 that are no vectors: a virtual machine may hide them.
fn smallExtensions() bool {
    const one = cpuid(1, 0)[2];
    const seven = cpuid(7, 0)[1];
    if (cpuid(0x8000_0000, 0)[0] < 0x8000_0001) return false;
    const lzcnt = bit(cpuid(0x8000_0001, 0)[2], 5);
    const popcnt_movbe = bit(one, 23) and bit(one, 22);
    return lzcnt and popcnt_movbe and bit(seven, 3) and bit(seven, 8); // bmi1, bmi2
}

pub fn cpuName(out: *[64]u8) void {
    @memset(out, 0);
    if (!x86 or cpuid(0x8000_0000, 0)[0] < 0x8000_0004) {
        @memcpy(out[0..@tagName(builtin.cpu.arch).len], @tagName(builtin.cpu.arch));
        return;
    }
    for (0..3) |i| {
        const part: [16]u8 = @bitCast(cpuid(0x8000_0002 + @as(u32, @intCast(i)), 0));
        @memcpy(out[16 * i ..][0..16], &part);
    }
}

pub fn logicalCores() u32 {
    return @intCast(std.Thread.getCpuCount() catch 1);
}

/// Cores, of which a hyperthreaded one counts once, among those this process may use.
pub fn physicalCores() u32 {
    var seen: [1024]u32 = undefined;
    var n: u32 = 0;
    var allowed: std.os.linux.cpu_set_t = @splat(0);
    if (builtin.os.tag != .linux) return logicalCores();
    _ = std.os.linux.sched_getaffinity(0, @sizeOf(@TypeOf(allowed)), &allowed);
    const word_bits = @bitSizeOf(usize);
    for (0..allowed.len * word_bits) |cpu| {
        if (allowed[cpu / word_bits] >> @intCast(cpu % word_bits) & 1 == 0) continue;
        const id = coreId(cpu) orelse return logicalCores();
        if (std.mem.indexOfScalar(u32, seen[0..n], id) != null) continue;
        if (n == seen.len) break;
        seen[n] = id;
        n += 1;
    }
    return @max(n, 1);
}

fn coreId(cpu: usize) ?u32 {
    const package = topology(cpu, "physical_package_id") orelse return null;
    const core = topology(cpu, "core_id") orelse return null;
    return package << 16 | core & 0xffff;
}

fn topology(cpu: usize, name: []const u8) ?u32 {
    var path: [128]u8 = undefined;
    const file = "/sys/devices/system/cpu/cpu{d}/topology/{s}";
    const full = std.fmt.bufPrintZ(&path, file, .{ cpu, name }) catch return null;
    var text: [32]u8 = undefined;
    const content = memory.readSmall(full, &text) orelse return null;
    const digits = std.mem.trim(u8, content, " \n");
    return @bitCast(std.fmt.parseInt(i32, digits, 10) catch return null);
}
