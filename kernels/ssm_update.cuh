// One token of one head through the SSM in the chain of products (chain.cuh), to the bits of ssm_update.cu, and the
// arguments of both.
#pragma once
#include "common.cuh"

struct SsmUpdateArgs {
    const bf16* x;        // (batch, heads*64), or the whole row x | B | C before the convolution
    const bf16* b;        // (batch, groups*128); unused when fused
    const bf16* c;
    const bf16* dt;       // (batch, heads)
    const float* a_log;
    const float* d;
    const float* dt_bias;
    void* state;
    const uint32_t* past_len;
    const uint32_t* slots;
    bf16* y;              // (batch, heads*64)
    float* conv_state;    // fused: [slot][W][C]
    const float* conv_w;  // fused: (C,W)
    const float* conv_b;  // fused: (C) or null
    long long slot_stride, conv_slot_stride;  // numbers of `state`, floats
    int x_stride, b_stride, c_stride, dt_stride, y_stride, heads, groups, width, conv_dim;
    float dt_min, dt_max;
    const uint32_t* sampling;  // or null: command.zig's Sampling, 14 words each, the last says whether it ended
};

constexpr int SSM_P = 64, SSM_N = 128, SAMPLING_WORDS = 14;

struct alignas(16) SsmShared {
    float x[SSM_P], b[SSM_N], c[SSM_N];
};

// Eight rows of a state, from row p on: moves them on, and gives lanes 4 i their row i of y in f32.
DEVICE float update_rows(const SsmShared& s, float4* h, int p, float dt, float decay) {
    const int lane = threadIdx.x & 31;
    const float4 bv = *(const float4*)(s.b + lane * 4), cv = *(const float4*)(s.c + lane * 4);
    float sum[8];
#pragma unroll
    for (int r = 0; r < 8; r++) {
        const float u = dt * s.x[p + r];
        h[r].x = h[r].x * decay + u * bv.x, h[r].y = h[r].y * decay + u * bv.y;
        h[r].z = h[r].z * decay + u * bv.z, h[r].w = h[r].w * decay + u * bv.w;
        sum[r] = h[r].x * cv.x + h[r].y * cv.y + h[r].z * cv.z + h[r].w * cv.w;
    }
    // Halves exchange: after three rounds lane bits 4, 3, 2 name the row whose partial sum a lane holds.
#pragma unroll
    for (int o = 16, n = 4; n; o >>= 1, n >>= 1) {
        const bool high = lane & o;
#pragma unroll
        for (int r = 0; r < n; r++) {
            float give = high ? sum[r] : sum[r + n], keep = high ? sum[r + n] : sum[r];
            sum[r] = keep + __shfl_xor_sync(~0u, give, o);
        }
    }
    float all = sum[0];
    all += __shfl_xor_sync(~0u, all, 2);
    return all + __shfl_xor_sync(~0u, all, 1);
}

// One head of one sequence, with its convolution, by THREADS threads, of which this is `tid`; y comes before all else is
// kept. `begin` comes before anything is read that the products in front write; `load` gets such numbers, `meet` has the
// threads meet, `store` takes column i of y.
template <typename S, int THREADS, typename Begin, typename Load, typename Meet, typename Store>
DEVICE void update_head(const SsmUpdateArgs& a, SsmShared& s, int head, int seq, int tid, Begin begin, Load load,
                        Meet meet, Store store) {
    constexpr int P = SSM_P, N = SSM_N, ROWS = P * 32 / THREADS, CHANNELS = (P + 2 * N + THREADS - 1) / THREADS;
    const int warp = tid >> 5, lane = tid & 31, group = head / (a.heads / a.groups);
    const uint32_t past = a.past_len[seq], slot = a.slots[seq];
    const bool held = a.sampling && a.sampling[seq * SAMPLING_WORDS + SAMPLING_WORDS - 1];
    S* state = (S*)a.state + slot * a.slot_stride + ((size_t)head * P + warp * ROWS) * N + lane * 4;
    const float slope = -__expf(a.a_log[head]), bias = a.dt_bias[head], skip = a.d[head];
    float4 h[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        h[r] = make_float4(0, 0, 0, 0);
        if (past) h[r] = load_state4(state + r * N);
    }
    const bf16* from[CHANNELS + 1];  // what the products in front give; the last is dt
    float now[CHANNELS + 1];
    float* const ring = a.conv_state + slot * a.conv_slot_stride;
    // What came is kept: one writer a channel. At a sequence's start the other entries are cleared.
    auto keep_inputs = [&] {
#pragma unroll
        for (int u = 0; u < CHANNELS; u++) {
            const int i = tid + u * THREADS;
            if (i >= P + 2 * N || held || (i >= P && head % (a.heads / a.groups))) continue;
            float* const at = ring + (from[u] - a.x - (size_t)seq * a.x_stride);
            at[(size_t)(past % a.width) * a.conv_dim] = now[u];
            if (past == 0)
                for (int j = 1; j < a.width; j++) at[(size_t)j * a.conv_dim] = 0.0f;
        }
    };
    from[CHANNELS] = a.dt + (size_t)seq * a.dt_stride + head;
    // Channels of this head: x, then its group's B and C; a thread has some of the 320.
    const int first_b = a.heads * P + group * N, last = a.width - 1;
    float sum[CHANNELS], tap[CHANNELS];
#pragma unroll
    for (int u = 0; u < CHANNELS; u++) {
        const int mine = tid + u * THREADS, i = mine < P + 2 * N ? mine : tid;
        const int ch = i < P ? head * P + i : i < P + N ? first_b + i - P : first_b + a.groups * N + i - P - N;
        from[u] = a.x + (size_t)seq * a.x_stride + ch;
        float old[3], w[3];
#pragma unroll
        for (int j = 0; j < 3; j++) {  // oldest first: position past - last + j
            const bool there = j < last && past + j >= (uint32_t)last;
            old[j] = there ? ring[(size_t)((past + j - last) % a.width) * a.conv_dim + ch] : 0.0f;
            w[j] = j < last ? a.conv_w[ch * a.width + j] : 0.0f;
        }
        tap[u] = a.conv_w[ch * a.width + last];
        sum[u] = a.conv_b ? a.conv_b[ch] : 0.0f;
#pragma unroll
        for (int j = 0; j < 3; j++) sum[u] += w[j] * old[j];
    }
    begin();
    load(from, now);
#pragma unroll
    for (int u = 0; u < CHANNELS; u++) {
        const int i = tid + u * THREADS;
        if (i >= P + 2 * N) break;
        const float v = to_f32(__float2bfloat16_rn(silu(sum[u] + tap[u] * now[u])));
        if (i < P) s.x[i] = v;
        else if (i < P + N) s.b[i - P] = v;
        else s.c[i - P - N] = v;
    }
    meet();
    const float dt = fminf(fmaxf(softplus(now[CHANNELS] + bias), a.dt_min), a.dt_max);
    const float decay = fast_exp2(fminf(dt * slope * LOG2E, 0.0f));
#pragma unroll
    for (int r = 0; r < ROWS; r += 8) {
        const float y = update_rows(s, h + r, warp * ROWS + r, dt, decay);
        const int p = warp * ROWS + r + (lane >> 2);
        if ((lane & 3) == 0) store(head * P + p, __float2bfloat16_rn(y + skip * s.x[p]));
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (!held) store_state4(state + r * N, h[r]);
    keep_inputs();
}
