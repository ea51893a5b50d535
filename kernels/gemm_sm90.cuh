// The tile loop of linear_gemm_sm90.cu (bf16) and linear_fp8_sm90.cu (e4m3): a row of a tile is 128 bytes of k in
// both, so copies, stages and descriptors are the same; an e4m3 step multiplies twice as many columns.
#pragma once
#include "wgmma.cuh"

struct GemmArgs {
    const float* bias;          // (N) or null
    const bf16* residual;       // (M,N) or null
    int m, n, k;                // swiglu: n counts outputs
    int residual_stride;
    bf16* out;
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
constexpr int BM = 128, A_BYTES = BM * 128;  // 128 bytes of k a stage
constexpr int OFF_BAR = 229376;
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

// Of a 4 x 4 matrix of words, a row a lane of four neighbours: its transpose.
DEVICE void transpose4(uint32_t* w) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(~0u, odd ? w[i] : w[i + 1], 1);
        w[i] = odd ? other : w[i], w[i + 1] = odd ? w[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t other = __shfl_xor_sync(~0u, high ? w[i] : w[i + 2], 2);
        w[i] = high ? other : w[i], w[i + 2] = high ? w[i + 2] : other;
    }
}

// PARTS: k in four parts, each from zero, whose sums are added in order: the bits of linear_batch_sm90.cu.
// SPLIT: k in 2 or 4 parts, of a cluster each, all of which run at once. Their sums meet in `sums`, where each finishes
//   its share of the columns; four have the bits of PARTS.
// LATER: a tile's results stay packed in registers until the next tile's first products run, between which they are
//   stored and that tile's residual is read into their place. Where k is SPLIT a cluster has one tile.
template <int BN, bool SWIGLU, bool FP8, bool PARTS = false, int SPLIT = 1, bool F32 = false, typename ARGS>
DEVICE void gemm(const CUtensorMap* mx, const CUtensorMap* mw, const CUtensorMap* mw2, const ARGS& args) {
    const GemmArgs& a = gemm_args(args);
    constexpr int BK = FP8 ? 128 : 64;
    constexpr int B_BYTES = BN * 128, STAGE_BYTES = A_BYTES + B_BYTES, STAGES = OFF_BAR / STAGE_BYTES;
    constexpr int FULL = 0, EMPTY = 8 * STAGES, ACC = BN / 2, SUMS = PARTS ? ACC : 1;
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    const uint32_t rank = cluster_rank();
    const int group = threadIdx.x >> 7;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbar_init(bars + FULL + 8 * i, 1), mbar_init(bars + EMPTY + 8 * i, 4);
        mbar_init_fence();
        tma_prefetch_map(mx), tma_prefetch_map(mw), tma_prefetch_map(mw2);
    }
    cluster_sync();
    const int m = a.m;
    constexpr int TILE_N = SWIGLU ? BN / 2 : BN, PIECES = (TILE_N + 31) / 32 * 2;  // 8 rows of 32 columns a warp
    constexpr bool LATER = SPLIT == 1 && !F32;
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
        const int which = group - 1;
        // The stage before `st`.
        auto release = [&](int st) {
            if (tid < 2) mbar_arrive_cluster(bars + EMPTY + 8 * (st == 0 ? STAGES - 1 : st - 1), tid);
        };
        const uint64_t desc_a = wgmma_desc(smem + which * (A_BYTES / 2), 0);
        const uint64_t desc_b = wgmma_desc(smem + A_BYTES, 0);
        int st = 0, phase = 0;
        // Packed results (or the residual they are added to) of piece e: row 8 (e & 1), four columns of each eighth of
        // its 32. `store` gives each lane eight neighbours.
        uint32_t held[PIECES][4];
        int held_row = m, held_col = 0;  // m: nothing is held
        const bool adds = !SWIGLU && a.residual;
        auto store = [&](int e) {
            const int row = held_row + 8 * (e & 1), c = held_col + 32 * (e >> 1);
            transpose4(held[e]);
            if (row < m && c < a.n && (TILE_N % 32 == 0 || 32 * (e >> 1) + 8 * t < TILE_N))
                *(uint4*)(a.out + (size_t)row * a.out_stride + c) = make_uint4(held[e][0], held[e][1], held[e][2], held[e][3]);
        };
        for (int i = first; i < walk.total; i += stride) {
            int pair, col;
            walk.at(i / SPLIT, pair, col);
            const int share = i % SPLIT, begin = share * per, end = min(begin + per, blocks_k);
            const int i0 = (2 * pair + rank) * BM + which * 64 + 16 * warp + g;
            auto ask = [&](int e) {
                const int row = i0 + 8 * (e & 1), c = col * TILE_N + 8 * t + 32 * (e >> 1);
                uint4 u = make_uint4(0, 0, 0, 0);
                if (row < m && c < a.n) u = load_cg(a.residual + (size_t)row * a.residual_stride + c);
                held[e][0] = u.x, held[e][1] = u.y, held[e][2] = u.z, held[e][3] = u.w;
            };
            float acc[ACC], total[SUMS];
            int edge = (blocks_k + 3) / 4;
            const int part = edge;
            auto block = [&](int k) {
                mbar_wait(bars + FULL + 8 * st, phase);
                const uint64_t at = desc_a + (uint64_t)(st * (STAGE_BYTES >> 4));
                const uint64_t bt = desc_b + (uint64_t)(st * (STAGE_BYTES >> 4));
                wgmma_touch<ACC>(acc);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int keep = PARTS || k + j > begin;
                    if (FP8) BN == 256 ? wgmma_n256_e4m3(acc, at + 2 * j, bt + 2 * j, keep)
                                       : wgmma_n128_e4m3(acc, at + 2 * j, bt + 2 * j, keep);
                    else if (BN == 256) wgmma_n256_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
                    else if (BN == 224) wgmma_n224_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
                    else if (BN == 192) wgmma_n192_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
                    else wgmma_n128_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
                }
                wgmma_commit();
                wgmma_wait<1>();
                if (k > begin) release(st);
                if (++st == STAGES) st = 0, phase ^= 1;
            };
            if (PARTS)
#pragma unroll
                for (int j = 0; j < ACC; j++) acc[j] = 0;
            if (SPLIT > 1 && adds)
#pragma unroll
                for (int e = 0; e < PIECES; e++)
                    if (e * SPLIT / PIECES == share) ask(e);
            int k = begin;
            const int stop = PARTS ? min(part, end) : end;
            if (LATER)
#pragma unroll
                for (int e = 0; e < PIECES; e++) {
                    if (k < stop) block(k++);
                    store(e);
                    if (adds) ask(e);
                }
            for (; k < end; k++) {
                if (PARTS && k == edge) {
                    wgmma_wait<0>();
                    wgmma_touch<ACC>(acc);
#pragma unroll
                    for (int j = 0; j < ACC; j++) {
                        float& sum = total[j % SUMS];
                        sum = edge == part ? acc[j] : sum + acc[j], acc[j] = 0;
                    }
                    edge += part;
                }
                block(k);
            }
            wgmma_wait<0>();
            wgmma_touch<ACC>(acc);
            release(st);
            if (PARTS)
#pragma unroll
                for (int j = 0; j < ACC; j++) acc[j] = edge == part ? acc[j] : total[j % SUMS] + acc[j];
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

            held_row = i0, held_col = col * TILE_N + 8 * t;
            // Two neighbours of row i0 + 8 r, in columns 8 n + 2 t of the tile (and their up halves): acc[4 n + 2 r].
            const int c0 = col * TILE_N + 2 * t;
            if constexpr (FP8) {
                const float sx[2] = {i0 < m ? args.x_scale[i0] : 0, i0 + 8 < m ? args.x_scale[i0 + 8] : 0};
#pragma unroll
                for (int j = 0; j < ACC; j++) {
                    const int n = j / 4 % (TILE_N / 8), c = c0 + 8 * n + (j & 1);
                    const float* scale = j < TILE_N / 2 ? args.w_scale : args.w2_scale;
                    acc[j] *= sx[j >> 1 & 1] * (c < a.n ? scale[c] : 0);
                }
            }
            if (a.bias)
#pragma unroll
                for (int n = 0; n < TILE_N / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (c0 + 8 * n < a.n) acc[4 * n + j] += a.bias[c0 + 8 * n + (j & 1)];
#pragma unroll
            for (int e = 0; e < PIECES; e++) {
                if (SPLIT > 1 && e * SPLIT / PIECES != share) continue;
                const int r = e & 1, row = i0 + 8 * r;
                if (adds && !F32) transpose4(held[e]);
#pragma unroll
                for (int b = 0; b < 4; b++) {
                    const int n = 4 * (e >> 1) + b, at = 4 * n + 2 * r, c = c0 + 8 * n;
                    if (8 * n >= TILE_N) continue;
                    float x = acc[at], y = acc[at + 1];
                    if (SWIGLU) x = silu(x) * acc[(at + ACC / 2) % ACC], y = silu(y) * acc[(at + 1 + ACC / 2) % ACC];
                    if (F32) {
                        if (row >= m || c >= a.n) continue;
                        const uint32_t u = adds ? *(const uint32_t*)(a.residual + (size_t)row * a.residual_stride + c) : 0;
                        *(float2*)((float*)a.out + (size_t)row * a.out_stride + c) = make_float2(x + bf_lo(u), y + bf_hi(u));
                        continue;
                    }
                    if (adds) x += bf_lo(held[e][b]), y += bf_hi(held[e][b]);
                    held[e][b] = pack_bf16(x, y);
                }
                if (SPLIT > 1) store(e);
            }
        }
        if (LATER)
#pragma unroll
            for (int e = 0; e < PIECES; e++) store(e);
    }
    cluster_sync();
}
#endif  // HOPPER
