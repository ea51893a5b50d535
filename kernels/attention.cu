// Attention's plain companions: kv_append stores keys and values of packed tokens in their pages,
// attention_probs gives the softmax weights themselves.
//
// Contract: pages [page][kv_head][64 tokens][head_dim], k and v apart, page_stride elements from page to page;
//   page i of sequence s is pages[s * max_pages + i]. kv_append: a sequence's last token also clears the rest
//   of its page where this call began the page, so that readers need no mask on stale values.
//   attention_probs: out(t, head, key) in f32, zeros beyond a token's own position.
//   Names end in the dtypes of activations and, where they differ, of pages.
// Launch: kv_append 128 threads, grid (tokens); attention_probs 128, grid (tokens, heads).
#include "common.cuh"

struct AppendArgs {
    const void* k;
    const void* v;
    void* k_pages;
    void* v_pages;
    const uint32_t* seq_of_token;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* pages;
    long long page_stride;
    int kv_heads, head_dim, k_stride, v_stride, max_pages;
};
template <typename T, typename C> DEVICE void kv_append(const AppendArgs& a) {
    pdl_wait();
    pdl_launch();
    const int t = blockIdx.x, hd = a.head_dim, s = a.seq_of_token[t], start = a.seq_start[s], end = a.seq_start[s + 1];
    const int past = a.past_len[s], at = past + t - start;
    const size_t page = (size_t)a.pages[(size_t)s * a.max_pages + at / 64] * a.page_stride;
    const bool clears = t + 1 == end && at / 64 * 64 >= past;  // the page was begun by this call
    for (int i = threadIdx.x; i < a.kv_heads * hd; i += 128) {
        const size_t to = page + ((size_t)(i / hd) * 64 + at % 64) * hd + i % hd;
        ((C*)a.k_pages)[to] = from_f32<C>(to_f32(((const T*)a.k)[(size_t)t * a.k_stride + i]));
        ((C*)a.v_pages)[to] = from_f32<C>(to_f32(((const T*)a.v)[(size_t)t * a.v_stride + i]));
        for (int rest = 1; clears && at % 64 + rest < 64; rest++) {
            ((C*)a.k_pages)[to + (size_t)rest * hd] = from_f32<C>(0.0f);
            ((C*)a.v_pages)[to + (size_t)rest * hd] = from_f32<C>(0.0f);
        }
    }
}

struct ProbsArgs {
    const void* q;
    const void* k_pages;
    float* out;
    const uint32_t* seq_of_token;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* pages;
    long long page_stride;
    int heads, kv_heads, head_dim, q_stride, out_stride, max_pages, max_keys;
    float scale;
};
template <typename T, typename C> DEVICE void attention_probs(const ProbsArgs& a) {
    __shared__ float scratch[4], tops[4];
    pdl_wait();
    pdl_launch();
    const int t = blockIdx.x, head = blockIdx.y, hd = a.head_dim, s = a.seq_of_token[t];
    const int keys = min((int)(a.past_len[s] + t - a.seq_start[s] + 1), a.max_keys), kv = head / (a.heads / a.kv_heads);
    float* out = a.out + (size_t)t * a.out_stride + (size_t)head * a.max_keys;
    const T* q = (const T*)a.q + (size_t)t * a.q_stride + head * hd;
    float top = -INFINITY;
    for (int j = threadIdx.x; j < a.max_keys; j += 128) {
        float score = 0;
        if (j < keys) {
            const size_t page = (size_t)a.pages[(size_t)s * a.max_pages + j / 64] * a.page_stride;
            const C* k = (const C*)a.k_pages + page + ((size_t)kv * 64 + j % 64) * hd;
            for (int i = 0; i < hd; i++) score = fmaf(to_f32(q[i]), to_f32(k[i]), score);
            score *= a.scale;
            top = fmaxf(top, score);
        }
        out[j] = score;  // this thread's own until the end
    }
    top = warp_max(top);
    if ((threadIdx.x & 31) == 0) tops[threadIdx.x >> 5] = top;
    __syncthreads();
    for (int w = 0; w < 4; w++) top = fmaxf(top, tops[w]);
    float sum = 0;
    for (int j = threadIdx.x; j < keys; j += 128) sum += out[j] = expf(out[j] - top);
    sum = block_sum<4>(sum, scratch);
    for (int j = threadIdx.x; j < keys; j += 128) out[j] /= sum;
}

#define KEPT(NAME, OF, ARGS, T, C)                                                                          \
    extern "C" __global__ void __launch_bounds__(128) NAME(const __grid_constant__ ARGS a) { OF<T, C>(a); }
#define ALL(OF, ARGS)                                                                                       \
    KEPT(OF##_f32, OF, ARGS, float, float)                                                                  \
    KEPT(OF##_f32_bf16, OF, ARGS, float, bf16)                                                              \
    KEPT(OF##_f32_f16, OF, ARGS, float, __half)                                                             \
    KEPT(OF##_bf16, OF, ARGS, bf16, bf16)                                                                   \
    KEPT(OF##_bf16_f32, OF, ARGS, bf16, float)                                                              \
    KEPT(OF##_bf16_f16, OF, ARGS, bf16, __half)
ALL(kv_append, AppendArgs)
ALL(attention_probs, ProbsArgs)
