// linear with weights in blocks on cards since Ampere that are no Hopper, many rows.
//
// Contract: as linear_mma.cu, but W (and W2, of the same type) in panels of blocks (blocks.cuh), K whole steps of them. A
//   weight's exact value is rounded to bf16 once, as blocks_gemm_sm90.cu does.
// Work: 2 M N K, and unpacking each weight once for a tile's rows. Launch: as linear_mma.cu.
#include "blocks.cuh"
#include "mma.cuh"

template <int TYPE> struct Blocks {
    DEVICE_MEMBER static void fetch(uint32_t to, const uint8_t* w, const MmaArgs& a, int n, int k) {
        float v[8];
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] = n < a.n ? block_value<TYPE>(w, n, k + e, a.k) : 0.0f;
        sts128(to, pack8(v));
    }
    DEVICE_MEMBER static float2 scale(const uint8_t*, const MmaArgs&, int) { return make_float2(1, 1); }
};
MMA_KERNELS(blocks_mma_q8_0, Blocks<Q8_0>)
MMA_KERNELS(blocks_mma_q4_0, Blocks<Q4_0>)
MMA_KERNELS(blocks_mma_q4_k, Blocks<Q4_K>)
MMA_KERNELS(blocks_mma_q5_k, Blocks<Q5_K>)
MMA_KERNELS(blocks_mma_q6_k, Blocks<Q6_K>)
