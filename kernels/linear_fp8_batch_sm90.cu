// linear on Hopper in e4m3 for some rows (decoding a batch), memory-bound: out(m,n) = x_scale(m) w_scale(n)
// sum_k x(m,k) W(n,k).
//
// Contract: x (M,K) e4m3 with a scale for each row (fp8_rows of linear_fp8_sm90.cu), W and W2 (SwiGLU) as linear_fp8.cu
//   has them; bias f32, residual bf16 (may be `out`); out bf16. N a multiple of 8, K of 16. M beyond the name's number
//   runs in further tiles of the grid. A row's bits do not depend on M, nor on which name's kernel took it.
//
// Bytes: N*K, the weights once, x from L2. Floor: that over the read bandwidth.
// Ideas, launch: batch_sm90.cuh; a stage's 128 bytes of k hold twice as many columns; scales are asked for early.
// Reached on an H200, a step of Bamba-9B's 16 / 64 / 128 sequences: 4.39 / 8.33 / 13.5 ms (bf16: 6.23 / 10.0 / 15.3); with
//   clusters of four, a quarter of k each: 4.60 / 8.36 / 13.7. Then scales asked for early, a layer of 16 sequences 129.3
//   -> 127.7 us, and gate and up in 112 blocks of whole tiles, 126.4. Copying weights and x and multiplying takes 64.2 us
//   of the 72.8 of its products, 67.3 of 90.6 with 64 sequences: what is left is behind a tile's last columns.
#include "batch_sm90.cuh"

#if HOPPER
// The scales of tokens and rows. Those of rows are in no cache: they are asked for before the last columns of a tile.
template <int T, bool SWIGLU> struct Scales<T, SWIGLU, Fp8BatchArgs> {
    float* const of_token;  // T of the warpgroup's own
    float of_row[2];        // of the thread's two rows, with SwiGLU of its row of the pair's first and second matrix
    int turn = -1;
    DEVICE_MEMBER explicit Scales(float* shared) : of_token(shared) {}
    // Before the stages of a unit.
    DEVICE_MEMBER void ask(const Fp8BatchArgs& a, const Share& share, int unit) {
        constexpr int ROWS = SWIGLU ? 64 : 128;
        const int tile = unit / PARTS, tid = threadIdx.x & 127, bar = 1 + (threadIdx.x >> 7);
        if (tile / share.tiles != turn) {
            turn = tile / share.tiles;
            const int token = turn * T + tid;
            named_sync(bar, 128);  // those of the tokens before are not needed any more
            if (tid < T) of_token[tid] = token < a.of.m ? __ldcg(a.x_scale + token) : 0;
            named_sync(bar, 128);
        }
        if (unit % PARTS < PARTS - 1 && unit + 1 < share.end) return;
        const int row0 = tile % share.tiles * ROWS + (threadIdx.x >> 5) * (ROWS / 8) + ((threadIdx.x & 31) >> 2);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = row0 + (SWIGLU ? 0 : 8 * h);
            of_row[h] = row < a.of.n ? (SWIGLU && h != a.of.up_first ? a.w2_scale : a.w_scale)[row] : 0;
        }
    }
    // To the sums of tokens 8 i + 2 t and the next, i from `from` to `to`.
    DEVICE_MEMBER void apply(float* sums, int from, int to) const {
#pragma unroll
        for (int i = 0; i < T / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                if (i < from || i >= to) continue;
                const float token = of_token[8 * i + 2 * (threadIdx.x & 3) + e];
#pragma unroll
                for (int h = 0; h < 2; h++) sums[4 * i + 2 * h + e] = sums[4 * i + 2 * h + e] * token * of_row[h];
            }
    }
};

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
