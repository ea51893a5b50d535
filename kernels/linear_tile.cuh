// The plain way of `linear`: a block of 256 threads makes 64 x 64 results, whatever the weights are. Sums go over k
// upwards, one fused multiply-add after another, as the CPU kernels' do. Grid (ceil(N / 64), ceil(M / 64)).
#pragma once
#include "common.cuh"

struct LinearArgs {
    const void* x;
    const void* w;
    const float* bias;
    const void* residual;
    void* out;
    int m, n, k, x_stride, residual_stride, out_stride;
};
// out(m,n) = sum_k x(m,k) weight(n,k) + bias(n) + residual(m,n); `weight` is asked within N and K only.
template <typename T, typename OUT, typename Weight> DEVICE void linear_tile(const LinearArgs& a, Weight weight) {
    __shared__ float xs[16][65], ws[16][65];
    pdl_wait();
    pdl_launch();
    const int n0 = blockIdx.x * 64, m0 = blockIdx.y * 64, tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    float acc[4][4] = {};
    for (int k0 = 0; k0 < a.k; k0 += 16) {
        for (int i = threadIdx.x; i < 1024; i += 256) {
            const int r = i >> 4, k = k0 + (i & 15);
            const bool there = k < a.k;
            xs[i & 15][r] = there && m0 + r < a.m ? to_f32(((const T*)a.x)[(size_t)(m0 + r) * a.x_stride + k]) : 0.0f;
            ws[i & 15][r] = there && n0 + r < a.n ? weight(n0 + r, k) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(xs[k][ty + 16 * i], ws[k][tx + 16 * j], acc[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int r = m0 + ty + 16 * i, c = n0 + tx + 16 * j;
            if (r >= a.m || c >= a.n) continue;
            float s = acc[i][j];
            if (a.bias) s += a.bias[c];
            if (a.residual) s += to_f32(((const T*)a.residual)[(size_t)r * a.residual_stride + c]);
            ((OUT*)a.out)[(size_t)r * a.out_stride + c] = from_f32<OUT>(s);
        }
}
