//! ssm_scan: the state space model over whole sequences, in chunks of 64 positions, as matrix
//! products (the "SSD" form of Mamba2).
//!
//! Contract: what `ssm_update` does token by token, for any number of tokens a sequence. Chunks are
//! counted from the sequence's start, past_len included; with l = the running sum of dt A:
//!   y[i]  = exp(l_i) C_i state + sum_{j<=i} (C_i B_j) exp(l_i - l_j) dt_j x_j + D x_i
//!   state = exp(l_end) state + sum_j B_j exp(l_end - l_j) dt_j x_j
//! A piece of a chunk with one token takes the `ssm_update` formula and so has its bits. The state
//! is f32 within a piece and rounded to the slot's dtype after each, wherever a run ends.
//! Work a token: 4 N P + 64 P flops a head and 64 N a group.
//! Ideas: C B of a chunk is computed once for all heads of a group, in a phase of its own; D sits
//! on the diagonal of the 64 x 64 matrix; state and x lie in panels two vectors wide, padded, so
//! that the register tiles know no rests of P; the upper triangle is never touched; the next
//! piece's x is prefetched (70 -> 75 %).
//! Reached: 75 % of the FMA peak at H 64, P 64, N 128, G 1, 512 tokens (Zen3 core, AVX2): 16 ms.

const std = @import("std");
const simd = @import("simd.zig");
const tile = @import("tile.zig");
const kernel_zig = @import("kernel.zig");
const state_zig = @import("ssm_state.zig");
const update = @import("ssm_update.zig");
const command = @import("command");
const Task = kernel_zig.Task;
const Shape = update.Shape;
const L = simd.L;
const F = simd.F;

const chunk = command.scan_chunk;
/// Floats in a cache line.
const line = 16;
/// Floats from row to row of a 64 wide matrix: not a power of two, so that rows spread over the
/// cache's sets.
const pitch = chunk + 8;

/// A run of tokens of one sequence within one chunk.
const Piece = struct { row: usize, len: usize, first: bool };

/// Number of pieces of a sequence, and one of them.
fn pieceCount(t: *const Task, seq: usize) usize {
    const tokens = tokenCount(t, seq);
    if (tokens == 0) return 0;
    return (t.step.past_len.?[seq] % chunk + tokens + chunk - 1) / chunk;
}
fn pieceAt(t: *const Task, seq: usize, index: usize) Piece {
    const skipped = t.step.past_len.?[seq] % chunk;
    const begin = @max(index * chunk, skipped);
    const end = @min((index + 1) * chunk, skipped + tokenCount(t, seq));
    return .{
        .row = t.step.seq_start.?[seq] + begin - skipped,
        .len = end - begin,
        .first = index == 0 and t.step.past_len.?[seq] == 0,
    };
}
fn tokenCount(t: *const Task, seq: usize) usize {
    return t.step.seq_start.?[seq + 1] - t.step.seq_start.?[seq];
}

/// What one piece and group leave in the workspace for the group's heads.
const Shared = struct {
    /// (j, n) without gaps
    b: [*]f32,
    /// (i, n)
    c: tile.Tiles,
    /// (j, i), `pitch` from row to row: C_i B_j where i >= j
    cb: [*]f32,

    fn floats(s: Shape) usize {
        return chunk * (s.n + pitch) + tile.Tiles.floats(chunk, s.n);
    }
    fn at(t: *const Task, s: Shape, index: usize) Shared {
        const base: [*]f32 = @ptrCast(@alignCast(t.workspace.?));
        const p = base + index * floats(s);
        const c = p + chunk * (s.n + pitch);
        return .{ .cb = p, .b = p + chunk * pitch, .c = .{ .p = c, .steps = s.n } };
    }
};

fn units(t: *const Task, phase: u32) callconv(.c) u32 {
    const s = Shape.of(t);
    if (phase == 1) return @intCast(t.step.n_seqs * s.heads);
    var pieces: usize = 0;
    for (0..t.step.n_seqs) |seq| pieces += pieceCount(t, seq);
    return @intCast(pieces * s.groups);
}

fn run(t: *const Task, phase: u32, begin: u32, end: u32, scratch: [*]u8) callconv(.c) void {
    const s = Shape.of(t);
    // The first piece of each sequence, counted over the batch.
    var first: usize = 0;
    for (0..t.step.n_seqs) |seq| {
        const n = pieceCount(t, seq);
        const width = if (phase == 0) n * s.groups else s.heads;
        const unit0 = if (phase == 0) first * s.groups else seq * s.heads;
        if (unit0 >= end) return;
        for (@max(begin, unit0)..@max(begin, @min(end, unit0 + width))) |unit| {
            const i = unit - unit0;
            if (phase == 0) {
                const piece = pieceAt(t, seq, i / s.groups);
                share(t, s, piece, i % s.groups, Shared.at(t, s, unit), scratch);
            } else scanHead(t, s, seq, i, first, scratch);
        }
        first += n;
    }
}

/// Phase 0: gathers B and computes C B of one piece and group.
fn share(t: *const Task, s: Shape, piece: Piece, g: usize, out: Shared, scratch: [*]u8) void {
    if (piece.len == 1) return;
    const ct: [*]f32 = @ptrCast(@alignCast(scratch)); // (n, i)
    const padded = std.mem.alignForward(usize, piece.len, tile.width);
    for (0..piece.len) |j| {
        const b = s.b(t, piece.row + j, g);
        @memcpy(out.b[j * s.n ..][0..s.n], b[0..s.n]);
        const c = s.c(t, piece.row + j, g);
        for (0..s.n) |n| ct[n * pitch + j] = c[n];
        out.c.set(j, c, 1);
    }
    for (0..s.n) |n| @memset(ct[n * pitch + piece.len .. n * pitch + padded], 0);
    var j: usize = 0;
    while (j < piece.len) : (j += tile.rows_max) switch (@min(tile.rows_max, piece.len - j)) {
        inline 1...tile.rows_max => |rows| {
            var i = j / tile.width * tile.width;
            while (i < piece.len) : (i += tile.width) {
                var sums: tile.Sums(rows, tile.vecs) = @splat(@splat(simd.zero));
                const left = tile.Left{ .p = out.b + j * s.n, .row = s.n, .step = 1 };
                const right = tile.Right{ .p = ct + i, .step = pitch };
                tile.mulAdd(rows, tile.vecs, &sums, s.n, left, right);
                inline for (0..rows) |r| inline for (0..tile.vecs) |v|
                    simd.st(out.cb + (j + r) * pitch + i + v * L, sums[r][v]);
            }
        },
        else => unreachable,
    };
}

/// Phase 1: all pieces of one sequence, for one head.
fn scanHead(t: *const Task, s: Shape, seq: usize, head: usize, first: usize, mem: [*]u8) void {
    const state = s.state(t, seq, head);
    const kept = update.stateType(t);
    const w = Work.at(s, mem);
    const panels_of = state_zig.Panels{ .p = w.state, .n = s.n, .width = s.p };
    var in_panels = false;
    for (0..pieceCount(t, seq)) |i| {
        const piece = pieceAt(t, seq, i);
        if (piece.len == 1) {
            if (in_panels) panels_of.store(kept, state);
            in_panels = false;
            update.token(t, s, seq, piece.row, head, piece.first);
            continue;
        }
        if (!in_panels and !piece.first) panels_of.load(kept, state);
        in_panels = true;
        const shared = Shared.at(t, s, (first + i) * s.groups + s.group(head));
        w.decays(t, piece, head);
        w.mixing(t, piece, head, shared);
        w.loadX(t, s, piece, head);
        w.outputs(t, s, piece, head, shared.c);
        w.nextState(s, piece, shared);
        panels_of.round(kept);
    }
    if (in_panels) panels_of.store(kept, state);
}

/// One thread's memory while it scans a head.
const Work = struct {
    /// dt; running sums of dt A; exp of them; exp(l_end - l_j) dt_j
    dt: [*]f32,
    sum: [*]f32,
    decay: [*]f32,
    weight: [*]f32,
    /// (j, i), `pitch` from row to row
    mix: [*]f32,
    /// Panels (P / width): of x (chunk, width), of x weighted for the state,
    /// of the state (N, width)
    x: [*]f32,
    xw: [*]f32,
    state: [*]f32,

    fn floats(s: Shape) usize {
        return 4 * pitch + chunk * pitch + panels(s) * tile.width * (2 * chunk + s.n);
    }
    fn panels(s: Shape) usize {
        return state_zig.count(s.p);
    }
    fn at(s: Shape, mem: [*]u8) Work {
        const p: [*]f32 = @ptrCast(@alignCast(mem));
        const x = p + 4 * pitch + chunk * pitch;
        const x_floats = panels(s) * tile.width * chunk;
        return .{
            .dt = p,
            .sum = p + pitch,
            .decay = p + 2 * pitch,
            .weight = p + 3 * pitch,
            .mix = p + 4 * pitch,
            .x = x,
            .xw = x + x_floats,
            .state = x + 2 * x_floats,
        };
    }

    /// dt, l, exp(l) and the weights towards the end of the piece.
    fn decays(w: Work, t: *const Task, piece: Piece, head: usize) void {
        const bias = t.f32s(6)[head];
        const rate = update.decayRate(t, head);
        for (0..piece.len) |j| w.dt[j] = t.row(1, piece.row + j)[head] + bias;
        // What lies behind the piece up to the end of a vector must be finite, no more.
        @memset(w.dt[piece.len..pitch], 0);
        var j: usize = 0;
        while (j < piece.len) : (j += L) simd.st(w.dt + j, update.stepSize(t, simd.ldF(w.dt + j)));
        var sum: f32 = 0;
        for (0..piece.len) |i| {
            sum += w.dt[i] * rate;
            w.sum[i] = sum;
        }
        @memset(w.sum[piece.len..pitch], sum);
        j = 0;
        while (j < piece.len) : (j += L) {
            const l = simd.ldF(w.sum + j);
            simd.st(w.decay + j, simd.exp(simd.min(l, simd.zero)));
            const rest = simd.exp(simd.min(simd.splat(sum) - l, simd.zero));
            simd.st(w.weight + j, rest * simd.ldF(w.dt + j));
        }
    }

    /// mix(j, i) = (C_i B_j) exp(l_i - l_j) dt_j, and D on the diagonal.
    fn mixing(w: Work, t: *const Task, piece: Piece, head: usize, shared: Shared) void {
        for (0..piece.len) |j| {
            const dt = simd.splat(w.dt[j]);
            const l = simd.splat(w.sum[j]);
            var i = j / L * L;
            while (i < piece.len) : (i += L) {
                const decay = simd.exp(simd.min(simd.ldF(w.sum + i) - l, simd.zero));
                const cb = simd.ldF(shared.cb + j * pitch + i);
                simd.st(w.mix + j * pitch + i, cb * decay * dt);
            }
            w.mix[j * pitch + j] += t.f32s(5)[head];
        }
    }

    fn loadX(w: Work, t: *const Task, s: Shape, piece: Piece, head: usize) void {
        for (0..piece.len) |j| {
            const weight = simd.splat(w.weight[j]);
            const from = s.x(t, piece.row + j, head);
            // The next piece's rows come from memory while this one is computed.
            const ahead = s.x(t, piece.row + j + chunk, head);
            var p: usize = 0;
            while (p < s.p) : (p += line) @prefetch(ahead + p, .{ .locality = 2 });
            for (0..panels(s)) |q| {
                const to = (q * chunk + j) * tile.width;
                state_zig.loadPanelRow(.f32, w.x + to, @ptrCast(from), q, s.p);
                inline for (0..tile.vecs) |v|
                    simd.st(w.xw + to + v * L, weight * simd.ldF(w.x + to + v * L));
            }
        }
    }

    fn outputs(w: Work, t: *const Task, s: Shape, piece: Piece, head: usize, c: tile.Tiles) void {
        for (0..panels(s)) |q| {
            var i: usize = 0;
            while (i < piece.len) : (i += tile.rows_max) {
                switch (@min(tile.rows_max, piece.len - i)) {
                    inline 1...tile.rows_max => |rows| {
                        w.outputTile(rows, t, s, piece, head, c, q, i);
                    },
                    else => unreachable,
                }
            }
        }
    }
    fn outputTile(
        w: Work,
        comptime rows: usize,
        t: *const Task,
        s: Shape,
        piece: Piece,
        head: usize,
        c: tile.Tiles,
        q: usize,
        i: usize,
    ) void {
        var sums: tile.Sums(rows, tile.vecs) = @splat(@splat(simd.zero));
        if (!piece.first) {
            const state = w.state + q * s.n * tile.width;
            const right = tile.Right{ .p = state, .step = tile.width };
            tile.mulAdd(rows, tile.vecs, &sums, s.n, c.left(i), right);
            inline for (0..rows) |r| inline for (0..tile.vecs) |v| {
                sums[r][v] *= simd.splat(w.decay[i + r]);
            };
        }
        var counts: [rows]usize = undefined;
        inline for (0..rows) |r| counts[r] = i + r + 1;
        const left = tile.Left{ .p = w.mix + i, .row = 1, .step = pitch };
        const x = w.x + q * chunk * tile.width;
        const right = tile.Right{ .p = x, .step = tile.width };
        tile.mulAddRagged(rows, tile.vecs, &sums, counts, left, right);
        inline for (0..rows) |r| {
            const y: [*]u8 = @ptrCast(s.y(t, piece.row + i + r, head));
            inline for (0..tile.vecs) |v|
                state_zig.storeColumns(.f32, y, q * tile.width + v * L, s.p, sums[r][v]);
        }
    }

    fn nextState(w: Work, s: Shape, piece: Piece, shared: Shared) void {
        const decay = simd.splat(w.decay[piece.len - 1]);
        for (0..panels(s)) |q| {
            const x = w.xw + q * chunk * tile.width;
            const right = tile.Right{ .p = x, .step = tile.width };
            var n: usize = 0;
            while (n < s.n) : (n += tile.rows_max) switch (@min(tile.rows_max, s.n - n)) {
                inline 1...tile.rows_max => |rows| {
                    const panel = w.state + (q * s.n + n) * tile.width;
                    var sums: tile.Sums(rows, tile.vecs) = @splat(@splat(simd.zero));
                    if (!piece.first) inline for (0..rows) |r| inline for (0..tile.vecs) |v| {
                        sums[r][v] = decay * simd.ldF(panel + r * tile.width + v * L);
                    };
                    const left = tile.Left{ .p = shared.b + n, .row = 1, .step = s.n };
                    tile.mulAdd(rows, tile.vecs, &sums, piece.len, left, right);
                    inline for (0..rows) |r| inline for (0..tile.vecs) |v|
                        simd.st(panel + r * tile.width + v * L, sums[r][v]);
                },
                else => unreachable,
            };
        }
    }
};

fn workspace(t: *const Task) callconv(.c) usize {
    const s = Shape.of(t);
    const tokens = t.capacity[@intFromEnum(command.Rows.tokens)];
    const seqs = t.capacity[@intFromEnum(command.Rows.seqs)];
    // A sequence of n tokens has at most n / 64 + 126 / 64 pieces.
    const pieces = @min(tokens, tokens / chunk + 2 * seqs);
    return pieces * s.groups * Shared.floats(s) * @sizeOf(f32);
}
fn scratchBytes(t: *const Task) callconv(.c) usize {
    const s = Shape.of(t);
    return @max(Work.floats(s), s.n * pitch) * @sizeOf(f32);
}

pub const kernel = kernel_zig.Kernel{
    .n_phases = 2,
    .units = units,
    .run = run,
    .workspace = workspace,
    .scratch = scratchBytes,
};
