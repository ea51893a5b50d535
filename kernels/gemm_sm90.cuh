// The tile loop of linear_gemm_sm90.cu (bf16) and linear_fp8_sm90.cu (e4m3): a row of a tile is 128 bytes of k in
// both, so copies, stages and descriptors are the same; an e4m3 step multiplies twice as many columns.
#pragma once
#include "gemm_results.cuh"

#if HOPPER
constexpr int BM = 128, A_BYTES = BM * 128;  // 128 bytes of k a stage
constexpr int OFF_BAR = 229376;
constexpr int BAND = 16;  // row tiles in a band

// What a kernel's name says of it.
// IN_PARTS: k in four parts, each from zero, whose sums are added in order: the bits of linear_batch_sm90.cu.
// CLUSTERS: 2 or 4 share a tile's k, all of which run at once. Their sums meet in `sums`, where each finishes its share
//   of the columns; four have the bits of IN_PARTS.
// NOTHING: neither bias nor residual. That results are not kept for one is worth 2 % (e4m3 4 %).
// LATER: a tile's results stay packed in registers until the next tile's first products run, between which they are
//   stored and that tile's residual is read into their place. Where k is split a cluster has one tile.
// BLOCKS: of a cluster, each with rows of its own; they share weights, of which each brings its part to all.
// BEHIND: runs beside the kernel in front, which is a part of the same product: waits for it at its end.
template <int COLUMNS, bool WITH_UP, bool E4M3, bool IN_PARTS = false, int CLUSTERS = 1, bool FLOATS = false,
          bool NOTHING = false, int BLOCKS = 2, bool BEHIND = false>
struct Kind {
    static constexpr int RANKS = BLOCKS;
    static constexpr bool BESIDE = BEHIND;
    static constexpr int BN = COLUMNS, SPLIT = CLUSTERS;
    static constexpr bool SWIGLU = WITH_UP, FP8 = E4M3, PARTS = IN_PARTS, F32 = FLOATS, LATER = SPLIT == 1 && !F32;
    static constexpr bool BARE = NOTHING;
    static constexpr int BK = FP8 ? 128 : 64, B_BYTES = BN * 128, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int STAGES = OFF_BAR / STAGE_BYTES, FULL = OFF_BAR, EMPTY = FULL + 8 * STAGES;
    static constexpr int ACC = BN / 2, SUMS = PARTS ? ACC : 1;             // of a thread
    static constexpr int TILE_N = SWIGLU ? BN / 2 : BN;                    // results of a row
    static constexpr int PIECES = (TILE_N + 31) / 32 * 2;                  // 8 rows of 32 results a warp
    // Whether a cluster's share of the columns has piece e.
    DEVICE_MEMBER static bool finishes(int e, int share) { return SPLIT == 1 || e * SPLIT / PIECES == share; }
};

// The row tiles of a cluster, one of columns, stages of k.
struct Tile {
    int rows, col, share, begin, end;
};
// Tiles in bands of rows, so that a band's x stays in L2. A cluster has every `stride`th.
template <typename K> struct Walk {
    static constexpr int HIGH = BAND / K::RANKS;
    int down, cols, total, first, stride, blocks_k, per;
    DEVICE_MEMBER Walk(const GemmArgs& a) {
        down = (a.m + K::RANKS * BM - 1) / (K::RANKS * BM), cols = (a.n + K::TILE_N - 1) / K::TILE_N;
        total = down * cols * K::SPLIT;
        first = blockIdx.x / K::RANKS, stride = gridDim.x / K::RANKS, blocks_k = (a.k + K::BK - 1) / K::BK;
        per = (blocks_k + K::SPLIT - 1) / K::SPLIT;
    }
    DEVICE_MEMBER Tile at(int i) const {
        const int of = i / K::SPLIT, band = of / (HIGH * cols), top = band * HIGH, size = min(HIGH, down - top);
        const int r = of - band * HIGH * cols, share = i % K::SPLIT, begin = share * per;
        return {top + r % size, r / size, share, begin, min(begin + per, blocks_k)};
    }
};

// One thread brings stages: x, and with the cluster's other blocks W. The first weights are under way before the kernel
// in front has ended.
template <typename K>
DEVICE void copy_tiles(const CUtensorMap* mx, const CUtensorMap* mw, const CUtensorMap* mw2, const Walk<K>& walk,
                       uint32_t smem, uint32_t rank) {
    constexpr int PART = K::BN / K::RANKS, HALF = K::RANKS / 2;  // rows of W, parts of one of two matrices
    int st = 0, phase = 1;
    for (int i = walk.first; i < walk.total; i += walk.stride) {
        const Tile tile = walk.at(i);
        const int row = (K::RANKS * tile.rows + rank) * BM;
        const CUtensorMap* map = K::SWIGLU && rank >= HALF ? mw2 : mw;
        const int wrow = tile.col * K::TILE_N + (K::SWIGLU ? rank % HALF : rank) * PART;
        auto weights = [&](int k, int st) {
            const uint32_t full = smem + K::FULL + 8 * st, stage = smem + st * K::STAGE_BYTES;
            mbar_expect(full, K::STAGE_BYTES);
            tma_load_multi(stage + A_BYTES + rank * (K::B_BYTES / K::RANKS), map, k * K::BK, wrow, full,
                           (1 << K::RANKS) - 1);
        };
        const int ahead = i == walk.first ? min(tile.begin + K::STAGES, tile.end) : tile.begin;
        for (int k = tile.begin; k < ahead; k++) weights(k, k - tile.begin);
        if (i == walk.first) {
            if (!K::BESIDE) pdl_wait();  // else the kernel in front has, before it let this one start
            pdl_launch();
        }
        for (int k = tile.begin; k < tile.end; k++) {
            mbar_wait(smem + K::EMPTY + 8 * st, phase);
            if (k >= ahead) weights(k, st);
            tma_load(smem + st * K::STAGE_BYTES, mx, k * K::BK, row, smem + K::FULL + 8 * st);
            if (++st == K::STAGES) st = 0, phase ^= 1;
        }
    }
}

// The stages as a warpgroup meets them.
template <typename K> struct Stages {
    const uint32_t smem;
    const uint64_t a, b;  // stage 0
    int st = 0, phase = 0;
    DEVICE_MEMBER Stages(uint32_t smem, int which)
        : smem(smem), a(wgmma_desc(smem + which * (A_BYTES / 2), 0)), b(wgmma_desc(smem + A_BYTES, 0)) {}
    // The products of a stage. Those of the stage before have been made then; it goes back but for a tile's first.
    DEVICE_MEMBER void multiply(float* acc, int k, int begin) {
        mbar_wait(smem + K::FULL + 8 * st, phase);
        const uint64_t at = a + (uint64_t)(st * (K::STAGE_BYTES >> 4));
        const uint64_t bt = b + (uint64_t)(st * (K::STAGE_BYTES >> 4));
        wgmma_touch<K::ACC>(acc);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int keep = K::PARTS || k + j > begin;
            if (K::FP8) K::BN == 256 ? wgmma_n256_e4m3(acc, at + 2 * j, bt + 2 * j, keep)
                                     : wgmma_n128_e4m3(acc, at + 2 * j, bt + 2 * j, keep);
            else if (K::BN == 256) wgmma_n256_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
            else if (K::BN == 224) wgmma_n224_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
            else if (K::BN == 192) wgmma_n192_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
            else wgmma_n128_ss<0>(acc, at + 2 * j, bt + 2 * j, keep);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (k > begin) give_back();
        if (++st == K::STAGES) st = 0, phase ^= 1;
    }
    // All products of a tile have been made; its last stage goes back.
    DEVICE_MEMBER void finish(float* acc) {
        wgmma_wait<0>();
        wgmma_touch<K::ACC>(acc);
        give_back();
    }
    // The stage before `st`.
    DEVICE_MEMBER void give_back() const {
        const int tid = threadIdx.x & 127;
        if (tid < K::RANKS) mbar_arrive_cluster(smem + K::EMPTY + 8 * (st == 0 ? K::STAGES - 1 : st - 1), tid);
    }
};

// Waits for the other parts of a tile. Counters go up for ever, by 4 each time.
__device__ uint32_t gemm_met[256];
template <int SPLIT> DEVICE void gemm_meet(int of) {
    const uint32_t all = (count_up(gemm_met + of, 4 / SPLIT) & ~3u) + 4;
    while ((int)(count_now(gemm_met + of) - all) < 0) {}
}
// The sums of all clusters that share a tile's k, of this one's share of the columns. `place` counts warpgroups.
template <typename K> DEVICE void add_split(const GemmArgs& a, float* acc, int place, int share, int which) {
    constexpr int FOURS = K::ACC / 4, OWN = FOURS / K::SPLIT;
    const int tid = threadIdx.x & 127;
    float4* sums = (float4*)a.sums + place * K::SPLIT * FOURS * 128 + tid;
    float4* mine = sums + share * FOURS * 128;
#pragma unroll
    for (int j = 0; j < FOURS; j++)
        if (j / OWN != share)
            store_kept(mine + j * 128, make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    named_sync(1 + which, 128);
    if (tid == 0) gemm_meet<K::SPLIT>(place);
    named_sync(1 + which, 128);
#pragma unroll
    for (int j = 0; j < FOURS; j++) {
        if (j / OWN != share) continue;
        const float4 own = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
        float4 sum;
#pragma unroll
        for (int p = 0; p < K::SPLIT; p++) {
            const float4 v = p == share ? own : __ldcg(sums + (p * FOURS + j) * 128);
            if (p == 0) sum = v;
            else sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        acc[4 * j] = sum.x, acc[4 * j + 1] = sum.y, acc[4 * j + 2] = sum.z, acc[4 * j + 3] = sum.w;
    }
}

// A warpgroup's half of the rows of all of a block's tiles.
template <typename K, typename ARGS>
DEVICE void multiply_tiles(const ARGS& args, const Walk<K>& walk, uint32_t smem, uint32_t rank, int which) {
    const GemmArgs& a = gemm_args(args);
    const int warp = (threadIdx.x & 127) >> 5, g = (threadIdx.x & 31) >> 2;
    Stages<K> stages(smem, which);
    Results<K> results(a);
    for (int i = walk.first; i < walk.total; i += walk.stride) {
        const Tile tile = walk.at(i);
        const int begin = tile.begin, end = tile.end, part = (walk.blocks_k + 3) / 4;
        const int row = (K::RANKS * tile.rows + rank) * BM + which * 64 + 16 * warp + g, col = tile.col * K::TILE_N;
        float acc[K::ACC], total[K::SUMS];
        int edge = part;  // of the part of k whose sums are in acc
        if (K::PARTS)
#pragma unroll
            for (int j = 0; j < K::ACC; j++) acc[j] = 0;
        if (!K::LATER && !K::F32 && results.adds)
#pragma unroll
            for (int e = 0; e < K::PIECES; e++)
                if (K::finishes(e, tile.share)) results.ask(e, row, col);
        int k = begin;
        const int stop = K::PARTS ? min(part, end) : end;
        if (K::LATER)
#pragma unroll
            for (int e = 0; e < K::PIECES; e++) {
                if (k < stop) stages.multiply(acc, k, begin), k++;
                results.store(e);
                if (results.adds) results.ask(e, row, col);
            }
        for (; k < end; k++) {
            if (K::PARTS && k == edge) {
                wgmma_wait<0>();
                wgmma_touch<K::ACC>(acc);
#pragma unroll
                for (int j = 0; j < K::ACC; j++) {
                    float& sum = total[j % K::SUMS];
                    sum = edge == part ? acc[j] : sum + acc[j], acc[j] = 0;
                }
                edge += part;
            }
            stages.multiply(acc, k, begin);
        }
        stages.finish(acc);
        if (K::PARTS)
#pragma unroll
            for (int j = 0; j < K::ACC; j++) acc[j] = edge == part ? acc[j] : total[j % K::SUMS] + acc[j];
        if constexpr (K::SPLIT > 1) add_split<K>(a, acc, (i / K::SPLIT * 2 + rank) * 2 + which, tile.share, which);

        results.row = row, results.col = col;
        results.scale(args, acc);
        if (!K::BARE && a.bias) results.add_bias(acc);
#pragma unroll
        for (int e = 0; e < K::PIECES; e++) {
            if (!K::finishes(e, tile.share)) continue;
            results.pack(e, acc);
            if (K::SPLIT > 1) results.store(e);
        }
    }
    if (K::LATER)
#pragma unroll
        for (int e = 0; e < K::PIECES; e++) results.store(e);
}

template <typename K, typename ARGS>
DEVICE void gemm(const CUtensorMap* mx, const CUtensorMap* mw, const CUtensorMap* mw2, const ARGS& args) {
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, rank = cluster_rank();
    const int group = threadIdx.x >> 7;
    if (threadIdx.x == 0) {
        for (int i = 0; i < K::STAGES; i++)
            mbar_init(smem + K::FULL + 8 * i, 1), mbar_init(smem + K::EMPTY + 8 * i, 2 * K::RANKS);
        mbar_init_fence();
        tma_prefetch_map(mx), tma_prefetch_map(mw), tma_prefetch_map(mw2);
    }
    cluster_sync();
    const Walk<K> walk(gemm_args(args));
    if (group == 0) {
        regs_shrink<40>();
        if (threadIdx.x == 0) copy_tiles<K>(mx, mw, mw2, walk, smem, rank);
    } else {
        regs_grow<232>();
        if (!K::BESIDE) pdl_wait();
        multiply_tiles<K>(args, walk, smem, rank, group - 1);
    }
    cluster_sync();
    if (K::BESIDE) pdl_wait();
}
#endif  // HOPPER
