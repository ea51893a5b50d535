// The tile loop of linear_gemm_sm90.cu (bf16) and linear_fp8_sm90.cu (e4m3): a row of a tile is 128 bytes of k in
// both, so copies, stages and descriptors are the same; an e4m3 step multiplies twice as many columns.
#pragma once
#include "wgmma.cuh"

struct GemmArgs {
    const float* bias;          // (N) or null
    const bf16* residual;       // (M,N) or null
    int m, n, k;                // swiglu: n counts outputs
    int residual_stride;
    bf16* out;                  // floats, and tiles that are no multiple of 64 columns, are stored without a map
    int out_stride;
    float* sums;                // SPLIT: 2 * 128 * 256 floats a cluster
};
struct Fp8Args {
    GemmArgs of;
    const float* x_scale;   // (M)
    const float* w_scale;   // (N)
    const float* w2_scale;  // (N), swiglu
};
DEVICE const GemmArgs& gemm_args(const GemmArgs& a) { return a; }
DEVICE const GemmArgs& gemm_args(const Fp8Args& a) { return a.of; }

#if HOPPER
constexpr int BM = 128, A_BYTES = BM * 128, OUT_BYTES = 64 * 64 * 2;  // 128 bytes of k a stage
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

// Waits for the other parts of a tile. Counters go up for ever, by 4 each time.
__device__ uint32_t gemm_met[256];
template <int SPLIT> DEVICE void gemm_meet(int of) {
    const uint32_t all = (count_up(gemm_met + of, 4 / SPLIT) & ~3u) + 4;
    while ((int)(count_now(gemm_met + of) - all) < 0) {}
}

// PARTS: k in four parts, each from zero, whose sums are added in order: the bits of linear_batch_sm90.cu.
// SPLIT: k in 2 or 4 parts, of a cluster each, all of which run at once. Their sums meet in `sums`, where each finishes
//   its share of the columns; four have the bits of PARTS.
template <int BN, bool SWIGLU, bool FP8, bool PARTS = false, int SPLIT = 1, bool F32 = false, typename ARGS>
DEVICE void gemm(const CUtensorMap* mx, const CUtensorMap* mw, const CUtensorMap* mw2, const CUtensorMap* mo,
                 const ARGS& args) {
    const GemmArgs& a = gemm_args(args);
    constexpr int BK = FP8 ? 128 : 64;
    constexpr int B_BYTES = BN * 128, STAGE_BYTES = A_BYTES + B_BYTES, STAGES = OFF_OUT / STAGE_BYTES;
    constexpr int FULL = 0, EMPTY = 8 * STAGES, ACC = BN / 2, SUMS = PARTS ? ACC : 1;
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    const uint32_t rank = cluster_rank();
    const int group = threadIdx.x >> 7;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbar_init(bars + FULL + 8 * i, 1), mbar_init(bars + EMPTY + 8 * i, 4);
        mbar_init_fence();
        tma_prefetch_map(mx), tma_prefetch_map(mw), tma_prefetch_map(mw2), tma_prefetch_map(mo);
    }
    cluster_sync();
    const int m = a.m;
    constexpr int TILE_N = SWIGLU ? BN / 2 : BN, PART = TILE_N % 64 ? 56 : 64;  // columns stored at a time
    Walk walk;
    walk.pairs = (m + 2 * BM - 1) / (2 * BM), walk.cols = (a.n + TILE_N - 1) / TILE_N;
    walk.total = walk.pairs * walk.cols * SPLIT;
    const int first = blockIdx.x >> 1, stride = gridDim.x >> 1, blocks_k = (a.k + BK - 1) / BK;
    const int per = (blocks_k + SPLIT - 1) / SPLIT;

    if (group == 0) {
        regs_shrink<40>();
        if (threadIdx.x == 0) {
            int st = 0, phase = 1;
            for (int i = first; i < walk.total; i += stride) {
                int pair, col;
                walk.at(i / SPLIT, pair, col);
                const int row = (2 * pair + rank) * BM, begin = i % SPLIT * per, end = min(begin + per, blocks_k);
                const CUtensorMap* map = SWIGLU && rank ? mw2 : mw;
                const int wrow = SWIGLU ? col * TILE_N : col * BN + rank * (BN / 2);
                auto weights = [&](int k, int st) {
                    const uint32_t full = bars + FULL + 8 * st, stage = smem + st * STAGE_BYTES;
                    mbar_expect(full, STAGE_BYTES);
                    tma_load_multi(stage + A_BYTES + rank * (B_BYTES / 2), map, k * BK, wrow, full, 3);
                };
                int ahead = i == first ? min(begin + STAGES, end) : begin;
                for (int k = begin; k < ahead; k++) weights(k, k - begin);
                if (i == first) pdl_wait(), pdl_launch();
                for (int k = begin; k < end; k++) {
                    mbar_wait(bars + EMPTY + 8 * st, phase);
                    if (k >= ahead) weights(k, st);
                    tma_load(smem + st * STAGE_BYTES, mx, k * BK, row, bars + FULL + 8 * st);
                    if (++st == STAGES) st = 0, phase ^= 1;
                }
            }
        }
    } else {
        regs_grow<232>();
        pdl_wait();
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
            walk.at(i / SPLIT, pair, col);
            const int share = i % SPLIT, begin = share * per, end = min(begin + per, blocks_k);
            float acc[ACC], total[SUMS];
            int before = -1, edge = (blocks_k + 3) / 4;
            const int part = edge;
            if (PARTS)
#pragma unroll
                for (int j = 0; j < ACC; j++) acc[j] = 0;
            for (int k = begin; k < end; k++) {
                mbar_wait(bars + FULL + 8 * st, phase);
                const uint64_t at = desc_a + (uint64_t)(st * (STAGE_BYTES >> 4));
                const uint64_t bt = desc_b + (uint64_t)(st * (STAGE_BYTES >> 4));
                wgmma_touch<ACC>(acc);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (FP8) BN == 256 ? wgmma_n256_e4m3(acc, at + 2 * j, bt + 2 * j, k + j > begin)
                                       : wgmma_n128_e4m3(acc, at + 2 * j, bt + 2 * j, k + j > begin);
                    else if (BN == 256) wgmma_n256_ss<0>(acc, at + 2 * j, bt + 2 * j, k + j > begin);
                    else if (BN == 224) wgmma_n224_ss<0>(acc, at + 2 * j, bt + 2 * j, k + j > begin);
                    else wgmma_n128_ss<0>(acc, at + 2 * j, bt + 2 * j, PARTS || k + j > begin);
                wgmma_commit();
                wgmma_wait<1>();
                if (before >= 0) release(before);
                before = st;
                if (++st == STAGES) st = 0, phase ^= 1;
                if (PARTS && (k + 1 == edge || k + 1 == blocks_k)) {
                    wgmma_wait<0>();
                    wgmma_touch<ACC>(acc);
#pragma unroll
                    for (int j = 0; j < ACC; j++) {
                        float& sum = total[j % SUMS];
                        sum = edge == part ? acc[j] : sum + acc[j], acc[j] = 0;
                    }
                    edge += part;
                }
            }
            wgmma_wait<0>();
            wgmma_touch<ACC>(acc);
            release(before);
            if (PARTS)
#pragma unroll
                for (int j = 0; j < ACC; j++) acc[j] = total[j % SUMS];
            if constexpr (SPLIT > 1) {
                constexpr int FOURS = ACC / 4, OWN = FOURS / SPLIT;
                const int place = (i / SPLIT * 2 + rank) * 2 + which;
                float4* sums = (float4*)a.sums + place * SPLIT * FOURS * 128 + tid;
                float4* mine = sums + share * FOURS * 128;
#pragma unroll
                for (int j = 0; j < FOURS; j++)
                    if (j / OWN != share)
                        store_kept(mine + j * 128, make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
                named_sync(1 + which, 128);
                if (tid == 0) gemm_meet<SPLIT>(place);
                named_sync(1 + which, 128);
#pragma unroll
                for (int j = 0; j < FOURS; j++) {
                    if (j / OWN != share) continue;
                    const float4 own = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
                    float4 sum;
#pragma unroll
                    for (int p = 0; p < SPLIT; p++) {
                        const float4 v = p == share ? own : __ldcg(sums + (p * FOURS + j) * 128);
                        if (p == 0) sum = v;
                        else sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
                    }
                    acc[4 * j] = sum.x, acc[4 * j + 1] = sum.y, acc[4 * j + 2] = sum.z, acc[4 * j + 3] = sum.w;
                }
            }

            const int row0 = (2 * pair + rank) * BM + which * 64, i0 = row0 + 16 * warp + g;
            float sx[2] = {1, 1};
            if constexpr (FP8) sx[0] = i0 < m ? args.x_scale[i0] : 0, sx[1] = i0 + 8 < m ? args.x_scale[i0 + 8] : 0;
#pragma unroll
            for (int q = 0; q < TILE_N / PART; q++) {
                if (SPLIT > 1 && q * SPLIT / (TILE_N / PART) != share) continue;
                const int col0 = col * TILE_N + q * PART;
                const uint32_t buf = out + turn * OUT_BYTES;
                turn ^= 1;
                if (PART == 64 && !F32 && tid == 0) tma_wait_read<1>();  // the store that used this buffer before has read it
                if (!F32) named_sync(1 + which, 128);
                float v[32];
#pragma unroll
                for (int n = 0; n < PART / 8; n++) {
                    const int c = col0 + 8 * n + 2 * t, r = 4 * (PART / 8 * q + n);
                    float b0 = 0, b1 = 0;
                    if (a.bias && c < a.n) b0 = a.bias[c], b1 = a.bias[c + 1];
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        float s = acc[r + j], u = acc[(r + j + ACC / 2) % ACC];
                        if constexpr (FP8) {
                            if (c < a.n) {
                                s *= sx[j >> 1] * args.w_scale[c + (j & 1)];
                                if (SWIGLU) u *= sx[j >> 1] * args.w2_scale[c + (j & 1)];
                            }
                        }
                        s += j & 1 ? b1 : b0;
                        v[4 * n + j] = SWIGLU ? silu(s) * u : s;
                    }
                    if (a.residual && c < a.n) {
                        const bf16* p = a.residual + (size_t)i0 * a.residual_stride + c;
                        uint32_t u = i0 < m ? *(const uint32_t*)p : 0;
                        uint32_t w = i0 + 8 < m ? *(const uint32_t*)(p + 8 * (size_t)a.residual_stride) : 0;
                        v[4 * n] += bf_lo(u), v[4 * n + 1] += bf_hi(u);
                        v[4 * n + 2] += bf_lo(w), v[4 * n + 3] += bf_hi(w);
                    }
                    if (F32 && c < a.n) {
                        float* p = (float*)a.out + (size_t)i0 * a.out_stride + c;
                        if (i0 < m) *(float2*)p = make_float2(v[4 * n], v[4 * n + 1]);
                        if (i0 + 8 < m) *(float2*)(p + 8 * (size_t)a.out_stride) = make_float2(v[4 * n + 2], v[4 * n + 3]);
                    }
                }
                if (F32) continue;
                const int row = 16 * warp + (mat & 1) * 8 + r8;
#pragma unroll
                for (int n = 0; n < PART / 8; n += 2) {
                    const int other = n + 1 < PART / 8 ? n + 1 : n;  // an odd one is written twice
                    stmatrix4(buf + row * 128 + (((n + (mat >> 1) * (other - n)) ^ r8) << 4),
                              pack_bf16(v[4 * n], v[4 * n + 1]), pack_bf16(v[4 * n + 2], v[4 * n + 3]),
                              pack_bf16(v[4 * other], v[4 * other + 1]), pack_bf16(v[4 * other + 2], v[4 * other + 3]));
                }
                if (PART == 64) fence_async_smem();
                named_sync(1 + which, 128);
                if (PART == 64) {
                    if (tid == 0) {
                        if (row0 < m && col0 < a.n) tma_store(mo, buf, col0, row0);
                        tma_commit();
                    }
                } else {
#pragma unroll
                    for (int i = tid; i < 64 * (PART / 8); i += 128) {
                        const int row = i / (PART / 8), piece = i % (PART / 8), c = col0 + piece * 8;
                        const uint4 o = lds128(buf + row * 128 + ((piece ^ (row & 7)) << 4));
                        if (row0 + row < m && c < a.n) *(uint4*)(a.out + (size_t)(row0 + row) * a.out_stride + c) = o;
                    }
                }
            }
        }
        if (tid == 0) tma_wait<0>();
    }
    cluster_sync();
}
#endif  // HOPPER
