// attention of one query a sequence over its pages: split over the keys in fixed spans, combined in order.
//
// Contract: q (batch, heads*128) bf16; pages bf16 [page][kv_head][64][128], k and v apart; sequence b attends
//   to positions 0 .. past_len[b] (its own key is in the pages already). out (batch, heads*128) bf16.
//   Spans of 512 keys from position 0, two pages a warp: a row's bits depend on nothing but its sequence.
//   Work space: `partial`, as attention_combine.cu has it. heads / kv_heads is 1, 2, 4 or 8.
//
// Bytes: kv_heads * 512 a key. Floor: that over the read bandwidth.
// Ideas: - every thread copies the 16-byte pieces that it needs itself into its own ring in shared memory
//          (cp.async, as in linear_decode): 160 KB a multiprocessor always in flight, k running on into v, no
//          barrier of the block;
//        - scores on tensor cores: a piece of a key's row is a B fragment of mma.m16n8k16 once the channels
//          of q are permuted the same way; values half a warp a row, probabilities from shared memory;
//        - all heads of a group share one pass over k and v;
//        - pages before the last are asked for before the kernel in front is waited for: it (rope_append)
//          writes only the last position, and must not write past_len or pages;
//        - spans are combined by a launch of their own (attention_combine): where the last block of a group did it,
//          every block waited for a fence and its arrival with an empty ring.
// Reached on an H200, with attention_combine, of the read bandwidth: one sequence of 32,768 keys 0.74, of 131,072
//   0.84, 16 of 4,096 0.80, 256 of 1,024 0.89. Hopper has a kernel of its own.
// Launch: 128 threads, grid (max_splits, kv_heads, batch), dynamic smem 49152; max_splits at most 2048. Then
//   attention_combine if max_splits > 1.
#include "attention_decode.cuh"

constexpr int HD = 128, PAGE = 64, WARPS = 4, RUN = 2, SPAN = RUN * WARPS * PAGE;

constexpr int SLOTS = 6, STEPS = 16, STEP_BYTES = 2048;  // a step: 8 keys' k, then 8 keys' v

template <int REP> DEVICE void decode_attention(const DecodeAttentionArgs& a) {
    DYNAMIC_SHARED(smem);  // the rings; then the warps' sums
    __shared__ __align__(16) float probs_all[WARPS * REP * PAGE];
    __shared__ float ms[WARPS][REP], ls[WARPS][REP];
    const int split = blockIdx.x, kv = blockIdx.y, b = blockIdx.z;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int half = lane >> 4, c8 = (lane & 15) * 8;
    const uint32_t ring = smem_addr(smem) + warp * SLOTS * STEP_BYTES;
    const int page = (split * WARPS + warp) * RUN, first = page * PAGE;
    uint32_t ids[RUN];  // asked for beside past_len, not after it
#pragma unroll
    for (int i = 0; i < RUN; i++)
        ids[i] = page + i < a.max_pages ? a.pages[(size_t)b * a.max_pages + page + i] : 0;
    const int keys = a.past_len[b] + 1, splits = (keys + SPAN - 1) / SPAN;
    const int n_pages = max(0, min(RUN, (keys - first + PAGE - 1) / PAGE));
    const bool early = first + PAGE < keys;  // the last position is in a later page
    const bf16 *kp = a.k_pages + (long long)ids[0] * a.page_stride + kv * PAGE * HD;
    const bf16 *vp = a.v_pages + (long long)ids[0] * a.page_stride + kv * PAGE * HD;
    // A lane's pieces of a step of keys, 64 bytes apart, and of a step of values, 512 bytes apart.
    const uint32_t lane_k = ring + g * (HD * 2) + t * 16, lane_v = ring + half * (HD * 2) + c8 * 2;
    auto copy = [&](const bf16* k, const bf16* v, int n, int slot) {  // step n of a page: 8 rows, in one piece
        const bf16* from = n < 8 ? k + n * 8 * HD : v + (n - 8) * 8 * HD;
#pragma unroll
        for (int i = 0; i < 4; i++) {  // what this lane reads
            const uint32_t at = n < 8 ? lane_k + i * 64 : lane_v + i * 512;
            cp_async16(at + slot * STEP_BYTES, (const uint8_t*)from + (at - ring), true);
        }
        cp_async_commit();
    };
    auto wait = [&](int n) {  // for step n of all
        cp_async_wait<SLOTS - 2>();
    };
    if (early)
#pragma unroll
        for (int i = 0; i < SLOTS - 1; i++) copy(kp, vp, i, i);
    pdl_wait();
    pdl_launch();
    if (split >= splits) return;
    if (n_pages > 0 && !early)
#pragma unroll
        for (int i = 0; i < SLOTS - 1; i++) copy(kp, vp, i, i);
    const float scale = a.scale * LOG2E;
    float m = -INFINITY, l = 0, o[REP][8];
#pragma unroll
    for (int r = 0; r < REP; r++)
#pragma unroll
        for (int e = 0; e < 8; e++) o[r][e] = 0;
    float* probs = probs_all + warp * REP * PAGE;  // [key][REP]
    if (n_pages > 0) {
        uint4 q[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            q[i] = make_uint4(0, 0, 0, 0);
            if (g < REP) q[i] = load_cg(a.q + (size_t)b * a.q_stride + (kv * REP + g) * HD + i * 32 + t * 8);
        }
#pragma unroll
        for (int pg = 0; pg < RUN; pg++) {
            if (pg >= n_pages) break;
            const bf16* kn = a.k_pages + (long long)ids[1] * a.page_stride + kv * PAGE * HD;
            auto ahead = [&](int n) {
                const int slot = (pg * STEPS + n) % SLOTS;
                if (n < STEPS) copy(kp, vp, n, slot);
                else if (pg + 1 < n_pages) copy(kn, vp, n - STEPS, slot);
                else cp_async_commit();
            };
            float top = m;
            __syncwarp();  // the page before has read its probabilities
#pragma unroll
            for (int n = 0; n < 8; n++) {
                wait(pg * STEPS + n);
                ahead(n + SLOTS - 1);
                uint4 k[4];
#pragma unroll
                for (int i = 0; i < 4; i++) k[i] = lds128(lane_k + (pg * STEPS + n) % SLOTS * STEP_BYTES + i * 64);
                float c[4] = {0, 0, 0, 0};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    mma_bf16(c, q[i].x, 0, q[i].y, 0, k[i].x, k[i].y);
                    mma_bf16(c, q[i].z, 0, q[i].w, 0, k[i].z, k[i].w);
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const float s = first + pg * PAGE + 8 * n + 2 * t + j < keys ? c[j] : -INFINITY;
                    top = fmaxf(top, s);
                    if (g < REP) probs[(8 * n + 2 * t + j) * REP + g] = s;  // registers are short: scores wait here
                }
            }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            const float fix = fast_exp2((m - top) * scale);
            m = top, l *= fix;
            if (g < REP)
#pragma unroll
                for (int n = 0; n < 16; n++) {  // this thread's own entries
                    float* e = probs + (8 * (n >> 1) + 2 * t + (n & 1)) * REP + g;
                    const float p = fast_exp2((*e - m) * scale);
                    l += p, *e = p;
                }
#pragma unroll
            for (int r = 0; r < REP; r++) {
                const float f = __shfl_sync(~0u, fix, 4 * r);
#pragma unroll
                for (int x = 0; x < 8; x++) o[r][x] *= f;
            }
            __syncwarp();
#pragma unroll
            for (int n = 8; n < STEPS; n++) {
                wait(pg * STEPS + n);
                ahead(n + SLOTS - 1);
                uint4 v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) v[i] = lds128(lane_v + (pg * STEPS + n) % SLOTS * STEP_BYTES + i * 512);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float e[8];
                    unpack8(v[i], e);
                    const float* p = probs + ((n - 8) * 8 + 2 * i + half) * REP;
#pragma unroll
                    for (int r = 0; r < REP; r++)
#pragma unroll
                        for (int x = 0; x < 8; x++) o[r][x] += p[r] * e[x];
                }
            }
            kp = kn, vp = a.v_pages + (long long)ids[1] * a.page_stride + kv * PAGE * HD;
        }
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
#pragma unroll
        for (int r = 0; r < REP; r++)
#pragma unroll
            for (int x = 0; x < 8; x++) o[r][x] += __shfl_xor_sync(~0u, o[r][x], 16);
    }
    if (t == 0 && g < REP) ms[warp][g] = m, ls[warp][g] = l;
    __syncthreads();  // the rings are used up
    float* sums = (float*)smem;
    if (half == 0)
#pragma unroll
        for (int r = 0; r < REP; r++)
#pragma unroll
            for (int x = 0; x < 8; x += 4)
                *(float4*)(sums + (warp * REP + r) * HD + c8 + x) =
                    make_float4(o[r][x], o[r][x + 1], o[r][x + 2], o[r][x + 3]);
    __syncthreads();
    // The block's sum, in warp order.
    for (int i = threadIdx.x; i < REP * HD; i += WARPS * 32) {
        const int r = i / HD, c = i % HD, head = kv * REP + r;
        float top = ms[0][r], sum = 0, den = 0;  // the first warp's page is never empty
#pragma unroll
        for (int w = 1; w < WARPS; w++) top = fmaxf(top, ms[w][r]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float f = fast_exp2((ms[w][r] - top) * scale);
            sum += f * sums[(w * REP + r) * HD + c], den += f * ls[w][r];
        }
        if (splits == 1) {
            a.out[(size_t)b * a.out_stride + head * HD + c] = from_f32<bf16>(sum / den);
        } else {
            leave_span<REP>(a, b, kv, r, split, c, sum, top, den);
        }
    }
}

#define DECODE(REP)                                                                                         \
    extern "C" __global__ void __launch_bounds__(128, REP < 8 ? 4 : 2)                                      \
        attention_decode_##REP##_bf16(const __grid_constant__ DecodeAttentionArgs a) {                      \
        decode_attention<REP>(a);                                                                           \
    }
DECODE(1)
DECODE(2)
DECODE(4)
DECODE(8)
