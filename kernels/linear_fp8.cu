// linear with e4m3 weights and activations as they are, any card: 1 to 8 rows of bf16 at the speed of the weights'
// bytes, and a plain way for any rows, shapes and dtypes. Many rows on Hopper: linear_fp8_sm90.cu.
//
// Contract: W (N,K) lies as f32 scales of all rows (N rounded up to 16) and then the rows, K bytes each; a weight
//   means its e4m3 number times its row's scale.
//   fp8_decode_*  x (batch <= 8,K) bf16, K a multiple of 16, W 16-byte aligned; `mode`, `swiglu`, bias and residual
//                 as in linear_decode.cu; out bf16 or f32. Sums of exact products in f32, the scale behind them. A
//                 row's bits do not depend on the batch: every row is one column of the same matrix steps.
//   fp8_linear_*  out = x W^T (+ bias) (+ residual), weights as zig/cpu/linear.zig has them: number times scale,
//                 rounded once; sums over k upwards. No speed is claimed.
//
// Bytes moved: N*K, the weights once. Floor: that over the read bandwidth.
// Ideas: - as in linear_decode.cu: own pieces by cp.async into a ring without barriers, filled before the kernel in
//          front is waited for; 8 warps take the steps of a row in turn; sums in warp order;
//        - two shifts and two logical operations make two operands, and nothing is converted (e4m3.cuh);
//        - the 16 k of a 16-byte piece feed four matrix steps directly: k may be permuted as long as x is, too.
// Reached, batch 1, in_proj / out_proj / gate_up / down / lm_head: on an H100 (read 3.14 TB/s) 86 / 70 / 86 / 84 / 91 %;
//   a whole token of Bamba-9B 3.86 ms, 83 %; on an H200 (read 4.62 TB/s) 3.04 ms, 71 %: what is missing is the same
//   5 us a launch as in bf16 (4.81 ms there, 84 %), now beside half the bytes. Copies with running addresses and
//   without checks of rows (x is zero beyond K) took the loop from 261 to 175 instructions a warp and 2 KB. Then, without
//   asking L2 for what lies behind the ring (which kept x waiting), a layer with its state took 82.9 us for 86.4 there,
//   75 % of its floor. Blocks end 3 to 11 us apart, and x is in place 2 to 3 us behind the last one's end. One row goes in
//   chains where products follow each other: rows_chain_sm90.cu, of the same bits.
// Launch: fp8_decode: 256 threads, grid min(tiles, 2 * multiprocessors), tiles = ceil(N / 16) (swiglu: ceil(N / 8));
//   dynamic smem STAGES * 16384 + (staged: batch * (K to a multiple of 1024, + 8) * 2).
//   fp8_linear: 256 threads, grid (ceil(N / 64), ceil(M / 64)).
#include "e4m3.cuh"
#include "linear_tile.cuh"

struct DecodeArgs {
    const uint8_t* w;
    const uint8_t* w2;         // swiglu: the up projection
    const bf16* x;             // (batch,K)
    const bf16* gate;          // (batch,K), gated
    const float* norm_weight;  // (K), rms and gated
    const float* bias;         // (N) or null
    const bf16* residual;      // (batch,N) or null; may be `out`
    void* out;                 // (batch,N)
    int batch, n, k;
    int x_stride, gate_stride, residual_stride, out_stride;  // elements between rows
    float eps;
    int mode, swiglu, out_f32;
};

enum { PLAIN = 0, RMS = 1, GATED = 2 };
constexpr int WARPS = 8, THREADS = 32 * WARPS, STEP = 128;
constexpr int SLOT_BYTES = 64 * THREADS;  // four 16-byte pieces a thread
constexpr int X_PAD = 8;                  // keeps rows of x on different banks
constexpr int SQUARES = 18;               // pieces of 2048 columns that a norm in front may have
constexpr uint32_t UP_BF16 = 0x5d805d80;

struct Fixed {
    float red[2][WARPS][128];
    float squares[2][SQUARES][WARPS];
    float rstd[2];
    alignas(16) uint32_t zeros[8];
};

// x to shared memory, of each four columns in the order 0, 2, 1, 3; zeros behind it up to `pitch`.
DEVICE void stage(const DecodeArgs& a, bf16* xs, int pitch, Fixed* f) {
    const int pieces = pitch / 8, parts = (pieces + THREADS - 1) / THREADS;
    for (int b = 0; b < a.batch; b++) {
        for (int c0 = threadIdx.x; c0 < parts * THREADS; c0 += 4 * THREADS) {
            uint4 xr[4], gr[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {  // all loads first: one latency, not four
                const int c = c0 + i * THREADS;
                xr[i] = gr[i] = make_uint4(0, 0, 0, 0);
                if (c * 8 < a.k) xr[i] = load_cg(a.x + (size_t)b * a.x_stride + c * 8);
                if (c * 8 < a.k && a.mode == GATED) gr[i] = load_cg(a.gate + (size_t)b * a.gate_stride + c * 8);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int c = c0 + i * THREADS;
                if (c >= parts * THREADS) break;
                float v[8];
                unpack8(xr[i], v);
                if (a.mode == GATED) gate8(v, gr[i]);
                if (a.mode != PLAIN) {
                    float s = 0;
#pragma unroll
                    for (int e = 0; e < 8; e++) s += v[e] * v[e];
                    s = warp_sum(s);
                    if ((threadIdx.x & 31) == 0) f->squares[b][c / THREADS][threadIdx.x >> 5] = s;
                }
                if (a.mode != PLAIN && c * 8 < a.k) {
                    const float4 w0 = __ldg((const float4*)(a.norm_weight + c * 8));
                    const float4 w1 = __ldg((const float4*)(a.norm_weight + c * 8 + 4));
                    v[0] *= w0.x, v[1] *= w0.y, v[2] *= w0.z, v[3] *= w0.w;
                    v[4] *= w1.x, v[5] *= w1.y, v[6] *= w1.z, v[7] *= w1.w;
                }
#pragma unroll
                for (int e = 0; e < 8; e++) v[e] *= UP;
                if (c >= pieces) continue;
                *(uint4*)(xs + b * (pitch + X_PAD) + c * 8) =
                    make_uint4(pack_bf16(v[0], v[2]), pack_bf16(v[1], v[3]), pack_bf16(v[4], v[6]), pack_bf16(v[5], v[7]));
            }
        }
    }
    __syncthreads();
    if (a.mode != PLAIN && threadIdx.x < a.batch) {
        float s = 0;
        for (int j = 0; j < parts; j++)
            for (int w = 0; w < WARPS; w++) s += f->squares[threadIdx.x][j][w];
        f->rstd[threadIdx.x] = rsqrtf(s / a.k + a.eps);
    }
}

// Sixteen columns of x for one piece, as operands B of four matrix steps. Staged, rows that are not there are zeros
// somewhere, and `bytes` of a column 0.
template <bool STAGED> DEVICE void operand(const bf16* row, uint32_t staged, int k, int bytes, int cols, uint32_t* x) {
    uint4 u = make_uint4(0, 0, 0, 0), v = u;
    if (STAGED) u = lds128(staged + k * bytes), v = lds128(staged + k * bytes + 16);
    else if (bytes && k < cols) u = load_cg(row + k), v = load_cg(row + k + 8);
    x[0] = u.x, x[1] = u.y, x[2] = u.z, x[3] = u.w, x[4] = v.x, x[5] = v.y, x[6] = v.z, x[7] = v.w;
    if (!STAGED)
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            const uint32_t lo = __byte_perm(x[i], x[i + 1], 0x5410), hi = __byte_perm(x[i], x[i + 1], 0x7632);
            asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x[i]) : "r"(lo), "r"(UP_BF16), "r"(0x80008000u));
            asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x[i + 1]) : "r"(hi), "r"(UP_BF16), "r"(0x80008000u));
        }
}
DEVICE void steps(float* acc, const uint4& p, const uint4& q, const uint32_t* x) {
    const uint32_t a[4] = {p.x, p.y, p.z, p.w}, b[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) mma_bf16(acc, even(a[i]), even(b[i]), odd(a[i]), odd(b[i]), x[2 * i], x[2 * i + 1]);
}

template <bool STAGED, int STAGES> DEVICE void decode(const DecodeArgs& a) {
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ Fixed fixed;
    bf16* xs = (bf16*)(smem + STAGES * SLOT_BYTES);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const uint32_t ring = smem_addr(smem) + warp * 512 + lane * 16;
    const int tile_n = a.swiglu ? 8 : 16, tiles = (a.n + tile_n - 1) / tile_n;
    const int iters = ((a.k + STEP - 1) / STEP + WARPS - 1) / WARPS;
    const int my_tiles = ((int)blockIdx.x < tiles) ? (tiles - 1 - blockIdx.x) / gridDim.x + 1 : 0;
    const uint8_t* w = rows_of(a.w, a.n);
    const uint8_t* w2 = a.swiglu ? rows_of(a.w2, a.n) : w;

    // The copying side. A tile starts its walk over k at its own place, as in linear_decode.cu. What lies beyond N
    // or K repeats the last there is: no bits of a weight are no number, and x is zero there.
    constexpr int STRIDE = WARPS * STEP, LAST = (STAGES - 1) * SLOT_BYTES;
    int c_tile = blockIdx.x, c_it = 0, c_left = my_tiles * iters, c_k = 0;
    uint32_t c_dst = ring;
    const uint8_t *p0, *p1;
    auto tile_begins = [&]() {
        const int r0 = c_tile * tile_n + g;
        p0 = w + (size_t)min(r0, a.n - 1) * a.k;
        p1 = w2 + (size_t)min(a.swiglu ? r0 : r0 + 8, a.n - 1) * a.k;
        c_k = (c_tile * 5) % iters * STRIDE + warp * STEP + t * 16;
    };
    auto copy_next = [&]() {
        if (c_left > 0) {
            const int k0 = min(c_k, a.k - 16), k1 = min(c_k + 64, a.k - 16);
            cp_async16(c_dst, p0 + k0, true);
            cp_async16(c_dst + 4096, p0 + k1, true);
            cp_async16(c_dst + 8192, p1 + k0, true);
            cp_async16(c_dst + 12288, p1 + k1, true);
            c_left--;
            c_k += STRIDE;
            if (c_k >= iters * STRIDE) c_k -= iters * STRIDE;
            if (++c_it == iters) c_it = 0, c_tile += gridDim.x, tile_begins();
            c_dst = c_dst == ring + LAST ? ring : c_dst + SLOT_BYTES;
        }
        cp_async_commit();
    };
    tile_begins();
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy_next();
    if (a.mode != PLAIN)
        for (int i = threadIdx.x * 32; i < a.k; i += THREADS * 32)
            asm volatile("prefetch.global.L1 [%0];" ::"l"(a.norm_weight + i));
    pdl_wait();
    pdl_launch();
    if (threadIdx.x < 8) fixed.zeros[threadIdx.x] = 0;  // seen by all behind the barrier of `stage`
    if (STAGED) stage(a, xs, iters * STRIDE, &fixed);

    int buffer = 0;
    uint32_t src = ring;
    const bool row = g < a.batch;
    const int bytes = row ? 2 : 0;
    const uint32_t staged = row ? smem_addr(xs) + g * (iters * STRIDE + X_PAD) * 2 : smem_addr(fixed.zeros);
    const bf16* direct = a.x + (size_t)(row ? g : 0) * a.x_stride;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int b = threadIdx.x >> 4, r = threadIdx.x & 15, n = tile * tile_n + (a.swiglu ? r & 7 : r);
        float onto = 0, scale = 0;  // asked for early: their latency is the stream's
        if (threadIdx.x < 128 && b < a.batch && n < a.n) {
            scale = __ldg(scales_of(a.swiglu && r >= 8 ? a.w2 : a.w) + n);
            if (a.residual && (!a.swiglu || r < 8)) onto = to_f32(a.residual[(size_t)b * a.residual_stride + n]);
        }
        float acc[4] = {0, 0, 0, 0}, far[4] = {0, 0, 0, 0};
        int k = (tile * 5) % iters * STRIDE + warp * STEP + t * 16;
        for (int it = 0; it < iters; it++) {
            uint32_t x0[8], x1[8];
            operand<STAGED>(direct, staged, k, bytes, a.k, x0);
            operand<STAGED>(direct, staged, k + 64, bytes, a.k, x1);
            k += STRIDE;
            if (k >= iters * STRIDE) k -= iters * STRIDE;
            cp_async_wait<STAGES - 2>();
            const uint4 p0 = lds128(src), p1 = lds128(src + 4096), q0 = lds128(src + 8192), q1 = lds128(src + 12288);
            copy_next();
            steps(acc, p0, q0, x0);
            steps(far, p1, q1, x1);
            src = src == ring + LAST ? ring : src + SLOT_BYTES;
        }
        // Sums of the warps, in warp order: red[warp][column * 16 + row].
        float* red = fixed.red[buffer][warp];
        red[2 * t * 16 + g] = acc[0] + far[0], red[(2 * t + 1) * 16 + g] = acc[1] + far[1];
        red[2 * t * 16 + g + 8] = acc[2] + far[2], red[(2 * t + 1) * 16 + g + 8] = acc[3] + far[3];
        __syncthreads();
        if (threadIdx.x < 128) {
            float s = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) s += fixed.red[buffer][i][threadIdx.x];
            s = s * UP * scale;
            if (a.mode != PLAIN && b < a.batch) s *= fixed.rstd[b];
            const float up = __shfl_down_sync(~0u, s, 8);
            if (a.swiglu) s = silu(s) * up;
            if (b < a.batch && n < a.n && (!a.swiglu || r < 8)) {
                if (a.bias) s += a.bias[n];
                if (a.residual) s += onto;
                if (a.out_f32) ((float*)a.out)[(size_t)b * a.out_stride + n] = s;
                else ((bf16*)a.out)[(size_t)b * a.out_stride + n] = __float2bfloat16_rn(s);
            }
        }
        buffer ^= 1;
    }
}

// The number in a name is STAGES; `direct` reads x from L2 as it goes, where it does not fit.
#define DECODE(NAME, STAGED, STAGES)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ DecodeArgs a) {   \
        decode<STAGED, STAGES>(a);                                                                          \
    }
DECODE(fp8_decode_4, true, 4)
DECODE(fp8_decode_5, true, 5)
DECODE(fp8_decode_6_direct, false, 6)

DEVICE float value(uint8_t b) { return __uint_as_float((uint32_t)(b & 0x80) << 24 | (uint32_t)(b & 0x7f) << 20) * 0x1p120f; }

template <typename T, typename OUT> DEVICE void linear(const LinearArgs& a) {
    const uint8_t* w = (const uint8_t*)a.w;
    const uint8_t* rows = rows_of(w, a.n);
    linear_tile<T, OUT>(a, [&](int n, int k) { return value(rows[(size_t)n * a.k + k]) * scales_of(w)[n]; });
}
#define LINEAR(NAME, T, OUT)                                                                                \
    extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ LinearArgs a) { linear<T, OUT>(a); }
LINEAR(fp8_linear_f32_f32, float, float)
LINEAR(fp8_linear_bf16_f32, bf16, float)
LINEAR(fp8_linear_bf16_bf16, bf16, bf16)
