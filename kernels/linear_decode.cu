// linear, 1 to 8 rows: out(b,n) = sum_k x(b,k) * W(n,k), with norm in front and bias, residual, SwiGLU behind.
//
// Contract: W (N,K) bf16 row-major as in the checkpoint, K a multiple of 8; x (batch,K) bf16; sums in f32.
//   plain       out = x W^T (+ bias) (+ residual)                         out bf16 or f32
//   rms         x is replaced by rms_norm(x) * norm_weight                (norm_weight f32)
//   gated       x is replaced by rms_norm(x * silu(gate)) * norm_weight   (one group)
//   swiglu      out = silu(x W^T) * (x W2^T)
// A row's bits do not depend on the batch (1..8): every row is one column of the same matrix steps.
//
// Bytes moved: N*K*2, the weights once. Floor: that over the read bandwidth.
// Ideas: - one warp owns 16 weight rows x 64 k a step; each thread copies the 16-byte pieces that it needs
//          itself into its own ring in shared memory (cp.async), so the ring needs no barrier at all and
//          about 100 KB a multiprocessor are always in flight;
//        - the 8 k of a 16-byte piece feed mma.m16n8k16 directly: k may be permuted as long as x is, too;
//        - 8 warps of a block take the steps of a row in turn (1 KB of each row at a time), their sums are
//          added in warp order; blocks stay resident and the ring runs on across tiles;
//        - the ring is filled before `griddepcontrol.wait`: weights stream while the kernel before drains;
//        - the norm's 1/rms is applied to the sums, so x is read once and nothing waits for its reduction.
// Tried: asking L2 for the three steps behind the ring while x is fetched, which keeps x waiting: a token of Bamba-9B on an
//   H200 takes 4.69 ms without (0.87 of the read bandwidth), 4.78 with it, 4.84 with six (an H100 was not measured); a part
//   of the ring filled only behind x's loads 4.71 to 4.84; more of x asked for at once 4.72; four slots 4.70.
// One row goes in chains where products follow each other: rows_chain_sm90.cu, of the same bits.
// Launch: 256 threads, grid min(tiles, 2 * multiprocessors), tiles = ceil(N / 16) (swiglu: ceil(N / 8));
//   dynamic shared memory: see `gemv_smem` below (STAGES ring slots of 16 KB, then x when it is staged).
#include "common.cuh"

struct GemvArgs {
    const bf16* w;             // (N,K)
    const bf16* w2;            // (N,K), swiglu: the up projection
    const bf16* x;             // (batch,K)
    const bf16* gate;          // (batch,K), gated
    const float* norm_weight;  // (K), rms and gated
    const float* bias;         // (N) or null
    const bf16* residual;      // (batch,N) or null; may be `out`
    void* out;                 // (batch,N)
    int batch, n, k;
    int x_stride, gate_stride, residual_stride, out_stride;  // elements between rows
    float eps;
};

enum { PLAIN = 0, RMS = 1, GATED = 2 };
constexpr int WARPS = 8, THREADS = 32 * WARPS, STEP = 64;
constexpr int SLOT_BYTES = 64 * THREADS;  // four 16-byte pieces a thread
constexpr int X_PAD = 32;                 // keeps rows of x on different banks

struct Fixed {
    float red[2][WARPS][128];
    float sumsq[16][WARPS];
    float rstd[8];
};

template <int MODE> DEVICE void stage_x(const GemvArgs& a, bf16* xs, Fixed* f) {
    const int groups = (a.k / 8 + THREADS - 1) / THREADS, total = groups * a.batch;
    const int warp = threadIdx.x >> 5;
    for (int j0 = 0; j0 < total; j0 += 4) {
        uint4 xr[4], gr[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {  // all loads first: one latency, not four
            int row = (j0 + i) / groups, c = (j0 + i - row * groups) * THREADS + threadIdx.x;
            bool valid = j0 + i < total && c * 8 < a.k;
            xr[i] = gr[i] = make_uint4(0, 0, 0, 0);
            if (valid) xr[i] = load_cg(a.x + (size_t)row * a.x_stride + c * 8);
            if (MODE == GATED && valid) gr[i] = load_cg(a.gate + (size_t)row * a.gate_stride + c * 8);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int j = j0 + i;
            if (j >= total) break;
            int row = j / groups, c = (j - row * groups) * THREADS + threadIdx.x;
            float v[8], s = 0;
            unpack8(xr[i], v);
            if (MODE == GATED) gate8(v, gr[i]);
            if (MODE != PLAIN) {
#pragma unroll
                for (int e = 0; e < 8; e++) s += v[e] * v[e];
                s = warp_sum(s);
                if ((threadIdx.x & 31) == 0) f->sumsq[j][warp] = s;
            }
            if (c * 8 < a.k) {
                if (MODE != PLAIN) {
                    float4 w0 = __ldg((const float4*)(a.norm_weight + c * 8));
                    float4 w1 = __ldg((const float4*)(a.norm_weight + c * 8 + 4));
                    v[0] *= w0.x, v[1] *= w0.y, v[2] *= w0.z, v[3] *= w0.w;
                    v[4] *= w1.x, v[5] *= w1.y, v[6] *= w1.z, v[7] *= w1.w;
                }
                *(uint4*)(xs + row * (a.k + X_PAD) + c * 8) = pack8(v);
            }
        }
    }
    __syncthreads();
    if (MODE != PLAIN && threadIdx.x < a.batch) {
        float s = 0;
        for (int j = threadIdx.x * groups; j < (threadIdx.x + 1) * groups; j++)
            for (int w = 0; w < WARPS; w++) s += f->sumsq[j][w];
        f->rstd[threadIdx.x] = rsqrtf(s / a.k + a.eps);
    }
}

template <int MODE, bool SWIGLU, bool STAGED, int STAGES, typename OUT>
DEVICE void gemv(const GemvArgs& a) {
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ Fixed fixed;
    bf16* xs = (bf16*)(smem + STAGES * SLOT_BYTES);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const uint32_t ring = smem_addr(smem) + warp * 512 + lane * 16;
    constexpr int TILE_N = SWIGLU ? 8 : 16;
    const int tiles = (a.n + TILE_N - 1) / TILE_N;
    const int iters = ((a.k + STEP - 1) / STEP + WARPS - 1) / WARPS;
    const int my_tiles = ((int)blockIdx.x < tiles) ? (tiles - 1 - blockIdx.x) / gridDim.x + 1 : 0;
    const int total = my_tiles * iters;

    // The copying side: which tile and step comes next.
    // A tile starts its walk over k at its own place: rows lie a power of two apart, and blocks in step would
    // ask the same few memory channels.
    int c_tile = blockIdx.x, c_it = 0, c_left = total, c_slot = 0, c_step = (c_tile * 5) % iters;
    auto copy_next = [&]() {
        if (c_left > 0) {
            int k = (c_step * WARPS + warp) * STEP + t * 8;
            int r0 = c_tile * TILE_N + g, r1 = SWIGLU ? r0 : r0 + 8;
            bool v0 = r0 < a.n, v1 = r1 < a.n, k0 = k < a.k, k1 = k + 32 < a.k;
            const bf16* p0 = a.w + (size_t)(v0 ? r0 : 0) * a.k + k;
            const bf16* p1 = (SWIGLU ? a.w2 : a.w) + (size_t)(v1 ? r1 : 0) * a.k + k;
            uint32_t dst = ring + c_slot * SLOT_BYTES;
            cp_async16(dst, k0 ? p0 : a.w, v0 && k0);
            cp_async16(dst + 4096, k1 ? p0 + 32 : a.w, v0 && k1);
            cp_async16(dst + 8192, k0 ? p1 : a.w, v1 && k0);
            cp_async16(dst + 12288, k1 ? p1 + 32 : a.w, v1 && k1);
            c_left--;
            if (++c_step == iters) c_step = 0;
            if (++c_it == iters) c_it = 0, c_tile += gridDim.x, c_step = (c_tile * 5) % iters;
            if (++c_slot == STAGES) c_slot = 0;
        }
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy_next();
    if (MODE != PLAIN)
        for (int i = threadIdx.x * 32; i < a.k; i += THREADS * 32)
            asm volatile("prefetch.global.L1 [%0];" ::"l"(a.norm_weight + i));
    pdl_wait();
    pdl_launch();
    if (STAGED) stage_x<MODE>(a, xs, &fixed);

    int slot = 0, buffer = 0;
    const bool row = g < a.batch;
    const uint32_t xs_row = smem_addr(xs) + (g * (a.k + X_PAD) + t * 8) * 2;
    const bf16* x_row = a.x + (size_t)(row ? g : 0) * a.x_stride + t * 8;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int my_b = threadIdx.x >> 4, my_n = tile * TILE_N + (threadIdx.x & 15);
        float onto = 0;  // asked for early: its latency is the stream's
        if (threadIdx.x < 128 && my_b < a.batch && my_n < a.n && a.residual && (!SWIGLU || (threadIdx.x & 15) < 8))
            onto = to_f32(a.residual[(size_t)my_b * a.residual_stride + my_n]);
        float acc[4] = {0, 0, 0, 0};
        int step = (tile * 5) % iters;
        for (int it = 0; it < iters; it++) {
            int k = (step * WARPS + warp) * STEP;
            if (++step == iters) step = 0;
            uint4 x0 = make_uint4(0, 0, 0, 0), x1 = x0;
            if (row && k + t * 8 < a.k) x0 = STAGED ? lds128(xs_row + k * 2) : load_cg(x_row + k);
            if (row && k + t * 8 + 32 < a.k)
                x1 = STAGED ? lds128(xs_row + k * 2 + 64) : load_cg(x_row + k + 32);
            cp_async_wait<STAGES - 2>();
            uint32_t src = ring + slot * SLOT_BYTES;
            uint4 p0 = lds128(src), p1 = lds128(src + 4096);
            uint4 q0 = lds128(src + 8192), q1 = lds128(src + 12288);
            copy_next();
            mma_bf16(acc, p0.x, q0.x, p0.y, q0.y, x0.x, x0.y);
            mma_bf16(acc, p0.z, q0.z, p0.w, q0.w, x0.z, x0.w);
            mma_bf16(acc, p1.x, q1.x, p1.y, q1.y, x1.x, x1.y);
            mma_bf16(acc, p1.z, q1.z, p1.w, q1.w, x1.z, x1.w);
            if (++slot == STAGES) slot = 0;
        }
        // Sums of the warps, in warp order: red[warp][column * 16 + row].
        float* red = fixed.red[buffer][warp];
        red[2 * t * 16 + g] = acc[0], red[(2 * t + 1) * 16 + g] = acc[1];
        red[2 * t * 16 + g + 8] = acc[2], red[(2 * t + 1) * 16 + g + 8] = acc[3];
        __syncthreads();
        if (threadIdx.x < 128) {
            float s = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) s += fixed.red[buffer][w][threadIdx.x];
            const int b = threadIdx.x >> 4, r = threadIdx.x & 15;
            if (MODE != PLAIN && b < a.batch) s *= fixed.rstd[b];
            if (SWIGLU) {
                float up = __shfl_down_sync(~0u, s, 8);
                s = silu(s) * up;
            }
            int n = tile * TILE_N + r;
            if (b < a.batch && n < a.n && (!SWIGLU || r < 8)) {
                if (a.bias) s += a.bias[n];
                if (a.residual) s += onto;
                ((OUT*)a.out)[(size_t)b * a.out_stride + n] = from_f32<OUT>(s);
            }
        }
        buffer ^= 1;
    }
}

// Bytes of dynamic shared memory: STAGES * 16384 + (x staged ? batch * (K + 32) * 2 : 0). The number in
// a name is STAGES. Best: two blocks a multiprocessor (113 KB each), that is 4 for up to 36 KB of x, else
// `direct`, which reads x from L2 as it goes. The norm in front pays for one or two rows; for more, run
// rms_norm first.
#define GEMV(NAME, MODE, SWIGLU, STAGED, STAGES, OUT)                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ GemvArgs a) {     \
        gemv<MODE, SWIGLU, STAGED, STAGES, OUT>(a);                                                         \
    }
GEMV(gemv_6_direct_bf16, PLAIN, false, false, 6, bf16)
GEMV(gemv_6_direct_f32, PLAIN, false, false, 6, float)
GEMV(gemv_6_direct_swiglu_bf16, PLAIN, true, false, 6, bf16)
#define GEMV_STAGED(S)                                                                                      \
    GEMV(gemv_##S##_bf16, PLAIN, false, true, S, bf16)                                                      \
    GEMV(gemv_##S##_f32, PLAIN, false, true, S, float)                                                      \
    GEMV(gemv_##S##_swiglu_bf16, PLAIN, true, true, S, bf16)                                                \
    GEMV(gemv_##S##_rms_bf16, RMS, false, true, S, bf16)                                                    \
    GEMV(gemv_##S##_gated_bf16, GATED, false, true, S, bf16)                                                \
    GEMV(gemv_##S##_rms_swiglu_bf16, RMS, true, true, S, bf16)                                              \
    GEMV(gemv_##S##_rms_f32, RMS, false, true, S, float)
GEMV_STAGED(4)
GEMV_STAGED(5)
