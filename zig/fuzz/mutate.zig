//! Changes to bytes that lie: single bits, words that are often wrong, words from elsewhere.

const std = @import("std");
const Random = std.Random;

/// Numbers at the edges of what checks compare with.
const edges = [_]u32{
    0,           1,           2,           3,           7,           15,          16,
    17,          63,          64,          65,          0x7fff,      0x8000,      0xffff,
    0x1_0000,    0xff_ffff,   0x100_0000,  0x100_0001,  0x7fff_ffff, 0x8000_0000, 0xffff_fffe,
    0xffff_ffff, 0x7fc0_0000, 0x7f80_0000, 0xff80_0000, 0x3f80_0000, 0xbf80_0000, 0x8000_0001,
    0x4000_0000, 0x0000_1000, 0xffff_ffc0, 0xffff_ff9c,
};

/// Changes one to four places.
pub fn mutate(random: Random, bytes: []u8) void {
    const n = 1 + @ctz(random.int(u8) | 8);
    for (0..n) |_| one(random, bytes);
}

fn one(random: Random, bytes: []u8) void {
    if (bytes.len < 8) return;
    const words = bytes.len / 4;
    const at = random.uintLessThan(usize, words) * 4;
    const word = bytes[at..][0..4];
    const old = std.mem.readInt(u32, word, .little);
    const from = random.uintLessThan(usize, words) * 4;
    const other = std.mem.readInt(u32, bytes[from..][0..4], .little);
    const new: u32 = switch (random.uintLessThan(u8, 8)) {
        0 => old ^ (@as(u32, 1) << random.int(u5)),
        1 => edges[random.uintLessThan(usize, edges.len)],
        2 => old +% 1,
        3 => old -% 1,
        4 => other,
        5 => random.int(u32) >> random.int(u5),
        6 => old *% 2,
        else => {
            std.mem.writeInt(u32, bytes[from..][0..4], old, .little);
            return std.mem.writeInt(u32, word, other, .little);
        },
    };
    std.mem.writeInt(u32, word, new, .little);
}

/// Exchanges or repeats a record among many of the same kind.
pub fn mutateRecords(comptime T: type, random: Random, bytes: []u8) void {
    const records = std.mem.bytesAsSlice(T, bytes);
    if (records.len < 2) return;
    const size = @sizeOf(T);
    const a = bytes[random.uintLessThan(usize, records.len) * size ..][0..size];
    const b = bytes[random.uintLessThan(usize, records.len) * size ..][0..size];
    if (a.ptr == b.ptr) return;
    if (random.boolean()) return @memcpy(a, b);
    for (a, b) |*x, *y| std.mem.swap(u8, x, y);
}
