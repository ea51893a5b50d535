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
