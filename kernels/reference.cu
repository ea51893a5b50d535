// The plain twin of every operation: any dimensions, f32 or bf16 activations and matrices, no tricks.
//
// These kernels define what the fast ones must compute, serve shapes that no fast kernel takes, f32 models,
// and cards without a fast path. Vectors (norm weights, biases, convolution weights, A_log, D, dt_bias) are
// f32; states f32; sums f32 in one fixed order that depends on one row's shape only. No figure of speed is claimed.
// Layouts (conv ring, ssm_state [slot][head][P][N], pages [page][kv_head][64][head_dim]) as in the fast ones.
#include "linear_tile.cuh"

// ---- linear (linear_tile.cuh) ----
template <typename T, typename W, typename OUT> DEVICE void linear_ref(const LinearArgs& a) {
    linear_tile<T, OUT>(a, [&](int n, int k) { return to_f32(((const W*)a.w)[(size_t)n * a.k + k]); });
}

// ---- elementwise: 0 add, 1 mul, 2 silu(a), 3 silu(a) * b. Grid (ceil(width/256), rows), 256. ----
struct ElementArgs {
    const void* a;
    const void* b;
    void* out;
    int width, a_stride, b_stride, out_stride, mode;
};
template <typename T> DEVICE void element_ref(const ElementArgs& e) {
    pdl_wait();
    pdl_launch();
    const int c = blockIdx.x * 256 + threadIdx.x;
    const size_t row = blockIdx.y;
    if (c >= e.width) return;
    const float x = to_f32(((const T*)e.a)[row * e.a_stride + c]);
    const float y = e.mode == 2 ? 0.0f : to_f32(((const T*)e.b)[row * e.b_stride + c]);
    const float r = e.mode == 0 ? x + y : e.mode == 1 ? x * y : e.mode == 2 ? silu(x) : silu(x) * y;
    ((T*)e.out)[row * e.out_stride + c] = from_f32<T>(r);
}

// ---- rms_norm, with gate where given. Grid (rows, groups), 256. ----
struct NormRefArgs {
    const void* x;
    const void* gate;
    const float* weight;
    void* out;
    int width, groups, x_stride, gate_stride, out_stride;
    float eps;
};
template <typename T> DEVICE void norm_ref(const NormRefArgs& a) {
    __shared__ float scratch[8];
    pdl_wait();
    pdl_launch();
    const size_t row = blockIdx.x;
    const int n = a.width / a.groups, first = blockIdx.y * n;
    auto value = [&](int i) {
        const float v = to_f32(((const T*)a.x)[row * a.x_stride + first + i]);
        return a.gate ? v * silu(to_f32(((const T*)a.gate)[row * a.gate_stride + first + i])) : v;
    };
    float s = 0;
    for (int i = threadIdx.x; i < n; i += 256) s += value(i) * value(i);
    const float scale = rsqrtf(block_sum<8>(s, scratch) / n + a.eps);
    for (int i = threadIdx.x; i < n; i += 256)
        ((T*)a.out)[row * a.out_stride + first + i] = from_f32<T>(value(i) * scale * a.weight[first + i]);
}

// ---- causal_conv1d. Grid (ceil(C/128), tokens), 128; then conv_state_ref, grid (ceil(C/128), sequences). ----
struct ConvRefArgs {
    const void* x;
    void* out;
    const float* w;
    const float* bias;
    float* state;
    const uint32_t* seq_of_token;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* slots;
    long long slot_stride;
    int rows, channels, x_stride, out_stride, activation, width;
};
template <typename T> DEVICE void conv_ref(const ConvRefArgs& a) {
    pdl_wait();
    pdl_launch();
    const int c = blockIdx.x * 128 + threadIdx.x, t = blockIdx.y;
    if (c >= a.channels || t >= a.rows) return;
    const int s = a.seq_of_token[t], start = a.seq_start[s], past = a.past_len[s];
    float sum = a.bias ? a.bias[c] : 0.0f;
    for (int j = 0; j < a.width; j++) {
        const int row = t - a.width + 1 + j, position = past + row - start;
        float v = 0;
        if (row >= start) v = to_f32(((const T*)a.x)[(size_t)row * a.x_stride + c]);
        else if (position >= 0)
            v = a.state[a.slots[s] * a.slot_stride + (size_t)(position % a.width) * a.channels + c];
        sum += a.w[c * a.width + j] * v;
    }
    ((T*)a.out)[(size_t)t * a.out_stride + c] = from_f32<T>(a.activation ? silu(sum) : sum);
}
template <typename T> DEVICE void conv_state_ref(const ConvRefArgs& a) {
    pdl_wait();
    pdl_launch();
    const int c = blockIdx.x * 128 + threadIdx.x, s = blockIdx.y;
    if (c >= a.channels) return;
    const int start = a.seq_start[s], end = a.seq_start[s + 1], last = a.past_len[s] + end - start;
    if (start == end) return;
    float* p = a.state + a.slots[s] * a.slot_stride + c;
    for (int k = 1; k <= a.width; k++) {
        float* at = p + (size_t)((last - k + a.width) % a.width) * a.channels;
        if (end - k >= start) *at = to_f32(((const T*)a.x)[(size_t)(end - k) * a.x_stride + c]);
        else if (last < k) *at = 0.0f;
    }
}

// ---- ssm_scan and ssm_update: the recurrence, token by token. Grid (heads, sequences, ceil(P / 8)), 256, N <= 256. ----
// A warp takes a row of P, a lane every 32nd column of N.
struct ScanRefArgs {
    const void* x;
    const void* b;
    const void* c;
    const void* dt;
    const float* a_log;
    const float* d;
    const float* dt_bias;
    void* state;  // of dtype S: rounded behind every chunk of 64 positions, where a run may end
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* slots;
    void* y;
    long long slot_stride;
    int x_stride, b_stride, c_stride, dt_stride, y_stride, heads, groups, head_dim, state_dim;
    float dt_min, dt_max;
    const uint32_t* sampling;  // or null: 14 words each; a sequence whose last word says it ended keeps its state
};
template <typename T, typename S> DEVICE void scan_ref(const ScanRefArgs& a) {
    pdl_wait();
    pdl_launch();
    const int head = blockIdx.x, s = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int group = head / (a.heads / a.groups), start = a.seq_start[s], end = a.seq_start[s + 1];
    const float slope = -expf(a.a_log[head]);
    for (int p = blockIdx.z * 8 + warp; p < a.head_dim; p += 8 * gridDim.z) {
        S* st = (S*)a.state + a.slots[s] * a.slot_stride + ((size_t)head * a.head_dim + p) * a.state_dim;
        float h[8];
        for (int i = 0; i < 8; i++) h[i] = i * 32 + lane < a.state_dim && a.past_len[s] ? to_f32(st[i * 32 + lane]) : 0.0f;
        for (int t = start; t < end; t++) {
            const size_t r = t;
            float dt = to_f32(((const T*)a.dt)[r * a.dt_stride + head]) + a.dt_bias[head];
            dt = fminf(fmaxf(dt > 20.0f ? dt : log1pf(expf(dt)), a.dt_min), a.dt_max);
            const float x = to_f32(((const T*)a.x)[r * a.x_stride + head * a.head_dim + p]);
            const float decay = expf(fminf(dt * slope, 0.0f)), u = dt * x;
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int n = i * 32 + lane;
                if (n >= a.state_dim) break;
                h[i] = h[i] * decay + u * to_f32(((const T*)a.b)[r * a.b_stride + group * a.state_dim + n]);
                sum += h[i] * to_f32(((const T*)a.c)[r * a.c_stride + group * a.state_dim + n]);
                if (sizeof(S) == 2 && (a.past_len[s] + t - start) % 64 == 63) h[i] = to_f32(from_f32<S>(h[i]));
            }
            sum = warp_sum(sum);
            if (lane == 0) ((T*)a.y)[r * a.y_stride + head * a.head_dim + p] = from_f32<T>(sum + a.d[head] * x);
        }
        if (end > start && !(a.sampling && a.sampling[s * 14 + 13]))
            for (int i = 0; i < 8; i++)
                if (i * 32 + lane < a.state_dim) st[i * 32 + lane] = from_f32<S>(h[i]);
    }
}

// ---- attention over pages, causal; keys upwards, the running maximum rescaled. Grid (tokens, heads), 32. ----
struct AttentionRefArgs {
    const void* q;
    const void* k_pages;
    const void* v_pages;
    void* out;
    const uint32_t* seq_of_token;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* pages;
    long long page_stride;
    int heads, kv_heads, head_dim, q_stride, out_stride, max_pages;  // head_dim <= 256
    float scale;
};
template <typename T, typename C> DEVICE void attention_ref(const AttentionRefArgs& a) {
    __shared__ float q[256], probs[32];
    pdl_wait();
    pdl_launch();
    const int t = blockIdx.x, head = blockIdx.y, lane = threadIdx.x, hd = a.head_dim;
    const int s = a.seq_of_token[t], keys = a.past_len[s] + t - a.seq_start[s] + 1, kv = head / (a.heads / a.kv_heads);
    for (int i = lane; i < hd; i += 32) q[i] = to_f32(((const T*)a.q)[(size_t)t * a.q_stride + head * hd + i]);
    __syncwarp();
    float m = -INFINITY, l = 0, o[8] = {};
    for (int k0 = 0; k0 < keys; k0 += 32) {
        const size_t page = a.pages[(size_t)s * a.max_pages + k0 / 64];
        const size_t base = page * a.page_stride + ((size_t)kv * 64 + k0 % 64) * hd;
        float score = -INFINITY;
        if (k0 + lane < keys) {
            score = 0;
            for (int i = 0; i < hd; i++) score = fmaf(q[i], to_f32(((const C*)a.k_pages)[base + (size_t)lane * hd + i]), score);
            score *= a.scale;
        }
        const float top = fmaxf(m, warp_max(score)), fix = expf(m - top), p = expf(score - top);
        m = top, l = l * fix + warp_sum(p);
        probs[lane] = p;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i * 32 + lane >= hd) break;
            o[i] *= fix;
            for (int k = 0; k < min(32, keys - k0); k++)
                o[i] = fmaf(probs[k], to_f32(((const C*)a.v_pages)[base + (size_t)k * hd + i * 32 + lane]), o[i]);
        }
        __syncwarp();
    }
    for (int i = 0; i * 32 + lane < hd; i++)
        ((T*)a.out)[(size_t)t * a.out_stride + head * hd + i * 32 + lane] = from_f32<T>(o[i] / l);
}

#define REF(NAME, THREADS, ARGS)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME##_f32(const __grid_constant__ ARGS a) {      \
        NAME<float>(a);                                                                                     \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME##_bf16(const __grid_constant__ ARGS a) {     \
        NAME<bf16>(a);                                                                                      \
    }
REF(element_ref, 256, ElementArgs)
REF(norm_ref, 256, NormRefArgs)
REF(conv_ref, 128, ConvRefArgs)
REF(conv_state_ref, 128, ConvRefArgs)
// The end of a name says what states, or keys and values, are kept as: none f32, or the activations' dtype.
#define KEPT(NAME, OF, THREADS, ARGS, T, C)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ ARGS a) { OF<T, C>(a); }
KEPT(scan_ref_f32, scan_ref, 256, ScanRefArgs, float, float)
KEPT(scan_ref_f32_bf16, scan_ref, 256, ScanRefArgs, float, bf16)
KEPT(scan_ref_f32_f16, scan_ref, 256, ScanRefArgs, float, __half)
KEPT(scan_ref_bf16, scan_ref, 256, ScanRefArgs, bf16, float)
KEPT(scan_ref_bf16_bf16, scan_ref, 256, ScanRefArgs, bf16, bf16)
KEPT(scan_ref_bf16_f16, scan_ref, 256, ScanRefArgs, bf16, __half)
KEPT(attention_ref_f32, attention_ref, 32, AttentionRefArgs, float, float)
KEPT(attention_ref_f32_bf16, attention_ref, 32, AttentionRefArgs, float, bf16)
KEPT(attention_ref_f32_f16, attention_ref, 32, AttentionRefArgs, float, __half)
KEPT(attention_ref_bf16, attention_ref, 32, AttentionRefArgs, bf16, bf16)
KEPT(attention_ref_bf16_f32, attention_ref, 32, AttentionRefArgs, bf16, float)
KEPT(attention_ref_bf16_f16, attention_ref, 32, AttentionRefArgs, bf16, __half)
// The names say the dtypes of x, w and out.
#define LINEAR(NAME, T, W, OUT)                                                                             \
    extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ LinearArgs a) {          \
        linear_ref<T, W, OUT>(a);                                                                           \
    }
LINEAR(linear_ref_f32_f32_f32, float, float, float)
LINEAR(linear_ref_f32_bf16_f32, float, bf16, float)
LINEAR(linear_ref_f32_f16_f32, float, __half, float)
LINEAR(linear_ref_bf16_bf16_bf16, bf16, bf16, bf16)
LINEAR(linear_ref_bf16_bf16_f32, bf16, bf16, float)
