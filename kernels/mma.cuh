// The tile loop of products of many rows on cards since Ampere that are no Hopper: linear_mma.cu (bf16), blocks_mma.cu
// (blocks) and linear_fp8_mma.cu (e4m3), which say how eight columns of a weight's row come to shared memory.
#pragma once
#include "common.cuh"

struct MmaArgs {
    const bf16* x;
    const uint8_t* w;
    const uint8_t* w2;     // swiglu
    const float* bias;     // (N) or null
    const bf16* residual;  // (M,N) or null
    void* out;
    int m, n, k, x_stride, residual_stride, out_stride, out_f32;
};

constexpr int BK = 32, ROW_BYTES = 2 * BK, BAND = 8, SMEM_BYTES = 49152;

// Where a piece of 8 columns lies: ldmatrix meets every bank once.
DEVICE uint32_t mma_at(uint32_t base, int row, int piece) {
    return base + row * ROW_BYTES + ((piece ^ (row >> 1 & 3)) << 4);
}

// Warps 2 x 2, each with MT x NT steps of 16 x 8. WEIGHT::fetch(to, w, args, n, k) brings columns [k, k + 8) of row n,
// WEIGHT::scale(w, args, n) what its sums are multiplied by.
template <class WEIGHT, int MT, int NT, bool SWIGLU> DEVICE void linear_mma(const MmaArgs& a) {
    constexpr int TM = 32 * MT, TN = 16 * NT, A_BYTES = TM * ROW_BYTES, STAGE_BYTES = A_BYTES + TN * ROW_BYTES;
    constexpr int STAGES = SMEM_BYTES / STAGE_BYTES, OUTPUTS = SWIGLU ? TN / 2 : TN, WARP = 8 * NT;
    constexpr int SHOWN = SWIGLU ? NT / 2 : NT;  // steps of outputs in a warp
    __shared__ __align__(128) uint8_t ring[SMEM_BYTES];
    const uint32_t smem = smem_addr(ring);
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, piece = tid & 3;
    const int tiles_m = (a.m + TM - 1) / TM, tiles_n = (a.n + OUTPUTS - 1) / OUTPUTS;
    const int band = blockIdx.x / (BAND * tiles_n), size = min(BAND, tiles_m - band * BAND);
    const int inside = blockIdx.x - band * BAND * tiles_n;
    const int m0 = (band * BAND + inside % size) * TM, n0 = inside / size * OUTPUTS;
    const int steps = (a.k + BK - 1) / BK;
    pdl_wait();
    pdl_launch();

    auto fetch = [&](int step) {
        const uint32_t stage = smem + step % STAGES * STAGE_BYTES;
        const int k = step * BK + piece * 8;
#pragma unroll
        for (int j = 0; j < TM / 32; j++) {
            const int r = (tid >> 2) + 32 * j;
            const bool valid = k < a.k && m0 + r < a.m;
            cp_async16(mma_at(stage, r, piece), valid ? a.x + (size_t)(m0 + r) * a.x_stride + k : a.x, valid);
        }
#pragma unroll
        for (int j = 0; j < TN / 32; j++) {  // swiglu: a warp's columns are half gate, half up
            const int r = (tid >> 2) + 32 * j, q = r % WARP;
            const int n = n0 + (SWIGLU ? r / WARP * (WARP / 2) + q % (WARP / 2) : r);
            WEIGHT::fetch(mma_at(stage + A_BYTES, r, piece), SWIGLU && q >= WARP / 2 ? a.w2 : a.w, a, n, k);
        }
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < steps) fetch(i);
        cp_async_commit();
    }
    float acc[MT][NT][4] = {};
    const int row = (warp >> 1) * 16 * MT, col = (warp & 1) * WARP;
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) fetch(step + STAGES - 1);
        cp_async_commit();
        const uint32_t x = smem + step % STAGES * STAGE_BYTES, w = x + A_BYTES;
#pragma unroll
        for (int h = 0; h < BK / 16; h++) {
            uint32_t xs[MT][4], ws[NT / 2][4];
#pragma unroll
            for (int i = 0; i < MT; i++) ldmatrix4(xs[i], mma_at(x, row + 16 * i + (lane & 15), 2 * h + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < NT / 2; j++)
                ldmatrix4(ws[j], mma_at(w, col + 16 * j + (lane >> 4) * 8 + (lane & 7), 2 * h + (lane >> 3 & 1)));
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++)
                    mma_bf16(acc[i][j], xs[i][0], xs[i][1], xs[i][2], xs[i][3], ws[j / 2][j % 2 * 2], ws[j / 2][j % 2 * 2 + 1]);
        }
    }
    const int g = lane >> 2, t = lane & 3, c0 = n0 + (SWIGLU ? col / 2 : col) + 2 * t;
#pragma unroll
    for (int j = 0; j < SHOWN; j++) {
        const int c = c0 + 8 * j;
        if (c >= a.n) continue;
        const float2 up = WEIGHT::scale(a.w, a, c), up2 = SWIGLU ? WEIGHT::scale(a.w2, a, c) : up;
        const float2 bias = a.bias ? *(const float2*)(a.bias + c) : make_float2(0, 0);
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = m0 + row + 16 * i + 8 * half + g;
                if (r >= a.m) continue;
                float u = acc[i][j][2 * half] * up.x, v = acc[i][j][2 * half + 1] * up.y;
                if (SWIGLU) {
                    const float* other = acc[i][(j + NT / 2) % NT] + 2 * half;
                    u = silu(u) * (other[0] * up2.x), v = silu(v) * (other[1] * up2.y);
                }
                u += bias.x, v += bias.y;
                if (a.residual) {
                    const uint32_t onto = *(const uint32_t*)(a.residual + (size_t)r * a.residual_stride + c);
                    u += bf_lo(onto), v += bf_hi(onto);
                }
                const size_t to = (size_t)r * a.out_stride + c;
                if (a.out_f32) *(float2*)((float*)a.out + to) = make_float2(u, v);
                else *(uint32_t*)((bf16*)a.out + to) = pack_bf16(u, v);
            }
    }
}

#if HOPPER
#define MMA_BODY(...) asm volatile("trap;")
#else
#define MMA_BODY(...) linear_mma<__VA_ARGS__>(a)
#endif
#define MMA_KERNEL(NAME, ...)                                                                               \
    extern "C" __global__ void __launch_bounds__(128, 2) NAME(const __grid_constant__ MmaArgs a) {          \
        MMA_BODY(__VA_ARGS__);                                                                              \
    }
// The number in a name is the tile's rows.
#define MMA_KERNELS(NAME, WEIGHT)                                                                           \
    MMA_KERNEL(NAME##_128, WEIGHT, 4, 8, false)                                                             \
    MMA_KERNEL(NAME##_128_swiglu, WEIGHT, 4, 8, true)                                                       \
    MMA_KERNEL(NAME##_64, WEIGHT, 2, 4, false)                                                              \
    MMA_KERNEL(NAME##_64_swiglu, WEIGHT, 2, 4, true)
