// qkv_rope: rotates q and k of packed tokens and appends k and v to the pages, in one pass; then rotary_embedding and
// rope as single operations.
//
// Contract: qkv (T, (heads + 2 kv_heads) * hd) bf16 as the three projections lie side by side; q is rotated to q_out
//   (T, heads * hd), k is rotated and stored, v is stored. The first 2F channels of a head are rotated (rotate half:
//   channel i with i + F) by the tables of rotary_embedding, the rest copied; F and hd multiples of 8.
//   Pages: bf16 [page][kv_head][64 tokens][hd], k and v apart, page_stride elements from page to page;
//   page i of sequence s is pages[s * max_pages + i]; token at position p of its sequence goes to row
//   p % 64 of page p / 64. A sequence's last token also clears the rest of its page where this call began
//   the page: pages hold no stale bits, so readers need no mask on v.
// Bytes: q, k and v in and out once; small beside the projections.
// Ideas: a thread takes eight channels at a time, with their eight partners where they rotate.
// Launch: 128 threads, grid (T).
#include "common.cuh"

struct QkvArgs {
    const bf16* qkv;
    const float* cos;
    const float* sin;
    bf16* q_out;
    bf16* k_pages;
    bf16* v_pages;
    const uint32_t* seq_of_token;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* pages;
    long long page_stride;  // elements
    int heads, kv_heads, head_dim, freqs, stride, q_stride, cos_stride, sin_stride, max_pages;
};
extern "C" __global__ void __launch_bounds__(128) qkv_rope_bf16(const __grid_constant__ QkvArgs a) {
    pdl_wait();
    pdl_launch();
    const int t = blockIdx.x, hd = a.head_dim, f = a.freqs;
    const int seq = a.seq_of_token[t], start = a.seq_start[seq], past = a.past_len[seq], at = past + t - start;
    const size_t page = a.pages[(size_t)seq * a.max_pages + at / 64];
    const size_t row0 = page * a.page_stride + (size_t)(at % 64) * hd;
    const bf16* token = a.qkv + (size_t)t * a.stride;
    const float* cs = a.cos + (size_t)t * a.cos_stride;
    const float* sn = a.sin + (size_t)t * a.sin_stride;
    const int pieces = hd / 8, total = (a.heads + 2 * a.kv_heads) * pieces;
    for (int i = threadIdx.x; i < total; i += 128) {
        const int h = i / pieces, c = i % pieces * 8;
        const bool turns = h < a.heads + a.kv_heads && c < 2 * f;
        if (turns && c >= f) continue;  // done with its partner
        bf16* to = a.q_out + (size_t)t * a.q_stride + (size_t)h * hd;
        if (h >= a.heads + a.kv_heads) to = a.v_pages + row0 + (size_t)(h - a.heads - a.kv_heads) * 64 * hd;
        else if (h >= a.heads) to = a.k_pages + row0 + (size_t)(h - a.heads) * 64 * hd;
        const bf16* from = token + (size_t)h * hd + c;
        uint4 low = load_cg(from);
        if (turns) {
            float x[8], y[8], u[8], v[8];
            unpack8(low, x);
            unpack8(load_cg(from + f), y);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                u[e] = x[e] * cs[c + e] - y[e] * sn[c + e];
                v[e] = y[e] * cs[c + e] + x[e] * sn[c + e];
            }
            low = pack8(u);
            *(uint4*)(to + c + f) = pack8(v);
        }
        *(uint4*)(to + c) = low;
    }
    const int began = at - at % 64;  // the page's first position
    if (t + 1 != (int)a.seq_start[seq + 1] || began < past) return;
    const int rest = (63 - at % 64) * pieces;
    for (int i = threadIdx.x; i < a.kv_heads * rest; i += 128) {
        const size_t o = row0 + (size_t)(i / rest) * 64 * hd + hd + (size_t)(i % rest) * 8;
        *(uint4*)(a.k_pages + o) = make_uint4(0, 0, 0, 0);
        *(uint4*)(a.v_pages + o) = make_uint4(0, 0, 0, 0);
    }
}

// ---- rotary_embedding and rope, as single operations ----
// cos and sin of positions[t] * inv_freq[f], each (T, F) f32; the angle is reduced in f64. Grid (T), 128.
struct TableArgs {
    const int* positions;
    const float* inv_freq;
    float* cos;
    float* sin;
    int freqs, cos_stride, sin_stride;
    float scale;
};
extern "C" __global__ void __launch_bounds__(128) rotary_embedding_f32(const __grid_constant__ TableArgs a) {
    pdl_wait();
    pdl_launch();
    const int t = blockIdx.x;
    for (int f = threadIdx.x; f < a.freqs; f += 128) {
        double s, c;
        sincos((double)a.positions[t] * (double)a.inv_freq[f], &s, &c);
        a.cos[(size_t)t * a.cos_stride + f] = (float)c * a.scale;
        a.sin[(size_t)t * a.sin_stride + f] = (float)s * a.scale;
    }
}

// out = x with the first 2F channels of each head rotated; out may be x. Grid (T), 128.
struct RotateArgs {
    const void* x;
    const float* cos;
    const float* sin;
    void* out;
    int heads, head_dim, freqs, x_stride, cos_stride, sin_stride, out_stride;
};
template <typename T> DEVICE void rotate(const RotateArgs& a) {
    pdl_wait();
    pdl_launch();
    const int t = blockIdx.x, hd = a.head_dim, f = a.freqs;
    for (int i = threadIdx.x; i < a.heads * hd; i += 128) {
        const int c = i % hd;
        const T* x = (const T*)a.x + (size_t)t * a.x_stride + i;
        T* out = (T*)a.out + (size_t)t * a.out_stride + i;
        if (c >= 2 * f) *out = *x;
        if (c >= f) continue;
        const float x0 = to_f32(x[0]), x1 = to_f32(x[f]);
        const float cs = a.cos[(size_t)t * a.cos_stride + c], sn = a.sin[(size_t)t * a.sin_stride + c];
        out[0] = from_f32<T>(x0 * cs - x1 * sn), out[f] = from_f32<T>(x1 * cs + x0 * sn);
    }
}
extern "C" __global__ void __launch_bounds__(128) rope_f32(const __grid_constant__ RotateArgs a) { rotate<float>(a); }
extern "C" __global__ void __launch_bounds__(128) rope_bf16(const __grid_constant__ RotateArgs a) { rotate<bf16>(a); }
