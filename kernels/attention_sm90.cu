// attention on Hopper for many queries: causal, grouped heads, head_dim 128, keys and values in pages.
//
// Contract: q (T, heads*128) bf16, packed sequences, any row stride; the queries of sequence s are positions
//   past_len[s] .. of it, all keys up to each query's own position are in the pages (rope_append ran before).
//   Pages bf16 [page][kv_head][64][128], k and v apart; out (T, heads*128) bf16. Softmax in f32, base 2;
//   probabilities enter the second product as bf16. Page rows past a sequence's end hold finite numbers
//   (rope_append clears them). Blocks of 128 keys are taken from a query's own down to 0, and what is subtracted from
//   a row's scores follows from that row alone: its bits do not depend on the batch, the tile or where a prompt was
//   cut.
//
// Work: 4 * heads * 128 FLOP a query and key, half of the square. Bound: tensor cores and, beside them in the same
//   multiprocessor, every instruction that softmax takes.
// Ideas: - a tile is 128 queries of one head: two warpgroups of 64 (wgmma m64n128k16), one copying warp;
//        - tiles flow into each other: a block takes many of them, the longest first, and the first scores of a tile
//          are issued with the last values of the one before, whose results are stored meanwhile;
//        - scores of the next keys are issued before the values of the last, softmax runs under the latter; the two
//          warpgroups take turns on the tensor cores (named barriers);
//        - queries wait in registers, so that shared memory serves keys and values alone;
//        - what is subtracted from a row's scores moves only when a score exceeds it by 8 powers of two: sums are
//          hardly ever rescaled;
//        - masks only in blocks that meet the diagonal.
// Reached, found and tried: bench/results/README.md, "Attention of prompts".
// Launch: 384 threads, grid up to heads * tiles * seqs (fewer blocks take several tiles each, to and fro), dynamic
//   smem ATTENTION_SMEM = 197888. Tensor maps bf16, 128-byte swizzle, box 64 x 64: q over (T, heads*128); k and v over
//   rows of 128.
#include "wgmma.cuh"

struct AttentionArgs {
    bf16* out;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* pages;
    int heads, kv_heads, out_stride, max_pages;
    int page_rows;  // rows of 128 elements from one page to the next
    float scale;
    int tiles, seqs;  // tiles of the longest sequence
};

#if HOPPER
constexpr int HALF = 16384, TILE = 2 * HALF;  // 128 rows: two halves of 64 channels (k, v) or of 64 rows (q)
constexpr int OFF_Q = 0, OFF_K = 2 * TILE, OFF_V = 4 * TILE, OFF_BAR = 6 * TILE;
constexpr int Q_FULL = 0, Q_EMPTY = 16, K_FULL = 32, V_FULL = 48, K_EMPTY = 64, V_EMPTY = 80, ITEM = 96;
constexpr float SLACK = 8;  // powers of two that a score may exceed what is subtracted from it

DEVICE void turn_wait(int which) { named_sync(4 + which, 256); }
DEVICE void turn_give(int which) { named_arrive(5 - which, 256); }
DEVICE int uniform(int v) { return __shfl_sync(~0u, v, 0); }

// Two rows of a thread, r and r + 8 of its warp: what is subtracted from their scores (in their units), and their sums.
struct Softmax {
    float m[2], l[2], fix[2];
    // Scores of one block to probabilities (in place); `first` key of the block, `limit` of the upper row. fix is what
    // sums so far have to be multiplied with.
    template <bool MASK> DEVICE_MEMBER void block(float* s, int first, int limit, float scale) {
        const int t = threadIdx.x & 3;
        float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int i = 0; i < 64; i++) {
            const int r = (i >> 1) & 1;
            if (MASK && first + 8 * (i >> 2) + 2 * t + (i & 1) > limit + 8 * r) s[i] = -INFINITY;
            top[r] = fmaxf(top[r], s[i]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
            const bool grows = top[r] * scale > m[r] * scale + SLACK;
            fix[r] = grows ? fast_exp2((m[r] - top[r]) * scale) : 1.0f;
            m[r] = grows ? top[r] : m[r], l[r] *= fix[r];
            top[r] = MASK && m[r] == -INFINITY ? 0.0f : m[r] * scale;
        }
#pragma unroll
        for (int i = 0; i < 64; i++) {
            const int r = (i >> 1) & 1;
            s[i] = fast_exp2(s[i] * scale - top[r]);
            l[r] += s[i];
        }
    }
};

DEVICE void pack_scores(const float* s, uint32_t (&p)[8][4]) {
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) p[k][j] = pack_bf16(s[8 * k + 2 * j], s[8 * k + 2 * j + 1]);
}

// One thread brings queries, keys and values, and tells the others of each tile its blocks of keys (0: no tile is left),
// the position and the row of its first query, and the head, with the rows that exist above it. Tiles are numbered over heads, sequences and, the last ones first (they
// are the longest), tiles of a sequence; every block of the grid takes its share of them to and fro.
DEVICE void bring(const CUtensorMap* mq, const CUtensorMap* mk, const CUtensorMap* mv, const AttentionArgs& a,
                  uint32_t smem) {
    const uint32_t bars = smem + OFF_BAR;
    const int units = a.heads, grid = gridDim.x, me = blockIdx.x, total = units * a.tiles * a.seqs;
    int c = 0, n = 0;
    for (int round = 0;; round++) {
        const int w = round * grid + (round & 1 ? grid - 1 - me : me);
        if (round * grid >= total) break;
        if (w >= total) continue;
        const int rest = w / units, head = w % units, seq = rest % a.seqs, tile = a.tiles - 1 - rest / a.seqs;
        const int start = a.seq_start[seq], len = a.seq_start[seq + 1] - start, past = a.past_len[seq];
        if (tile * 128 >= len) continue;
        const int keys = past + min(len, tile * 128 + 128), blocks = (keys + 127) / 128;
        const uint32_t q_full = bars + Q_FULL + 8 * (n & 1), item = bars + ITEM + 32 * (n & 1);
        mbar_wait(bars + Q_EMPTY + 8 * (n & 1), ((n >> 1) & 1) ^ 1);
        const int rows = min(128, len - tile * 128);
        sts128(item, make_uint4(blocks, past + tile * 128, start + tile * 128, head | rows << 16));
        mbar_expect(q_full, TILE);
        for (int i = 0; i < 4; i++)  // (warpgroup, half)
            tma_load(smem + OFF_Q + (n & 1) * TILE + i * 8192, mq, head * 128 + (i & 1) * 64,
                     start + tile * 128 + (i >> 1) * 64, q_full);
        n++;
        const int kv = head / (a.heads / a.kv_heads), n_pages = (past + len + 63) / 64;
        const uint32_t* pages = a.pages + (size_t)seq * a.max_pages;
        auto row_of = [&](int page) {  // rows outside the map arrive as zeros
            return page >= 0 && page < n_pages ? (int)pages[page] * a.page_rows + kv * 64 : 0x7fff0000;
        };
        int row0 = row_of(2 * blocks - 2), row1 = row_of(2 * blocks - 1);
#pragma unroll 1
        for (int j = 0; j < blocks; j++, c++) {
            const int st = c & 1, phase = ((c >> 1) & 1) ^ 1, block = blocks - 1 - j;
            const int next0 = row_of(2 * block - 2), next1 = row_of(2 * block - 1);  // asked for ahead
#pragma unroll 1
            for (int v = 0; v < 2; v++) {
                const uint32_t full = bars + (v ? V_FULL : K_FULL) + 8 * st;
                mbar_wait(bars + (v ? V_EMPTY : K_EMPTY) + 8 * st, phase);
                mbar_expect(full, TILE);
                const uint32_t dst = smem + (v ? OFF_V : OFF_K) + st * TILE;
                for (int i = 0; i < 4; i++)
                    tma_load(dst + (i >> 1) * HALF + (i & 1) * 8192, v ? mv : mk, (i >> 1) * 64, i & 1 ? row1 : row0,
                             full);
            }
            row0 = next0, row1 = next1;
        }
    }
    mbar_wait(bars + Q_EMPTY + 8 * (n & 1), ((n >> 1) & 1) ^ 1);
    sts32(bars + ITEM + 32 * (n & 1), 0);
    mbar_arrive(bars + Q_FULL + 8 * (n & 1));
}

// A warpgroup's 64 x 128 results of a tile through the room of its queries, `buf`, to 16-byte stores.
DEVICE void write_out(const AttentionArgs& a, const float* o, const float* l_part, uint32_t smem, int slot, int which,
                      int warp, int lane, int row0, int head_rows) {
    float inv[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float l = l_part[r];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        inv[r] = 1.0f / l;
    }
    const int mat = lane >> 3, r8 = lane & 7, row = 16 * warp + (mat & 1) * 8 + r8;
    const uint32_t buf = smem + OFF_Q + slot * TILE + which * HALF;
#pragma unroll
    for (int n = 0; n < 16; n += 2)
        stmatrix4(buf + (n >> 3) * 8192 + row * 128 + ((((n & 7) + (mat >> 1)) ^ r8) << 4),
                  pack_bf16(o[4 * n] * inv[0], o[4 * n + 1] * inv[0]),
                  pack_bf16(o[4 * n + 2] * inv[1], o[4 * n + 3] * inv[1]),
                  pack_bf16(o[4 * n + 4] * inv[0], o[4 * n + 5] * inv[0]),
                  pack_bf16(o[4 * n + 6] * inv[1], o[4 * n + 7] * inv[1]));
    __syncwarp();
    bf16* out = a.out + (size_t)row0 * a.out_stride + (head_rows & 0xffff) * 128 + (lane & 15) * 8;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const int i = 16 * warp + 2 * k + (lane >> 4), piece = lane & 15, at = which * 64 + i;
        uint4 v = lds128(buf + (piece >> 3) * 8192 + i * 128 + (((piece & 7) ^ (i & 7)) << 4));
        if (at < head_rows >> 16) *(uint4*)(out + (size_t)at * a.out_stride) = v;
    }
    fence_async_smem();
    __syncwarp();
    if (lane == 0) mbar_arrive(smem + OFF_BAR + Q_EMPTY + 8 * slot);
}

// A warpgroup and its half of each tile.
DEVICE void attend(const AttentionArgs& a, uint32_t smem, int which) {
    const uint32_t bars = smem + OFF_BAR;
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31, g = lane >> 2, mat = lane >> 3, r8 = lane & 7;
    const float scale = a.scale * LOG2E;
    float s[64], o[64];
    uint32_t p[8][4], q[8][4];
    Softmax soft = {{-INFINITY, -INFINITY}, {0, 0}, {0, 0}};
    const uint64_t desc_k = wgmma_desc(smem + OFF_K, 0), desc_v = wgmma_desc(smem + OFF_V, HALF);
    auto release = [&](uint32_t bar) {
        if (tid == 0) mbar_arrive(bar);
    };
    auto values = [&](int st, int phase, int keep) {
        mbar_wait(bars + V_FULL + 8 * st, phase);
        wgmma_touch<64>(o);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 8; k++) wgmma_n128_rs<1>(o, p[k], desc_v + ((st * TILE + k * 2048) >> 4), k > 0 || keep);
        wgmma_commit();
    };
    auto put = [&](int slot, int row0, int head_rows, const float* l) {
        write_out(a, o, l, smem, slot, which, warp, lane, row0, head_rows);
    };
    if (which == 1) turn_give(1);
    int c = 0, n = 0, old_blocks = 0, old_row = 0, old_head = 0;  // c counts blocks, n tiles; old: of the tile before
    float old_l[2];
    for (;; n++) {
        const int slot = n & 1;
        mbar_wait(bars + Q_FULL + 8 * slot, (n >> 1) & 1);
        const uint4 item = lds128(bars + ITEM + 32 * slot);
        const int blocks = uniform(item.x);
        if (blocks == 0) break;
        const int clear = uniform(item.y) + which * 64;  // blocks that end at or before it need no mask
        const int upper = clear + 16 * warp + g;         // position of this thread's upper row
        const int row = 16 * warp + (mat & 1) * 8 + r8;
#pragma unroll
        for (int k = 0; k < 8; k++)
            ldmatrix4(q[k], smem + OFF_Q + slot * TILE + which * HALF + (k >> 2) * 8192 + row * 128 +
                                (((2 * (k & 3) + (mat >> 1)) ^ r8) << 4));
        for (int j = 0; j < blocks; j++, c++) {
            const int st = c & 1, prev = st ^ 1, block = blocks - 1 - j;
            mbar_wait(bars + K_FULL + 8 * st, (c >> 1) & 1);
            turn_wait(which);
            wgmma_touch<64>(s);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 8; k++)
                wgmma_n128_rs<0>(s, q[k], desc_k + ((st * TILE + (k >> 2) * HALF + (k & 3) * 32) >> 4), k > 0);
            wgmma_commit();
            if (c > 0) {
                values(prev, ((c - 1) >> 1) & 1, j > 1 || (j == 0 && old_blocks > 1));
                turn_give(which);
                wgmma_wait<1>();
            } else {
                turn_give(which);
                wgmma_wait<0>();
            }
            wgmma_touch<64>(s);
            release(bars + K_EMPTY + 8 * st);
            if (j == 0) {
                old_l[0] = soft.l[0], old_l[1] = soft.l[1];
                soft.m[0] = soft.m[1] = -INFINITY, soft.l[0] = soft.l[1] = 0;
            }
            if (block * 128 + 127 > clear) soft.block<true>(s, block * 128, upper, scale);
            else soft.block<false>(s, block * 128, upper, scale);
            wgmma_wait<0>();
            wgmma_touch<64>(o);
            if (c > 0) release(bars + V_EMPTY + 8 * prev);
            if (j == 0) {
                if (c > 0) put(slot ^ 1, old_row, old_head, old_l);
                old_blocks = blocks, old_row = item.z, old_head = item.w;
            } else if (__any_sync(~0u, soft.fix[0] != 1.0f || soft.fix[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < 64; i++) o[i] *= soft.fix[(i >> 1) & 1];
            }
            pack_scores(s, p);
        }
    }
    if (c > 0) {
        values((c - 1) & 1, ((c - 1) >> 1) & 1, old_blocks > 1);
        wgmma_wait<0>();
        wgmma_touch<64>(o);
        put((n - 1) & 1, old_row, old_head, soft.l);
    }
    if (which == 0) turn_wait(0);  // takes up the turn that is left
}

DEVICE void attention(const CUtensorMap* mq, const CUtensorMap* mk, const CUtensorMap* mv, const AttentionArgs& a) {
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    const int group = uniform(threadIdx.x >> 7);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            mbar_init(bars + Q_FULL + 8 * i, 1), mbar_init(bars + Q_EMPTY + 8 * i, 8);
            mbar_init(bars + K_FULL + 8 * i, 1), mbar_init(bars + V_FULL + 8 * i, 1);
            mbar_init(bars + K_EMPTY + 8 * i, 2), mbar_init(bars + V_EMPTY + 8 * i, 2);
        }
        mbar_init_fence();
        tma_prefetch_map(mq), tma_prefetch_map(mk), tma_prefetch_map(mv);
    }
    __syncthreads();
    pdl_wait();
    pdl_launch();
    if (group == 0) {
        regs_shrink<24>();
        if (threadIdx.x == 0) bring(mq, mk, mv, a, smem);
    } else {
        regs_grow<240>();
        attend(a, smem, group - 1);
    }
}
#define ATTENTION_BODY attention(&mq, &mk, &mv, a)
#else
#define ATTENTION_BODY asm volatile("trap;")
#endif

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_sm90_bf16(const __grid_constant__ CUtensorMap mq, const __grid_constant__ CUtensorMap mk,
                        const __grid_constant__ CUtensorMap mv, const __grid_constant__ AttentionArgs a) {
    ATTENTION_BODY;
}
