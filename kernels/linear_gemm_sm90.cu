// linear on Hopper, many rows: out(m,n) = sum_k x(m,k) * W(n,k), with bias, residual or SwiGLU behind.
//
// Contract: x (M,K) and W (N,K) bf16, rows of 16-byte multiples; out (M,N) bf16; f32 sums, k upwards.
//   gemm        out = x W^T (+ bias) (+ residual); residual may be `out`
//   gemm_swiglu out = silu(x W^T) * (x W2^T)
// M comes from `rows_ptr` when given (a captured graph serves any row count up to its grid), else `m`.
// A row's bits depend on nothing but that row and W. Rows past M up to a multiple of 128 of a tile that
// is computed anyway may be written (zeros or leftovers of the bucket), never past the tensor map.
//
// Work: 2 M N K. Bytes: x, W and out once, in the best case.
// Ideas: - 128 x 256 tile a block, two warpgroups of 64 x 256 (wgmma m64n256k16), one copying warp (TMA),
//          four stages of 64 k; registers moved from the copying warpgroup to the others (setmaxnreg);
//        - clusters of two blocks share a weight tile: each copies half of it to both (multicast);
//        - persistent: one block a multiprocessor; copies of the next tile run during the epilogue;
//        - tiles are walked in bands of 2048 rows so that a band's x and the weights in use stay in L2;
//        - SwiGLU: gate and up halves of one tile end in the same thread, the product is never stored wide;
//        - results go through swizzled shared memory to TMA stores that drain behind the next tile.
// Launch: 384 threads, cluster 2, grid 2 * min(66, pairs of tiles), dynamic smem GEMM_SMEM = 230656.
//   Tensor maps bf16, 128-byte swizzle: x box 64 x 128 rows, W and W2 box 64 x (tile / 2) rows, out 64 x 64.
//   The number in a name is the tile's columns: 128 where 256 would leave clusters without work.
#include "hopper.cuh"

struct GemmArgs {
    const float* bias;          // (N) or null
    const bf16* residual;       // (M,N) or null
    const uint32_t* rows_ptr;   // null: m
    int m, n, k;                // swiglu: n counts outputs
    int residual_stride;
};

#if HOPPER
constexpr int BM = 128, BK = 64, A_BYTES = BM * BK * 2, OUT_BYTES = 64 * 64 * 2;
constexpr int OFF_OUT = 196608, OFF_BAR = OFF_OUT + 4 * OUT_BYTES;
constexpr int BAND = 8;  // pairs of row tiles in a band

struct Walk {
    int pairs, cols, total;
    DEVICE_MEMBER void at(int i, int& pair, int& col) const {
        int band = i / (BAND * cols), first = band * BAND, size = min(BAND, pairs - first);
        int r = i - band * BAND * cols;
        col = r / size, pair = first + r % size;
    }
};

template <int BN, bool SWIGLU>
DEVICE void gemm(const CUtensorMap* mx, const CUtensorMap* mw, const CUtensorMap* mw2, const CUtensorMap* mo,
                 const GemmArgs& a) {
    constexpr int B_BYTES = BN * BK * 2, STAGE_BYTES = A_BYTES + B_BYTES, STAGES = OFF_OUT / STAGE_BYTES;
    constexpr int FULL = 0, EMPTY = 8 * STAGES, ACC = BN / 2;
    extern __shared__ uint8_t raw[];
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    const uint32_t rank = cluster_rank();
    const int group = threadIdx.x >> 7;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbar_init(bars + FULL + 8 * i, 1), mbar_init(bars + EMPTY + 8 * i, 4);
        mbar_init_fence();
        tma_prefetch_map(mx), tma_prefetch_map(mw), tma_prefetch_map(mw2), tma_prefetch_map(mo);
    }
    cluster_sync();
    pdl_wait();
    pdl_launch();
    const int m = a.rows_ptr ? (int)*a.rows_ptr : a.m;
    constexpr int TILE_N = SWIGLU ? BN / 2 : BN;
    Walk walk;
    walk.pairs = (m + 2 * BM - 1) / (2 * BM), walk.cols = (a.n + TILE_N - 1) / TILE_N;
    walk.total = walk.pairs * walk.cols;
    const int first = blockIdx.x >> 1, stride = gridDim.x >> 1, blocks_k = (a.k + BK - 1) / BK;

    if (group == 0) {
        regs_shrink<40>();
        if (threadIdx.x == 0) {
            int st = 0, phase = 1;
            for (int i = first; i < walk.total; i += stride) {
                int pair, col;
                walk.at(i, pair, col);
                const int row = (2 * pair + rank) * BM;
                const CUtensorMap* map = SWIGLU && rank ? mw2 : mw;
                const int wrow = SWIGLU ? col * TILE_N : col * BN + rank * (BN / 2);
                for (int k = 0; k < blocks_k; k++) {
                    const uint32_t full = bars + FULL + 8 * st, stage = smem + st * STAGE_BYTES;
                    mbar_wait(bars + EMPTY + 8 * st, phase);
                    mbar_expect(full, STAGE_BYTES);
                    tma_load(stage, mx, k * BK, row, full);
                    tma_load_multi(stage + A_BYTES + rank * (B_BYTES / 2), map, k * BK, wrow, full, 3);
                    if (++st == STAGES) st = 0, phase ^= 1;
                }
            }
        }
    } else {
        regs_grow<232>();
        const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
        const int which = group - 1, mat = lane >> 3, r8 = lane & 7;
        const uint32_t out = smem + OFF_OUT + which * 2 * OUT_BYTES;
        auto release = [&](int st) {
            if (tid < 2) mbar_arrive_cluster(bars + EMPTY + 8 * st, tid);
        };
        const uint64_t desc_a = wgmma_desc(smem + which * (A_BYTES / 2), 0);
        const uint64_t desc_b = wgmma_desc(smem + A_BYTES, 0);
        int st = 0, phase = 0, turn = 0;
        for (int i = first; i < walk.total; i += stride) {
            int pair, col;
            walk.at(i, pair, col);
            float acc[ACC];
            int before = -1;
            for (int k = 0; k < blocks_k; k++) {
                mbar_wait(bars + FULL + 8 * st, phase);
                const uint64_t at = desc_a + (uint64_t)(st * (STAGE_BYTES >> 4));
                const uint64_t bt = desc_b + (uint64_t)(st * (STAGE_BYTES >> 4));
                wgmma_touch<ACC>(acc);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (BN == 256) wgmma_n256_ss<0>(acc, at + 2 * j, bt + 2 * j, k + j > 0);
                    else wgmma_n128_ss<0>(acc, at + 2 * j, bt + 2 * j, k + j > 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (before >= 0) release(before);
                before = st;
                if (++st == STAGES) st = 0, phase ^= 1;
            }
            wgmma_wait<0>();
            wgmma_touch<ACC>(acc);
            release(before);

            const int row0 = (2 * pair + rank) * BM + which * 64, i0 = row0 + 16 * warp + g;
#pragma unroll
            for (int q = 0; q < TILE_N / 64; q++) {
                const int col0 = col * TILE_N + q * 64;
                const uint32_t buf = out + turn * OUT_BYTES;
                turn ^= 1;
                if (tid == 0) tma_wait_read<1>();  // the store that used this buffer before has read it
                named_sync(1 + which, 128);
                float v[32];
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    const int c = col0 + 8 * n + 2 * t, r = 4 * (8 * q + n);
                    float b0 = 0, b1 = 0;
                    if (a.bias && c < a.n) b0 = a.bias[c], b1 = a.bias[c + 1];
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        float s = acc[r + j] + (j & 1 ? b1 : b0);
                        v[4 * n + j] = SWIGLU ? silu(s) * acc[(r + j + ACC / 2) % ACC] : s;
                    }
                    if (a.residual && c < a.n) {
                        const bf16* p = a.residual + (size_t)i0 * a.residual_stride + c;
                        uint32_t u = i0 < m ? *(const uint32_t*)p : 0;
                        uint32_t w = i0 + 8 < m ? *(const uint32_t*)(p + 8 * (size_t)a.residual_stride) : 0;
                        v[4 * n] += bf_lo(u), v[4 * n + 1] += bf_hi(u);
                        v[4 * n + 2] += bf_lo(w), v[4 * n + 3] += bf_hi(w);
                    }
                }
                const int row = 16 * warp + (mat & 1) * 8 + r8;
#pragma unroll
                for (int n = 0; n < 8; n += 2)
                    stmatrix4(buf + row * 128 + (((n + (mat >> 1)) ^ r8) << 4), pack_bf16(v[4 * n], v[4 * n + 1]),
                              pack_bf16(v[4 * n + 2], v[4 * n + 3]), pack_bf16(v[4 * n + 4], v[4 * n + 5]),
                              pack_bf16(v[4 * n + 6], v[4 * n + 7]));
                fence_async_smem();
                named_sync(1 + which, 128);
                if (tid == 0) {
                    if (row0 < m && col0 < a.n) tma_store(mo, buf, col0, row0);
                    tma_commit();
                }
            }
        }
        if (tid == 0) tma_wait<0>();
    }
    cluster_sync();
}
#define GEMM_BODY(BN, SWIGLU) gemm<BN, SWIGLU>(&mx, &mw, &mw2, &mo, a)
#else
#define GEMM_BODY(BN, SWIGLU) asm volatile("trap;")
#endif

#define GEMM(NAME, BN, SWIGLU)                                                                                  \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,                \
             const __grid_constant__ CUtensorMap mw2, const __grid_constant__ CUtensorMap mo,               \
             const __grid_constant__ GemmArgs a) {                                                          \
        GEMM_BODY(BN, SWIGLU);                                                                                 \
    }
GEMM(gemm_256_sm90_bf16, 256, false)
GEMM(gemm_128_sm90_bf16, 128, false)
GEMM(gemm_swiglu_256_sm90_bf16, 256, true)
GEMM(gemm_swiglu_128_sm90_bf16, 128, true)
