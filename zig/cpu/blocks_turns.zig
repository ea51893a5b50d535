//! One row times weights in blocks of 256 columns where vectors have 16 registers and there is no
//! instruction for four products (AVX2): four panels take turns, one part of a block each, whose
//! exact sums are four registers. Word by word over four panels, as `blocks_gemv` goes, they are
//! sixteen, and a third of all instructions moved them to the stack and back.
//!
//! A core that looks 256 instructions ahead sees two thirds of a KiB of q4_k, and a miss takes as
//! long as several times that: by itself its time for memory and its time for arithmetic add up.
//! So lines are asked for in the order in which a walk word by word would meet them: with each word
//! of one panel one or two lines of all four by turns, 1 KiB ahead of their places.
//!
//! A KiB of weights takes some 400 instructions. One core of an AMD EPYC (Zen 3, 28 November 2026)
//! with its weights in L2 goes through 36 GB/s of q4_k and 33 of q6_k; both cores, with weights in
//! memory that gives 32 to 34, through 0.93 of that in q4_k, 0.90 in q5_k and 0.79 in q6_k. Where
//! nothing is asked for a fifth less.

const command = @import("command");
const block = @import("block.zig");
const block_panel = @import("block_panel.zig");
const int8 = @import("int8.zig");
const lanes = @import("block_lanes.zig");
const simd = @import("simd.zig");
const DType = command.DType;
const F = simd.F;
const I = simd.I;
const L = simd.L;
const Rows = @import("blocks_rows.zig").Rows;
const Sums = int8.Sums;
const V = lanes.V;
const width = command.panel;

/// Panels that take turns.
pub const streams = 4;
/// How far ahead of its place in a stream a line is asked for.
const ahead = 1024;
/// Words of a turn: of two runs of 32 columns.
const words = 8;

/// Whether a type's rows come here one by one.
pub fn takes(dtype: DType) bool {
    return simd.has_avx2 and !simd.has_avx512 and block.columns(dtype) == block.long;
}

/// Sums of `streams` panels of n blocks, `apart` bytes from one another: 16 of each at c.
pub fn add(
    comptime dtype: DType,
    n: usize,
    w: [*]const u8,
    apart: usize,
    x: Rows,
    c: [*]f32,
) void {
    var sums: [streams][V]F = @splat(@splat(simd.zero));
    for (0..n) |b| {
        const at = w + b * comptime block_panel.groupBytes(dtype);
        addBlocks(dtype, &sums, at, apart, x.from(.bytes, 1, b * 8));
    }
    for (&sums, 0..) |*s, p| inline for (0..V) |v| simd.st(c + p * width + v * L, s[v]);
}

inline fn addBlocks(
    comptime dtype: DType,
    sums: *[streams][V]F,
    w: [*]const u8,
    apart: usize,
    x: Rows,
) void {
    var finer: [streams]lanes.Finer = undefined;
    if (dtype != .q6_k) for (&finer, sums, 0..) |*f, *s, p| {
        f.unpack(dtype, w + p * apart);
        minima(dtype, s, w + p * apart, x, f);
    };
    var t: [streams][V]F = @splat(@splat(simd.zero));
    inline for (0..comptime lanes.parts(dtype)) |part| for (0..streams) |p| {
        const ask: Ask = .{ .w = w, .apart = apart, .turn = p };
        turn(dtype, &t[p], w + p * apart, x, part, &finer[p], ask);
    };
    for (sums, &t, 0..) |*s, *of, p| inline for (0..V) |v| {
        const d = lanes.half(dtype, "d", w + p * apart, v);
        s[v] = simd.mulAdd(d, of[v], s[v]);
    };
}

/// What a turn asks for of all four panels' same part.
const Ask = struct {
    w: [*]const u8,
    apart: usize,
    turn: usize,

    /// What is due at word g: of the part's lines a fourth of those of each panel, panel by panel,
    /// and what does not go into four of the turn's own.
    inline fn step(a: Ask, comptime dtype: DType, comptime part: usize, comptime g: usize) void {
        const parts = comptime lanes.parts(dtype);
        const lines = comptime (block_panel.groupBytes(dtype) + 63) / 64;
        const first = part * lines / parts;
        const n = (part + 1) * lines / parts - first;
        const each = n / streams;
        const rest = n % streams;
        const from = a.w + ahead + first * 64;
        const all = each * streams;
        inline for (all * g / words..all * (g + 1) / words) |i| line(from +
            i % streams * a.apart + (a.turn * each + i / streams) * 64);
        inline for (rest * g / words..rest * (g + 1) / words) |i|
            line(from + a.turn * a.apart + (all + i) * 64);
    }
    inline fn line(p: [*]const u8) void {
        @prefetch(p, .{ .locality = 2 });
    }
};

/// Adds the two runs of a part of one panel to t. How far sums may go `blocks_gemv` says.
inline fn turn(
    comptime dtype: DType,
    t: *[V]F,
    w: [*]const u8,
    x: Rows,
    comptime part: usize,
    finer: *const lanes.Finer,
    ask: Ask,
) void {
    const runs = comptime lanes.runs(dtype, part);
    const cut = if (dtype == .q4_k) words else words / 2;
    var exact: [2][V]I = @splat(@splat(@splat(0)));
    inline for (0..words / cut) |h| {
        var e: [2][V]Sums = undefined;
        inline for (runs, &e) |run, *sums|
            sums.* = @splat(if (dtype == .q6_k) x.start(1, run, h, 0) else int8.no_sums);
        inline for (h * cut..(h + 1) * cut) |g| {
            ask.step(dtype, part, g);
            inline for (0..V) |v| {
                const q = lanes.pair(dtype, w, part, g, v);
                inline for (runs, q, &e) |run, bytes, *sums|
                    sums[v] = int8.addBytes(sums[v], bytes, x.bytes(1, run, g, 0));
            }
            inOrder(&e);
        }
        inline for (runs, &e, &exact) |run, *sums, *all| inline for (0..V) |v| {
            const by = if (dtype == .q6_k)
                lanes.factor16(w, 2 * run + h, v)
            else
                finer.factor(run, v);
            all[v] +%= int8.times(sums[v], by);
        };
    }
    inline for (runs, &exact) |run, *all| inline for (0..V) |v| {
        t[v] = simd.mulAdd(int8.floats(all[v]), x.scale(1, run, 0), t[v]);
    };
}

/// Keeps the words of a turn in their order: with all loads in front registers would not do.
inline fn inOrder(e: *[2][V]Sums) void {
    inline for (e) |*run| inline for (run) |*sums| {
        var same = sums.*;
        asm volatile (""
            : [same] "+x" (same),
        );
        sums.* = same;
    };
}

inline fn minima(
    comptime dtype: DType,
    s: *[V]F,
    w: [*]const u8,
    x: Rows,
    finer: *const lanes.Finer,
) void {
    const start = x.minima(1, 0, 0);
    inline for (0..V) |v| {
        var u = start;
        inline for (0..4) |pair|
            u = int8.addPairs(u, finer.minima(pair, v), x.pair(1, pair, 0));
        const d = -lanes.half(dtype, "dmin", w, v);
        s[v] = simd.mulAdd(d, int8.beyond(u, start), s[v]);
    }
}
