// rms_norm and rms_norm_gated, bf16 rows, statistics in f32.
//
// Contract: rms_norm        out = x * rsqrt(mean(x^2) + eps) * weight
//           rms_norm_gated  out = v * rsqrt(mean_group(v^2) + eps) * weight, v = x * silu(gate);
//                           one mean over the width / groups channels of each group.
//   x, gate, out (rows, width) bf16, any row stride of 16-byte multiples; weight f32; width / groups a
//   multiple of 8, at most 16384. out may be x.
// Bytes: each input and the output once. Floor: that over the copy bandwidth.
// Ideas: 16-byte accesses; a row stays in registers between the sum and the scaling, so it is read once;
//   the sum is a fixed tree over the row (thread order, then warp order).
//   A product behind a norm may start before the norm has waited: it touches nothing but weights until then. Behind
//   ssm_update, whose states have pushed the gate out of L2, the gate is asked for early and goes before those weights:
//   7.5 us of a step of 16 sequences become 2, of which the product behind then takes back 4.
// Reached on an H100, gated, 8192 channels, 512 / 2048 / 8192 rows: 75 / 92 / 104 % of what copying gives. Tried: 512
//   threads a row 85 / 96 / 105 %, 1024 82 / 95 / 105 %, four blocks of 256 (spills) 56 / 66 / 72 %: bytes bound it.
//   What a prompt's out_proj with its norm misses is these bytes; a scan that applies the gate would save 0.6 of them.
// Launch: 256 threads, grid (rows, groups).
#include "common.cuh"

struct NormArgs {
    const bf16* x;
    const bf16* gate;  // gated only
    const float* weight;
    bf16* out;
    int width, groups, x_stride, gate_stride, out_stride;
    float eps;
};

template <bool GATED, int PIECES> DEVICE void norm(const NormArgs& a) {
    __shared__ float scratch[8];
    const int row = blockIdx.x, n = a.width / a.groups, first = blockIdx.y * n;
    float4 w[PIECES][2];
    if (PIECES <= 4)
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            const int c = (i * 256 + threadIdx.x) * 8;
            if (c < n) w[i][0] = __ldg((const float4*)(a.weight + first + c));
            if (c < n) w[i][1] = __ldg((const float4*)(a.weight + first + c + 4));
        }
    if (!GATED) pdl_launch();  // early: see above
    else if (threadIdx.x == 0) prefetch_l2(a.gate + (size_t)row * a.gate_stride + first, n * 2);
    pdl_wait();
    uint4 xr[PIECES], gr[PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const int c = (i * 256 + threadIdx.x) * 8;
        xr[i] = gr[i] = make_uint4(0, 0, 0, 0);
        if (c < n) {
            xr[i] = load_cg(a.x + (size_t)row * a.x_stride + first + c);
            if (GATED) gr[i] = load_cg(a.gate + (size_t)row * a.gate_stride + first + c);
        }
    }
    if (GATED) pdl_launch();  // weights that are asked for before would keep the gate waiting
    float v[PIECES][8], s = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        unpack8(xr[i], v[i]);
        if (GATED) gate8(v[i], gr[i]);
#pragma unroll
        for (int e = 0; e < 8; e++) s += v[i][e] * v[i][e];
    }
    const float scale = rsqrtf(block_sum<8>(s, scratch) / n + a.eps);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const int c = (i * 256 + threadIdx.x) * 8;
        if (c >= n) continue;
        const float4 w0 = PIECES <= 4 ? w[i][0] : __ldg((const float4*)(a.weight + first + c));
        const float4 w1 = PIECES <= 4 ? w[i][1] : __ldg((const float4*)(a.weight + first + c + 4));
        float y[8] = {v[i][0] * scale * w0.x, v[i][1] * scale * w0.y, v[i][2] * scale * w0.z, v[i][3] * scale * w0.w,
                      v[i][4] * scale * w1.x, v[i][5] * scale * w1.y, v[i][6] * scale * w1.z, v[i][7] * scale * w1.w};
        store8(a.out + (size_t)row * a.out_stride + first + c, y);
    }
}

// The number in a name: 2048 channels of a group a piece.
#define NORM(NAME, GATED, PIECES)                                                                           \
    extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ NormArgs a) {            \
        norm<GATED, PIECES>(a);                                                                             \
    }
NORM(rms_norm_1_bf16, false, 1)
NORM(rms_norm_2_bf16, false, 2)
NORM(rms_norm_4_bf16, false, 4)
NORM(rms_norm_8_bf16, false, 8)
NORM(rms_norm_gated_1_bf16, true, 1)
NORM(rms_norm_gated_2_bf16, true, 2)
NORM(rms_norm_gated_4_bf16, true, 4)
NORM(rms_norm_gated_8_bf16, true, 8)
