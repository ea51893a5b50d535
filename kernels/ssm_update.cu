// ssm_update: one token of every sequence through the SSM, and, fused in front, through the convolution.
//
// Contract: for sequence b with slot s = slots[b]: h = exp(dt A) h + dt x B^T; y = h C + D x, with
//   dt = clamp(softplus(dt_raw + dt_bias), dt_min, dt_max), A = -exp(A_log). h starts from zeros where
//   past_len[b] == 0. state f32 (bf16 or f16, by name) [slot][head][P = 64][N = 128]; x, B, C, dt and y bf16, any row stride.
//   conv_ssm_update takes x, B, C from before the convolution (one row x | B | C, `x`), applies the causal
//   convolution of width W <= 4 with SiLU, rounds to bf16 as the separate op does, and keeps the last W
//   inputs of a channel in a ring: the input of position p at entry p mod W, f32 [slot][W][C]. The ring is
//   what lets every head read B's and C's past while one of them writes the present: no race, no copy.
//   A sequence that has ended (`sampling`, where given) keeps its state: steps may run ahead of its end.
//   Sums in f32; a row of the state is summed over N by one warp in a fixed tree.
//
// Bytes: the state once in, once out: heads * 64 KB a sequence. Floor: that over the copy bandwidth.
// Ideas: - a warp holds 8 rows of P, a lane 4 columns of N: 8 independent 16-byte loads a thread in flight
//          before the first use; stores of 512 bytes a warp;
//        - 8 row sums by one exchange tree of 9 shuffles instead of 40;
//        - state, ring, weights, past_len and slots are read before the kernel in front is waited for
//          (griddepcontrol): that kernel, in_proj or conv1d_update, must not write them;
//        - in a batch states of f32 pass without a hint to L2. Told that each number goes by once, it brings 64 sequences'
//          states in 141.8 us instead of 137.4 on an H200, 256 in 565 instead of 546 (H100: 186 and 184, 746 and 735);
//          of 16 no change. With states of bf16 the hint stays: 72.3 us of 64 sequences, 77 without;
//        - what follows (out_proj or a norm) may start before even that: until it has waited for this kernel it
//          touches nothing but weights, and gets them under way while this one streams states.
// States of bf16 halve the bytes: a step of Bamba-9B's 256 sequences on an H200 19.0 ms instead of 26. That is 1.5 x
//   its floor (f32 1.26 x): a lane's loads are 8 bytes then, and half as many are in flight.
// The chain of products has a head by fewer threads (ssm_update.cuh), of the same bits; as one function of both this
//   kernel took a token of Bamba-9B in bf16 0.4 % longer.
// Launch: 256 threads, grid (heads, batch).
#include "ssm_update.cuh"

constexpr int P = SSM_P, N = SSM_N, WARPS = 8, ROWS = P / WARPS;

// Four numbers of a state: in a batch those of f32 without a hint to L2 (see above).
template <bool FUSED, typename S> DEVICE float4 read4(const S* p) {
    if constexpr (FUSED || sizeof(S) < 4) return load_state4(p);
    else return *(const float4*)p;
}
template <bool FUSED, typename S> DEVICE void write4(S* p, float4 v) {
    if constexpr (FUSED || sizeof(S) < 4) store_state4(p, v);
    else *(float4*)p = v;
}

template <bool FUSED, typename S> DEVICE void ssm_update(const SsmUpdateArgs& a) {
    __shared__ float xs[P], bs[N], cs[N];
    const int head = blockIdx.x, seq = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int group = head / (a.heads / a.groups);
    const uint32_t past = a.past_len[seq], slot = a.slots[seq];
    const bool held = a.sampling && a.sampling[seq * SAMPLING_WORDS + SAMPLING_WORDS - 1];
    S* state = (S*)a.state + slot * a.slot_stride + ((size_t)head * P + warp * ROWS) * N + lane * 4;
    const float slope = -__expf(a.a_log[head]), bias = a.dt_bias[head], skip = a.d[head];
    float4 h[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        h[r] = make_float4(0, 0, 0, 0);
        if (past) h[r] = read4<FUSED>(state + r * N);
    }
    if (FUSED) {
        // Channels of this head: x, then its group's B and C; a thread has one or two of the 320.
        const int first_b = a.heads * P + group * N, last = a.width - 1;
        float* ring = a.conv_state + slot * a.conv_slot_stride;
        int ch[2];
        float sum[2], tap[2];
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const int i = threadIdx.x + u * 256;
            ch[u] = i < P ? head * P + i : i < P + N ? first_b + i - P : first_b + a.groups * N + i - P - N;
            if (i >= P + 2 * N) break;
            float old[3], w[3];
#pragma unroll
            for (int j = 0; j < 3; j++) {  // oldest first: position past - last + j
                const bool there = j < last && past + j >= (uint32_t)last;
                old[j] = there ? ring[(size_t)((past + j - last) % a.width) * a.conv_dim + ch[u]] : 0.0f;
                w[j] = j < last ? a.conv_w[ch[u] * a.width + j] : 0.0f;
            }
            tap[u] = a.conv_w[ch[u] * a.width + last];
            sum[u] = a.conv_b ? a.conv_b[ch[u]] : 0.0f;
#pragma unroll
            for (int j = 0; j < 3; j++) sum[u] += w[j] * old[j];
        }
        pdl_launch();  // early: see above
        pdl_wait();
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const int i = threadIdx.x + u * 256;
            if (i >= P + 2 * N) break;
            const float in = to_f32(a.x[(size_t)seq * a.x_stride + ch[u]]);
            const float v = to_f32(__float2bfloat16_rn(silu(sum[u] + tap[u] * in)));
            // One writer a channel. At a sequence's start the other entries are cleared.
            if (!held && (i < P || head % (a.heads / a.groups) == 0)) {
                ring[(size_t)(past % a.width) * a.conv_dim + ch[u]] = in;
                if (past == 0)
                    for (int j = 1; j < a.width; j++) ring[(size_t)j * a.conv_dim + ch[u]] = 0.0f;
            }
            if (i < P) xs[i] = v;
            else if (i < P + N) bs[i - P] = v;
            else cs[i - P - N] = v;
        }
    } else {
        pdl_launch();  // early: see above
        pdl_wait();
        const int i = threadIdx.x;
        if (i < P) xs[i] = to_f32(a.x[(size_t)seq * a.x_stride + head * P + i]);
        if (i < N) bs[i] = to_f32(a.b[(size_t)seq * a.b_stride + group * N + i]);
        else cs[i - N] = to_f32(a.c[(size_t)seq * a.c_stride + group * N + i - N]);
    }
    const float dt_raw = to_f32(a.dt[(size_t)seq * a.dt_stride + head]);
    __syncthreads();
    const float dt = fminf(fmaxf(softplus(dt_raw + bias), a.dt_min), a.dt_max);
    const float decay = fast_exp2(fminf(dt * slope * LOG2E, 0.0f));
    const float4 bv = *(const float4*)(bs + lane * 4), cv = *(const float4*)(cs + lane * 4);
    float sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float u = dt * xs[warp * ROWS + r];
        h[r].x = h[r].x * decay + u * bv.x, h[r].y = h[r].y * decay + u * bv.y;
        h[r].z = h[r].z * decay + u * bv.z, h[r].w = h[r].w * decay + u * bv.w;
        if (!held) write4<FUSED>(state + r * N, h[r]);
        sum[r] = h[r].x * cv.x + h[r].y * cv.y + h[r].z * cv.z + h[r].w * cv.w;
    }
    // Halves exchange: after three rounds lane bits 4, 3, 2 name the row whose partial sum a lane holds.
#pragma unroll
    for (int o = 16, n = ROWS / 2; n; o >>= 1, n >>= 1) {
        const bool high = lane & o;
#pragma unroll
        for (int r = 0; r < n; r++) {
            float give = high ? sum[r] : sum[r + n], keep = high ? sum[r + n] : sum[r];
            sum[r] = keep + __shfl_xor_sync(~0u, give, o);
        }
    }
    float s = sum[0];
    s += __shfl_xor_sync(~0u, s, 2);
    s += __shfl_xor_sync(~0u, s, 1);
    const int r = lane >> 2;
    if ((lane & 3) == 0) {
        const int p = warp * ROWS + r;
        a.y[(size_t)seq * a.y_stride + head * P + p] = __float2bfloat16_rn(s + skip * xs[p]);
    }
}

// The end of a name is the state's dtype, none f32.
#define UPDATE(NAME, S)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) ssm_##NAME(const __grid_constant__ SsmUpdateArgs a) { \
        ssm_update<false, S>(a);                                                                            \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) conv_ssm_##NAME(const __grid_constant__ SsmUpdateArgs a) { \
        ssm_update<true, S>(a);                                                                             \
    }
UPDATE(update_bf16, float)
UPDATE(update_bf16_bf16, bf16)
UPDATE(update_bf16_f16, __half)
