// embedding: rows of a table by id, in the dtype of the activations; gather_rows: rows of an activation.
//
// Contract: out(t) = table(ids[t]); ids out of range give zeros. table f32, bf16 or f16, out f32 or bf16.
// Bytes: each row once in and once out.
// Launch: 128 threads, grid (rows).
#include "common.cuh"

struct RowsArgs {
    const void* table;
    const int* ids;
    void* out;
    int width, table_rows, table_stride, out_stride;
};

template <typename W, typename T> DEVICE void rows(const RowsArgs& a) {
    pdl_wait();
    pdl_launch();
    const int id = a.ids[blockIdx.x];
    const W* from = (const W*)a.table + (size_t)id * a.table_stride;
    T* to = (T*)a.out + (size_t)blockIdx.x * a.out_stride;
    for (int i = threadIdx.x; i < a.width; i += 128)
        to[i] = from_f32<T>(id >= 0 && id < a.table_rows ? to_f32(from[i]) : 0.0f);
}

#define ROWS(NAME, W, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(128) NAME(const __grid_constant__ RowsArgs a) { rows<W, T>(a); }
ROWS(rows_f32_f32, float, float)
ROWS(rows_bf16_f32, bf16, float)
ROWS(rows_f16_f32, __half, float)
ROWS(rows_f32_bf16, float, bf16)
ROWS(rows_bf16_bf16, bf16, bf16)
ROWS(rows_f16_bf16, __half, bf16)
