// embedding: rows of a table by id, in the dtype of the activations; gather_rows: rows of an activation.
//
// Contract: out(t) = table(ids[t]); ids out of range give zeros. table f32, bf16 or f16, out f32 or bf16.
// Bytes: each row once in and once out.
// Ideas: a row that is copied as it is goes in pieces of 16 bytes, four of a thread on their way at a time: one latency
//   for up to 8 KB, which nothing else hides.
// Launch: 128 threads, grid (rows).
#include "common.cuh"

struct RowsArgs {
    const void* table;
    const int* ids;
    void* out;
    int width, table_rows, table_stride, out_stride;
};

template <typename W, typename T> struct Same { static constexpr bool is = false; };
template <typename T> struct Same<T, T> { static constexpr bool is = true; };

constexpr int THREADS = 128, AHEAD = 4;
DEVICE void copy_row(const uint4* from, uint4* to, int pieces, bool there) {
    for (int begin = threadIdx.x; begin < pieces; begin += AHEAD * THREADS) {
        uint4 v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int i = begin + j * THREADS;
            v[j] = there && i < pieces ? load_cg(from + i) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (begin + j * THREADS < pieces) to[begin + j * THREADS] = v[j];
    }
}

template <typename W, typename T> DEVICE void rows(const RowsArgs& a) {
    pdl_wait();
    pdl_launch();
    const int id = a.ids[blockIdx.x];
    const W* from = (const W*)a.table + (size_t)id * a.table_stride;
    T* to = (T*)a.out + (size_t)blockIdx.x * a.out_stride;
    const bool there = id >= 0 && id < a.table_rows;
    constexpr int PER = 16 / sizeof(T);
    const size_t apart = (size_t)a.table | (size_t)a.out;
    if (Same<W, T>::is && apart % 16 == 0 && (a.width | a.table_stride | a.out_stride) % PER == 0)
        return copy_row((const uint4*)from, (uint4*)to, a.width / PER, there);
    for (int i = threadIdx.x; i < a.width; i += THREADS) to[i] = from_f32<T>(there ? to_f32(from[i]) : 0.0f);
}

#define ROWS(NAME, W, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(128) NAME(const __grid_constant__ RowsArgs a) { rows<W, T>(a); }
ROWS(rows_f32_f32, float, float)
ROWS(rows_bf16_f32, bf16, float)
ROWS(rows_f16_f32, __half, float)
ROWS(rows_f32_bf16, float, bf16)
ROWS(rows_bf16_bf16, bf16, bf16)
ROWS(rows_f16_bf16, __half, bf16)
