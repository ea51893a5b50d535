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
//        - what follows (out_proj or a norm) may start before even that: until it has waited for this kernel it
//          touches nothing but weights, and gets them under way while this one streams states.
// States of bf16 halve the bytes: a step of Bamba-9B's 256 sequences on an H200 19.0 ms instead of 26. That is 1.5 x
//   its floor (f32 1.26 x): a lane's loads are 8 bytes then, and half as many are in flight.
// Launch: 256 threads, grid (heads, batch).
#include "ssm_update.cuh"

template <bool FUSED, typename S> DEVICE void ssm_update(const SsmUpdateArgs& a) {
    __shared__ SsmShared shared;
    auto begin = [] {
        pdl_launch();  // early: see above
        pdl_wait();
    };
    auto load = [](const auto& from, auto& now) {
#pragma unroll
        for (int i = 0; i < (int)(sizeof(now) / sizeof(float)); i++) now[i] = to_f32(*from[i]);
    };
    auto store = [&](int i, bf16 v) { a.y[(size_t)blockIdx.y * a.y_stride + i] = v; };
    update_head<FUSED, false, S, 256>(a, shared, blockIdx.x, blockIdx.y, threadIdx.x, begin, load, [] { __syncthreads(); }, store);
}

// The end of a name is the state's dtype, none f32.
#define UPDATE(NAME, S)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, 4) ssm_##NAME(const __grid_constant__ SsmUpdateArgs a) { \
        ssm_update<false, S>(a);                                                                            \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 4) conv_ssm_##NAME(const __grid_constant__ SsmUpdateArgs a) { \
        ssm_update<true, S>(a);                                                                             \
    }
UPDATE(update_bf16, float)
UPDATE(update_bf16_bf16, bf16)
UPDATE(update_bf16_f16, __half)
