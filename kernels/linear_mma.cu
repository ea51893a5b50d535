// linear on cards since Ampere that are no Hopper, many rows: out(m,n) = sum_k x(m,k) * W(n,k), with bias, residual or
// SwiGLU behind.
//
// Contract: x (M,K) and W (N,K) bf16, rows of 16-byte multiples, N a multiple of 8; bias f32, residual bf16 (may be
//   `out`); out (M,N) bf16 or f32. SwiGLU: silu(x W^T) * (x W2^T), bf16. f32 sums, k upwards in steps of 16: a row's bits
//   depend on nothing but that row and W, nor on the tile.
//
// Work: 2 M N K. Bytes: x, W and out once, in the best case.
// Ideas: - mma.sync m16n8k16: four warps, each with a quarter of a tile of 128 x 128; up to 64 rows 64 x 64, whose many
//          blocks ask for weights at once;
//        - cp.async rings of 3 and 6 stages of 32 k in 48 KiB, which every card gives two blocks;
//        - tiles are walked in bands of 8 rows of tiles, so that weights in use stay in L2;
//        - SwiGLU: a warp's columns are half gate and half up, which end in the same thread.
// Launch: 128 threads, grid (tiles of M x tiles of N): tiles of 128 x 128 or 64 x 64, SwiGLU of half as many outputs.
#include "mma.cuh"

struct Plain {
    DEVICE_MEMBER static void fetch(uint32_t to, const uint8_t* w, const MmaArgs& a, int n, int k) {
        const bool valid = k < a.k && n < a.n;
        cp_async16(to, valid ? (const bf16*)w + (size_t)n * a.k + k : (const bf16*)w, valid);
    }
    DEVICE_MEMBER static float2 scale(const uint8_t*, const MmaArgs&, int) { return make_float2(1, 1); }
};
MMA_KERNELS(linear_mma, Plain)
