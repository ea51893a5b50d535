// Products of one token behind each other in one launch: x, results, and how they pass.
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
// panel of SwiGLU's two matrices (55 -> 56 us); bf16 weights in a chain (140.1 us a layer for 140.3; on an H100 199.6
// for 195.6): there the launches' overlap is as good. On an H100 blocks gain nothing either: see gpu.zig.
//
// There are two sets of cells; a launch uses one and empties the other, which the launch before has used. All blocks
// must run at once: one a multiprocessor, and whoever starts early (griddepcontrol) behind a chain starts when all
// blocks of the chain have. Products follow the rules that zig/cuda/chain_products.zig checks: from the second on, x
// is the result before, and nothing else that one of them writes is read by another but through cells.
#pragma once
#include "common.cuh"

// One product, as in blocks_decode.cu.
struct Product {
    const uint8_t* w;
    const uint8_t* w2;
    const bf16* x;
    const bf16* gate;
    const float* norm_weight;
    const float* bias;
    const bf16* residual;
    void* out;
    int batch, n, k, x_stride, gate_stride, residual_stride, out_stride;
    float eps;
    int mode, swiglu, out_f32;
    int type;                                // of weights in blocks
    int dtype, reserved;                     // the host's
    int x_cells, residual_cells, out_cells;  // where in a set they pass, in rows of k or n; or -1
    int pad;
};
constexpr int CHAIN_MAX = 6;
struct ChainArgs {
    Product of[CHAIN_MAX];
    uint16_t* cells;  // two sets; zero before the first launch; one product needs none
    uint32_t* turn;   // which launch this is, and blocks that have ended: zero before the first launch
    int set;          // cells of a set, a multiple of 8
    int count;
    int ring, slot;   // blocks: bytes of a warp's ring, of its slots
};

enum { PLAIN = 0, RMS = 1, GATED = 2 };
constexpr int GROUPS = 2, WARPS = 8, GROUP_THREADS = 32 * WARPS, THREADS = GROUPS * GROUP_THREADS;

// Threads of one group meet.
DEVICE void group_sync(int group) { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(GROUP_THREADS) : "memory"); }

// ---- cells ----
DEVICE uint4 load_cells(const uint16_t* p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE uint32_t empty_half(uint32_t w) { return (w - 0x00010001u) & ~w & 0x80008000u; }
DEVICE bool full(uint4 v) { return (empty_half(v.x) | empty_half(v.y) | empty_half(v.z) | empty_half(v.w)) == 0; }
// What eight cells hold once they are full; `v` is what they held. Until one lane's are full it alone asks again and
// again, since more would take L2's time from those who still work; from then on every lane asks for its own. `pace`
// is called before each time.
template <typename Pace> DEVICE uint4 settle_cells(uint4 v, const uint16_t* p, bool valid, Pace pace) {
    if (!valid) v = make_uint4(~0u, ~0u, ~0u, ~0u);
    const uint32_t lane = threadIdx.x & 31;
    uint32_t missing = __ballot_sync(~0u, !full(v));
    const uint32_t first = __ffs(missing) - 1;
    while (missing) {
        pace();
        if (missing >> first & 1 ? lane == first : !full(v)) v = load_cells(p);
        missing = __ballot_sync(~0u, !full(v));
    }
    return make_uint4(~v.x, ~v.y, ~v.z, ~v.w);
}
DEVICE float load_cell(const uint16_t* p) {
    uint16_t v;
    do asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    while (v == 0);
    return to_f32(__ushort_as_bfloat16((uint16_t)~v));
}
DEVICE void store_cell(uint16_t* p, bf16 v) {
    asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(p), "h"((uint16_t)~__bfloat16_as_ushort(v)) : "memory");
}
// Which launch this is; asked for behind pdl_wait, used when the first x is there.
DEVICE uint32_t load_turn(const ChainArgs& a) {
    uint32_t turn = 0;
    if (a.count == 1) return turn;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(turn) : "l"(a.turn) : "memory");
    return turn;
}
// This launch's set; the other is emptied.
DEVICE uint16_t* begin_cells(const ChainArgs& a, uint32_t turn) {
    if (a.count == 1) return nullptr;
    uint16_t* other = a.cells + (turn & 1 ? 0 : a.set);
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < a.set / 8; i += gridDim.x * THREADS)
        *(uint4*)(other + i * 8) = make_uint4(0, 0, 0, 0);
    return a.cells + (turn & 1 ? a.set : 0);
}
// At a block's end: the last one turns.
DEVICE void end_cells(const ChainArgs& a) {
    if (a.count == 1) return;
    __syncthreads();
    if (threadIdx.x == 0 && atomicInc(a.turn + 1, gridDim.x - 1) == gridDim.x - 1) a.turn[0]++;
}

// ---- x and results ----
// A norm's weights into L1, before its x is waited for.
DEVICE void prefetch_norm(const Product& p) {
    if (p.mode == PLAIN) return;
    for (int i = threadIdx.x * 32; i < p.k; i += THREADS * 32)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(p.norm_weight + i));
}
// x of one product, scaled by the norm's weight, to wherever `store(row, piece, v)` takes eight columns as floats;
// and the sums of squares of its rows, a piece of 2048 columns and a warp each: bits that do not depend on GROUPS.
constexpr int SQUARES = 18;  // most rows x pieces
template <int MODE, typename Store, typename Pace>
DEVICE void stage(const Product& a, const uint16_t* cells, float (*squares)[WARPS], int group, int tid, Store store,
                  Pace pace) {
    const int parts = (a.k / 8 + GROUP_THREADS - 1) / GROUP_THREADS, total = parts * a.batch;
    const bool passed = MODE != GATED && a.x_cells >= 0;
    for (int j0 = group; j0 < total; j0 += 4 * GROUPS) {
        uint4 xr[4], gr[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {  // all loads first: one latency, not four
            const int j = j0 + i * GROUPS, row = j / parts, c = (j - row * parts) * GROUP_THREADS + tid;
            const bool valid = j < total && c * 8 < a.k;
            xr[i] = gr[i] = make_uint4(0, 0, 0, 0);
            if (valid && passed) xr[i] = load_cells(cells + a.x_cells + row * a.k + c * 8);
            else if (valid) xr[i] = load_cg(a.x + (size_t)row * a.x_stride + c * 8);
            if (MODE == GATED && valid) gr[i] = load_cg(a.gate + (size_t)row * a.gate_stride + c * 8);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int j = j0 + i * GROUPS;
            if (j >= total) break;
            const int row = j / parts, c = (j - row * parts) * GROUP_THREADS + tid;
            if (passed) xr[i] = settle_cells(xr[i], cells + a.x_cells + row * a.k + c * 8, c * 8 < a.k, pace);
            float v[8], s = 0;
            unpack8(xr[i], v);
            if (MODE == GATED) gate8(v, gr[i]);
            if (MODE != PLAIN) {
#pragma unroll
                for (int e = 0; e < 8; e++) s += v[e] * v[e];
                s = warp_sum(s);
                if ((tid & 31) == 0) squares[j][tid >> 5] = s;
            }
            if (c * 8 >= a.k) continue;
            if (MODE != PLAIN) {
                const float4 w0 = __ldg((const float4*)(a.norm_weight + c * 8));
                const float4 w1 = __ldg((const float4*)(a.norm_weight + c * 8 + 4));
                v[0] *= w0.x, v[1] *= w0.y, v[2] *= w0.z, v[3] *= w0.w;
                v[4] *= w1.x, v[5] *= w1.y, v[6] *= w1.z, v[7] *= w1.w;
            }
            store(row, c, v);
        }
    }
}
template <typename Store, typename Pace>
DEVICE void stage_any(const Product& a, const uint16_t* cells, float (*squares)[WARPS], int group, int tid, Store store,
                      Pace pace) {
    __syncthreads();  // the product before has read its x
    if (a.mode == PLAIN) stage<PLAIN>(a, cells, squares, group, tid, store, pace);
    else if (a.mode == RMS) stage<RMS>(a, cells, squares, group, tid, store, pace);
    else stage<GATED>(a, cells, squares, group, tid, store, pace);
    __syncthreads();
}
// 1 / rms of a row, by one warp.
DEVICE float row_scale(const Product& a, const float (*squares)[WARPS], int row) {
    const int parts = (a.k / 8 + GROUP_THREADS - 1) / GROUP_THREADS;
    float s = 0;
    for (int i = threadIdx.x & 31; i < parts * WARPS; i += 32) s += squares[row * parts + i / WARPS][i % WARPS];
    return rsqrtf(warp_sum(s) / a.k + a.eps);
}
DEVICE float load_residual(const Product& p, const uint16_t* cells, int row, int n) {
    if (p.residual_cells >= 0) return load_cell(cells + p.residual_cells + row * p.n + n);
    uint16_t v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p.residual + (size_t)row * p.residual_stride + n));
    return to_f32(__ushort_as_bfloat16(v));
}
DEVICE void store_result(const Product& p, uint16_t* cells, int row, int n, float v) {
    const size_t at = (size_t)row * p.out_stride + n;
    if (p.out_f32) {
        ((float*)p.out)[at] = v;
        return;
    }
    const bf16 b = __float2bfloat16_rn(v);
    if (p.out_cells >= 0) store_cell(cells + p.out_cells + row * p.n + n, b);
    ((bf16*)p.out)[at] = b;
}
