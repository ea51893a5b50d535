//! The CPU levels of this build, and which is this machine's best. Flags decide, but for the level
//! with BF16: there are CPUs whose vdpbf16ps takes four times as long as the f32 multiply-adds that
//! do the same, so that some milliseconds of both decide, once in a process.

const std = @import("std");
const command = @import("command");
const config = @import("config");
const info = @import("info.zig");
const cpu = @import("cpu/level.zig");
const CpuLevel = command.CpuLevel;

const table = entries: {
    var entries: [config.levels.len]struct { CpuLevel, *const cpu.Level } = undefined;
    for (config.levels, 0..) |name, i| {
        const symbol = @extern(*const cpu.Level, .{ .name = name ++ "_level" });
        entries[i] = .{ @field(CpuLevel, name), symbol };
    }
    break :entries entries;
};

/// From this gain on, in thousandths, bf16 is multiplied as such. Zen 4 and 5 have 1800 to 2000,
/// Sapphire Rapids 500: noise does not carry one over to the other.
pub const least_gain = 1300;

/// What the timing said, plus one; 0 until it has.
var timed: std.atomic.Value(u32) = .init(0);

/// The kernels of a level, or null where this build has none. The machine must have the level.
pub fn find(level: CpuLevel) ?*const cpu.Level {
    inline for (table) |entry| if (entry[0] == level) return entry[1];
    return null;
}

/// The level that `auto` takes.
pub fn best() CpuLevel {
    const strongest = info.strongestLevel();
    if (strongest != .v4_bf16 or bf16Gain() >= least_gain) return strongest;
    return .v4_vnni;
}

/// The rate of vdpbf16ps against that of f32 multiply-adds in thousandths; 0 where it is not there.
pub fn bf16Gain() u32 {
    const before = timed.load(.monotonic);
    if (before > 0) return before - 1;
    const gain = measure();
    // Who came first is right for all, so that a process has one best level.
    return if (timed.cmpxchgStrong(0, gain + 1, .monotonic, .monotonic)) |other|
        other - 1
    else
        gain;
}

fn measure() u32 {
    if (info.strongestLevel() != .v4_bf16) return 0;
    const level = find(.v4_bf16) orelse return 0;
    const gain = level.bf16_gain orelse return 0;
    return @intFromFloat(@min(1000 * gain(), 1e6));
}

test "the best level is there, and is timed once" {
    const first = best();
    try std.testing.expect(find(first) != null);
    try std.testing.expectEqual(first, best());
    try std.testing.expectEqual(bf16Gain(), bf16Gain());
}
