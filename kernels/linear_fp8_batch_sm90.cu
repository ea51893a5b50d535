// linear on Hopper in e4m3 for some rows (decoding a batch), memory-bound: out(m,n) = x_scale(m) w_scale(n)
// sum_k x(m,k) W(n,k).
//
// Contract: x (M,K) e4m3 with a scale for each row (fp8_rows of linear_fp8_sm90.cu), W and W2 (SwiGLU) as linear_fp8.cu
//   has them; bias f32, residual bf16 (may be `out`); out bf16. N a multiple of 8, K of 16. M beyond the name's number
//   runs in further tiles of the grid. A row's bits do not depend on M, nor on which name's kernel took it.
//
// Bytes: N*K, the weights once, x from L2. Floor: that over the read bandwidth.
// Ideas, launch: batch_sm90.cuh; a stage's 128 bytes of k hold twice as many columns.
// Reached on an H200, a step of Bamba-9B's 16 / 64 / 128 sequences: 4.39 / 8.33 / 13.5 ms (bf16: 6.23 / 10.0 / 15.3); with
//   clusters of four, a quarter of k each: 4.60 / 8.36 / 13.7.
#include "batch_sm90.cuh"

#if HOPPER
#define BATCH_BODY(T, SWIGLU) linear_batch<T, SWIGLU, bf16>(&mx, &mw, a)
#else
#define BATCH_BODY(T, SWIGLU) asm volatile("trap;")
#endif

#define BATCH(NAME, T, SWIGLU)                                                                              \
    extern "C" __global__ void __launch_bounds__(T == 128 ? 384 : 512, 1)                                   \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,                \
             const __grid_constant__ Fp8BatchArgs a) {                                                      \
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
