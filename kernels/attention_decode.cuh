// What the kernels of one query a sequence are given: attention_decode.cu says what it means.
#pragma once
#include "common.cuh"

struct DecodeAttentionArgs {
    const bf16* q;
    const bf16* k_pages;
    const bf16* v_pages;
    bf16* out;
    float* partial;
    const uint32_t* past_len;
    const uint32_t* pages;
    long long page_stride;  // elements
    int heads, kv_heads, q_stride, out_stride, max_pages, max_splits;
    float scale;
    int seqs;
};

// How Hopper's kernel cuts a sequence's keys: into at most GROUPS_MAX groups, of 8 pages at least.
constexpr int DECODE_PAGE = 64, GROUPS_MAX = 16;
DEVICE int pages_in(int keys) { return (keys + DECODE_PAGE - 1) / DECODE_PAGE; }
DEVICE int group_pages(int keys) { return max(8, (pages_in(keys) + GROUPS_MAX - 1) / GROUPS_MAX); }
DEVICE int groups_of(int keys) { return (pages_in(keys) + group_pages(keys) - 1) / group_pages(keys); }

// What a span of keys leaves for attention_combine, which says how it lies: of one channel of head r of a group its sum,
// and by channel 0 the largest score and the denominator.
template <int REP>
DEVICE void leave_span(const DecodeAttentionArgs& a, int seq, int kv, int r, int split, int channel, float sum, float top,
                       float den) {
    const size_t span = (size_t)(seq * a.heads + kv * REP + r) * a.max_splits + split;
    a.partial[span * 128 + channel] = sum;
    if (channel > 0) return;
    float2* const tops = (float2*)(a.partial + (size_t)a.seqs * a.heads * a.max_splits * 128);
    tops[((size_t)(seq * a.kv_heads + kv) * a.max_splits + split) * REP + r] = make_float2(top, den);
}
