// The end of a tile of gemm_sm90.cuh: sums become results, which wait in registers until they are stored.
#pragma once
#include "wgmma.cuh"

struct GemmArgs {
    const float* bias;          // (N) or null
    const bf16* residual;       // (M,N) or null
    int m, n, k;                // swiglu: n counts outputs
    int residual_stride;
    bf16* out;
    int out_stride;
    float* sums;                // SPLIT: 2 * 128 * 256 floats a cluster
};
struct Fp8Args {
    GemmArgs of;
    const float* x_scale;   // (M)
    const float* w_scale;   // (N)
    const float* w2_scale;  // (N), swiglu
};
DEVICE const GemmArgs& gemm_args(const GemmArgs& a) { return a; }
DEVICE const GemmArgs& gemm_args(const Fp8Args& a) { return a.of; }

#if HOPPER
// Of a 4 x 4 matrix of words, a row a lane of four neighbours: its transpose.
DEVICE void transpose4(uint32_t* w) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(~0u, odd ? w[i] : w[i + 1], 1);
        w[i] = odd ? other : w[i], w[i + 1] = odd ? w[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t other = __shfl_xor_sync(~0u, high ? w[i] : w[i + 2], 2);
        w[i] = high ? other : w[i], w[i + 2] = high ? w[i + 2] : other;
    }
}

// A thread's results of a tile, packed, or the residual they are added to. Piece e: row 8 (e & 1) below `row`, four
// columns of each eighth of its 32. Their sums: two neighbours of that row, in columns 8 n + 2 t of the tile, are
// acc[4 n + 2 (e & 1)] and the next, the up projection's half of acc behind them.
template <typename K> struct Results {
    const GemmArgs& a;
    const bool adds;
    uint32_t held[K::PIECES][4];
    int row, col;  // of the tile held; row m: none
    DEVICE_MEMBER Results(const GemmArgs& a) : a(a), adds(!K::SWIGLU && !K::BARE && a.residual), row(a.m), col(0) {}
    // Eight neighbours a lane.
    DEVICE_MEMBER void store(int e) {
        const int r = row + 8 * (e & 1), t = threadIdx.x & 3, c = col + 8 * t + 32 * (e >> 1);
        transpose4(held[e]);
        if (r < a.m && c < a.n && (K::TILE_N % 32 == 0 || 32 * (e >> 1) + 8 * t < K::TILE_N))
            *(uint4*)(a.out + (size_t)r * a.out_stride + c) = make_uint4(held[e][0], held[e][1], held[e][2], held[e][3]);
    }
    DEVICE_MEMBER void ask(int e, int row0, int col0) {
        const int r = row0 + 8 * (e & 1), c = col0 + 8 * (threadIdx.x & 3) + 32 * (e >> 1);
        uint4 u = make_uint4(0, 0, 0, 0);
        if (r < a.m && c < a.n) u = load_cg(a.residual + (size_t)r * a.residual_stride + c);
        held[e][0] = u.x, held[e][1] = u.y, held[e][2] = u.z, held[e][3] = u.w;
    }
    DEVICE_MEMBER void scale(const GemmArgs&, float*) const {}
    DEVICE_MEMBER void scale(const Fp8Args& of, float* acc) const {
        const float sx[2] = {row < a.m ? of.x_scale[row] : 0, row + 8 < a.m ? of.x_scale[row + 8] : 0};
        const int c0 = col + 2 * (threadIdx.x & 3);
#pragma unroll
        for (int n = 0; n < K::TILE_N / 8; n++) {
#pragma unroll
            for (int half = 0; half <= K::SWIGLU; half++) {
                const float* scales = (half ? of.w2_scale : of.w_scale) + c0 + 8 * n;
                float2 sw = make_float2(0, 0);
                if (c0 + 8 * n < a.n) sw = *(const float2*)scales;
                float* s = acc + half * (K::ACC / 2) + 4 * n;
                s[0] *= sx[0] * sw.x, s[1] *= sx[0] * sw.y, s[2] *= sx[1] * sw.x, s[3] *= sx[1] * sw.y;
            }
        }
    }
    DEVICE_MEMBER void add_bias(float* acc) const {
        const int c0 = col + 2 * (threadIdx.x & 3);
#pragma unroll
        for (int n = 0; n < K::TILE_N / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (c0 + 8 * n < a.n) acc[4 * n + j] += a.bias[c0 + 8 * n + (j & 1)];
    }
    // Floats are stored at once.
    DEVICE_MEMBER void store_floats(int r, int c, float x, float y) const {
        if (r >= a.m || c >= a.n) return;
        const uint32_t u = adds ? *(const uint32_t*)(a.residual + (size_t)r * a.residual_stride + c) : 0;
        *(float2*)((float*)a.out + (size_t)r * a.out_stride + c) = make_float2(x + bf_lo(u), y + bf_hi(u));
    }
    // Piece e of the sums, with what it is added to.
    DEVICE_MEMBER void pack(int e, const float* acc) {
        const int r = row + 8 * (e & 1), c0 = col + 2 * (threadIdx.x & 3);
        if (adds && !K::F32) transpose4(held[e]);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const int n = 4 * (e >> 1) + b, at = 4 * n + 2 * (e & 1);
            if (8 * n >= K::TILE_N) continue;
            float x = acc[at], y = acc[at + 1];
            if (K::SWIGLU)
                x = silu(x) * acc[(at + K::ACC / 2) % K::ACC], y = silu(y) * acc[(at + 1 + K::ACC / 2) % K::ACC];
            if (K::F32) {
                store_floats(r, c0 + 8 * n, x, y);
                continue;
            }
            if (adds) x += bf_lo(held[e][b]), y += bf_hi(held[e][b]);
            held[e][b] = pack_bf16(x, y);
        }
    }
};
#endif  // HOPPER
