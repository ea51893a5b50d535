// linear on Hopper for some rows (decoding a batch): out(m,n) = sum_k x(m,k) * W(n,k), memory-bound.
//
// Contract: as linear_gemm_sm90.cu: x (M,K), W (N,K), W2 for SwiGLU, bf16; bias f32, residual bf16 (may be
//   `out`); out bf16 or f32. N a multiple of 8. M beyond the name's number runs in further tiles of the grid. A row's bits do not depend on M, nor on which name's kernel took it.
//
// Bytes: N*K*2, the weights once, x from L2. Floor: that over the read bandwidth.
// Ideas: - the weights are operand A (128 rows a block, wgmma m64nTk16), the tokens operand B: no row of the
//          tensor cores' tile is wasted on absent tokens beyond the next 8, 16, 32, 64 or 128;
//        - a cluster of four blocks splits k and adds its parts through each other's shared memory, in rank
//          order: enough blocks for every multiprocessor without a second kernel or atomics;
//        - about 96 KB of stages a block, two blocks a multiprocessor: one streams while the other ends;
//        - a warp copies weights and waits for nobody, another copies tokens behind the kernel in front;
//        - what follows may start at once (norm.cu does so, too): its blocks take places that are free, with their
//          first weights under way while this kernel and a norm between still run; see `pdl_launch`.
// Reached on an H200, a step of Bamba-9B's 16 / 32 / 64 / 128 sequences 6.49 / 7.75 / 10.38 / 16.2 ms
//   (before: 6.54 / 7.93 / 10.47 / 16.3). Products one after another, in_proj / out_proj / gate_up / down: 16 rows
//   76 / 71 / 83 / 76 % of what reading gives, 64 rows 66 / 61 / 72 / 71 %. Tried, see bench/results/README.md: the
//   norm inside (6.6 -> 7.9 ms); one block a multiprocessor that goes on from tile to tile; tokens copied to two blocks at once; other depths.
// Launch: 320 threads, cluster 4, grid (4 * tiles, ceil(M / T)), tiles = ceil(N / 128), swiglu ceil(N / 64);
//   dynamic smem 1280 + the ring: stages of 16384 + 128 T bytes, 5 for T = 32, else as many as 98304 hold.
//   Tensor maps bf16, 128-byte swizzle: W and W2 box 64 x 128 rows (swiglu 64 x 64), x box 64 x T rows.
#include "wgmma.cuh"

struct BatchArgs {
    const float* bias;         // (N) or null
    const bf16* residual;      // (M,N) or null
    void* out;                 // (M,N)
    int m, n, k, residual_stride, out_stride;
};

#if HOPPER
constexpr int RANKS = 4, BK = 64, A_BYTES = 128 * BK * 2, PITCH = 132;

template <int T> DEVICE void step(float* acc, uint64_t a, uint64_t b) {
    if (T == 8) wgmma_n8_ss<0>(acc, a, b, 1);
    else if (T == 16) wgmma_n16_ss<0>(acc, a, b, 1);
    else if (T == 32) wgmma_n32_ss<0>(acc, a, b, 1);
    else if (T == 64) wgmma_n64_ss<0>(acc, a, b, 1);
    else wgmma_n128_ss<0>(acc, a, b, 1);
}
DEVICE float4 gather(uint32_t addr) {
    float4 s = cluster_load4(addr, 0);
#pragma unroll
    for (int r = 1; r < RANKS; r++) {
        const float4 v = cluster_load4(addr, r);
        s.x += v.x, s.y += v.y, s.z += v.z, s.w += v.w;
    }
    return s;
}
DEVICE void store4(bf16* p, const float* v) { *(uint2*)p = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])); }
DEVICE void store4(float* p, const float* v) { *(float4*)p = make_float4(v[0], v[1], v[2], v[3]); }

// Adds up the sums of the cluster's blocks, each its share of the tokens, by the eight warps that have waited for
// the kernel in front.
template <int T, bool SWIGLU, typename OUT>
DEVICE void finish(const BatchArgs& a, uint32_t smem, int rank, int tile, int token0) {
    constexpr int ROWS = SWIGLU ? 64 : 128, UNITS = (T / RANKS) * (ROWS / 4), TURNS = (UNITS + 255) / 256;
    const bool mine = threadIdx.x < 256;
    uint2 onto[TURNS];  // asked for before the others' sums are there
#pragma unroll
    for (int u = 0; u < TURNS; u++) {
        const int i = threadIdx.x + u * 256;
        const int token = token0 + rank * (T / RANKS) + i / (ROWS / 4), n = tile * ROWS + i % (ROWS / 4) * 4;
        if (a.residual && mine && i < UNITS && token < a.m && n < a.n)
            onto[u] = __ldcg((const uint2*)(a.residual + (size_t)token * a.residual_stride + n));
    }
    cluster_sync();
#pragma unroll
    for (int u = 0; u < TURNS; u++) {
        const int i = threadIdx.x + u * 256;
        const int local = rank * (T / RANKS) + i / (ROWS / 4), r = i % (ROWS / 4) * 4;
        const int token = token0 + local, n = tile * ROWS + r;
        if (!mine || i >= UNITS || token >= a.m || n >= a.n) continue;
        const float4 s = gather(smem + (local * PITCH + r) * 4);
        float v[4] = {s.x, s.y, s.z, s.w};
        if (SWIGLU) {
            const float4 g = gather(smem + (local * PITCH + r + 64) * 4);
            v[0] = silu(v[0]) * g.x, v[1] = silu(v[1]) * g.y, v[2] = silu(v[2]) * g.z, v[3] = silu(v[3]) * g.w;
        }
        if (a.bias) v[0] += a.bias[n], v[1] += a.bias[n + 1], v[2] += a.bias[n + 2], v[3] += a.bias[n + 3];
        if (a.residual)
            v[0] += bf_lo(onto[u].x), v[1] += bf_hi(onto[u].x), v[2] += bf_lo(onto[u].y), v[3] += bf_hi(onto[u].y);
        store4((OUT*)a.out + (size_t)token * a.out_stride + n, v);
    }
}

template <int T, bool SWIGLU, typename OUT>
DEVICE void linear_batch(const CUtensorMap* mx, const CUtensorMap* mw, const CUtensorMap* mw2, const BatchArgs& a) {
    constexpr int X_BYTES = T * BK * 2, STAGE_BYTES = A_BYTES + X_BYTES, STAGES = T == 32 ? 5 : 98304 / STAGE_BYTES;
    constexpr int RING = STAGES * STAGE_BYTES, ROWS = SWIGLU ? 64 : 128;
    static_assert(T * PITCH * 4 <= RING && STAGES * 24 <= 256, "shared memory");
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u;
    const uint32_t full_w = smem + RING, full_x = full_w + 8 * STAGES, empty = full_x + 8 * STAGES;
    float* sums = (float*)(raw + (smem - smem_addr(raw)));
    const uint32_t rank = cluster_rank();
    const int tile = blockIdx.x / RANKS, token0 = blockIdx.y * T, warp = threadIdx.x >> 5;
    const int blocks = (a.k + BK - 1) / BK, per = (blocks + RANKS - 1) / RANKS;
    const int first = min(blocks, (int)rank * per), count = min(blocks, first + per) - first;
    pdl_launch();  // early: see above
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            mbar_init(full_w + 8 * i, 1), mbar_init(full_x + 8 * i, 1), mbar_init(empty + 8 * i, 2);
        mbar_init_fence();
    }
    __syncthreads();
    const int group = warp >> 2, tid = threadIdx.x & 127, lane = threadIdx.x & 31;
    if (warp == 8) {
        if (lane == 0) {
            for (int j = 0; j < count; j++) {
                const int st = j % STAGES;
                if (j >= STAGES) mbar_wait(empty + 8 * st, ((j / STAGES) & 1) ^ 1);
                const uint32_t dst = smem + st * STAGE_BYTES, bar = full_w + 8 * st;
                mbar_expect(bar, A_BYTES);
                tma_load(dst, mw, (first + j) * BK, tile * ROWS, bar);
                if (SWIGLU) tma_load(dst + A_BYTES / 2, mw2, (first + j) * BK, tile * ROWS, bar);
            }
        }
        __syncwarp();
    } else if (warp == 9) {
        if (lane == 0) {
            pdl_wait();
            for (int j = 0; j < count; j++) {
                const int st = j % STAGES;
                if (j >= STAGES) mbar_wait(empty + 8 * st, ((j / STAGES) & 1) ^ 1);
                const uint32_t dst = smem + st * STAGE_BYTES + A_BYTES, bar = full_x + 8 * st;
                mbar_expect(bar, X_BYTES);
                tma_load(dst, mx, (first + j) * BK, token0, bar);
            }
        }
        __syncwarp();
    } else {
        float acc[T / 2];
#pragma unroll
        for (int i = 0; i < T / 2; i++) acc[i] = 0;
        pdl_wait();
        const uint64_t desc_a = wgmma_desc(smem + group * (A_BYTES / 2), 0), desc_b = wgmma_desc(smem + A_BYTES, 0);
        for (int j = 0; j < count; j++) {
            const int st = j % STAGES;
            mbar_wait(full_x + 8 * st, (j / STAGES) & 1);
            mbar_wait(full_w + 8 * st, (j / STAGES) & 1);
            wgmma_touch<T / 2>(acc);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++)
                step<T>(acc, desc_a + ((st * STAGE_BYTES) >> 4) + 2 * i, desc_b + ((st * STAGE_BYTES) >> 4) + 2 * i);
            wgmma_commit();
            wgmma_wait<1>();
            if (j > 0 && tid == 0) mbar_arrive(empty + 8 * ((j - 1) % STAGES));
        }
        wgmma_wait<0>();
        wgmma_touch<T / 2>(acc);
        named_sync(1, 256);  // both groups are done with the ring: it becomes the table of sums
        const int row = group * 64 + 16 * (warp & 3) + (lane >> 2), t = lane & 3;
#pragma unroll
        for (int i = 0; i < T / 2; i++)
            sums[(8 * (i >> 2) + 2 * t + (i & 1)) * PITCH + row + 8 * ((i >> 1) & 1)] = acc[i];
    }
    finish<T, SWIGLU, OUT>(a, smem, rank, tile, token0);
    cluster_sync();  // nobody leaves while a neighbour may still read here
}
#define BATCH_BODY(T, SWIGLU, OUT) linear_batch<T, SWIGLU, OUT>(&mx, &mw, &mw2, a)
#else
#define BATCH_BODY(T, SWIGLU, OUT) asm volatile("trap;")
#endif

#define BATCH(NAME, T, SWIGLU, OUT)                                                                         \
    extern "C" __global__ void __launch_bounds__(320, 2)                                                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,                \
             const __grid_constant__ CUtensorMap mw2, const __grid_constant__ BatchArgs a) {                \
        BATCH_BODY(T, SWIGLU, OUT);                                                                         \
    }
#define BATCH_T(T)                                                                                          \
    BATCH(linear_batch_##T##_bf16, T, false, bf16)                                                          \
    BATCH(linear_batch_##T##_f32, T, false, float)                                                          \
    BATCH(linear_batch_swiglu_##T##_bf16, T, true, bf16)
BATCH_T(8)
BATCH_T(16)
BATCH_T(32)
BATCH_T(64)
BATCH_T(128)
