// Weights in blocks (blocks.cuh), the plain ways: rows of a table by id, and linear for any rows and any card.
//
// Contract: rows: out(t) = table(ids[t]), ids out of range give zeros; linear: out(m,n) = sum_k x(m,k) W(n,k)
//   + bias(n) + residual(m,n), added over k upwards. Values are exactly those of zig/cpu/block.zig. x and residual
//   f32 or bf16; out too. These serve f32 models, and bf16 ones where no fast kernel fits; no speed is claimed.
// Launch: rows: 128 threads, grid (rows); linear: 256 threads, grid (ceil(N / 64), ceil(M / 64)).
#include "blocks.cuh"

struct RowsArgs {
    const uint8_t* table;
    const int* ids;
    void* out;
    int width, table_rows, out_stride;
};
template <int TYPE, typename T> DEVICE void rows(const RowsArgs& a) {
    pdl_wait();
    pdl_launch();
    const int id = a.ids[blockIdx.x];
    T* to = (T*)a.out + (size_t)blockIdx.x * a.out_stride;
    for (int i = threadIdx.x; i < a.width; i += 128)
        to[i] = from_f32<T>(id >= 0 && id < a.table_rows ? block_value<TYPE>(a.table, id, i, a.width) : 0.0f);
}

struct LinearArgs {
    const void* x;
    const uint8_t* w;
    const float* bias;
    const void* residual;
    void* out;
    int m, n, k, x_stride, residual_stride, out_stride;
};
template <int TYPE, typename T, typename OUT> DEVICE void linear(const LinearArgs& a) {
    __shared__ float xs[16][65], ws[16][65];
    pdl_wait();
    pdl_launch();
    const int n0 = blockIdx.x * 64, m0 = blockIdx.y * 64, tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    float acc[4][4] = {};
    for (int k0 = 0; k0 < a.k; k0 += 16) {  // K is a multiple of 128
        for (int i = threadIdx.x; i < 1024; i += 256) {
            const int r = i >> 4, k = k0 + (i & 15);
            xs[i & 15][r] = m0 + r < a.m ? to_f32(((const T*)a.x)[(size_t)(m0 + r) * a.x_stride + k]) : 0.0f;
            ws[i & 15][r] = n0 + r < a.n ? block_value<TYPE>(a.w, n0 + r, k, a.k) : 0.0f;
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

#define KERNELS(NAME, TYPE)                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) block_rows_##NAME##_f32(                              \
        const __grid_constant__ RowsArgs a) { rows<TYPE, float>(a); }                                       \
    extern "C" __global__ void __launch_bounds__(128) block_rows_##NAME##_bf16(                             \
        const __grid_constant__ RowsArgs a) { rows<TYPE, bf16>(a); }                                        \
    extern "C" __global__ void __launch_bounds__(256) blocks_linear_f32_##NAME##_f32(                       \
        const __grid_constant__ LinearArgs a) { linear<TYPE, float, float>(a); }                            \
    extern "C" __global__ void __launch_bounds__(256) blocks_linear_bf16_##NAME##_f32(                      \
        const __grid_constant__ LinearArgs a) { linear<TYPE, bf16, float>(a); }                             \
    extern "C" __global__ void __launch_bounds__(256) blocks_linear_bf16_##NAME##_bf16(                     \
        const __grid_constant__ LinearArgs a) { linear<TYPE, bf16, bf16>(a); }
KERNELS(q8_0, Q8_0)
KERNELS(q4_0, Q4_0)
KERNELS(q4_k, Q4_K)
KERNELS(q5_k, Q5_K)
KERNELS(q6_k, Q6_K)
