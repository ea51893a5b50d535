// linear on Hopper in e4m3, and the rows' way there: out(m,n) = x_scale(m) w_scale(n) sum_k x(m,k) W(n,k).
//
// Contract: fp8_rows: y(r) = what stands in front of the product (mode), x_scale(r) = max |y(r)| / 448, out(r) =
//   y(r) / x_scale(r) in e4m3, rounded to nearest; a row of zeros has scale 0. Weights are rows, too (mode 0).
//     0 y = x      1 y = rms_norm(x) * norm_weight      2 y = rms_norm(x * silu(gate)) * norm_weight (one group)
//   gemm_*_e4m3: x (M,K) and W (N,K) e4m3, rows of 16-byte multiples; out (M,N) bf16; bias, residual, SwiGLU as in
//   linear_gemm_sm90.cu. A row's bits depend on nothing but that row and W.
//   The tensor cores of Hopper add e4m3 products in fewer bits than f32: bench/cuda/linear_fp8.py states the error
//   beside that of the rounding to e4m3 itself.
//
// Work: 2 M N K at twice bf16's rate. Bytes: x and W once at one byte; rows: 2 in, 1 out.
// Reached on an H200 at the limit of power, 8192 rows, in turns with the tile's end of before (results through shared
//   memory, scales one by one, one kernel with residual and without): in_proj 1154 -> 1299 TFLOP/s, out_proj 1094 ->
//   1236, gate_up 1166 -> 1274, down 1158 -> 1286 (two runs; all 1152 -> 1278).
//   In two shares (linear_gemm_sm90.cu), all four products of 2048 and 8192 rows: 1226 -> 1243, 1237 -> 1268; of 1024
//   1213 -> 1194, so from 2048 on.
//   Rows of 4096 behind a norm 63 -> 34 us, of 8192 gated 135 -> 95 (their bytes take 25 and 83), 14336 plain 93 (87):
//   more rows under way, the gate asked for with x. With the product behind, 981 -> 974 us and 577 -> 564.
//   16 rows, the norm's weights before their turn: a layer of 129.3 us takes 3.0 less.
//   In the model, 8192 rows with norms, an H100: in_proj 1339, out_proj 1023, gate_up 1298, down 1178 TFLOP/s (before:
//   1140, 844, 1156, 1090); a prompt of 8192 62.2k tokens a second, 1.71 x bf16 (an H200 before: 1.64 x).
//   Error of products over K = 14336: 3.3e-3, of which rounding to bf16 is 1.7e-3.
// Launch: gemm as linear_gemm_sm90.cu, maps of bytes with boxes of 128 columns;
//   fp8_rows: 256 threads up to 4096 columns, else 512, grid (rows), K a multiple of 8 up to 16384.
#include "gemm_sm90.cuh"

struct RowsArgs {
    const bf16* x;
    const bf16* gate;
    const float* norm_weight;
    uint8_t* out;
    float* scale;
    int k, x_stride, gate_stride, out_stride, mode;
    float eps;
};

#if HOPPER
DEVICE uint32_t pack_e4m3(const float* v) {
    uint16_t lo, hi;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(lo) : "f"(v[1]), "f"(v[0]));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(hi) : "f"(v[3]), "f"(v[2]));
    return lo | (uint32_t)hi << 16;
}
// A block a row, 8 columns a thread and piece. Of many rows how many are under way decides, so blocks have few registers;
// of FEW what a row waits for, so the norm's weights, which are in no cache, come before its turn.
template <int THREADS, int PIECES, bool FEW> DEVICE void fp8_rows(const RowsArgs& a) {
    constexpr bool EARLY = PIECES <= 2;  // the gate has registers of its own and is asked for with x
    __shared__ float tops[THREADS / 32], squares[THREADS / 32];
    const size_t r = blockIdx.x;
    uint4 y[PIECES], gate[EARLY ? PIECES : 1];
    float4 w[FEW ? PIECES : 1][2];
    auto column = [](int i) { return (i * THREADS + (int)threadIdx.x) * 8; };
    auto load_weight = [&](int i, float4* to) {
        to[0] = __ldg((const float4*)(a.norm_weight + column(i)));
        to[1] = __ldg((const float4*)(a.norm_weight + column(i) + 4));
    };
    if (FEW && a.mode)
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (column(i) < a.k) load_weight(i, w[i]);
    pdl_launch();  // early: a product behind it touches nothing but weights until it has waited
    pdl_wait();
    auto load_gate = [&](int i) { return load_cg(a.gate + r * a.gate_stride + column(i)); };
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        y[i] = make_uint4(0, 0, 0, 0);
        if (column(i) < a.k) y[i] = load_cg(a.x + r * a.x_stride + column(i));
        if (EARLY && a.mode == 2 && column(i) < a.k) gate[i] = load_gate(i);
    }
    float top = 0, total = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        if (column(i) >= a.k) break;
        float v[8];
        unpack8(y[i], v);
        if (a.mode == 2) gate8(v, EARLY ? gate[i] : load_gate(i));
        if (a.mode) {
            if (!FEW) load_weight(i, w[0]);
            const float4 w0 = w[FEW ? i : 0][0], w1 = w[FEW ? i : 0][1];
#pragma unroll
            for (int e = 0; e < 8; e++) total += v[e] * v[e];
            v[0] *= w0.x, v[1] *= w0.y, v[2] *= w0.z, v[3] *= w0.w, v[4] *= w1.x, v[5] *= w1.y, v[6] *= w1.z, v[7] *= w1.w;
            y[i] = pack8(v);
        }
#pragma unroll
        for (int e = 0; e < 8; e++) top = fmaxf(top, fabsf(v[e]));
    }
    top = warp_max(top), total = warp_sum(total);
    if ((threadIdx.x & 31) == 0) tops[threadIdx.x >> 5] = top, squares[threadIdx.x >> 5] = total;
    __syncthreads();
    top = total = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) top = fmaxf(top, tops[warp]), total += squares[warp];
    const float up = top > 0 ? 448.0f / top : 0;  // the norm's own factor cancels
    if (threadIdx.x == 0) a.scale[r] = top / 448.0f * (a.mode ? rsqrtf(total / a.k + a.eps) : 1.0f);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        if (column(i) >= a.k) break;
        float v[8];
        unpack8(y[i], v);
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] *= up;
        *(uint2*)(a.out + r * a.out_stride + column(i)) = make_uint2(pack_e4m3(v), pack_e4m3(v + 4));
    }
}
#define GEMM_BODY(...) gemm<Kind<__VA_ARGS__>>(&mx, &mw, &mw2, a)
#define ROWS_BODY(...) fp8_rows<__VA_ARGS__>(a)
#else
#define GEMM_BODY(...) asm volatile("trap;")
#define ROWS_BODY(...) asm volatile("trap;")
#endif

// The number in a name: 1024 columns of a row each. BOUNDS: threads, and blocks that a multiprocessor must hold.
#define ROWS(NAME, THREADS, PIECES, FEW, BOUNDS)                                                            \
    extern "C" __global__ void __launch_bounds__ BOUNDS NAME(const __grid_constant__ RowsArgs a) {          \
        ROWS_BODY(THREADS, PIECES, FEW);                                                                    \
    }
ROWS(fp8_rows_4_sm90, 256, 2, false, (256, 6))
ROWS(fp8_rows_8_sm90, 512, 2, false, (512, 3))
ROWS(fp8_rows_16_sm90, 512, 4, false, (512))
ROWS(fp8_rows_few_4_sm90, 256, 2, true, (256, 4))
ROWS(fp8_rows_few_8_sm90, 512, 2, true, (512, 2))

#define GEMM(NAME, ...)                                                                                     \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,                \
             const __grid_constant__ CUtensorMap mw2, const __grid_constant__ Fp8Args a) {                  \
        GEMM_BODY(__VA_ARGS__);                                                                             \
    }
GEMM(gemm_256_e4m3, 256, false, true)
GEMM(gemm_256_bare_e4m3, 256, false, true, false, 1, false, true)
// In two shares: linear_gemm_sm90.cu.
#define GEMM_SHARED(NAME, ...)             \
    GEMM(NAME##_eight_e4m3, __VA_ARGS__, 8) \
    GEMM(NAME##_beside_e4m3, __VA_ARGS__, 2, true)
GEMM_SHARED(gemm_256, 256, false, true, false, 1, false, false)
GEMM_SHARED(gemm_256_bare, 256, false, true, false, 1, false, true)
GEMM_SHARED(gemm_swiglu_256, 256, true, true, false, 1, false, false)
GEMM(gemm_128_e4m3, 128, false, true)
GEMM(gemm_split_2_e4m3, 256, false, true, false, 2)
GEMM(gemm_split_4_e4m3, 256, false, true, false, 4)
GEMM(gemm_swiglu_256_e4m3, 256, true, true)
GEMM(gemm_swiglu_128_e4m3, 128, true, true)
