//! ssm_update: one step of the state space model for sequences of one token each.
//!
//! Contract: dt = clamp(softplus(dt + dt_bias), dt_min, dt_max), A = -exp(A_log),
//!   state[h][n][p] = exp(dt A) state + (dt B[n]) x[p],  y[p] = sum_n C[n] state[n][p] + D x[p]
//! with the state (H, N, P) of the sequence's slot, read as zeros where past_len is 0. It is
//! computed in f32 and rounded to the slot's dtype when it is written; y sees it before.
//! Work: 5 N P flops and 8 N P bytes a head (read and written; 4 N P where the state is bf16 or
//! f16), so memory decides.
//! Ideas: lanes over P so that nothing is summed across lanes; one walk over the state, all of a
//! head's columns (P = 64) at once: y in registers, x from L1.
//! Reached: 16 GB/s read and as much written by one Zen3 core (AVX2); 42 GB/s read and as much
//! written by two cores of Zen 4 (27 November 2026, reads alone 60), states in huge pages (pages of
//! 4 KiB: 27).

const std = @import("std");
const simd = @import("simd.zig");
const kernel_zig = @import("kernel.zig");
const state_zig = @import("ssm_state.zig");
const Task = kernel_zig.Task;
const DType = kernel_zig.DType;
const F = simd.F;
const L = simd.L;

/// Operand and attribute numbers, and sizes, that ssm_scan and ssm_update share.
pub const Shape = struct {
    heads: usize,
    p: usize,
    groups: usize,
    n: usize,

    pub fn of(t: *const Task) Shape {
        const a = t.attrs;
        return .{ .heads = a[0], .p = a[1], .groups = a[2], .n = a[3] };
    }
    pub fn group(s: Shape, head: usize) usize {
        return head / (s.heads / s.groups);
    }
    pub fn x(s: Shape, t: *const Task, row: usize, head: usize) [*]const f32 {
        return t.row(0, row) + head * s.p;
    }
    pub fn b(s: Shape, t: *const Task, row: usize, g: usize) [*]const f32 {
        return t.row(2, row) + g * s.n;
    }
    pub fn c(s: Shape, t: *const Task, row: usize, g: usize) [*]const f32 {
        return t.row(3, row) + g * s.n;
    }
    pub fn y(s: Shape, t: *const Task, row: usize, head: usize) [*]f32 {
        return t.row(8, row) + head * s.p;
    }
    /// (N, P) of one head in the sequence's slot
    pub fn state(s: Shape, t: *const Task, seq: usize, head: usize) [*]u8 {
        const slot: [*]u8 = @ptrCast(t.slot(7, seq));
        return slot + head * s.n * s.p * simd.size(stateType(t));
    }
};

/// What the state is kept as.
pub fn stateType(t: *const Task) DType {
    return t.operands[7].dtype;
}

/// -exp(A_log)
pub inline fn decayRate(t: *const Task, head: usize) f32 {
    return -simd.exp1(t.f32s(4)[head]);
}
/// The step sizes of some tokens, ready for use, from dt + dt_bias.
pub inline fn stepSize(t: *const Task, raw: F) F {
    const low = simd.splat(t.attrF(4));
    return simd.min(simd.max(simd.softplus(raw), low), simd.splat(t.attrF(5)));
}

/// Does one token of one head; `fresh` takes the state for zero.
pub fn token(t: *const Task, s: Shape, seq: usize, row: usize, head: usize, fresh: bool) void {
    const dt = stepSize(t, simd.splat(t.row(1, row)[head] + t.f32s(6)[head]))[0];
    const c = Columns{
        .n = s.n,
        .p = s.p,
        .state = s.state(t, seq, head),
        .x = s.x(t, row, head),
        .b = s.b(t, row, s.group(head)),
        .c = s.c(t, row, s.group(head)),
        .y = s.y(t, row, head),
        .dt = dt,
        .decay = simd.exp1(@min(dt * decayRate(t, head), 0)),
        .d = t.f32s(5)[head],
    };
    switch (stateType(t)) {
        inline .f32, .bf16, .f16 => |kept| {
            if (fresh) @memset(c.state[0 .. s.n * s.p * simd.size(kept)], 0);
            var p: usize = 0;
            inline for (.{ 8, 4, 2, 1 }) |v| while (p + v * L <= s.p) : (p += v * L)
                c.step(kept, v, p);
            if (p < s.p) c.tail(kept, p);
        },
        else => unreachable,
    }
}

const Columns = struct {
    n: usize,
    p: usize,
    state: [*]u8,
    x: [*]const f32,
    b: [*]const f32,
    c: [*]const f32,
    y: [*]f32,
    dt: f32,
    decay: f32,
    d: f32,

    /// Columns p0 .. p0 + V * L.
    inline fn step(self: Columns, comptime kept: DType, comptime V: usize, p0: usize) void {
        @setEvalBranchQuota(10_000);
        const decay = simd.splat(self.decay);
        const x = self.x + p0;
        var y: [V]F = @splat(simd.zero);
        var s = self.state + p0 * comptime simd.size(kept);
        for (0..self.n) |n| {
            const db = simd.splat(self.dt * self.b[n]);
            const c = simd.splat(self.c[n]);
            inline for (0..V) |v| {
                const old = simd.ldAs(kept, s, v * L);
                const new = simd.mulAdd(db, simd.ldF(x + v * L), decay * old);
                simd.stAs(kept, s, v * L, new);
                y[v] = simd.mulAdd(c, new, y[v]);
            }
            s += self.p * comptime simd.size(kept);
        }
        const d = simd.splat(self.d);
        inline for (0..V) |v|
            simd.st(self.y + p0 + v * L, simd.mulAdd(d, simd.ldF(x + v * L), y[v]));
    }
    /// The last columns, fewer than a vector.
    fn tail(self: Columns, comptime kept: DType, p0: usize) void {
        const rest = self.p - p0;
        const decay = simd.splat(self.decay);
        const x = simd.ldTail(self.x + p0, rest);
        var y: F = simd.zero;
        for (0..self.n) |n| {
            const at = self.state + (n * self.p + p0) * simd.size(kept);
            const db = simd.splat(self.dt * self.b[n]);
            const new = simd.mulAdd(db, x, decay * state_zig.ldSome(kept, at, rest));
            state_zig.stSome(kept, at, new, rest);
            y = simd.mulAdd(simd.splat(self.c[n]), new, y);
        }
        simd.stTail(self.y + p0, simd.mulAdd(simd.splat(self.d), x, y), rest);
    }
};

fn units(t: *const Task, _: u32) callconv(.c) u32 {
    return @intCast(t.step.n_seqs * Shape.of(t).heads);
}

fn run(t: *const Task, _: u32, begin: u32, end: u32, _: [*]u8) callconv(.c) void {
    const s = Shape.of(t);
    for (begin..end) |unit| {
        const seq = unit / s.heads;
        token(t, s, seq, t.step.seq_start.?[seq], unit % s.heads, t.step.past_len.?[seq] == 0);
    }
}

pub const kernel = kernel_zig.Kernel{ .units = units, .run = run };
