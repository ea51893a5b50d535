// attention on cards since Ampere that are no Hopper, many queries: causal, grouped heads, head_dim 128, keys and values
// in pages.
//
// Contract: as attention_sm90.cu: q (T, heads*128) bf16, packed sequences, any row stride; the queries of sequence s are
//   positions past_len[s] .. of it, all keys up to each query's own position are in the pages, bf16
//   [page][kv_head][64][128], k and v apart; out (T, heads*128) bf16. Softmax in f32, base 2; probabilities enter the
//   second product as bf16. Pages are taken from a query's own down to 0, and those beyond it change nothing: a row's
//   bits do not depend on the batch, the tile or where a prompt was cut.
//
// Work: 4 * heads * 128 FLOP a query and key, half of the square. Bound: tensor cores, then exponentials.
// Ideas: - a block is 64 queries of one head, 16 a warp, whose q stays in registers (mma.sync m16n8k16);
//        - a page of keys is copied (cp.async) under the values of the one before, and the other way round;
//        - scores become the first operand of the second product where they are, in registers;
//        - the longest tiles start first; masks only in pages that meet the diagonal.
// Launch: 128 threads, grid (heads, ceil(longest / 64), sequences).
#include "common.cuh"

struct AttentionArgs {
    const bf16* q;
    const bf16* k_pages;
    const bf16* v_pages;
    bf16* out;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* pages;
    long long page_stride;  // elements
    int heads, kv_heads, q_stride, out_stride, max_pages;
    float scale;
};

#if !HOPPER
constexpr int HD = 128, PAGE = 64, TILE_BYTES = PAGE * HD * 2;

// Piece of 8 channels of a row of 128: eight rows meet every bank once.
DEVICE uint32_t place(uint32_t base, int row, int piece) { return base + row * 256 + ((piece ^ (row & 7)) << 4); }

// 64 rows of 128 channels, `stride` elements apart, zeros from `rows` on.
DEVICE void copy_tile(uint32_t to, const bf16* from, size_t stride, int rows) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int r = (threadIdx.x >> 4) + 8 * i, piece = threadIdx.x & 15;
        cp_async16(place(to, r, piece), r < rows ? from + r * stride + piece * 8 : from, r < rows);
    }
}

DEVICE void attention_mma(const AttentionArgs& a) {
    __shared__ __align__(128) uint8_t tiles[2 * TILE_BYTES];
    const uint32_t keys = smem_addr(tiles), values = keys + TILE_BYTES;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, seq = blockIdx.z;
    pdl_wait();
    pdl_launch();
    const int start = a.seq_start[seq], length = a.seq_start[seq + 1] - start, past = a.past_len[seq];
    const int first = (gridDim.y - 1 - blockIdx.y) * PAGE;  // the tile's first query
    if (first >= length) return;
    const int head = blockIdx.x, kv = head / (a.heads / a.kv_heads), rows = min(PAGE, length - first);
    const uint32_t* pages = a.pages + (size_t)seq * a.max_pages;
    auto page = [&](const bf16* base, int i) { return base + pages[i] * a.page_stride + (size_t)kv * PAGE * HD; };

    copy_tile(keys, a.q + (size_t)(start + first) * a.q_stride + head * HD, a.q_stride, rows);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t q[8][4];
#pragma unroll
    for (int c = 0; c < 8; c++) ldmatrix4(q[c], place(keys, 16 * warp + (lane & 15), 2 * c + (lane >> 4)));
    __syncthreads();

    const int low = past + first + 16 * warp + g;  // position of the upper of this thread's two rows
    int block = (past + first + rows - 1) / PAGE;
    copy_tile(keys, page(a.k_pages, block), HD, PAGE);
    cp_async_commit();
    float out[16][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    const float scale = a.scale * LOG2E;
    for (; block >= 0; block--) {
        copy_tile(values, page(a.v_pages, block), HD, PAGE);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        float s[8][4] = {};
#pragma unroll
        for (int c = 0; c < 8; c++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t b[4];
                ldmatrix4(b, place(keys, 16 * j + (lane >> 4) * 8 + (lane & 7), 2 * c + (lane >> 3 & 1)));
                mma_bf16(s[2 * j], q[c][0], q[c][1], q[c][2], q[c][3], b[0], b[1]);
                mma_bf16(s[2 * j + 1], q[c][0], q[c][1], q[c][2], q[c][3], b[2], b[3]);
            }
        __syncthreads();
        if (block > 0) copy_tile(keys, page(a.k_pages, block - 1), HD, PAGE);
        cp_async_commit();

        if (block * PAGE + PAGE - 1 > past + first + 16 * warp)  // meets the diagonal
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (block * PAGE + 8 * j + 2 * t + (e & 1) > low + 8 * (e >> 1)) s[j][e] = -INFINITY;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float most = top[r];
#pragma unroll
            for (int j = 0; j < 8; j++) most = fmaxf(most, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            const float base = most == -INFINITY ? 0.0f : most * scale, fix = fast_exp2(top[r] * scale - base);
            top[r] = most, sum[r] *= fix;
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) s[j][e] = fast_exp2(s[j][e] * scale - base), sum[r] += s[j][e];
#pragma unroll
            for (int n = 0; n < 16; n++) out[n][2 * r] *= fix, out[n][2 * r + 1] *= fix;
        }
        cp_async_wait<1>();
        __syncthreads();
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const uint32_t p[4] = {pack_bf16(s[2 * c][0], s[2 * c][1]), pack_bf16(s[2 * c][2], s[2 * c][3]),
                                   pack_bf16(s[2 * c + 1][0], s[2 * c + 1][1]), pack_bf16(s[2 * c + 1][2], s[2 * c + 1][3])};
#pragma unroll
            for (int n = 0; n < 8; n++) {
                uint32_t b[4];
                ldmatrix4_trans(b, place(values, 16 * c + (lane & 15), 2 * n + (lane >> 4)));
                mma_bf16(out[2 * n], p[0], p[1], p[2], p[3], b[0], b[1]);
                mma_bf16(out[2 * n + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        const int row = 16 * warp + g + 8 * r;
        if (row >= rows) continue;
        bf16* to = a.out + (size_t)(start + first + row) * a.out_stride + head * HD + 2 * t;
#pragma unroll
        for (int n = 0; n < 16; n++)
            *(uint32_t*)(to + 8 * n) = pack_bf16(out[n][2 * r] / sum[r], out[n][2 * r + 1] / sum[r]);
    }
}
#define ATTENTION_BODY attention_mma(a)
#else
#define ATTENTION_BODY asm volatile("trap;")
#endif
extern "C" __global__ void __launch_bounds__(128, 2) attention_mma_bf16(const __grid_constant__ AttentionArgs a) {
    ATTENTION_BODY;
}
