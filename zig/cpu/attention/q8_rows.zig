//! Attention of some query rows over one head's pages of 8-bit blocks, in whole numbers: what
//! `rows.zig` does in f32 and `bf16.zig` in pairs of bf16.
//!
//! The order that fixes a row's bits, whatever rows are beside it: queries are scaled, by log2(e)
//! too, and rounded to int8, 32 channels to a scale, as activations of products are. Keys come in
//! blocks of 256 positions from position 0. A score adds groups of 32 channels upwards: the exact
//! sum of products, times the key's scale, by a fused multiply-add with the query's. A weight is
//! 2^(score - the block's largest); the block's weights are summed lane by lane, then in a tree.
//! For a group of 32 channels of V, weights times the scales of V become 15-bit integers, 32767 for
//! the largest scale that the row sees in the block; their products with V are summed exactly, and
//! the block's sum is added as f32. Running maximum and sums are rescaled once a block. Every level
//! does the same; `attention_q8_ref` is the scalar twin.
//!
//! Error beside a product with the f32 that pages hold: of a query's number 1/254 of the largest of
//! its 32, of a weight 1/65534 of the block's largest and 1e-4 of itself.
//! Ideas: vpdpbusd takes 64 products an instruction for K, whose pages are laid out for it, and
//! vpdpwssd 32 for V, which is widened on its way from memory or, for up to 96 rows, once. K's
//! offset for unsigned bytes is in the sums' start. Integers have no order to keep, and what a row
//! does not see has weight 0 and may hold anything.
//! Few rows ask for V while they read K, and for the next block's K while they read V.
//! Work: 4 hd operations a query head and key; a decoded token reads 2.125 hd bytes a key and head.
//! Reached, 2 cores of Zen 4, 27 November 2026, 16 heads of 128 over 4 kv heads: a token behind
//! 32,767 takes 1.26 ms, 28 GB/s where plain reads give 33 to 37 (pages of bf16 2.4 ms); in L2 38
//! GB/s, which is what its arithmetic allows. 512 tokens behind 7,680 take 84 ms (bf16 87).

const std = @import("std");
const simd = @import("../simd.zig");
const int8 = @import("../int8.zig");
const pages = @import("pages.zig");
const q8 = @import("q8.zig");
const bf16 = @import("bf16.zig");
const row_zig = @import("../row.zig");
const rows_zig = @import("rows.zig");
const values = @import("q8_values.zig");
const Part = rows_zig.Part;
const F = simd.F;
const I = simd.I;
const U = simd.U;
const L = simd.L;

pub const block = 256;
pub const group = q8.group;
/// Quads of channels in a group.
const quads = group / q8.quad;
/// Vectors that hold a group's channels.
pub const vecs = group / L;
/// Rows of a register tile.
pub const high = if (simd.has_avx512) 12 else 4;
pub const pairs = block / 2;
/// Positions whose weights become one vector of pairs: i and i + 16.
pub const both = 2 * q8.across;
const minus_infinity = -std.math.inf(f32);

/// The largest weight as an integer.
pub const whole = 32767;
/// Adding it leaves a whole number below 2^16 in the low bits of an f32.
pub const magic = 0x1.8p23;
/// What a group's scales are multiplied by, so that the largest becomes `whole`.
pub fn inverse(largest: f32) f32 {
    return if (largest == 0) 0 else whole / largest;
}
/// A query as it is multiplied: one group of channels.
pub fn query(x: [*]const f32, scale: f32) int8.Block {
    var scaled: [group]f32 = undefined;
    const factor = simd.splat(scale * std.math.log2e);
    for (0..vecs) |i| simd.st(@as([*]f32, &scaled) + i * L, simd.ldF(x + i * L) * factor);
    return int8.quantize(&scaled);
}

/// One thread's memory for a tile of rows, as `attention_rows.Rows`.
pub const Rows = struct {
    pub const rows_max = 96;
    pub const block_tokens = block;

    n: usize,
    hd: usize,
    groups: usize,
    /// Tiles of `high` rows: (hd / 4, high) quads of int8
    q: [*]u32,
    /// Tiles of `high` rows: (groups, high) scales, and what sums start with
    scale: [*]f32,
    start: [*]i32,
    /// (n, 256): scores, then what they are worth beside the block's largest
    worth: [*]f32,
    /// (n, 128) pairs of weights of one group
    weights: [*]u32,
    /// (n, hd)
    values: [*]f32,
    /// Each n numbers: the largest so far and in the block, and what earlier values and the block's
    /// are worth beside the largest of all
    max: [*]f32,
    top: [*]f32,
    sum: [*]f32,
    keep: [*]f32,
    add_: [*]f32,
    /// A weight's unit in the group at hand
    unit: [*]f32,
    /// Each row's own position
    position: [*]usize,
    /// 256 scales of V, each as a multiple of the group's unit
    scaled: [*]f32,
    /// A block's 32 channels of V in pairs of i16
    buffer: [*]u32,

    const small_arrays = 8;
    pub fn floats(hd: usize) usize {
        const rows = rows_max * (hd / q8.quad + 2 * (hd / group) + block + pairs + hd);
        return rows + rows_max * small_arrays + block + pairs * group;
    }
    pub fn init(n: usize, hd: usize, mem: [*]f32) Rows {
        const groups = hd / group;
        var at = mem;
        const take = struct {
            fn take(from: *[*]f32, count: usize) [*]f32 {
                defer from.* += count;
                return from.*;
            }
        }.take;
        return .{
            .n = n,
            .hd = hd,
            .groups = groups,
            .position = @ptrCast(@alignCast(take(&at, 2 * rows_max))),
            .buffer = @ptrCast(take(&at, pairs * group)),
            .scaled = take(&at, block),
            .q = @ptrCast(take(&at, rows_max * hd / q8.quad)),
            .scale = take(&at, rows_max * groups),
            .start = @ptrCast(take(&at, rows_max * groups)),
            .worth = take(&at, rows_max * block),
            .weights = @ptrCast(take(&at, rows_max * pairs)),
            .values = take(&at, rows_max * hd),
            .max = take(&at, rows_max),
            .top = take(&at, rows_max),
            .sum = take(&at, rows_max),
            .keep = take(&at, rows_max),
            .add_ = take(&at, rows_max),
            .unit = take(&at, rows_max),
        };
    }
    pub fn part(s: Rows, r: usize) Part {
        return .{ .max = &s.max[r], .sum = &s.sum[r], .values = s.values + r * s.hd };
    }
    pub fn clear(s: Rows) void {
        simd.fill(s.max, s.n, minus_infinity);
        simd.fill(s.sum, s.n, 0);
        simd.fill(s.values, s.n * s.hd, 0);
    }
    /// Takes row r's query and attention's own scale.
    pub fn setQuery(s: Rows, r: usize, from: [*]const f32, scale: f32) void {
        const first = r / high * high;
        const i = r % high;
        for (0..s.groups) |g| {
            const b = query(from + g * group, scale);
            const to = s.q + (first * s.groups + g * high) * quads + i;
            for (0..quads) |c| to[c * high] = simd.ld(u32, @as([*]const i8, &b.q) + c * 4);
            const at = first * s.groups + g * high + i;
            s.scale[at] = b.scale;
            s.start[at] = if (int8.offset == 0) 0 else @bitCast(b.startOfAll(int8.offset));
        }
    }
    /// Adds b, gathered over later keys, to a.
    pub const merge = bf16.Rows.merge;

    /// Takes in the block whose first position is `first`; rows see keys before `end`.
    pub fn add(s: Rows, head: pages.Head, first: usize, end: usize) void {
        const most = s.seen(s.n - 1, first);
        s.score(head, first, most);
        for (0..s.n) |r| s.soften(r, s.seen(r, first), most);
        s.settle();
        for (0..s.groups) |g| {
            values.weigh(s, head, g, first, most);
            values.addValues(s, head, g, first, most, end);
        }
    }
    /// Keys of the block from position `first` on that row r sees.
    pub fn seen(s: Rows, r: usize, first: usize) usize {
        return @min(block, (s.position[r] + 1) -| first);
    }
    /// The row behind a tile's last.
    pub fn tileEnd(s: Rows, r: usize) usize {
        return @min(s.n, r + high);
    }

    fn score(s: Rows, head: pages.Head, first: usize, most: usize) void {
        const few = s.n <= high;
        var key: usize = 0;
        while (key < most) : (key += both) {
            const at = (first + key) % pages.page_tokens;
            const k = Keys{
                .page = head.page(1, first + key),
                .at = at,
                .ahead = head.page(2, first + key) + q8.numbersAt(s.hd) + at * s.hd,
            };
            if (few and at == 0) s.askScales(head.page(2, first + key));
            var r: usize = 0;
            while (r < s.n) : (r += high) {
                if (s.seen(s.tileEnd(r) - 1, first) <= key) continue;
                switch (s.tileEnd(r) - r) {
                    inline 1...high => |rows| if (few)
                        s.scoreTile(rows, true, r, key, k)
                    else
                        s.scoreTile(rows, false, r, key, k),
                    else => unreachable,
                }
            }
        }
    }
    pub fn askScales(s: Rows, page: [*]const u8) void {
        var at: usize = 0;
        while (at < q8.numbersAt(s.hd)) : (at += 64) @prefetch(page + at, .{ .locality = 2 });
    }
    /// 32 keys of a page, the first one's place in it, and V of the same positions.
    const Keys = struct { page: [*]const u8, at: usize, ahead: [*]const u8 };
    /// Few rows wait for memory: they ask for as many bytes of V as they read of K.
    inline fn scoreTile(
        s: Rows,
        comptime rows: usize,
        comptime asks: bool,
        r: usize,
        key: usize,
        k: Keys,
    ) void {
        // As many vectors of keys at once as there are registers for.
        @setEvalBranchQuota(100_000);
        const wide = if (simd.has_avx512 and rows <= 6) 2 else 1;
        const start = s.start + r * s.groups;
        const scale = s.scale + r * s.groups;
        var done: usize = 0;
        while (done < both) : (done += wide * L) {
            const ahead = k.ahead + done * s.hd;
            var sums: [rows][wide]F = @splat(@splat(simd.zero));
            for (0..s.groups) |g| {
                var products: [rows][wide]I = undefined;
                inline for (&products, 0..) |*row, i|
                    row.* = @splat(@splat(start[g * high + i]));
                for (g * quads..(g + 1) * quads) |c| {
                    const q = s.q + r * s.groups * quads + c * high;
                    inline for (0..wide) |v| {
                        const at = q8.keyIndex(s.hd, k.at + done + v * L, c * q8.quad);
                        const from = k.page + q8.numbersAt(s.hd) + at;
                        const keys = int8.offsetBytes(simd.ld(int8.Signed, from));
                        if (asks)
                            @prefetch(ahead + (c * wide + v) * 4 * L, .{ .locality = 2 });
                        inline for (&products, 0..) |*row, i|
                            row[v] = int8.addQuads(row[v], keys, int8.splatBytes(q[i]));
                    }
                }
                inline for (0..wide) |v| {
                    const scales = k.page + g * q8.scale_bytes;
                    const d = simd.ldAs(.f16, scales, k.at + done + v * L);
                    inline for (&sums, &products, 0..) |*sum, row, i| {
                        const by = simd.splat(scale[g * high + i]);
                        sum[v] = simd.mulAdd(int8.floats(row[v]) * d, by, sum[v]);
                    }
                }
            }
            inline for (&sums, 0..) |*row, i| inline for (row, 0..) |x, v|
                simd.st(s.worth + (r + i) * block + key + done + v * L, x);
        }
    }

    /// Scores to what they are worth, zeros behind the n that row r sees; the largest of them and
    /// the sum of their worths.
    fn soften(s: Rows, r: usize, n: usize, most: usize) void {
        const x = s.worth + r * block;
        const end = std.mem.alignForward(usize, most, both);
        s.top[r] = minus_infinity;
        s.add_[r] = 0;
        if (n == 0) return simd.fill(x, end, 0);
        simd.fill(x + n, end - n, minus_infinity);
        var largest: [2]F = @splat(simd.splat(minus_infinity));
        var i: usize = 0;
        while (i < end) : (i += 2 * L) inline for (&largest, 0..) |*l, v| {
            l.* = simd.max(l.*, simd.ldF(x + i + v * L));
        };
        const max = simd.maxLane(simd.max(largest[0], largest[1]));
        var sums: row_zig.Sums = .{};
        i = 0;
        while (i < end) : (i += both) inline for (&sums.a, 0..) |*sum, v| {
            const w = bf16.power(simd.ldF(x + i + v * L) - simd.splat(max));
            simd.st(x + i + v * L, w);
            sum.* += w;
        };
        s.top[r] = max;
        s.add_[r] = sums.total();
    }
    /// Every row's new maximum, its factors and its sum; `add_` has held the block's sum.
    fn settle(s: Rows) void {
        const log2: F = @splat(std.math.ln2);
        var r: usize = 0;
        while (r < s.n) : (r += L) {
            const before = simd.ldF(s.max + r);
            const here = simd.ldF(s.top + r);
            const now = @max(before, here);
            const none = now == simd.splat(minus_infinity);
            const keep = @select(f32, none, simd.splat(1), simd.exp((before - now) * log2));
            const more = @select(f32, none, simd.zero, simd.exp((here - now) * log2));
            const sum = simd.mulAdd(simd.ldF(s.sum + r), keep, simd.ldF(s.add_ + r) * more);
            simd.st(s.max + r, now);
            simd.st(s.keep + r, keep);
            simd.st(s.sum + r, sum);
            simd.st(s.add_ + r, more);
        }
    }
};
