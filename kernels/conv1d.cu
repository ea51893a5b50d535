// causal_conv1d over packed sequences, bf16, with bias and SiLU; its state; its one-token update.
//
// Contract: out(t,c) = act(bias(c) + sum_j w(c,j) * in(t - W + 1 + j, c)), in f32, j upwards; inputs before
//   a sequence's start come from conv_state where past_len > 0, else they are zeros. W <= 4, C a multiple
//   of 4, rows of 8-byte multiples. seq_of_token, seq_start, past_len and slots as in the step buffer.
//   conv_state f32 [slot][W][C] keeps the last W inputs: position p at entry p mod W (see ssm_update.cu).
//   `conv1d_state` must run after `conv1d` (it overwrites what conv1d reads): one thread a channel. With `keeps`,
//   where no sequence has a past, conv1d does that, too.
//
// Bytes: T*C*2 in, T*C*2 out. Floor: that over the copy bandwidth.
// Ideas: - a thread owns 4 neighbouring channels (few registers, many threads) and slides a window of W inputs in
//          registers over a run of tokens: each input is read once, but for W - 1 of a run from L2;
//        - inputs of the next 8 tokens are in flight while 8 are computed, the first before edges are known;
//        - sequence edges cost one comparison in 8 tokens; the window is reloaded only there;
//        - the warps of a block take runs of the same 128 channels, one behind the other: L1 has their weights.
// Reached on an H200 behind a product, as in a model, 8192 / 2048 tokens, us: runs of 48 tokens 80.0 / 26.3, of 24 81.0
//   / 25.5 (before, runs of 16, channels and runs dealt out as one row: 83.4 / 26.0); by itself 77.1 / 23.6 and 76.7 /
//   24.3 (82.7 / 25.5). Tried, runs of 16: 256 threads 88.3 / 26.6, inputs that L2 lets go first 88.1 / 26.6, 16 tokens
//   ahead 92.6 / 28.7, 4 ahead and 32 warps instead of 24 84.2 / 26.7.
// Launch: conv1d 128 threads, grid (ceil(C/128) * ceil(T / (4 * run))); conv1d_state 256, (ceil(C/256), sequences);
//   conv1d_update 256, (ceil(C/4 / 256), batch).
#include "common.cuh"

struct ConvArgs {
    const bf16* x;
    bf16* out;
    const float* w;     // (C,W)
    const float* bias;  // (C) or null
    float* state;
    const uint32_t* seq_of_token;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* slots;
    long long slot_stride;  // floats
    int rows, channels, x_stride, out_stride, activation;
    int width;  // for the plain twin
    int sequences;
    int keeps;  // conv1d writes the state, too: no sequence has a past, which other blocks might still read
    int run;    // tokens of a thread, a multiple of AHEAD
};

constexpr int AHEAD = 8;

// The input k = 1, 2, 3 positions before the first row of sequence s, four channels.
DEVICE void before_start(const ConvArgs& a, int s, int k, int width, int c, float* v) {
    const int past = a.past_len[s];
    float4 u = make_float4(0, 0, 0, 0);
    if (past >= k) u = *(const float4*)(a.state + a.slots[s] * a.slot_stride + (size_t)((past - k) % width) * a.channels + c);
    v[0] = u.x, v[1] = u.y, v[2] = u.z, v[3] = u.w;
}
DEVICE uint2 load4_cg(const bf16* p) {
    uint2 v;
    asm volatile("ld.global.cg.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE void unpack4(uint2 w, float* v) { v[0] = bf_lo(w.x), v[1] = bf_hi(w.x), v[2] = bf_lo(w.y), v[3] = bf_hi(w.y); }

// The state of sequences that began with this run: its rows among the last W, and zeros where there are fewer.
template <int W> DEVICE void keep_state(const ConvArgs& a, int seq, int t0, int end, int c) {
    for (int s = seq; s < a.sequences && (int)a.seq_start[s] < end; s++) {
        const int begin = a.seq_start[s], stop = a.seq_start[s + 1];
        if (begin == stop) continue;
        float* p = a.state + a.slots[s] * a.slot_stride + c;
#pragma unroll
        for (int k = 1; k <= W; k++) {
            const int row = stop - k;
            float v[4] = {0, 0, 0, 0};
            if (row >= begin ? row < t0 || row >= end : begin < t0) continue;  // another's
            if (row >= begin) unpack4(load4_cg(a.x + (size_t)row * a.x_stride + c), v);
            *(float4*)(p + (size_t)((stop - begin - k + W) % W) * a.channels) = make_float4(v[0], v[1], v[2], v[3]);
        }
    }
}

template <int W> DEVICE void conv1d(const ConvArgs& a) {
    const int across = (a.channels + 127) / 128, warp = threadIdx.x >> 5;
    const int c = (blockIdx.x % across * 32 + (threadIdx.x & 31)) * 4, t0 = (blockIdx.x / across * 4 + warp) * a.run;
    if (c >= a.channels) return;
    float w[W][4], bias[4], win[W - 1][4], flat[4 * W];
#pragma unroll
    for (int j = 0; j < W; j++) *(float4*)(flat + 4 * j) = __ldg((const float4*)(a.w + (size_t)c * W) + j);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bias[i] = a.bias ? a.bias[c + i] : 0.0f;
#pragma unroll
        for (int j = 0; j < W; j++) w[j][i] = flat[i * W + j];
    }
    pdl_wait();
    pdl_launch();
    const int end = min(t0 + a.run, a.rows);
    if (t0 >= a.rows) return;
    const bf16* x = a.x + c;
    uint2 in[AHEAD], early[W - 1];  // asked for before the edges are known
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        if (t0 + i < end) in[i] = load4_cg(x + (size_t)(t0 + i) * a.x_stride);
#pragma unroll
    for (int k = 1; k < W; k++) early[k - 1] = t0 >= k ? load4_cg(x + (size_t)(t0 - k) * a.x_stride) : make_uint2(0, 0);
    int seq = a.seq_of_token[t0], start = a.seq_start[seq], next = a.seq_start[seq + 1];
    const int first = seq;
#pragma unroll
    for (int k = 1; k < W; k++) {
        if (t0 - k >= start) unpack4(early[k - 1], win[W - 1 - k]);
        else before_start(a, seq, k - (t0 - start), W, c, win[W - 1 - k]);
    }
    const bf16* ahead = x + (size_t)(t0 + AHEAD) * a.x_stride;
    bf16* out = a.out + (size_t)t0 * a.out_stride + c;
    auto token = [&](int t, int i) {
        float v[4], y[4];
        unpack4(in[i], v);
        if (t + AHEAD + i < end) in[i] = load4_cg(ahead);
        ahead += a.x_stride;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float s = bias[e];
#pragma unroll
            for (int j = 0; j < W - 1; j++) s += w[j][e] * win[j][e];
            s += w[W - 1][e] * v[e];
            y[e] = a.activation ? silu(s) : s;
#pragma unroll
            for (int j = 0; j + 1 < W - 1; j++) win[j][e] = win[j + 1][e];
            win[W - 2][e] = v[e];
        }
        *(uint2*)out = make_uint2(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
        out += a.out_stride;
    };
    for (int t = t0; t < end; t += AHEAD) {
        if (t + AHEAD <= min(end, next)) {  // no edge among these
#pragma unroll
            for (int i = 0; i < AHEAD; i++) token(t, i);
            continue;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (t + i >= end) break;
            if (t + i == next) {
                do {
                    seq++, start = next, next = a.seq_start[seq + 1];
                } while (next == start);  // sequences without tokens
#pragma unroll
                for (int k = 1; k < W; k++) before_start(a, seq, k, W, c, win[W - 1 - k]);
            }
            token(t, i);
        }
    }
    if (a.keeps) keep_state<W>(a, first, t0, end, c);
}

template <int W> DEVICE void conv1d_state(const ConvArgs& a) {
    const int c = blockIdx.x * 256 + threadIdx.x, s = blockIdx.y;
    pdl_wait();
    pdl_launch();
    if (c >= a.channels) return;
    const int start = a.seq_start[s], end = a.seq_start[s + 1], past = a.past_len[s];
    if (start == end) return;
    float* p = a.state + a.slots[s] * a.slot_stride + c;
    const int last = past + end - start;  // positions so far
#pragma unroll
    for (int k = 1; k <= W; k++) {        // position last - k
        const int row = end - k;
        if (row >= start) p[(size_t)((last - k) % W) * a.channels] = to_f32(a.x[(size_t)row * a.x_stride + c]);
        else if (last < k) p[(size_t)((last - k + W) % W) * a.channels] = 0.0f;  // else: it is there already
    }
}

// What the kernel in front does not write is read before it has ended, and what follows may start then, too.
template <int W> DEVICE void conv1d_update(const ConvArgs& a) {
    const int c = (blockIdx.x * 256 + threadIdx.x) * 4, s = blockIdx.y;
    const bool there = c < a.channels;
    const int past = a.past_len[s];
    float* p = a.state + a.slots[s] * a.slot_stride + c;
    float flat[4 * W], sum[4] = {0, 0, 0, 0}, in[4];
    if (there) {
        if (a.bias) *(float4*)sum = __ldg((const float4*)(a.bias + c));
#pragma unroll
        for (int j = 0; j < W; j++) *(float4*)(flat + 4 * j) = __ldg((const float4*)(a.w + (size_t)c * W) + j);
#pragma unroll
        for (int j = 0; j < W - 1; j++) {
            const int at = past - (W - 1) + j;
            float old[4] = {0, 0, 0, 0};
            if (at >= 0) *(float4*)old = *(const float4*)(p + (size_t)(at % W) * a.channels);
#pragma unroll
            for (int e = 0; e < 4; e++) sum[e] += flat[e * W + j] * old[e];
        }
    }
    pdl_launch();
    pdl_wait();
    if (!there) return;
    unpack4(load4_cg(a.x + (size_t)s * a.x_stride + c), in);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        sum[e] += flat[e * W + W - 1] * in[e];
        if (a.activation) sum[e] = silu(sum[e]);
    }
    if (past == 0)
        for (int j = 1; j < W; j++) *(float4*)(p + (size_t)j * a.channels) = make_float4(0, 0, 0, 0);
    *(float4*)(p + (size_t)(past % W) * a.channels) = make_float4(in[0], in[1], in[2], in[3]);
    *(uint2*)(a.out + (size_t)s * a.out_stride + c) = make_uint2(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]));
}

#define CONV(W)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128, 6) conv1d_w##W##_bf16(const __grid_constant__ ConvArgs a) { \
        conv1d<W>(a);                                                                                       \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) conv1d_state_w##W##_bf16(const __grid_constant__ ConvArgs a) { \
        conv1d_state<W>(a);                                                                                 \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) conv1d_update_w##W##_bf16(const __grid_constant__ ConvArgs a) { \
        conv1d_update<W>(a);                                                                                \
    }
CONV(2)
CONV(3)
CONV(4)
