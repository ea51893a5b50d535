// linear with e4m3 weights on cards since Ampere that are no Hopper, many rows of bf16 as they are.
//
// Contract: as linear_mma.cu, but W (and W2) lie as in linear_fp8.cu: f32 scales of all rows, then rows of K bytes, K a
//   multiple of 16. Products are exact, a row's scale follows its sums.
// Work: 2 M N K. Launch: as linear_mma.cu.
#include "mma.cuh"

DEVICE float value(uint32_t b) { return __uint_as_float((b & 0x80) << 24 | (b & 0x7f) << 20) * 0x1p120f; }

struct Eights {
    DEVICE_MEMBER static void fetch(uint32_t to, const uint8_t* w, const MmaArgs& a, int n, int k) {
        uint2 bytes = make_uint2(0, 0);
        if (k < a.k && n < a.n) bytes = __ldg((const uint2*)(w + (size_t)(a.n + 15) / 16 * 64 + (size_t)n * a.k + k));
        float v[8];
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] = value(bytes.x >> 8 * e), v[4 + e] = value(bytes.y >> 8 * e);
        sts128(to, pack8(v));
    }
    DEVICE_MEMBER static float2 scale(const uint8_t* w, const MmaArgs&, int n) { return *(const float2*)((const float*)w + n); }
};
MMA_KERNELS(fp8_mma, Eights)
