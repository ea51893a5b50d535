// attention on Hopper for many queries: causal, grouped heads, head_dim 128, keys and values in pages.
//
// Contract: q (T, heads*128) bf16, packed sequences, any row stride; the queries of sequence s are positions
//   past_len[s] .. of it, all keys up to each query's own position are in the pages (rope_append ran before).
//   Pages bf16 [page][kv_head][64][128], k and v apart; out (T, heads*128) bf16. Softmax in f32, base 2;
//   probabilities enter the second product as bf16. Page rows past a sequence's end hold finite numbers
//   (rope_append clears them). Blocks of 128 keys are taken from a query's own down to 0: a row's bits do
//   not depend on the batch, the tile or where a prompt was cut.
//
// Work: 4 * heads * 128 FLOP a query and key, half of the square. Bound: tensor cores, then exponentials.
// Ideas: - a block is 128 queries of one head: two warpgroups of 64 (wgmma m64n128k16), one copying warp;
//        - scores of the next keys are issued before the values of the last, softmax runs under the latter;
//        - the two warpgroups take turns on the tensor cores (named barriers): one's softmax hides behind
//          the other's products;
//        - the longest tiles start first; masks only in blocks that meet the diagonal.
// Launch: 384 threads, grid (heads, ceil(longest / 128), sequences), dynamic smem ATTENTION_SMEM = 164992.
//   Tensor maps bf16, 128-byte swizzle, box 64 x 64: q over (T, heads*128); k and v over rows of 128.
#include "wgmma.cuh"

struct AttentionArgs {
    bf16* out;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* pages;
    int heads, kv_heads, out_stride, max_pages;
    int page_rows;  // rows of 128 elements from one page to the next
    float scale;
};

#if HOPPER
constexpr int HALF = 16384, TILE = 2 * HALF;  // a tile of 128 keys: two halves of 64 channels
constexpr int OFF_Q = 0, OFF_K = TILE, OFF_V = 3 * TILE, OFF_BAR = 5 * TILE;
constexpr int Q_FULL = 0, K_FULL = 8, V_FULL = 24, K_EMPTY = 40, V_EMPTY = 56;

DEVICE void turn_wait(int which) { named_sync(4 + which, 256); }
DEVICE void turn_give(int which) { asm volatile("bar.arrive %0, 256;" ::"r"(5 - which) : "memory"); }

struct Softmax {
    float m[2], l[2], fix[2];
    // Scores of one block to probabilities (in place); `first` key of the block, `limit` of the upper row.
    template <bool MASK> DEVICE_MEMBER void block(float* s, int first, int limit, float scale) {
        const int t = threadIdx.x & 3;
        float top[2] = {m[0], m[1]};
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
            const float base = top[r] == -INFINITY ? 0.0f : top[r] * scale;
            fix[r] = fast_exp2(m[r] * scale - base);
            m[r] = top[r], l[r] *= fix[r];
            top[r] = base;
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

DEVICE void attention(const CUtensorMap* mq, const CUtensorMap* mk, const CUtensorMap* mv, const AttentionArgs& a) {
    extern __shared__ uint8_t raw[];
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    const int head = blockIdx.x, tile = gridDim.y - 1 - blockIdx.y, seq = blockIdx.z, group = threadIdx.x >> 7;
    if (threadIdx.x == 0) {
        mbar_init(bars + Q_FULL, 1);
        for (int i = 0; i < 2; i++) {
            mbar_init(bars + K_FULL + 8 * i, 1), mbar_init(bars + V_FULL + 8 * i, 1);
            mbar_init(bars + K_EMPTY + 8 * i, 2), mbar_init(bars + V_EMPTY + 8 * i, 2);
        }
        mbar_init_fence();
        tma_prefetch_map(mq), tma_prefetch_map(mk), tma_prefetch_map(mv);
    }
    pdl_wait();
    pdl_launch();
    const int start = a.seq_start[seq], len = a.seq_start[seq + 1] - start, past = a.past_len[seq];
    if (tile * 128 >= len) return;
    __syncthreads();
    const int keys = past + min(len, tile * 128 + 128), blocks = (keys + 127) / 128;

    if (group == 0) {
        regs_shrink<24>();
        if (threadIdx.x == 0) {
            mbar_expect(bars + Q_FULL, TILE);
            for (int i = 0; i < 4; i++)  // (warpgroup, half)
                tma_load(smem + OFF_Q + i * 8192, mq, head * 128 + (i & 1) * 64, start + tile * 128 + (i >> 1) * 64,
                         bars + Q_FULL);
            const int kv = head / (a.heads / a.kv_heads), n_pages = (past + len + 63) / 64;
            const uint32_t* pages = a.pages + (size_t)seq * a.max_pages;
            for (int j = 0; j < blocks; j++) {
                const int st = j & 1, phase = ((j >> 1) & 1) ^ 1, block = blocks - 1 - j;
                int row[2];
                for (int i = 0; i < 2; i++)  // rows outside the map arrive as zeros
                    row[i] = 2 * block + i < n_pages ? (int)pages[2 * block + i] * a.page_rows + kv * 64 : 0x7fff0000;
                for (int v = 0; v < 2; v++) {
                    const uint32_t full = bars + (v ? V_FULL : K_FULL) + 8 * st;
                    mbar_wait(bars + (v ? V_EMPTY : K_EMPTY) + 8 * st, phase);
                    mbar_expect(full, TILE);
                    const uint32_t dst = smem + (v ? OFF_V : OFF_K) + st * TILE;
                    for (int i = 0; i < 4; i++)
                        tma_load(dst + (i >> 1) * HALF + (i & 1) * 8192, v ? mv : mk, (i >> 1) * 64, row[i & 1], full);
                }
            }
        }
    } else {
        regs_grow<240>();
        const int which = group - 1, tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31, g = lane >> 2;
        const int upper = past + tile * 128 + which * 64 + 16 * warp + g;  // position of this thread's upper row
        const int clear = past + tile * 128 + which * 64;  // blocks that end at or before it need no mask
        const uint64_t desc_q = wgmma_desc(smem + OFF_Q + which * HALF, 0);
        const uint64_t desc_k = wgmma_desc(smem + OFF_K, 0), desc_v = wgmma_desc(smem + OFF_V, HALF);
        const float scale = a.scale * LOG2E;
        float s[64], o[64];
        uint32_t p[8][4];
        Softmax soft = {{-INFINITY, -INFINITY}, {0, 0}, {0, 0}};
        auto scores = [&](int st) {
            wgmma_touch<64>(s);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 8; k++)
                wgmma_n128_ss<0>(s, desc_q + (((k >> 2) * 8192 + (k & 3) * 32) >> 4),
                                 desc_k + ((st * TILE + (k >> 2) * HALF + (k & 3) * 32) >> 4), k > 0);
            wgmma_commit();
        };
        auto values = [&](int st, int keep) {
#pragma unroll
            for (int k = 0; k < 8; k++) wgmma_n128_rs<1>(o, p[k], desc_v + ((st * TILE + k * 2048) >> 4), k > 0 || keep);
            wgmma_commit();
        };
        auto soften = [&](int block) {
            if (block * 128 + 127 > clear) soft.block<true>(s, block * 128, upper, scale);
            else soft.block<false>(s, block * 128, upper, scale);
        };
        auto release = [&](uint32_t bar) {
            if (tid == 0) mbar_arrive(bar);
        };
        if (which == 1) turn_give(1);
        mbar_wait(bars + Q_FULL, 0);
        mbar_wait(bars + K_FULL, 0);
        scores(0);
        wgmma_wait<0>();
        wgmma_touch<64>(s);
        release(bars + K_EMPTY);
        soften(blocks - 1);
        pack_scores(s, p);
        for (int j = 1; j < blocks; j++) {
            const int st = j & 1, prev = st ^ 1;
            mbar_wait(bars + K_FULL + 8 * st, (j >> 1) & 1);
            turn_wait(which);
            scores(st);
            mbar_wait(bars + V_FULL + 8 * prev, ((j - 1) >> 1) & 1);
            wgmma_touch<64>(o);
            wgmma_fence();
            values(prev, j > 1);
            if (which == 0 || j + 1 < blocks) turn_give(which);
            wgmma_wait<1>();
            wgmma_touch<64>(s);
            release(bars + K_EMPTY + 8 * st);
            soften(blocks - 1 - j);
            wgmma_wait<0>();
            wgmma_touch<64>(o);
            release(bars + V_EMPTY + 8 * prev);
#pragma unroll
            for (int i = 0; i < 64; i++) o[i] *= soft.fix[(i >> 1) & 1];
            pack_scores(s, p);
        }
        const int last = (blocks - 1) & 1;
        mbar_wait(bars + V_FULL + 8 * last, ((blocks - 1) >> 1) & 1);
        wgmma_touch<64>(o);
        wgmma_fence();
        values(last, blocks > 1);
        wgmma_wait<0>();
        wgmma_touch<64>(o);
        if (which == 0 && blocks == 1) turn_wait(0);  // takes up the turn that was given at the start
        float inv[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float l = soft.l[r];
            l += __shfl_xor_sync(~0u, l, 1);
            l += __shfl_xor_sync(~0u, l, 2);
            inv[r] = 1.0f / l;
        }
        // Through this warp's own rows of the query tile to 16-byte stores.
        const int mat = lane >> 3, r8 = lane & 7, row = 16 * warp + (mat & 1) * 8 + r8;
        const uint32_t buf = smem + OFF_Q + which * HALF;
#pragma unroll
        for (int n = 0; n < 16; n += 2)
            stmatrix4(buf + (n >> 3) * 8192 + row * 128 + ((((n & 7) + (mat >> 1)) ^ r8) << 4),
                      pack_bf16(o[4 * n] * inv[0], o[4 * n + 1] * inv[0]),
                      pack_bf16(o[4 * n + 2] * inv[1], o[4 * n + 3] * inv[1]),
                      pack_bf16(o[4 * n + 4] * inv[0], o[4 * n + 5] * inv[0]),
                      pack_bf16(o[4 * n + 6] * inv[1], o[4 * n + 7] * inv[1]));
        __syncwarp();
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int i = 16 * warp + 2 * k + (lane >> 4), piece = lane & 15, at = tile * 128 + which * 64 + i;
            uint4 v = lds128(buf + (piece >> 3) * 8192 + i * 128 + (((piece & 7) ^ (i & 7)) << 4));
            if (at < len) *(uint4*)(a.out + (size_t)(start + at) * a.out_stride + head * 128 + piece * 8) = v;
        }
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
