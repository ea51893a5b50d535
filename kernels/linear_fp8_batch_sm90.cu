// linear on Hopper in e4m3 for some rows (decoding a batch), memory-bound: out(m,n) = x_scale(m) w_scale(n)
// sum_k x(m,k) W(n,k).
//
// Contract: x (M,K) e4m3 with a scale for each row (fp8_rows of linear_fp8_sm90.cu), W and W2 (SwiGLU) as linear_fp8.cu
//   has them; bias f32, residual bf16 (may be `out`); out bf16. N a multiple of 8, K of 16. M beyond the name's number
//   runs in further tiles of the grid. A row's bits do not depend on M, nor on which name's kernel took it.
//
// Bytes: N*K, the weights once, x from L2. Floor: that over the read bandwidth.
// Ideas: those of linear_batch_sm90.cu, whose weights are operand A, too: a step's 128 bytes of k hold twice as many
//   columns. A cluster of four splits k; parts are added in rank order through each other's shared memory.
// Reached on an H100, in_proj / out_proj / gate_up / down: 16 rows 71 / 64 / 81 / 74 % of the read bandwidth, 64 rows
//   62 / 61 / 71 / 69 %. A step of Bamba-9B's 16 sequences 5.86 ms (bf16: 8.5), on an H200 4.64 ms (with the kernel for
//   many rows instead: 7.44).
// Launch: 288 threads, cluster 4, grid (4 * tiles, ceil(M / T)), tiles = ceil(N / 128), swiglu ceil(N / 64);
//   dynamic smem 99456. Maps of bytes, 128-byte swizzle: W and W2 box 128 x 128 rows (swiglu 128 x 64), x 128 x T rows.
#include "wgmma.cuh"

struct BatchArgs {
    const float* bias;       // (N) or null
    const bf16* residual;    // (M,N) or null
    bf16* out;               // (M,N)
    const float* x_scale;    // (M)
    const float* w_scale;    // (N)
    const float* w2_scale;   // (N), swiglu
    int m, n, k, residual_stride, out_stride;
};

#if HOPPER
constexpr int RANKS = 4, BK = 128, A_BYTES = 128 * BK, PITCH = 132, RING = 98304;

template <int T> DEVICE void step(float* acc, uint64_t a, uint64_t b) {
    if (T == 8) wgmma_n8_e4m3(acc, a, b, 1);
    else if (T == 16) wgmma_n16_e4m3(acc, a, b, 1);
    else if (T == 32) wgmma_n32_e4m3(acc, a, b, 1);
    else if (T == 64) wgmma_n64_e4m3(acc, a, b, 1);
    else wgmma_n128_e4m3(acc, a, b, 1);
}
DEVICE void gather(uint32_t addr, float scale, const float* w_scale, float* v) {
    float4 s = cluster_load4(addr, 0);
#pragma unroll
    for (int r = 1; r < RANKS; r++) {
        const float4 o = cluster_load4(addr, r);
        s.x += o.x, s.y += o.y, s.z += o.z, s.w += o.w;
    }
    const float4 w = *(const float4*)w_scale;
    v[0] = s.x * scale * w.x, v[1] = s.y * scale * w.y, v[2] = s.z * scale * w.z, v[3] = s.w * scale * w.w;
}

template <int T, bool SWIGLU>
DEVICE void linear_batch(const CUtensorMap* mx, const CUtensorMap* mw, const CUtensorMap* mw2, const BatchArgs& a) {
    constexpr int STAGE_BYTES = A_BYTES + T * BK, STAGES = RING / STAGE_BYTES;
    static_assert(T * PITCH * 4 <= RING && STAGES * 16 <= 128, "shared memory");
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, full = smem + RING, empty = full + 8 * STAGES;
    float* sums = (float*)(raw + (smem - smem_addr(raw)));
    const uint32_t rank = cluster_rank();
    const int tile = blockIdx.x / RANKS, token0 = blockIdx.y * T, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int blocks = (a.k + BK - 1) / BK, per = (blocks + RANKS - 1) / RANKS;
    const int first = min(blocks, (int)rank * per), count = min(blocks, first + per) - first;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbar_init(full + 8 * i, 1), mbar_init(empty + 8 * i, 2);
        mbar_init_fence();
    }
    __syncthreads();
    const int group = warp >> 2;
    if (warp == 8) {
        if (lane == 0) {
            auto weights = [&](int j) {
                const uint32_t dst = smem + (j % STAGES) * STAGE_BYTES, bar = full + 8 * (j % STAGES);
                mbar_expect(bar, STAGE_BYTES);
                tma_load(dst, mw, (first + j) * BK, tile * (SWIGLU ? 64 : 128), bar);
                if (SWIGLU) tma_load(dst + A_BYTES / 2, mw2, (first + j) * BK, tile * 64, bar);
            };
            auto tokens = [&](int j) {
                const uint32_t dst = smem + (j % STAGES) * STAGE_BYTES + A_BYTES;
                tma_load(dst, mx, (first + j) * BK, token0, full + 8 * (j % STAGES));
            };
            const int ahead = min(count, STAGES);
            for (int j = 0; j < ahead; j++) weights(j);
            pdl_wait();
            pdl_launch();
            for (int j = 0; j < ahead; j++) tokens(j);
            for (int j = STAGES; j < count; j++) {
                mbar_wait(empty + 8 * (j % STAGES), ((j / STAGES) & 1) ^ 1);
                weights(j);
                tokens(j);
            }
        }
        __syncwarp();
    } else {
        float acc[T / 2];
#pragma unroll
        for (int i = 0; i < T / 2; i++) acc[i] = 0;
        pdl_wait();
        pdl_launch();
        const uint64_t desc_a = wgmma_desc(smem + group * (A_BYTES / 2), 0), desc_b = wgmma_desc(smem + A_BYTES, 0);
        for (int j = 0; j < count; j++) {
            const int st = j % STAGES;
            mbar_wait(full + 8 * st, (j / STAGES) & 1);
            wgmma_touch<T / 2>(acc);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++)
                step<T>(acc, desc_a + ((st * STAGE_BYTES) >> 4) + 2 * i, desc_b + ((st * STAGE_BYTES) >> 4) + 2 * i);
            wgmma_commit();
            wgmma_wait<1>();
            if (j > 0 && (threadIdx.x & 127) == 0) mbar_arrive(empty + 8 * ((j - 1) % STAGES));
        }
        wgmma_wait<0>();
        wgmma_touch<T / 2>(acc);
        named_sync(1, 256);  // both groups are done with the ring: it becomes the table of sums
        const int row = group * 64 + 16 * (warp & 3) + (lane >> 2), t = lane & 3;
#pragma unroll
        for (int i = 0; i < T / 2; i++)
            sums[(8 * (i >> 2) + 2 * t + (i & 1)) * PITCH + row + 8 * ((i >> 1) & 1)] = acc[i];
    }
    cluster_sync();
    constexpr int ROWS = SWIGLU ? 64 : 128, UNITS = (T / RANKS) * (ROWS / 4);
    for (int i = threadIdx.x; i < UNITS && warp < 8; i += 256) {  // the ninth warp has not waited for the scales
        const int local = rank * (T / RANKS) + i / (ROWS / 4), r = i % (ROWS / 4) * 4;
        const int token = token0 + local, n = tile * ROWS + r;
        if (token >= a.m || n >= a.n) continue;
        const float scale = a.x_scale[token];
        float v[4], u[4];
        gather(smem + (local * PITCH + r) * 4, scale, a.w_scale + n, v);
        if (SWIGLU) gather(smem + (local * PITCH + r + 64) * 4, scale, a.w2_scale + n, u);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (SWIGLU) v[e] = silu(v[e]) * u[e];
            if (a.bias) v[e] += a.bias[n + e];
        }
        if (a.residual) {
            const uint2 w = *(const uint2*)(a.residual + (size_t)token * a.residual_stride + n);
            v[0] += bf_lo(w.x), v[1] += bf_hi(w.x), v[2] += bf_lo(w.y), v[3] += bf_hi(w.y);
        }
        *(uint2*)(a.out + (size_t)token * a.out_stride + n) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    }
    cluster_sync();  // nobody leaves while a neighbour may still read here
}
#define BATCH_BODY(T, SWIGLU) linear_batch<T, SWIGLU>(&mx, &mw, &mw2, a)
#else
#define BATCH_BODY(T, SWIGLU) asm volatile("trap;")
#endif

#define BATCH(NAME, T, SWIGLU)                                                                              \
    extern "C" __global__ void __launch_bounds__(288, 2)                                                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,                \
             const __grid_constant__ CUtensorMap mw2, const __grid_constant__ BatchArgs a) {                \
        BATCH_BODY(T, SWIGLU);                                                                              \
    }
#define BATCH_T(T)                                                                                          \
    BATCH(fp8_batch_##T, T, false)                                                                          \
    BATCH(fp8_batch_swiglu_##T, T, true)
BATCH_T(8)
BATCH_T(16)
BATCH_T(32)
BATCH_T(64)
BATCH_T(128)
