// linear on Hopper for some rows (decoding a batch): out(m,n) = sum_k x(m,k) * W(n,k), memory-bound.
//
// Contract: as linear_gemm_sm90.cu: x (M,K), W (N,K), W2 for SwiGLU, bf16; bias f32, residual bf16 (may be
//   `out`); out bf16 or f32. N a multiple of 8. M beyond the name's number runs in further tiles. A row's bits do not
//   depend on M, nor on which name's kernel took it: k is summed in four parts, which are added in order.
//
// Bytes: N*K*2, the weights once, x from L2. Floor: that over the read bandwidth.
// Ideas, launch: batch_sm90.cuh.
// Reached on an H200, a layer's four products of Bamba-9B in a row: 131 us with 16 rows, 144 with 64, 168 with 128 (their
//   bytes 120.4). Where the block with the last part added a tile up, 132 blocks shared all tiles and L2 kept nothing 132,
//   154 and 185; clusters of four, a quarter of k each, 160 and 181. Tried, see bench/results/gpu-batches.md: the norm
//   inside; asking L2 for what lies behind the ring; other depths; sums that are each their own signal.
#include "batch_sm90.cuh"

#if HOPPER
#define BATCH_BODY(T, SWIGLU, OUT) linear_batch<T, SWIGLU, OUT>(&mx, &mw, a)
#else
#define BATCH_BODY(T, SWIGLU, OUT) asm volatile("trap;")
#endif

#define BATCH(NAME, T, SWIGLU, OUT)                                                                         \
    extern "C" __global__ void __launch_bounds__(T == 128 ? 384 : 512, 1)                                   \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,                \
             const __grid_constant__ BatchArgs a) {                                                         \
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
