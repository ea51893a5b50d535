// The machine's own limits, measured in the run that quotes shares of them: plain read and plain copy.
#include "../../kernels/common.cuh"

// Sums everything so that no read can be dropped; each block reads spans of 64 KB.
extern "C" __global__ void __launch_bounds__(512) peak_read(const uint4* p, size_t n, float* out) {
    uint32_t s = 0;
    const size_t span = 512 * 8;
    for (size_t base = (size_t)blockIdx.x * span; base < n; base += (size_t)gridDim.x * span) {
        uint4 v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            size_t at = base + i * 512 + threadIdx.x;
            v[i] = at < n ? load_stream(p + at) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) s ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (s == 0x12345678u) out[0] = 1;
}
extern "C" __global__ void __launch_bounds__(512) peak_copy(const uint4* p, uint4* q, size_t n) {
    const size_t span = 512 * 4;
    for (size_t base = (size_t)blockIdx.x * span; base < n; base += (size_t)gridDim.x * span) {
        uint4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            size_t at = base + i * 512 + threadIdx.x;
            if (at < n) v[i] = load_stream(p + at);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            size_t at = base + i * 512 + threadIdx.x;
            if (at < n) q[at] = v[i];
        }
    }
}
