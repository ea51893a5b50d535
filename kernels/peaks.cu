// The machine's own limits, measured in the run that quotes shares of them: plain read, plain copy, and bf16
// matrix steps from shared memory alone (Hopper; on other cards peak_mma does nothing).
//
// Launch: peak_read and peak_copy 512 threads, any grid; peak_mma 256, grid multiprocessors, dynamic smem 65536.
#include "wgmma.cuh"

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

// Bits that differ from word to word: memory and tensor cores are faster on zeros.
extern "C" __global__ void __launch_bounds__(512) peak_fill(uint32_t* p, size_t n) {
    for (size_t i = blockIdx.x * 512 + threadIdx.x; i < n; i += (size_t)gridDim.x * 512) {
        uint32_t h = (uint32_t)i * 2654435761u;
        h ^= h >> 15, h *= 0x85ebca6bu, h ^= h >> 13;
        p[i] = (h & 0x807f807fu) | 0x3f003f00u;  // bf16 of either sign between 0.5 and 2
    }
}

// Two groups of warps, each with 64 x 256 sums: `rounds` times 4 steps of 64 x 256 x 16.
extern "C" __global__ void __launch_bounds__(256, 1) peak_mma(float* out, int rounds) {
#if HOPPER
    extern __shared__ __align__(1024) uint8_t smem[];
    for (int i = threadIdx.x; i < 16384; i += 256) {
        uint32_t h = (blockIdx.x * 16384 + i) * 2654435761u;
        h ^= h >> 15, h *= 0x85ebca6bu, h ^= h >> 13;
        ((uint32_t*)smem)[i] = (h & 0x807f807fu) | 0x3f003f00u;
    }
    fence_async_smem();
    __syncthreads();
    const uint64_t a = wgmma_desc(smem_addr(smem) + (threadIdx.x >> 7) * 8192, 0);
    const uint64_t b = wgmma_desc(smem_addr(smem) + 16384, 0);
    float acc[128];
#pragma unroll
    for (int i = 0; i < 128; i++) acc[i] = 0;
    for (int r = 0; r < rounds; r++) {
        wgmma_touch<128>(acc);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) wgmma_n256_ss<0>(acc, a + 2 * i, b + 2 * i, 1);
        wgmma_commit();
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    wgmma_touch<128>(acc);
    float s = 0;
#pragma unroll
    for (int i = 0; i < 128; i++) s += acc[i];
    if (s == 0.12345f) out[0] = s;
#endif
}
