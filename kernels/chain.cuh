// Products of one token behind each other in one launch, and states between them: x, results, and how they pass.
//
// A launch of its own costs a product 4 to 5 us beside its bytes: last sums, the end of one grid, the start of the
// next, x to shared memory. In a chain one block a multiprocessor stays, its rings of copies run on into the next
// product's weights (chain_ring.cuh), and results pass without a barrier: every element is its own signal. A cell of
// 16 bits holds the complement of a bf16, and zero while nothing is there (the complement of a NaN that no rounding
// gives). Who needs x asks for its cells until they are full: one trip to L2 where a barrier takes three (a fence, an
// arrival and a look, then x).
// From the last result to x in place this takes 1 to 2 us; what remains is that multiprocessors do not end together
// (q4_k gate and up: the first at 24, the middle at 27, the last at 28 us of 51).
// Tried on an H200 and left: a barrier of the grid, 2.9 us a product; asking L2 for weights beyond the ring while
// waiting, which costs their whole time, although L2 gives 8 TB/s where memory gives 4.6; both groups on one
// panel of SwiGLU's two matrices (55 -> 56 us).
//
// A state takes in_proj's x, B, C and dt, and out_proj waits for its y. Four warps more than the products' update it;
// in_proj does its rows `backwards`, dt, C, B and x first, so that the gate's rows come meanwhile (a layer of e4m3 77.5 ->
// 76.5 us for rows from x on, of which dt's were the last). One lane a multiprocessor looks for x, the last of what its
// head needs: where every thread looked, or four times at once, L2 gave nothing else (a layer of q4_k_m 60.0 and 65.8 us
// for 58.9).
//
// There are two sets of cells; a launch uses one and empties the other, which the launch before has used. All blocks
// must run at once: one a multiprocessor, and whoever starts early (griddepcontrol) behind a chain starts when all
// blocks of the chain have. Products follow the rules that zig/cuda/chain_wire.zig checks: from the second on, x
// is the result before, or the y of the state behind it, and nothing else that one of them writes is read by another
// but through cells. What nobody reads behind the launch is not written to memory.
#pragma once
#include "chain_ring.cuh"
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
    int ring;         // bytes of a warp's
    int budget, ahead;  // bytes under way (chain_ring.cuh)
};
static_assert(sizeof(ChainArgs) <= 8192, "as launches may have");

enum { PLAIN = 0, RMS = 1, GATED = 2 };
constexpr int GROUPS = 2, WARPS = 8, GROUP_THREADS = 32 * WARPS, THREADS = GROUPS * GROUP_THREADS;
constexpr int STATE_THREADS = 128;  // warps behind those of products, which update states
constexpr int SUPPLIER = (THREADS + STATE_THREADS) / 32, SUPPLIERS = 4;  // warps behind those, which ask for weights
enum { ALL_MEET = 3, STATES_MEET = 4, STATES_BEGIN = 5 };  // named barriers behind those of the groups

#if HOPPER
// Threads of one group meet, and those of all products.
DEVICE void group_sync(int group) { named_sync(group + 1, GROUP_THREADS); }
DEVICE void all_sync() { named_sync(ALL_MEET, THREADS); }
// The product in front of a state begins, and those who update the state know. Products wait, too: a block that has no
// part in any of them would otherwise come to the next state's before its own warps have come to this one's, and once a
// barrier has counted two of its arrivals as one, somebody waits for ever.
DEVICE void states_begin() { named_sync(STATES_BEGIN, THREADS + STATE_THREADS); }
// Behind a product whose groups meet once a panel: where the other group has a panel more. Only racecheck needs it: it
// counts a thread's barriers whatever their numbers, and takes what all_sync orders for unordered once two groups have not
// met as often as each other.
DEVICE void meet_as_often(int group, int panels) {
    if (group == 1 && ((panels - 1 - (int)blockIdx.x) / (int)gridDim.x & 1) == 0) group_sync(group);
}

// ---- cells ----
DEVICE uint32_t empty_half(uint32_t w) { return (w - 0x00010001u) & ~w & 0x80008000u; }
DEVICE bool full(uint4 v) { return (empty_half(v.x) | empty_half(v.y) | empty_half(v.z) | empty_half(v.w)) == 0; }
// What COUNT times eight cells hold once they are full; `v` is what they held. Lanes ask for what they lack.
// (One lane of a warp that asks until its own are full, then the others: 0.5 us a layer slower.)
template <int COUNT>
DEVICE void settle_cells(uint4* v, const uint16_t* const* p, bool valid) {
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
template <int MODE, typename Store>
DEVICE void stage(const Product& a, const uint16_t* cells, float (*squares)[WARPS], int group, int tid, Store store) {
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
            if (passed) settle_cells<MODE == GATED ? 2 : 1>(got[i], from, there);
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
template <typename Store>
DEVICE void stage_any(const Product& a, const uint16_t* cells, float (*squares)[WARPS], int group, int tid, Store store) {
    all_sync();  // the product before has read its x
    if (a.mode == PLAIN) stage<PLAIN>(a, cells, squares, group, tid, store);
    else if (a.mode == RMS) stage<RMS>(a, cells, squares, group, tid, store);
    else stage<GATED>(a, cells, squares, group, tid, store);
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
    for (int of = 0; of < a.count; of++) {
        if (a.of[of].state < 0) continue;
        const State& s = a.states[a.of[of].state];
        if (s.dtype == 0) update_state<float>(s, cells, shared, states_begin);
        else if (s.dtype == 1) update_state<bf16>(s, cells, shared, states_begin);
        else update_state<__half>(s, cells, shared, states_begin);
    }
}

// ---- warps ----
// Those of products, in groups of a block; then those of states; then those that ask for weights. The kernel is compiled
// for as many registers as products need: states need more, which the last do not.
DEVICE int warp_number() { return __shfl_sync(~0u, threadIdx.x >> 5, 0); }
// What all of them do first, then they part.
template <typename Fixed>
DEVICE void begin_warps(const ChainArgs& a, Ring& ring, Fixed& fixed, uint32_t rings, int warp) {
    if (warp < GROUPS * WARPS) ring.begin(rings + warp * a.ring, a.ring, fixed.bars + warp, (uint32_t)a.count >> 31);
    if (threadIdx.x < sizeof(fixed.zeros) / 4) fixed.zeros[threadIdx.x] = 0;
    if (threadIdx.x == 0) mbar_init(smem_addr(&fixed.begun), 1);
    __syncthreads();
}
DEVICE void serve_states(const ChainArgs& a, SsmShared& shared) {
    regs_grow<120>();
    if (a.count == 1) return;
    pdl_wait();
    update_states(a, own_cells(a, load_turn(a)), shared);
}
template <typename Walk>
DEVICE void serve_weights(const ChainArgs& a, Walk& walk, const Bars* bars, uint32_t rings, const uint64_t* begun) {
    typedef Suppliers<SUPPLIERS, GROUPS * WARPS> S;
    regs_shrink<40>();
    const int ring = S::ring();
    walk.begin(a, ring % WARPS, blockIdx.x + ring / WARPS * gridDim.x);
    S::run(walk, bars + ring, rings + ring * a.ring, a.ring, smem_addr(begun), {a.budget, a.ahead});
}
// All products in order, by the warps of groups. `Kernel` knows how weights lie: how many tiles a product has, where eight
// columns of x go, and the product of what is staged.
template <typename Kernel>
DEVICE void serve_products(const ChainArgs& a, float (*squares)[WARPS], uint32_t begun, Kernel kernel) {
    const int group = warp_number() / WARPS, tid = threadIdx.x % GROUP_THREADS;
    prefetch_norm(a.of[0]);
    pdl_wait();
    pdl_launch();
    const uint32_t turn = load_turn(a);
    uint16_t* cells = nullptr;
    for (int of = 0; of < a.count; of++) {
        const Product& p = a.of[of];
        const bool idle = blockIdx.x >= kernel.tiles(p);  // nothing to do, so nothing to wait for
        if (of > 0 && !idle) prefetch_norm(p);
        if (p.state >= 0) states_begin();
        if (!idle)
            stage_any(p, cells, squares, group, tid,
                      [&](int c, const float* v, bool there) { kernel.store(p, c, v, there); });
        if (!idle && threadIdx.x == 0) mbar_arrive(begun);
        if (of == 0) cells = own_cells(a, turn), empty_cells(a, turn);
        if (!idle) kernel.multiply(p, cells);
    }
    end_cells(a);
}
#endif  // HOPPER
