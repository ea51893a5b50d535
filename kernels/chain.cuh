// Products of one token behind each other in one launch, and states between them: x, results, and how they pass.
//
// A launch of its own costs a product 4 to 5 us beside its bytes: last sums, the end of one grid, the start of the
// next, x to shared memory. In a chain one block a multiprocessor
// stays, its ring of copies runs on into the next product's weights, and results pass without a barrier: every
// element is its own signal. A cell of 16 bits holds the complement of a bf16, and zero while nothing is there (the
// complement of a NaN that no rounding gives). Who needs x asks for its cells until they are full: one trip to L2
// where a barrier takes three (a fence, an arrival and a look, then x).
// From the last result to x in place this takes 1 to 2 us; what remains is that multiprocessors do not end together
// (q4_k gate and up: the first at 24, the middle at 27, the last at 28 us of 51). x comes to a multiprocessor behind all
// that it has asked for, so a ring that is filled at once keeps x waiting: blocks_chain_sm90.cu fills it while it waits.
// Tried on an H200 and left: a barrier of the grid, 2.9 us a product; asking L2 for weights beyond the ring while
// waiting, which costs their whole time, although L2 gives 8 TB/s where memory gives 4.6; both groups on one
// panel of SwiGLU's two matrices (55 -> 56 us). On an H100 blocks gain nothing: see gpu.zig.
//
// A state takes in_proj's x, B, C and dt, and out_proj waits for its y. Four warps more than the products' update it;
// in_proj does its rows `backwards`, dt, C, B and x first, so that the gate's rows come meanwhile (a layer of e4m3 77.5 ->
// 76.5 us for rows from x on, of which dt's were the last). One lane a multiprocessor looks for x, the last of what its
// head needs: where every thread looked, or four times at once, L2 gave nothing else (a layer of q4_k_m 60.0 and 65.8 us
// for 58.9).
// Left there: from in_proj's end to out_proj's x 8 us, since each load waits some 3 us behind the rings' copies.
//
// There are two sets of cells; a launch uses one and empties the other, which the launch before has used. All blocks
// must run at once: one a multiprocessor, and whoever starts early (griddepcontrol) behind a chain starts when all
// blocks of the chain have. Products follow the rules that zig/cuda/chain_wire.zig checks: from the second on, x
// is the result before, or the y of the state behind it, and nothing else that one of them writes is read by another
// but through cells. What nobody reads behind the launch is not written to memory.
#pragma once
#include "hopper.cuh"
#include "ssm_update.cuh"

// One product, as in blocks_decode.cu.
struct Product {
    const uint8_t* w;
    const uint8_t* w2;
    const bf16* x;
    const bf16* gate;
    const float* norm_weight;
    const float* bias;
    const bf16* residual;
    void* out;  // may be null where it passes
    int batch, n, k, x_stride, gate_stride, residual_stride, out_stride;
    float eps;
    int mode, swiglu, out_f32;
    int type;                                // of weights in blocks
    int dtype;                               // the host's
    int up_first;                            // in rows: W2 lies before W
    int x_cells, residual_cells, out_cells;  // where in a set they pass; or -1
    int gate_cells;
    int state;      // which state is updated with its result; or -1
    int backwards;  // its rows come from the last one on: what a state waits for lies behind the gate
};
// One token through the SSM, with its convolution: from a product's result to the next one's x.
struct State {
    SsmUpdateArgs of;
    int x_cells, dt_cells, y_cells;  // as above
    int dtype;                       // of the state: 0 f32, 1 bf16, 2 f16
};
constexpr int CHAIN_MAX = 40, STATES_MAX = 10;
struct ChainArgs {
    Product of[CHAIN_MAX];
    State states[STATES_MAX];
    uint16_t* cells;  // two sets; zero before the first launch; one product needs none
    uint32_t* turn;   // which launch this is, and blocks that have ended: zero before the first launch
    int set;          // cells of a set, a multiple of 8
    int count;
    int ring, slot;   // blocks: bytes of a warp's ring, of its slots
};
static_assert(sizeof(ChainArgs) <= 8192, "as launches may have");

enum { PLAIN = 0, RMS = 1, GATED = 2 };
constexpr int GROUPS = 2, WARPS = 8, GROUP_THREADS = 32 * WARPS, THREADS = GROUPS * GROUP_THREADS;
constexpr int STATE_THREADS = 128;  // warps behind those of products, which update states
enum { ALL_MEET = 3, STATES_MEET = 4, STATES_BEGIN = 5 };  // named barriers behind those of the groups

#if HOPPER
// Threads of one group meet, and those of all products.
DEVICE void group_sync(int group) { named_sync(group + 1, GROUP_THREADS); }
DEVICE void all_sync() { named_sync(ALL_MEET, THREADS); }
// Behind a product whose groups meet once a panel: where the other group has a panel more. Only racecheck needs it: it
// counts a thread's barriers whatever their numbers, and takes what all_sync orders for unordered once two groups have not
// met as often as each other.
DEVICE void meet_as_often(int group, int panels) {
    if (group == 1 && ((panels - 1 - (int)blockIdx.x) / (int)gridDim.x & 1) == 0) group_sync(group);
}

// ---- cells ----
DEVICE uint32_t empty_half(uint32_t w) { return (w - 0x00010001u) & ~w & 0x80008000u; }
DEVICE bool full(uint4 v) { return (empty_half(v.x) | empty_half(v.y) | empty_half(v.z) | empty_half(v.w)) == 0; }
// What COUNT times eight cells hold once they are full; `v` is what they held. Lanes ask for what they lack; `pace` is
// called before each time. (One lane of a warp that asks until its own are full, then the others: 0.5 us a layer slower.)
template <int COUNT, typename Pace>
DEVICE void settle_cells(uint4* v, const uint16_t* const* p, bool valid, Pace pace) {
    auto lacks = [&] {
        bool all = true;
#pragma unroll
        for (int i = 0; i < COUNT; i++) all = all && full(v[i]);
        return !all;
    };
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (!valid) v[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
    // In this form, else the compiler takes a warp's ring for its lanes' (a layer of e4m3 and of bf16 4 % slower).
    bool missing = __any_sync(~0u, lacks());
    while (missing) {
        pace();
        if (lacks())
#pragma unroll
            for (int i = 0; i < COUNT; i++) v[i] = load_relaxed128(p[i]);
        missing = __any_sync(~0u, lacks());
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) v[i] = make_uint4(~v[i].x, ~v[i].y, ~v[i].z, ~v[i].w);
}
DEVICE float load_cell(const uint16_t* p) {
    uint16_t v;
    do v = load_relaxed16(p);
    while (v == 0);
    return bf_lo((uint16_t)~v);
}
DEVICE void store_cell(uint16_t* p, bf16 v) { store_relaxed16(p, ~__bfloat16_as_ushort(v)); }
// Which launch this is; asked for behind pdl_wait, used when the first x is there.
DEVICE uint32_t load_turn(const ChainArgs& a) {
    return a.count == 1 ? 0 : load_relaxed32(a.turn);
}
// This launch's set.
DEVICE uint16_t* own_cells(const ChainArgs& a, uint32_t turn) {
    return a.count == 1 ? nullptr : a.cells + (turn & 1 ? a.set : 0);
}
// The other is emptied.
DEVICE void empty_cells(const ChainArgs& a, uint32_t turn) {
    if (a.count == 1) return;
    uint16_t* other = a.cells + (turn & 1 ? 0 : a.set);
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < a.set / 8; i += gridDim.x * THREADS)
        *(uint4*)(other + i * 8) = make_uint4(0, 0, 0, 0);
}
// At a block's end: the last one turns.
DEVICE void end_cells(const ChainArgs& a) {
    if (a.count == 1) return;
    all_sync();
    if (threadIdx.x == 0 && atomicInc(a.turn + 1, gridDim.x - 1) == gridDim.x - 1) a.turn[0]++;
}

// ---- rings ----
// A warp's ring of slots: what it copies next, and what it reads next, from product to product. `Walk` knows the steps
// that a warp takes, in order, and copies one. Copies of the next product's weights are asked for at once for AHEAD slots
// only: x comes to a multiprocessor behind all that it has asked for before. The others a ring owes, and asks for one by
// one while its warp waits for x. With a LIMIT no more slots than that are ever under way.
constexpr int SLOTS_MAX = 8;
template <typename Walk> struct Ring {
    Walk walk;
    uint32_t base, bars, end, slot;  // in shared memory; bytes of a slot
    uint32_t to, to_bar, to_parity, from, from_bar, parity, span;  // span: bytes of its barriers
    int lane, at, ahead, owed;  // `at`: the product that is read; `ahead`: slots for the next that may still be filled
    int held;                   // slots that stay empty while it is read

    // At `ring`, `bytes` in slots of `slot_bytes`, whose barriers nobody but this warp uses.
    DEVICE_MEMBER void begin(uint32_t ring, int bytes, int slot_bytes, uint64_t* barriers) {
        lane = threadIdx.x & 31, slot = slot_bytes, parity = to_parity = 0, owed = 0, span = bytes / slot_bytes * 8;
        base = to = from = ring, end = ring + bytes, bars = to_bar = from_bar = smem_addr(barriers);
        if (lane < SLOTS_MAX) mbar_init(bars + 8 * lane, 1);
        mbar_init_fence();
        __syncwarp();
    }
    DEVICE_MEMBER void fill() {
        for (uint32_t i = 0; i < span && more(); i += 8)
            if (Walk::LIMIT && i >= Walk::LIMIT * 8) owed++;
            else copy();
    }
    DEVICE_MEMBER void copy() {
        if (lane == 0) walk.copy(to, to_bar);
        walk.next();
        to += slot, to_bar += 8;
        if (to == end) to = base, to_bar = bars, to_parity ^= 1;
    }
    DEVICE_MEMBER bool more() { return walk.left > 0 || walk.seek(); }
    // The slot that was waited for is free: all lanes have read it.
    DEVICE_MEMBER void next() {
        __syncwarp();
        from += slot, from_bar += 8;
        if (from == end) from = base, from_bar = bars, parity ^= 1;
        if (Walk::LIMIT) owed++, pay();
        else if (!more()) return;
        else if (held > 0) held--, owed++;
        else if (walk.of == at || ahead-- > 0) copy();
        else owed++;
    }
    // Asks for one that it owes; with a limit, for all that this lets it.
    DEVICE_MEMBER void pay() {
        if (Walk::LIMIT) {
            while (owed > 0 && more() && may()) owed--, copy();
        } else if (owed > 0) {
            owed--;
            if (more()) copy();
        }
    }
    DEVICE_MEMBER void pay_all() {
        while (!Walk::LIMIT && owed) pay();
    }
    // Whether the slot LIMIT before the next one has come.
    DEVICE_MEMBER bool may() {
        uint32_t bar = to_bar - 8 * Walk::LIMIT, of = to_parity;
        if ((int)(bar - bars) < 0) bar += span, of ^= 1;
        return mbar_passed(bar, of);
    }
};

// ---- x and results ----
// A norm's weights into L1, before its x is waited for.
DEVICE void prefetch_norm(const Product& p) {
    if (p.mode == PLAIN) return;
    for (int i = threadIdx.x * 32; i < p.k; i += THREADS * 32)
        prefetch_l1(p.norm_weight + i);
}
// x of one product, scaled by the norm's weight, to wherever `store(c, v, there)` takes eight columns as floats;
// and the sums of squares of its rows, a piece of 2048 columns and a warp each: bits that do not depend on GROUPS.
constexpr int SQUARES = 18;  // most pieces
template <int MODE, typename Store, typename Pace>
DEVICE void stage(const Product& a, const uint16_t* cells, float (*squares)[WARPS], int group, int tid, Store store,
                  Pace pace) {
    const int total = (a.k / 8 + GROUP_THREADS - 1) / GROUP_THREADS;
    const bool passed = a.x_cells >= 0;  // the gate, too
    const uint16_t* const x = passed ? cells + a.x_cells : (const uint16_t*)a.x;
    const uint16_t* const gate = passed ? cells + a.gate_cells : (const uint16_t*)a.gate;
    for (int j0 = group; j0 < total; j0 += 4 * GROUPS) {
        uint4 got[4][2];  // x and gate
#pragma unroll
        for (int i = 0; i < 4; i++) {  // all loads first: one latency, not four
            const int c = ((j0 + i * GROUPS) * GROUP_THREADS + tid) * 8;
            got[i][0] = got[i][1] = make_uint4(0, 0, 0, 0);
            if (c >= a.k) continue;
            got[i][0] = load_relaxed128(x + c);
            if (MODE == GATED) got[i][1] = load_relaxed128(gate + c);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int j = j0 + i * GROUPS, c = j * GROUP_THREADS + tid;
            if (j >= total) break;
            const bool there = c * 8 < a.k;
            const uint16_t* const from[] = {x + c * 8, gate + c * 8};
            if (passed) settle_cells<MODE == GATED ? 2 : 1>(got[i], from, there, pace);
            float v[8], s = 0;
            unpack8(got[i][0], v);
            if (MODE == GATED) gate8(v, got[i][1]);
            if (MODE != PLAIN) {
#pragma unroll
                for (int e = 0; e < 8; e++) s += v[e] * v[e];
                s = warp_sum(s);
                if ((tid & 31) == 0) squares[j][tid >> 5] = s;
                const float* w = a.norm_weight + (there ? c * 8 : 0);
                const float4 w0 = __ldg((const float4*)w), w1 = __ldg((const float4*)(w + 4));
                v[0] *= w0.x, v[1] *= w0.y, v[2] *= w0.z, v[3] *= w0.w;
                v[4] *= w1.x, v[5] *= w1.y, v[6] *= w1.z, v[7] *= w1.w;
            }
            store(c, v, there);
        }
    }
}
template <typename Store, typename Pace>
DEVICE void stage_any(const Product& a, const uint16_t* cells, float (*squares)[WARPS], int group, int tid, Store store,
                      Pace pace) {
    all_sync();  // the product before has read its x
    if (a.mode == PLAIN) stage<PLAIN>(a, cells, squares, group, tid, store, pace);
    else if (a.mode == RMS) stage<RMS>(a, cells, squares, group, tid, store, pace);
    else stage<GATED>(a, cells, squares, group, tid, store, pace);
    all_sync();
}
// 1 / rms of x, by one warp.
DEVICE float row_scale(const Product& a, const float (*squares)[WARPS]) {
    const int parts = (a.k / 8 + GROUP_THREADS - 1) / GROUP_THREADS;
    float s = 0;
    for (int i = threadIdx.x & 31; i < parts * WARPS; i += 32) s += squares[i / WARPS][i % WARPS];
    return rsqrtf(warp_sum(s) / a.k + a.eps);
}
DEVICE float load_residual(const Product& p, const uint16_t* cells, int n) {
    if (p.residual_cells >= 0) return load_cell(cells + p.residual_cells + n);
    return bf_lo(load_cg16(p.residual + n));
}
DEVICE void store_result(const Product& p, uint16_t* cells, int n, float v) {
    if (p.out_f32) {
        ((float*)p.out)[n] = v;
        return;
    }
    const bf16 b = __float2bfloat16_rn(v);
    if (p.out_cells >= 0) store_cell(cells + p.out_cells + n, b);
    if (p.out) ((bf16*)p.out)[n] = b;
}

// ---- states ----
// The warps behind those of products; `wait` until the product in front begins, so that nobody looks for its results
// all the while.
template <typename S, typename Wait>
DEVICE void update_state(const State& a, uint16_t* cells, SsmShared& shared, Wait wait) {
    const SsmUpdateArgs& of = a.of;
    auto meet = [] { named_sync(STATES_MEET, STATE_THREADS); };
    auto load = [&](const auto& from, auto& now) {
        constexpr int COUNT = sizeof(now) / sizeof(float);
        // One lane looks until the last of them is there, so that memory is left to those who still work.
        if (threadIdx.x == THREADS)
            while (load_relaxed16(cells + a.x_cells + (from[0] - of.x)) == 0) __nanosleep(100);
        meet();
        uint16_t got[COUNT];
        bool come;
        do {
            come = true;
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                const bf16* base = i == COUNT - 1 ? of.dt - a.dt_cells : of.x - a.x_cells;
                got[i] = load_relaxed16(cells + (from[i] - base));
            }
#pragma unroll
            for (int i = 0; i < COUNT; i++) come = come && got[i] != 0;
        } while (!come);
#pragma unroll
        for (int i = 0; i < COUNT; i++) now[i] = bf_lo((uint16_t)~got[i]);
        __syncwarp();
    };
    auto store = [&](int i, bf16 v) {
        if (a.y_cells >= 0) store_cell(cells + a.y_cells + i, v);
        if (of.y) of.y[i] = v;
    };
    for (int head = blockIdx.x; head < of.heads; head += gridDim.x) {
        auto begin = [&] {
            if (head == blockIdx.x) wait();
        };
        update_head<S, STATE_THREADS>(of, shared, head, 0, threadIdx.x - THREADS, begin, load, meet, store);
        meet();  // x, B and C have been read
    }
    if (blockIdx.x >= of.heads) wait();
}
DEVICE void update_states(const ChainArgs& a, uint16_t* cells, SsmShared& shared) {
    auto wait = [] { named_sync(STATES_BEGIN, GROUP_THREADS + STATE_THREADS); };
    for (int of = 0; of < a.count; of++) {
        if (a.of[of].state < 0) continue;
        const State& s = a.states[a.of[of].state];
        if (s.dtype == 0) update_state<float>(s, cells, shared, wait);
        else if (s.dtype == 1) update_state<bf16>(s, cells, shared, wait);
        else update_state<__half>(s, cells, shared, wait);
    }
}
#endif  // HOPPER
