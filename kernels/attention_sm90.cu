// attention on Hopper for many queries: causal, grouped heads, head_dim 128, keys and values in pages.
//
// Contract: q (T, heads*128) bf16, packed sequences, any row stride; the queries of sequence s are positions
//   past_len[s] .. of it, all keys up to each query's own position are in the pages (rope_append ran before).
//   Pages bf16 [page][kv_head][64][128], k and v apart; out (T, heads*128) bf16. Softmax in f32, base 2;
//   probabilities enter the second product as bf16. Page rows past a sequence's end hold finite numbers
//   (rope_append clears them). Blocks of 128 keys are taken from a query's own down to 0, and what is decided for a
//   row depends on its own scores: its bits do not depend on the batch, the tile or where a prompt was cut.
//
// Work: 4 * heads * 128 FLOP a query and key, half of the square. Bound: tensor cores and, as they share registers and
//   issue slots with them, every instruction that softmax takes.
// Ideas: - a tile is 128 queries of one head: two warpgroups of 64 (wgmma m64n128k16), one copying warp;
//        - one block a multiprocessor; tiles are dealt out to and fro, the longest first, and flow into each other;
//        - softmax subtracts the largest score of a row's own block of keys (the one it stands in) and never looks for
//          another: no maxima, no votes, no rescaling. A row whose sum leaves the safe range (a score 64 powers of two
//          above, which no sensible model has) is done again with running maxima; the other rows of its tile keep what
//          they have;
//        - scores of the next keys are issued before the values of the last; the two warpgroups take turns;
//        - probabilities lie in two sets of registers by turns (queries in shared memory): nobody waits for values.
// Reached, found and tried: bench/results/gpu-prompts.md, "Attention of prompts".
// Launch: 384 threads, grid min(multiprocessors, heads * tiles * seqs), dynamic smem ATTENTION_SMEM = 230912.
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
    int tiles, seqs;  // tiles of the longest sequence
};

#if HOPPER
constexpr int HALF = 16384, TILE = 2 * HALF;  // 128 rows: two halves of 64 channels (k, v) or of 64 rows (q)
constexpr int VS = 3;  // rooms for values
constexpr int OFF_Q = 0, OFF_K = 2 * TILE, OFF_V = 4 * TILE, OFF_BAR = (4 + VS) * TILE;
constexpr int Q_FULL = 0, Q_EMPTY = 16, K_FULL = 32, K_EMPTY = 48, V_FULL = 64, V_EMPTY = 88;
constexpr int OFF_ITEMS = OFF_BAR + 128;
constexpr float SAFE_SUM = 18446744073709551616.0f;  // 2^64

// What the copying warp tells the others about a tile.
struct Item {
    int blocks;  // of 128 keys; END: nothing follows; FINISH: nothing follows yet
    int position, row, rows, head, seq;  // of the tile's first query; rows of it that exist
    int again;                           // only for rows that failed
    uint32_t failed[8][2];               // by warp, rows 0 to 7 and 8 to 15 of its 16: four bits a row
};
constexpr int FINISH = 0, END = -1;

DEVICE void turn_wait(int which) { named_sync(4 + which, 256); }
DEVICE void turn_give(int which) { named_arrive(5 - which, 256); }
DEVICE int uniform(int v) { return __shfl_sync(~0u, v, 0); }

// Tiles of all sequences in order of their number, the last ones first (they are the longest), each of all heads;
// every block of the grid takes its share of them, to and fro.
struct Deal {
    int tile, seq, before, turn;
    DEVICE_MEMBER bool next(const AttentionArgs& a, Item& item) {
        const int mine = turn * gridDim.x + (turn & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        for (; tile >= 0; seq = seq + 1 < a.seqs ? seq + 1 : (tile--, 0)) {
            const int start = a.seq_start[seq], len = a.seq_start[seq + 1] - start;
            if (tile * 128 >= len) continue;
            if (mine < before + a.heads) {
                item.head = mine - before, item.seq = seq;
                item.row = start + tile * 128, item.rows = min(128, len - tile * 128);
                item.position = a.past_len[seq] + tile * 128;
                item.blocks = (item.position + item.rows + 127) / 128;
                turn++;
                return true;
            }
            before += a.heads;
        }
        return false;
    }
};

// One thread brings queries, keys and values. A tile's slot comes back with the rows that failed, if any.
DEVICE void bring(const CUtensorMap* mq, const CUtensorMap* mk, const CUtensorMap* mv, const AttentionArgs& a,
                  uint32_t smem, Item* items) {
    const uint32_t bars = smem + OFF_BAR;
    Deal deal = {a.tiles - 1, 0, 0, 0};
    int marks = 0, c = 0, vs = 0, vphase = 1;
    for (int n = 0;; n++) {
        Item& item = items[n & 1];
        const uint32_t q_full = bars + Q_FULL + 8 * (n & 1);
        mbar_wait(bars + Q_EMPTY + 8 * (n & 1), ((n >> 1) & 1) ^ 1);
        uint32_t failed = 0;
#pragma unroll 1
        for (int w = 0; w < 8; w++) failed |= item.failed[w][0] | item.failed[w][1];
        item.again = failed != 0;
        if (!failed && !deal.next(a, item)) {
            item.blocks = marks++ ? END : FINISH;
            mbar_arrive(q_full);
            if (marks == 2) return;  // the tile before has come back, too
            continue;
        }
        marks = 0;
        mbar_expect(q_full, TILE);
#pragma unroll 1
        for (int i = 0; i < 4; i++)  // (warpgroup, half)
            tma_load(smem + OFF_Q + (n & 1) * TILE + i * 8192, mq, item.head * 128 + (i & 1) * 64,
                     item.row + (i >> 1) * 64, q_full);
        const int kv = item.head / (a.heads / a.kv_heads), blocks = item.blocks;
        const int n_pages = (item.position + item.rows + 63) / 64;
        const uint32_t* pages = a.pages + (size_t)item.seq * a.max_pages;
        auto row_of = [&](int page) {  // rows outside the map arrive as zeros
            return page >= 0 && page < n_pages ? (int)pages[page] * a.page_rows + kv * 64 : 0x7fff0000;
        };
        int low = row_of(2 * blocks - 2), high = row_of(2 * blocks - 1);
#pragma unroll 1
        for (int block = blocks - 1; block >= 0; block--, c++) {
            const int st = c & 1, phase = ((c >> 1) & 1) ^ 1;
            const int next_low = row_of(2 * block - 2), next_high = row_of(2 * block - 1);
#pragma unroll 1
            for (int v = 0; v < 2; v++) {
                const int at = v ? vs : st;
                const uint32_t full = bars + (v ? V_FULL : K_FULL) + 8 * at;
                const uint32_t dst = smem + (v ? OFF_V : OFF_K) + at * TILE;
                mbar_wait(bars + (v ? V_EMPTY : K_EMPTY) + 8 * at, v ? vphase : phase);
                mbar_expect(full, TILE);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    tma_load(dst + (i >> 1) * HALF + (i & 1) * 8192, v ? mv : mk, (i >> 1) * 64, i & 1 ? high : low,
                             full);
            }
            low = next_low, high = next_high;
            if (++vs == VS) vs = 0, vphase ^= 1;
        }
    }
}

// Two rows of a thread, r and r + 8 of its warp's: what is subtracted from their scores, and their sums.
struct Softmax {
    float m[2], l[2], fix[2];
    // Scores of one block to probabilities p; `first` key of the block, `limit` of the upper row. With EDGE some may
    // not count and rows get their m; with `again` m follows the largest score, and fix is what this does to sums.
    template <bool EDGE>
    DEVICE_MEMBER void block(float* s, uint32_t (&p)[8][4], int first, int limit, float scale, bool again) {
        float base[2] = {m[0], m[1]}, sum[2] = {0, 0};
        if (EDGE) {
            const int t = threadIdx.x & 3;
            float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
            for (int i = 0; i < 64; i++) {
                const int r = (i >> 1) & 1;
                if (first + 8 * (i >> 2) + 2 * t + (i & 1) > limit + 8 * r) s[i] = -INFINITY;
                top[r] = fmaxf(top[r], s[i]);
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
                top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2)) * scale;
                const bool moves = top[r] > m[r] && (again || m[r] == -INFINITY);
                fix[r] = moves ? fast_exp2(m[r] - top[r]) : 1.0f;
                m[r] = moves ? top[r] : m[r], l[r] *= fix[r];
                base[r] = m[r] == -INFINITY ? 0.0f : m[r];
            }
        }
#pragma unroll
        for (int i = 0; i < 64; i++) {
            const int r = (i >> 1) & 1;
            s[i] = fast_exp2(s[i] * scale - base[r]);
            sum[r] += s[i];
            if (i & 1) p[i >> 3][i >> 1 & 3] = pack_bf16(s[i - 1], s[i]);
        }
        l[0] += sum[0], l[1] += sum[1];
    }
};

// The 64 x 128 results of a warpgroup through the room of its queries, `buf`, to 16-byte stores. Rows whose sum is not
// safe are told to the copying warp, which brings their tile again.
DEVICE void write_out(const AttentionArgs& a, Item& item, const float* o, const float* l_part, uint32_t buf,
                      int which) {
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31;
    const int mat = lane >> 3, r8 = lane & 7, row = 16 * warp + (mat & 1) * 8 + r8;
    const bool again = item.again;
    uint32_t* const failed = item.failed[4 * which + warp];
    float inv[2];
    uint32_t rows[2], unsafe[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float l = l_part[r];
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        inv[r] = 1.0f / l;
        rows[r] = again ? failed[r] : ~0u;
        const bool exists = which * 64 + 16 * warp + 8 * r + (lane >> 2) < item.rows;
        unsafe[r] = __ballot_sync(~0u, exists && !again && !(l <= SAFE_SUM));
    }
#pragma unroll
    for (int n = 0; n < 16; n += 2)
        stmatrix4(buf + (n >> 3) * 8192 + row * 128 + ((((n & 7) + (mat >> 1)) ^ r8) << 4),
                  pack_bf16(o[4 * n] * inv[0], o[4 * n + 1] * inv[0]),
                  pack_bf16(o[4 * n + 2] * inv[1], o[4 * n + 3] * inv[1]),
                  pack_bf16(o[4 * n + 4] * inv[0], o[4 * n + 5] * inv[0]),
                  pack_bf16(o[4 * n + 6] * inv[1], o[4 * n + 7] * inv[1]));
    __syncwarp();
    if (lane == 0) failed[0] = unsafe[0], failed[1] = unsafe[1];
    const int piece = lane & 15;
    bf16* out = a.out + (size_t)item.row * a.out_stride + item.head * 128 + piece * 8;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const int in_warp = 2 * k + (lane >> 4), i = 16 * warp + in_warp, at = which * 64 + i;
        const uint4 v = lds128(buf + (piece >> 3) * 8192 + i * 128 + (((piece & 7) ^ (i & 7)) << 4));
        const bool mine = rows[k >> 2] >> (4 * (in_warp & 7)) & 1;
        if (mine && at < item.rows) *(uint4*)(out + (size_t)at * a.out_stride) = v;
    }
    fence_async_smem();
    __syncwarp();
}

// A warpgroup and its half of each tile.
DEVICE void attend(const AttentionArgs& a, uint32_t smem, Item* items, int which) {
    const uint32_t bars = smem + OFF_BAR;
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31;
    const uint64_t desc_q = wgmma_desc(smem + OFF_Q + which * HALF, 0);
    const uint64_t desc_k = wgmma_desc(smem + OFF_K, 0), desc_v = wgmma_desc(smem + OFF_V, HALF);
    const float scale = a.scale * LOG2E;
    float s[64], o[64];
    uint32_t even[8][4], odd[8][4];
    Softmax soft = {{-INFINITY, -INFINITY}, {0, 0}, {1, 1}};
    int c = 0, open = 0;  // blocks done; blocks of the tile before, whose last values are still to come
    // Rooms of the values of blocks c, c - 1 and c - 2; phases of the first two.
    int at = 0, ago = VS - 1, before = VS - 2, flip = 0, ago_flip = 0;
    auto values = [&](uint32_t (&p)[8][4]) {
        mbar_wait(bars + V_FULL + 8 * ago, ago_flip);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 8; k++)
            wgmma_n128_rs<1>(o, p[k], desc_v + ((ago * TILE + k * 2048) >> 4), k > 0 || open > 1);
        wgmma_commit();
    };
    auto room = [&](int slot) { return smem + OFF_Q + slot * TILE + which * HALF; };
    auto give_back = [&](int slot) { mbar_arrive(bars + Q_EMPTY + 8 * slot); };  // a lane's own reads end there
    auto release = [&](uint32_t bar) {
        if (tid == 0) mbar_arrive(bar);
    };
    auto finish = [&](int slot, uint32_t (&p)[8][4]) {
        values(p);
        wgmma_wait<0>();
        wgmma_touch<64>(o);
        if (open > 1) release(bars + V_EMPTY + 8 * before);
        release(bars + V_EMPTY + 8 * ago);
        write_out(a, items[slot ^ 1], o, soft.l, room(slot ^ 1), which);
        give_back(slot ^ 1);
        open = 0;
    };
    auto step = [&](int slot, int j, int blocks, int clear, int again, uint32_t (&now)[8][4], uint32_t (&last)[8][4]) {
        const int st = c & 1, first = (blocks - 1 - j) * 128;
        mbar_wait(bars + K_FULL + 8 * st, (c >> 1) & 1);
        turn_wait(which);
        wgmma_touch<64>(s);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 8; k++)
            wgmma_n128_ss<0>(s, desc_q + ((slot * TILE + (k >> 2) * 8192 + (k & 3) * 32) >> 4),
                             desc_k + ((st * TILE + (k >> 2) * HALF + (k & 3) * 32) >> 4), k > 0);
        wgmma_commit();
        if (open) values(last), wgmma_wait<1>();
        else wgmma_wait<0>();
        turn_give(which);
        wgmma_touch<64>(s);
        if (tid == 0) {
            mbar_arrive(bars + K_EMPTY + 8 * st);
            if (open > 1) mbar_arrive(bars + V_EMPTY + 8 * before);
        }
        const float old_l[2] = {soft.l[0], soft.l[1]};
        if (j == 0) soft = {{-INFINITY, -INFINITY}, {0, 0}, {1, 1}};
        if (first + 127 >= clear || again)
            soft.block<true>(s, now, first, clear + 16 * warp + (lane >> 2), scale, again);
        else soft.block<false>(s, now, first, 0, scale, false);
        if (again || (j == 0 && open)) {
            wgmma_wait<0>();
            wgmma_touch<64>(o);
            if (j == 0 && open) {
                release(bars + V_EMPTY + 8 * ago);
                write_out(a, items[slot ^ 1], o, old_l, room(slot ^ 1), which);
                give_back(slot ^ 1);
            } else {
#pragma unroll
                for (int i = 0; i < 64; i++) o[i] *= soft.fix[(i >> 1) & 1];
            }
        }
        open = j + 1;
        c++;
        before = ago, ago = at, ago_flip = flip;
        at = at + 1 == VS ? 0 : at + 1, flip ^= at == 0;
    };
    if (which == 1) turn_give(1);
    for (int n = 0;; n++) {
        const int slot = n & 1;
        mbar_wait(bars + Q_FULL + 8 * slot, (n >> 1) & 1);
        const int blocks = uniform(items[slot].blocks), again = uniform(items[slot].again);
        if (blocks <= 0) {
            if (!open) wgmma_wait<0>();  // for none: the compiler would put it after all that end here
            else if (c & 1) finish(slot, even);
            else finish(slot, odd);
            if (blocks == END) break;
            give_back(slot);
            continue;
        }
        const int clear = uniform(items[slot].position) + which * 64;  // blocks that end before it need no mask
        for (int j = 0; j < blocks; j++)
            if (c & 1) step(slot, j, blocks, clear, again, odd, even);
            else step(slot, j, blocks, clear, again, even, odd);
    }
    if (which == 0) turn_wait(0);  // takes up the turn that is left
}

DEVICE void attention(const CUtensorMap* mq, const CUtensorMap* mk, const CUtensorMap* mv, const AttentionArgs& a) {
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    Item* const items = (Item*)(raw + (smem - smem_addr(raw)) + OFF_ITEMS);
    const int group = uniform(threadIdx.x >> 7);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            mbar_init(bars + Q_FULL + 8 * i, 1), mbar_init(bars + Q_EMPTY + 8 * i, 256);
            mbar_init(bars + K_FULL + 8 * i, 1), mbar_init(bars + K_EMPTY + 8 * i, 2);
            for (int w = 0; w < 16; w++) items[i].failed[w >> 1][w & 1] = 0;
        }
        for (int i = 0; i < VS; i++) mbar_init(bars + V_FULL + 8 * i, 1), mbar_init(bars + V_EMPTY + 8 * i, 2);
        mbar_init_fence();
        tma_prefetch_map(mq), tma_prefetch_map(mk), tma_prefetch_map(mv);
    }
    __syncthreads();
    pdl_wait();
    pdl_launch();
    if (group == 0) {
        regs_shrink<40>();
        if (threadIdx.x == 0) bring(mq, mk, mv, a, smem, items);
    } else {
        regs_grow<232>();
        attend(a, smem, items, group - 1);
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
