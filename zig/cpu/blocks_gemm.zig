//! Many rows times weights in blocks: a slice of a panel is unpacked once into what one
//! multiply-add instruction takes, and stays in L1 while the tiles of all rows pass over it.
//!
//! - Unsigned bytes meet int8: a run of 32 columns costs 8 multiply-adds of 4 columns, or where
//!   there is no instruction for four, 8 of 2 columns that add up in i16, and one of shorts.
//! - q8_0 there: shorts meet shorts, in 16 multiply-adds of 2 columns.
//!
//! Six rows and two panels pass over a slice at a time, or four in the K types, so that exact sums
//! and f32 sums share the 32 registers of AVX512 and no sum goes through memory between runs; with
//! twice as many rows they did, and a slice took a quarter longer (q8_0; q4_k 11 %, q6_k 29 %). The
//! loop over a run's words stays a loop: unrolled, its loads were moved to the front and half the
//! registers spilled (q4_k 10 %).
//!
//! For each run and output 8 multiply-adds by vpdpbusd are joined by a product of scales (of the
//! integers in the K types, two in q6_k) and an f32 multiply-add on the same two pipes, and in q4_k
//! and q5_k half a multiply-add of minima; conversions and additions have pipes of their own. That
//! is 80 for 64 in q8_0 and q4_0, 86 in q4_k and q5_k, 89 in q6_k. With one core of an AMD EPYC
//! (Zen 4, 3.67 GHz, one vpdpbusd a cycle) to itself, over K 2048: 0.78 of vpdpbusd's rate for q8_0
//! and q4_0, of 0.80 possible, 0.71 for q4_k and q5_k, of 0.74, and 0.69 for q6_k, of 0.72.
//!
//! With AVX2 one panel meets six rows; integers take 12 of the 16 registers and f32 sums stay in
//! memory (`settled`). A multiply-add and its addition take 0.62 cycles (Zen 3, 3.24 GHz), 52
//! operations a cycle of shorts. A core with its weights in L2 reaches 42 of them in q8_0, 135
//! GOP/s, and 180 to 220 GOP/s in the others.
//!
//! The integers of a run are exact, and what they are scaled by is rounded as in `blocks_gemv`:
//! both give the same bits.

const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const gemm = @import("linear_gemm.zig");
const int8 = @import("int8.zig");
const lanes = @import("block_lanes.zig");
const simd = @import("simd.zig");
const unpacking = @import("blocks_unpack.zig");
const Bytes = int8.Bytes;
const DType = command.DType;
const F = simd.F;
const I = simd.I;
const L = simd.L;
const Rows = @import("blocks_rows.zig").Rows;
const Shorts = int8.Shorts;
const Sums = int8.Sums;
pub const Unpacked = unpacking.Unpacked;
const V = lanes.V;
pub const kindOf = unpacking.kindOf;
pub const slice = unpacking.slice;
const width = command.panel;

pub const MR = gemm.MR;
pub const NP = gemm.NP;
/// Rows that pass over a slice together: with AVX512 both their exact sums and those in f32 stay in
/// registers, 12 of each, or of the K types, which sum a block's runs apart, 8 of three kinds.
fn together(comptime dtype: DType) usize {
    return if (simd.has_avx512 and block.columns(dtype) == block.long) 4 else @min(6, MR);
}

/// n blocks of some rows of a tile of h: c[rows][across][16] (+)= x * w.
const PartFn = *const fn (
    n: usize,
    x: Rows,
    h: usize,
    w: [*]const Unpacked,
    c: [*]f32,
    first: bool,
) void;

/// n, unknown to the compiler: it would unroll a loop of so few steps, move all its loads to the
/// front and then run out of registers.
inline fn hidden(n: usize) usize {
    var same = n;
    asm volatile (""
        : [n] "+r" (same),
    );
    return same;
}

fn Part(comptime dtype: DType, comptime rows: usize, comptime across: usize) type {
    return struct {
        const vectors = across * V;
        const Floats = [rows][vectors]F;
        const Integers = [rows][vectors]I;
        const Exact = [rows][vectors]Sums;
        const words = if (kindOf(dtype) == .bytes) 8 else 16;
        const is_long = block.columns(dtype) == block.long;
        const order = lanes.order(dtype);
        /// Words of 4 columns whose products are summed before they are scaled.
        const cut = if (dtype == .q6_k or (dtype == .q5_k and !simd.has_vnni)) 4 else 8;

        inline fn weights(w: [*]const Unpacked, word: usize, j: usize) [*]const u8 {
            return @as([*]const u8, &w[j / V].q) + (word * width + j % V * L) * 4;
        }
        inline fn floats(w: [*]const Unpacked, comptime of: []const u8, i: usize, j: usize) F {
            return simd.ldF(@as([*]const f32, &@field(w[j / V], of)[i]) + j % V * L);
        }

        /// Sums of `cut` words of run r from number `part` * cut on.
        inline fn bytes(
            x: Rows,
            h: usize,
            w: [*]const Unpacked,
            r: usize,
            comptime part: usize,
        ) Exact {
            var e: Exact = undefined;
            inline for (0..rows) |i| e[i] = @splat(switch (dtype) {
                .q4_k, .q5_k => int8.no_sums,
                else => x.start(h, r, part, i),
            });
            var word = r * words + part * cut;
            var at = x.q + word * h;
            for (0..hidden(cut)) |_| {
                var q: [vectors]Bytes = undefined;
                inline for (0..vectors) |j| q[j] = simd.ld(Bytes, weights(w, word, j));
                inline for (0..rows) |i| {
                    const a = int8.splatBytes(at[i]);
                    inline for (0..vectors) |j| e[i][j] = int8.addBytes(e[i][j], q[j], a);
                }
                word += 1;
                at += h;
            }
            return e;
        }
        inline fn shorts(x: Rows, h: usize, w: [*]const Unpacked, r: usize) Integers {
            var sums: Integers = @splat(@splat(@splat(0)));
            var word = r * words;
            var at = x.q + word * h;
            for (0..hidden(words)) |_| {
                var q: [vectors]Shorts = undefined;
                inline for (0..vectors) |j| q[j] = simd.ld(Shorts, weights(w, word, j));
                inline for (0..rows) |i| {
                    const a = int8.splatShorts(at[i]);
                    inline for (0..vectors) |j| sums[i][j] +%= int8.addPairs16(q[j], a);
                }
                word += 1;
                at += h;
            }
            return sums;
        }
        /// sums += by * the sums of a run's part, for all rows and vectors; `by` is x's scale,
        /// times d in blocks of 32.
        inline fn addRun(
            sums: *Floats,
            x: Rows,
            h: usize,
            w: [*]const Unpacked,
            r: usize,
            all: *const Integers,
        ) void {
            const to = settled(sums);
            var d: [vectors]F = undefined;
            if (!is_long) inline for (0..vectors) |j| {
                d[j] = floats(w, "d", r, j);
            };
            inline for (0..rows) |i| {
                const scale = x.scale(h, r, i);
                inline for (0..vectors) |j| {
                    const by = if (is_long) scale else d[j] * scale;
                    to[i][j] = simd.mulAdd(int8.floats(all[i][j]), by, to[i][j]);
                }
            }
        }
        /// Sums in f32 lie in memory where 16 registers have room for integers alone. The compiler
        /// is not to know the place: it would hold them in registers, and move both out and in.
        inline fn settled(sums: *Floats) *Floats {
            if (simd.has_avx512) return sums;
            var same = sums;
            asm volatile (""
                : [same] "+r" (same),
                :
                : .{ .memory = true });
            return same;
        }
        inline fn short(x: Rows, h: usize, w: [*]const Unpacked, r: usize, c: *Floats) void {
            const all = if (kindOf(dtype) == .shorts) shorts(x, h, w, r) else all: {
                const e = bytes(x, h, w, r, 0);
                var all: Integers = undefined;
                inline for (0..rows) |i| inline for (0..vectors) |j| {
                    all[i][j] = int8.whole(e[i][j]);
                };
                break :all all;
            };
            addRun(c, x, h, w, r, &all);
        }
        inline fn factored(
            x: Rows,
            h: usize,
            w: [*]const Unpacked,
            r: usize,
            comptime part: usize,
        ) Integers {
            const e = bytes(x, h, w, r, part);
            const which = if (dtype == .q6_k) part else 0;
            var all: Integers = undefined;
            inline for (0..rows) |i| inline for (0..vectors) |j| {
                all[i][j] = int8.times(e[i][j], w[j / V].factor[r][which][j % V]);
            };
            return all;
        }
        inline fn long(x: Rows, h: usize, w: [*]const Unpacked, b: usize, c: *Floats) void {
            const run0 = b * 8;
            if (dtype != .q6_k) minima(x, h, w, b, c);
            var t: Floats = @splat(@splat(simd.zero));
            for (order) |which| {
                const r = run0 + which;
                var all = factored(x, h, w, r, 0);
                if (cut == 4) {
                    const rest = factored(x, h, w, r, 1);
                    inline for (0..rows) |i| inline for (0..vectors) |j| {
                        all[i][j] +%= rest[i][j];
                    };
                }
                addRun(&t, x, h, w, r, &all);
            }
            inline for (0..vectors) |j| {
                const d = floats(w, "d", b, j);
                inline for (0..rows) |i| c[i][j] = simd.mulAdd(d, t[i][j], c[i][j]);
            }
        }
        inline fn minima(x: Rows, h: usize, w: [*]const Unpacked, b: usize, c: *Floats) void {
            var u: Integers = undefined;
            inline for (0..rows) |i| u[i] = @splat(x.minima(h, b * 8, i));
            for (b * 4..b * 4 + 4) |pair| inline for (0..rows) |i| {
                const totals = x.pair(h, pair, i);
                inline for (0..vectors) |j|
                    u[i][j] = int8.addPairs(u[i][j], w[j / V].min[pair][j % V], totals);
            };
            inline for (0..vectors) |j| {
                const d = -floats(w, "dmin", b, j);
                inline for (0..rows) |i| {
                    const sum = int8.beyond(u[i][j], x.minima(h, b * 8, i));
                    c[i][j] = simd.mulAdd(d, sum, c[i][j]);
                }
            }
        }
        fn run(n: usize, x: Rows, h: usize, w: [*]const Unpacked, c: [*]f32, first: bool) void {
            @setEvalBranchQuota(100_000);
            const place: *Floats = @ptrCast(@alignCast(c));
            var mine: Floats = undefined;
            const sums = if (simd.has_avx512) &mine else place;
            if (first) sums.* = @splat(@splat(simd.zero)) else if (simd.has_avx512) mine = place.*;
            for (0..n) |b| if (is_long) long(x, h, w, b, sums) else short(x, h, w, b, sums);
            if (simd.has_avx512) place.* = mine;
        }
    };
}

fn partOf(comptime dtype: DType, rows: usize, across: usize) PartFn {
    const table = comptime blk: {
        var t: [together(dtype)][NP]PartFn = undefined;
        for (0..together(dtype)) |r| for (0..NP) |p| {
            t[r][p] = Part(dtype, r + 1, p + 1).run;
        };
        break :blk t;
    };
    return table[rows - 1][across - 1];
}

/// All rows of a tile of h, in parts whose heights differ by at most one.
fn tile(
    comptime dtype: DType,
    across: usize,
    n: usize,
    x: Rows,
    h: usize,
    w: [*]const Unpacked,
    c: [*]f32,
    first: bool,
) void {
    const parts = (h + comptime together(dtype) - 1) / comptime together(dtype);
    var from: usize = 0;
    for (1..parts + 1) |i| {
        const to = i * h / parts;
        const part = partOf(dtype, to - from, across);
        part(n, x.below(from), h, w, c + from * across * width, first);
        from = to;
    }
}

/// Asks into L2 for part i of n of the weights that come next, so that no unpacking waits for
/// memory.
fn ask(from: [*]const u8, bytes: usize, i: usize, n: usize) void {
    const lines = (bytes + 63) / 64;
    for (i * lines / n..(i + 1) * lines / n) |line|
        @prefetch(from + line * 64, .{ .locality = 2 });
}

/// Sums of panels [p0, p1) for tiles [t0, t1) of the M rows in `memory`, left in c as
/// [panel group][tile][height][across][16].
pub fn multiply(
    dtype: DType,
    K: usize,
    cut: gemm.Cut,
    t0: usize,
    t1: usize,
    memory: [*]u8,
    w: [*]const u8,
    p0: usize,
    p1: usize,
    c: [*]f32,
    unpacked: *[NP]Unpacked,
) void {
    @setEvalBranchQuota(100_000);
    switch (dtype) {
        inline .q8_0, .q4_0, .q4_k, .q5_k, .q6_k => |d| {
            const columns = comptime block.columns(d);
            const one = comptime block_panel.groupBytes(d);
            const blocks = K / columns;
            var b0: usize = 0;
            while (b0 < blocks) : (b0 += slice / columns) {
                const n = @min(slice / columns, blocks - b0);
                var p = p0;
                var sums = c;
                while (p < p1) : (p += NP) {
                    const across: usize = @min(NP, p1 - p);
                    for (0..across) |j| for (0..n) |b|
                        unpacking.unpack(d, w + ((p + j) * blocks + b0 + b) * one, &unpacked[j], b);
                    const more = p + NP < p1;
                    const next_panel = if (more) p + NP else p0;
                    const next_block = if (more) b0 else b0 + slice / columns;
                    for (t0..t1) |t| {
                        const h = cut.height(t);
                        const x = Rows.at(memory, cut.rows, K, cut.at(t))
                            .from(kindOf(d), h, b0 * columns / int8.columns);
                        for (0..across) |j| {
                            const next = w + ((next_panel + j) * blocks + next_block) * one;
                            ask(next, n * one, t - t0, t1 - t0);
                        }
                        tile(d, across, n, x, h, unpacked, sums, b0 == 0);
                        sums += h * across * width;
                    }
                }
            }
        },
        else => unreachable,
    }
}
