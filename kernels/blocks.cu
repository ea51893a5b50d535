// Weights in blocks (blocks.cuh), the plain ways: rows of a table by id, and linear for any rows and any card.
//
// Contract: rows: out(t) = table(ids[t]), ids out of range give zeros; linear: out(m,n) = sum_k x(m,k) W(n,k)
//   + bias(n) + residual(m,n), added over k upwards. Values are exactly those of zig/cpu/block.zig. x and residual
//   f32 or bf16; out too. These serve f32 models, and bf16 ones where no fast kernel fits; no speed is claimed.
// Launch: rows: 128 threads, grid (rows); linear: 256 threads, grid (ceil(N / 64), ceil(M / 64)).
#include "blocks.cuh"
#include "linear_tile.cuh"

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

template <int TYPE, typename T, typename OUT> DEVICE void linear(const LinearArgs& a) {
    linear_tile<T, OUT>(a, [&](int n, int k) { return block_value<TYPE>((const uint8_t*)a.w, n, k, a.k); });
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
