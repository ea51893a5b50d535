//! Attention of some query rows over one head's pages of bf16, where the CPU multiplies pairs of
//! bf16 (level v4_bf16) and the heads are large: what `rows.zig` does in f32.
//!
//! The order that fixes a row's bits, whatever rows are beside it: queries are scaled, by log2(e)
//! too, and rounded to bf16, once. Keys come in blocks of 256 positions from position 0. A score
//! sums pairs of channels upwards, by `bf16.dot`; a weight is 2^(score - largest), rounded to bf16;
//! a block's weights are summed as rounded, pair by pair, lane i of 16 taking pairs i, i + 16, ..
//! and then in a tree; values add pairs of positions upwards. Running maximum and sums are rescaled
//! once a block. Keys beyond the row's own position are not multiplied at all, so that their memory
//! may hold anything. `attention_bf16_ref` is the scalar twin.
//!
//! Ideas: both products are register tiles of 12 rows x 32; 32 keys' K and 32 channels' V are
//! paired up once for up to 96 rows, which pass over them in L1, while the next ones are asked for;
//! up to 12 rows (a decoded token's heads) pair them up on their way from memory, whose V is asked
//! for while K is read and the next K while V is. A weight takes 11 operations for 16 keys, half of
//! what `simd.exp` would: an error of 1e-4 is well below that of rounding to bf16.
//! Work: 4 hd flops a query head and key; a decoded token reads 4 hd bytes a key and kv head.
//! Reached, 2 cores of Zen 4, 27 November 2026, 16 heads of 128 over 4 kv heads: 0.80 of the rate
//! of vdpbf16ps for 512 tokens behind 7,680 (`rows.zig` 0.31), of which softmax takes 9 % and
//! pairing up 2 %; a token behind 32,767 reads 31 GB/s where plain reads give 37 to 42.

const std = @import("std");
const builtin = @import("builtin");
const simd = @import("../simd.zig");
const bf16 = @import("../bf16.zig");
const tile = @import("../tile_bf16.zig");
const pages = @import("pages.zig");
const rows_zig = @import("rows.zig");
const command = @import("command");
const DType = command.DType;
const Part = rows_zig.Part;
const F = simd.F;
const U = simd.U;
const L = simd.L;

/// Whether pages of this kind are multiplied here. Their shape alone decides, as that of a matrix
/// does in `linear_bf16`: small models keep the results of every other level.
pub fn takes(dtype: DType, kv_heads: usize, hd: usize) bool {
    return simd.has_avx512bf16 and dtype == .bf16 and kv_heads * hd >= least_channels;
}
const least_channels = if (builtin.is_test) 100 else command.bf16_channels;

const block = 256;
const high = tile.rows_max;
const width = tile.width;
/// Blocks of a K page that a tile takes at once.
const across = width / pages.block;
const minus_infinity = -std.math.inf(f32);
const Queries = tile.Left(1, high);
const Weights = tile.Left(block / 2, 1);

/// 2^x for x <= 0, relative error below 1e-4; 0 below -126.
pub inline fn power(x: F) F {
    // The magic number leaves round(x) in the low bits of t.
    const t = x + simd.splat(0x1.8p23);
    const r = x - (t - simd.splat(0x1.8p23));
    var q = simd.mulAdd(simd.splat(0.05517166), r, simd.splat(0.24261113));
    q = simd.mulAdd(q, r, simd.splat(0.69326097));
    q = simd.mulAdd(q, r, simd.splat(0.99992806));
    const scaled: U = @as(U, @bitCast(q)) +% (@as(U, @bitCast(t)) << @splat(23));
    return @select(f32, x < simd.splat(-126), simd.zero, @as(F, @bitCast(scaled)));
}
/// What was gathered under one maximum is worth this under another.
pub fn rescale(from: f32, to: f32) f32 {
    return simd.exp1((from - to) * std.math.ln2);
}
/// One number of a query as it is multiplied.
pub fn query(x: f32, scale: f32) u16 {
    return bf16.round1(x * (scale * std.math.log2e));
}

/// One thread's memory for a tile of rows, as `rows.zig`'s `Rows`.
pub const Rows = struct {
    pub const rows_max = 8 * high;
    pub const block_tokens = block;

    n: usize,
    hd: usize,
    /// Pairs of channels
    pairs: usize,
    /// Floats from one row's values to the next: whole tiles
    pitch: usize,
    /// Whether numbers are used once, straight from the pages
    direct: bool,
    /// Tiles of 12 rows: (pairs, 12)
    q: [*]u32,
    /// (n, 256)
    scores: [*]f32,
    /// (n, 128) pairs
    weights: [*]u32,
    /// (n, pitch)
    values: [*]f32,
    /// Each n numbers; `factor` is what values are worth after the block's new maximum
    max: [*]f32,
    sum: [*]f32,
    factor: [*]f32,
    /// Each row's own position
    position: [*]usize,
    /// 32 keys' K or 32 channels' V of a block, paired up
    buffer: [*]u32,

    pub fn floats(hd: usize) usize {
        const pairs = (hd + 1) / 2;
        const rows = rows_max * (pairs + block + block / 2 + whole(hd) + 5);
        return rows + width * @max(pairs, block / 2);
    }
    fn whole(hd: usize) usize {
        return std.mem.alignForward(usize, hd, width);
    }
    pub fn init(n: usize, hd: usize, mem: [*]f32) Rows {
        const pairs = (hd + 1) / 2;
        const scores = mem + rows_max * pairs;
        const weights = scores + rows_max * block;
        const values = weights + rows_max * block / 2;
        const small = values + rows_max * whole(hd);
        return .{
            .n = n,
            .hd = hd,
            .pairs = pairs,
            .pitch = whole(hd),
            .direct = n <= high and hd % width == 0,
            .q = @ptrCast(mem),
            .scores = scores,
            .weights = @ptrCast(weights),
            .values = values,
            .position = @ptrCast(@alignCast(small)),
            .max = small + 2 * rows_max,
            .sum = small + 3 * rows_max,
            .factor = small + 4 * rows_max,
            .buffer = @ptrCast(small + 5 * rows_max),
        };
    }
    pub fn part(s: Rows, r: usize) Part {
        return .{ .max = &s.max[r], .sum = &s.sum[r], .values = s.values + r * s.pitch };
    }
    /// Values are set by a span's first block.
    pub fn clear(s: Rows) void {
        @memset(s.max[0..s.n], minus_infinity);
        @memset(s.sum[0..s.n], 0);
    }
    /// Takes row r's query and attention's own scale.
    pub fn setQuery(s: Rows, r: usize, from: [*]const f32, scale: f32) void {
        const to = s.q + r / high * high * s.pairs + r % high;
        const factor = simd.splat(scale * std.math.log2e);
        var k: usize = 0;
        while (k < s.pairs) : (k += L / 2) {
            const left = s.hd - 2 * k;
            const x = if (left >= L) simd.ldF(from + 2 * k) else simd.ldTail(from + 2 * k, left);
            const pairs: [L / 2]u32 = @bitCast(bf16.round(x * factor));
            for (pairs[0..@min(L / 2, s.pairs - k)], k..) |pair, i| to[i * high] = pair;
        }
    }
    /// Adds b, gathered over later keys, to a.
    pub fn merge(a: Part, b: Part, hd: usize) void {
        const max = @max(a.max.*, b.max.*);
        rows_zig.mergeBy(a, b, hd, max, rescale(a.max.*, max), rescale(b.max.*, max));
    }

    /// Takes in the block whose first position is `first`; rows see keys before `end`.
    pub fn add(s: Rows, head: pages.Head, first: usize, end: usize) void {
        const most = s.seen(s.n - 1, first);
        s.score(head, first, most);
        for (0..s.n) |r| s.soften(r, s.seen(r, first));
        s.addValues(head, first, most, end);
    }
    /// Keys of the block from position `first` on that row r sees.
    fn seen(s: Rows, r: usize, first: usize) usize {
        return @min(block, (s.position[r] + 1) -| first);
    }
    /// The row behind a tile's last.
    fn tileEnd(s: Rows, r: usize) usize {
        return @min(s.n, r + high);
    }

    fn score(s: Rows, head: pages.Head, first: usize, most: usize) void {
        const tiles = (s.n + high - 1) / high;
        var key: usize = 0;
        while (key < most) : (key += width) {
            const k = s.panel(head, 1, first + key);
            const v = s.panel(head, 2, first + key);
            if (s.direct) {
                const ahead = tile.Ahead{ .p = v, .step = width * 4 };
                s.scoreTile(0, key, tile.Across{ .p = k, .block = s.keyBytes(), .ahead = ahead });
                continue;
            }
            tile.pairAcross(s.hd, k, s.keyBytes(), s.buffer);
            const next = s.panel(head, 1, first + if (key + width < most) key + width else key);
            // Half of the tiles ask for these keys' V, half for the next keys' K.
            const asking = (tiles + 1) / 2;
            const bytes = across * s.keyBytes() / asking;
            for (0..tiles) |i| {
                if (s.seen(s.tileEnd(i * high) - 1, first) <= key) continue;
                const from = if (i < asking) next + i * bytes else v + (i - asking) * bytes;
                const ahead = tile.Ahead{ .p = from, .step = bytes / s.pairs };
                s.scoreTile(i * high, key, tile.Packed(true){ .p = s.buffer, .ahead = ahead });
            }
        }
    }
    /// Bytes of 16 keys, or of as many values.
    fn keyBytes(s: Rows) usize {
        return pages.block * 2 * s.hd;
    }
    /// Where operand i has the 32 keys or values from a position on.
    fn panel(s: Rows, head: pages.Head, i: usize, position: usize) [*]u8 {
        const at = position % pages.page_tokens / pages.block;
        return head.page(i, position) + at * s.keyBytes();
    }
    inline fn scoreTile(s: Rows, r: usize, key: usize, k: anytype) void {
        switch (s.tileEnd(r) - r) {
            inline 1...high => |rows| {
                var sums: tile.Sums(rows) = @splat(@splat(simd.zero));
                tile.mulAdd(rows, &sums, s.pairs, Queries{ .p = s.q + r * s.pairs }, k);
                inline for (&sums, 0..) |*row, i| inline for (row, 0..) |x, v|
                    simd.st(s.scores + (r + i) * block + key + v * L, x);
            },
            else => unreachable,
        }
    }

    /// Scores to weights, and the factor for what the row has gathered before.
    fn soften(s: Rows, r: usize, n: usize) void {
        s.factor[r] = 1;
        if (n == 0) return;
        const x = s.scores + r * block;
        const w = s.weights + r * (block / 2);
        const end = std.mem.alignForward(usize, n, width);
        @memset(x[n..end], minus_infinity);
        var top: [2]F = @splat(simd.splat(s.max[r]));
        var i: usize = 0;
        while (i < end) : (i += width) inline for (&top, 0..) |*t, v| {
            t.* = simd.max(t.*, simd.ldF(x + i + v * L));
        };
        const max = simd.maxLane(simd.max(top[0], top[1]));
        var sums = simd.zero;
        i = 0;
        while (i < end) : (i += width) {
            var halves: [2]@Vector(L, u16) = undefined;
            inline for (&halves, 0..) |*half, v|
                half.* = bf16.round(power(simd.ldF(x + i + v * L) - simd.splat(max)));
            const pairs: U = @bitCast(halves);
            simd.st(w + i / 2, pairs);
            sums = bf16.dot(sums, pairs, bf16.splat(ones));
        }
        s.factor[r] = rescale(s.max[r], max);
        s.max[r] = max;
        s.sum[r] = simd.mulAdd1(s.sum[r], s.factor[r], simd.sum(sums));
    }

    /// values[r] = values[r] * factor[r] + sum over keys of weight * V
    fn addValues(s: Rows, head: pages.Head, first: usize, most: usize, end: usize) void {
        const step: usize = if (s.direct) pages.page_tokens else block;
        var k: usize = 0;
        while (k < most) : (k += step) {
            // The next block's keys.
            const later = first + block + k;
            const next = s.panel(head, 1, if (later < end) later else first + k);
            var d: usize = 0;
            while (d < s.pitch) : (d += width) {
                if (s.direct) {
                    const v = tile.Along{
                        .p = head.page(2, first + k) + d * 2,
                        .stride = s.hd * 2,
                        .ahead = .{ .p = next + d * 2 * step, .step = width * 4 },
                    };
                    s.columns(d, first, k, @min(k + step, most), v);
                } else {
                    s.pairValues(head, first, most, d);
                    s.columns(d, first, 0, most, tile.Packed(false){ .p = s.buffer });
                }
            }
        }
    }
    /// Channels from d on of the block's first `most` values, two by two.
    fn pairValues(s: Rows, head: pages.Head, first: usize, most: usize, d: usize) void {
        var k: usize = 0;
        while (k < most) : (k += pages.page_tokens) {
            const n = (@min(pages.page_tokens, most - k) + 1) / 2;
            const v = head.page(2, first + k) + d * 2;
            tile.pairAlong(n, @min(width, s.hd - d), v, s.hd * 2, s.buffer + k / 2 * width);
        }
    }
    /// Channels from d on, keys k0 .. k1 of the block; `v` starts at key k0.
    inline fn columns(s: Rows, d: usize, first: usize, k0: usize, k1: usize, v: anytype) void {
        var r: usize = 0;
        while (r < s.n) : (r += high) switch (s.tileEnd(r) - r) {
            inline 1...high => |rows| {
                var counts: [rows]usize = undefined;
                for (&counts, r..) |*c, i| c.* = @min(k1, s.seen(i, first)) -| k0;
                const fresh = k0 == 0 and first % pages.span_tokens == 0;
                if (fresh or counts[rows - 1] > 0)
                    s.columnsTile(rows, d, r, k0, counts, fresh, v);
            },
            else => unreachable,
        };
    }
    inline fn columnsTile(
        s: Rows,
        comptime rows: usize,
        d: usize,
        r: usize,
        k0: usize,
        counts: [rows]usize,
        fresh: bool,
        v: anytype,
    ) void {
        const values = s.values + r * s.pitch + d;
        var sums: tile.Sums(rows) = @splat(@splat(simd.zero));
        if (!fresh) inline for (&sums, 0..) |*row, i| {
            const factor = simd.splat(if (k0 == 0) s.factor[r + i] else 1);
            inline for (row, 0..) |*x, j|
                x.* = simd.ldF(values + i * s.pitch + j * L) * factor;
        };
        const w = Weights{ .p = s.weights + r * (block / 2) + k0 / 2 };
        tile.mulAddRagged(rows, &sums, counts, w, v);
        inline for (&sums, 0..) |*row, i| inline for (row, 0..) |x, j|
            simd.st(values + i * s.pitch + j * L, x);
    }
};
/// Two times 1 in bf16.
const ones = 0x3f803f80;
