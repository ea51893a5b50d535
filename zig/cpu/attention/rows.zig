//! Attention of some query rows over one head's pages: scores, online softmax and weighted values,
//! a page at a time. A row is one query head of one token; rows of all heads that share a key/value
//! head go together, tokens upwards.
//!
//! The order that fixes a row's bits, whatever rows are beside it: a score sums over channels
//! upwards; a page's 64 weights are summed lane by lane, then in a tree; values are added over
//! positions upwards; running maximum and sums are rescaled once a page. Keys beyond the row's own
//! position are not multiplied at all, so that their memory may hold anything.
//!
//! Ideas: both products are register tiles; a page's K (8 KB for 16 keys of 128) and V (8 KB for 16
//! channels) stay in L1 while up to 48 rows pass over them; for few rows V is walked 16 keys at
//! a time, so that memory is read in order.

const std = @import("std");
const simd = @import("../simd.zig");
const tile = @import("../tile.zig");
const pages = @import("pages.zig");
const q8 = @import("q8.zig");
const DType = @import("command").DType;
const F = simd.F;
const L = simd.L;

const keys = pages.page_tokens;
const minus_infinity = -std.math.inf(f32);

/// One head's part of a page.
pub const Page = struct { p: [*]const u8, dtype: DType };

/// What a row has gathered over some pages: the largest score, the sum of exp(score - largest), and
/// the values weighted so.
pub const Part = struct { max: *f32, sum: *f32, values: [*]f32 };

/// Adds b to a, of which `add` and `keep` are worth what they were under the new maximum.
pub fn mergeBy(a: Part, b: Part, hd: usize, max: f32, keep: f32, add: f32) void {
    a.max.* = max;
    a.sum.* = simd.mulAdd1(a.sum.*, keep, b.sum.* * add);
    const keeps = simd.splat(keep);
    const adds = simd.splat(add);
    var d: usize = 0;
    while (d + L <= hd) : (d += L) {
        const more = simd.ldF(b.values + d) * adds;
        simd.st(a.values + d, simd.mulAdd(simd.ldF(a.values + d), keeps, more));
    }
    while (d < hd) : (d += 1)
        a.values[d] = simd.mulAdd1(a.values[d], keep, b.values[d] * add);
}

/// Takes `n_rows` rows of n numbers, `stride` apart from number i of a page on, as f32 to rows of
/// `width` floats, filled up with zeros.
fn widen(
    page: Page,
    i: usize,
    n_rows: usize,
    stride: usize,
    n: usize,
    width: usize,
    out: [*]f32,
) void {
    switch (page.dtype) {
        else => unreachable,
        inline .f32, .bf16, .f16 => |dtype| for (0..n_rows) |row| {
            const from = page.p + (i + row * stride) * simd.size(dtype);
            const to = out + row * width;
            var at: usize = 0;
            while (at + L <= n) : (at += L) simd.st(to + at, simd.ldAs(dtype, from, at));
            while (at < n) : (at += 1) to[at] = simd.get(dtype, from, at);
            while (at < width) : (at += 1) to[at] = 0;
        },
    }
}

/// Two vectors of keys from key `first` on, as f32 with the keys across.
fn widenKeys(page: Page, first: usize, hd: usize, out: [*]f32) void {
    const n = tile.width * hd;
    if (page.dtype == .q8_0) {
        q8.widenKeys(page.p, hd, first, tile.width / pages.block, out);
    } else widen(page, first * hd, 1, 0, n, n, out);
}

/// `n` values from `first` on: channels d .. d + width, zeros beyond the last.
fn widenValues(
    page: Page,
    first: usize,
    n: usize,
    hd: usize,
    d: usize,
    width: usize,
    out: [*]f32,
) void {
    widen(page, first * hd + d, n, hd, @min(width, hd - d), width, out);
}

/// Products of some rows with a head's K page, whose n_keys keys are visible to some row.
pub const Scores = struct {
    /// (n, hd)
    q: tile.Tiles,
    n: usize,
    hd: usize,
    /// (n, 64), the result
    out: [*]f32,
    /// Room for hd * 64 numbers
    buffer: [*]f32,

    /// `next` is what will be read after the page. Few rows wait for memory: at each step they ask
    /// for as many bytes of it as they read of the page. Many ask for the same bytes every time.
    pub fn run(s: Scores, page: Page, n_keys: usize, next: [*]const u8) void {
        const size = if (page.dtype == .q8_0) 1 else simd.size(page.dtype);
        const few = s.n <= tile.rows_max;
        var key: usize = 0;
        while (key < n_keys) : (key += tile.width) {
            var k = s.buffer;
            if (page.dtype == .f32) {
                k = @ptrCast(@alignCast(@constCast(page.p)));
                k += key * s.hd;
            } else widenKeys(page, key, s.hd, s.buffer);
            const right = tile.Right{
                .p = k,
                .step = pages.block,
                // Where a block of 16 keys is one vector, the second vector is the next block.
                .vec = if (L == pages.block) s.hd * L else L,
                .ahead = .{
                    .p = next + key * s.hd * size,
                    .step = if (few) tile.width * size else 0,
                },
            };
            var r: usize = 0;
            while (r < s.n) : (r += tile.rows_max) switch (@min(tile.rows_max, s.n - r)) {
                inline 1...tile.rows_max => |rows| s.block(rows, r, key, right),
                else => unreachable,
            };
        }
    }
    inline fn block(s: Scores, comptime rows: usize, r: usize, key: usize, k: tile.Right) void {
        var sums: tile.Sums(rows, tile.vecs) = @splat(@splat(simd.zero));
        tile.mulAdd(rows, tile.vecs, &sums, s.hd, s.q.left(r), k);
        inline for (0..rows) |i| inline for (0..tile.vecs) |v|
            simd.st(s.out + (r + i) * keys + key + v * L, sums[i][v]);
    }
};

/// One thread's memory for a tile of rows.
pub const Rows = struct {
    /// Whole register tiles of 6 and of 8.
    pub const rows_max = 48;
    pub const block_tokens = keys;

    n: usize,
    hd: usize,
    /// Floats from one row's values to the next
    pitch: usize,
    /// (n, hd), scaled
    q: tile.Tiles,
    /// (n, 64): scores, then weights
    weights: [*]f32,
    /// (n, pitch)
    values: [*]f32,
    /// Each n numbers; `factor` is what values are worth after the page's new maximum
    max: [*]f32,
    sum: [*]f32,
    factor: [*]f32,
    /// Each row's own position
    position: [*]usize,
    /// 64 pitch floats: some of a page's numbers as f32, side by side
    buffer: [*]f32,

    pub fn floats(hd: usize) usize {
        return rows_max * (2 * whole(hd) + keys + 5) + keys * whole(hd);
    }
    fn whole(hd: usize) usize {
        return std.mem.alignForward(usize, hd, L);
    }
    pub fn init(n: usize, hd: usize, mem: [*]f32) Rows {
        const wide = whole(hd);
        const small = mem + rows_max * (2 * wide + keys) + keys * wide;
        return .{
            .n = n,
            .hd = hd,
            .pitch = wide,
            .q = .{ .p = mem, .steps = hd },
            .values = mem + rows_max * wide,
            .weights = mem + rows_max * 2 * wide,
            .buffer = mem + rows_max * (2 * wide + keys),
            .position = @ptrCast(@alignCast(small)),
            .max = small + 2 * rows_max,
            .sum = small + 3 * rows_max,
            .factor = small + 4 * rows_max,
        };
    }
    pub fn part(s: Rows, r: usize) Part {
        return .{ .max = &s.max[r], .sum = &s.sum[r], .values = s.values + r * s.pitch };
    }
    /// Takes row r's query, times `scale`.
    pub fn setQuery(s: Rows, r: usize, from: [*]const f32, scale: f32) void {
        s.q.set(r, from, scale);
    }
    /// Adds b, gathered over later keys, to a.
    pub fn merge(a: Part, b: Part, hd: usize) void {
        const max = @max(a.max.*, b.max.*);
        mergeBy(a, b, hd, max, simd.exp1(a.max.* - max), simd.exp1(b.max.* - max));
    }
    pub fn clear(s: Rows) void {
        @memset(s.max[0..s.n], minus_infinity);
        @memset(s.sum[0..s.n], 0);
        @memset(s.values[0 .. s.n * s.pitch], 0);
    }
    /// Keys of the page from position `first` on that row r sees.
    fn seen(s: Rows, r: usize, first: usize) usize {
        return @min(keys, (s.position[r] + 1) -| first);
    }

    /// Takes in the page whose first position is `first`.
    pub fn add(s: Rows, head: pages.Head, first: usize, _: usize) void {
        const k = Page{ .p = head.page(1, first), .dtype = head.t.operands[1].dtype };
        const v = Page{ .p = head.page(2, first), .dtype = head.t.operands[2].dtype };
        const most = s.seen(s.n - 1, first);
        const products = Scores{
            .q = s.q,
            .n = s.n,
            .hd = s.hd,
            .out = s.weights,
            .buffer = s.buffer,
        };
        products.run(k, most, v.p);
        for (0..s.n) |r| s.soften(r, s.seen(r, first));
        s.addValues(first, v, most);
    }

    /// Scores to weights, and the factor for what the row has gathered before.
    fn soften(s: Rows, r: usize, n: usize) void {
        s.factor[r] = 1;
        if (n == 0) return;
        const w = s.weights + r * keys;
        if (n < keys) @memset(w[n..keys], minus_infinity);
        var top = simd.ldF(w);
        inline for (1..keys / L) |i| top = simd.max(top, simd.ldF(w + i * L));
        const max = @max(s.max[r], simd.maxLane(top));
        s.factor[r] = simd.exp1(s.max[r] - max);
        s.max[r] = max;
        var sums = simd.zero;
        inline for (0..keys / L) |i| {
            const e = simd.exp(simd.ldF(w + i * L) - simd.splat(max));
            simd.st(w + i * L, e);
            sums += e;
        }
        s.sum[r] = simd.mulAdd1(s.sum[r], s.factor[r], simd.sum(sums));
    }

    /// values[r] = values[r] * factor[r] + sum over keys of weight * V
    fn addValues(s: Rows, first: usize, page: Page, most: usize) void {
        // Few rows read V in the order in which it lies. Many first gather the columns at hand:
        // rows a power of two apart would push each other out of L1.
        const few = s.n <= tile.rows_max;
        const direct = few and page.dtype == .f32 and s.pitch == s.hd;
        const step: usize = if (few) 16 else keys;
        var k: usize = 0;
        while (k < most) : (k += step) {
            const end = @min(k + step, most);
            var d: usize = 0;
            inline for (.{ 2, 1 }) |v| while (d + v * L <= s.pitch) : (d += v * L) {
                var right = tile.Right{ .p = s.buffer, .step = v * L };
                if (direct) {
                    right.p = @ptrCast(@alignCast(page.p + (k * s.hd + d) * 4));
                    right.step = s.hd;
                } else {
                    widenValues(page, k, end - k, s.hd, d, v * L, s.buffer);
                }
                s.columns(v, d, first, k, end, right);
            };
        }
    }

    /// Channels from d on, keys k0 .. k1 of the page; `v` starts at key k0.
    fn columns(
        s: Rows,
        comptime vecs: usize,
        d: usize,
        first: usize,
        k0: usize,
        k1: usize,
        v: tile.Right,
    ) void {
        var r: usize = 0;
        while (r < s.n) : (r += tile.rows_max) switch (@min(tile.rows_max, s.n - r)) {
            inline 1...tile.rows_max => |rows| {
                var counts: [rows]usize = undefined;
                for (&counts, r..) |*c, i| c.* = @min(k1, s.seen(i, first)) -| k0;
                s.columnsTile(rows, vecs, d, r, k0, counts, v);
            },
            else => unreachable,
        };
    }
    inline fn columnsTile(
        s: Rows,
        comptime rows: usize,
        comptime vecs: usize,
        d: usize,
        r: usize,
        k0: usize,
        counts: [rows]usize,
        v_rows: tile.Right,
    ) void {
        const values = s.values + r * s.pitch + d;
        var sums: tile.Sums(rows, vecs) = undefined;
        inline for (0..rows) |i| {
            const factor = simd.splat(if (k0 == 0) s.factor[r + i] else 1);
            inline for (0..vecs) |v|
                sums[i][v] = simd.ldF(values + i * s.pitch + v * L) * factor;
        }
        const left = tile.Left{ .p = s.weights + r * keys + k0, .row = keys, .step = 1 };
        tile.mulAddRagged(rows, vecs, &sums, counts, left, v_rows);
        inline for (0..rows) |i| inline for (0..vecs) |v|
            simd.st(values + i * s.pitch + v * L, sums[i][v]);
    }
};
