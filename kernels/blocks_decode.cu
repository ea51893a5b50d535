// linear, 1 to 4 rows, weights in blocks: out(b,n) = sum_k x(b,k) * W(n,k), norm in front, residual, SwiGLU behind.
//
// Contract: W (N,K) in panels of blocks (blocks.cuh), 16-byte aligned, rows of the last panel beyond N zero;
//   x (batch,K) bf16; sums in f32, weights at their exact values: a block's integers are multiplied by bf16 x on
//   tensor cores, and its scale and minimum meet the sum of its columns in f32.
//   `mode`, `swiglu`, bias and residual as in linear_decode.cu; out bf16 or f32.
//   A row's bits do not depend on the batch (1..4): each row takes the same steps.
//
// Bytes moved: the file's: q8_0 1.0625, q6_k 0.8203, q5_k 0.6875, q4_k and q4_0 0.5625 a weight. Floor: those over
// the read bandwidth. At 0.56 bytes a weight 5.4 instructions a lane are there for each; about 2 are used.
// Ideas: - as in linear_decode.cu: own pieces by cp.async into a ring, filled before the kernel in front is
//          waited for; 8 warps take steps of a panel in turn; sums in warp order;
//        - of eight matrix steps (16 columns each) step c sees x in column c of operand B alone: its sums end in
//          column c of the accumulators, so one set serves eight blocks, and each lane holds just the sums whose
//          scale it has: a scale is decoded once in a warp, not once in a lane;
//        - quants become bf16 128 + q by one AND-OR for two of them; sums of x take the 128 off again.
// Reached on an H100 (read 3.14 TB/s), batch 1: in_proj / out_proj / gate_up / down / lm_head q8_0 86 / 75 / 84 / 83 /
//   94 %, q6_k 82 / 66 / 79 / 78 / 92 %, q4_k 77 / 55 / 77 / 75 / 90 %; a whole token of Bamba-9B, state included:
//   q8_0 82 %, q4_k_m 72 %. What is missing is the same 3 to 5 us a launch in all: staging x, first and last bytes.
//   On an H200 the integer pipe bounds it (blocks_int8.cuh). One row takes blocks_chain_sm90.cu on Hopper.
//   Four rows take twice the time of one at q4_k: tensor cores and registers, not memory, bound them.
// Launch: 256 threads, grid min(panels, 2 * multiprocessors); dynamic smem STAGES * 8 * BYTES of a step
//   + batch * (2 K + K / 4), see BLOCKS below.
#include "blocks.cuh"

struct BlocksArgs {
    const uint8_t* w;
    const uint8_t* w2;         // swiglu: the up projection, of the same type
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
constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int SQUARES = 18;  // pieces of 2048 columns that a norm may have

// x to shared memory as bf16, of each 16 columns in the order of a lane's four: {2t, 2t+1, 2t+8, 2t+9}, t = 0..3;
// and the sums of each 16.
template <int BATCH> DEVICE void stage(const BlocksArgs& a, bf16* xs, float* sums, float (*squares)[SQUARES][WARPS]) {
    const int pieces = a.k / 8;
    for (int b = 0; b < a.batch; b++) {
        for (int c0 = threadIdx.x; c0 - (int)threadIdx.x < pieces; c0 += 4 * THREADS) {
            uint4 xr[4], gr[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {  // loads first: one latency, not four
                const int c = c0 + i * THREADS;
                xr[i] = gr[i] = make_uint4(0, 0, 0, 0);
                if (c < pieces) xr[i] = load_cg(a.x + (size_t)b * a.x_stride + c * 8);
                if (c < pieces && a.mode == GATED) gr[i] = load_cg(a.gate + (size_t)b * a.gate_stride + c * 8);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int c = c0 + i * THREADS;
                if (c - (int)threadIdx.x >= pieces) break;
                float v[8], s = 0;
                unpack8(xr[i], v);
                if (a.mode == GATED) gate8(v, gr[i]);
                if (a.mode != PLAIN) {
#pragma unroll
                    for (int e = 0; e < 8; e++) s += v[e] * v[e];
                    s = warp_sum(s);
                    if ((threadIdx.x & 31) == 0) squares[b][c / THREADS][threadIdx.x >> 5] = s;
                }
                if (c >= pieces) continue;  // whole pairs of lanes: pieces is a multiple of 16
                if (a.mode != PLAIN) {
                    const float4 w0 = __ldg((const float4*)(a.norm_weight + c * 8));
                    const float4 w1 = __ldg((const float4*)(a.norm_weight + c * 8 + 4));
                    v[0] *= w0.x, v[1] *= w0.y, v[2] *= w0.z, v[3] *= w0.w;
                    v[4] *= w1.x, v[5] *= w1.y, v[6] *= w1.z, v[7] *= w1.w;
                }
                const uint4 p = pack8(v);
                uint32_t* to = (uint32_t*)(xs + b * a.k + (c >> 1) * 16) + (c & 1);
                to[0] = p.x, to[2] = p.y, to[4] = p.z, to[6] = p.w;
                unpack8(p, v);
                s = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
                s += __shfl_xor_sync(__activemask(), s, 1);
                if ((c & 1) == 0) sums[b * (a.k / 16) + (c >> 1)] = s;
            }
        }
    }
    __syncthreads();
}

DEVICE void mma_first(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

template <int TYPE, int BATCH, int STAGES> DEVICE void blocks_decode(const BlocksArgs& a) {
    typedef Block<TYPE> F;
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ float red[2][WARPS][2][BATCH][16], squares[BATCH][SQUARES][WARPS];
    bf16* xs = (bf16*)(smem + STAGES * WARPS * F::BYTES);
    float* sums = (float*)(xs + (size_t)a.batch * a.k);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const uint32_t ring = smem_addr(smem) + warp * F::BYTES;
    const int panels = (a.n + 15) / 16, steps = a.k / F::STEP, parts = a.swiglu ? 2 : 1;
    const size_t panel = panel_bytes<TYPE>(a.k);

    // The copying side: panel, part and step that come next for this warp.
    int c_panel = blockIdx.x, c_part = 0, c_step = warp, c_slot = 0;
    auto copy_next = [&]() {
        while (c_panel < panels && c_step >= steps) {
            c_step = warp;
            if (++c_part == parts) c_part = 0, c_panel += gridDim.x;
            if (warp >= steps) c_panel = panels;
        }
        if (c_panel < panels) {
            const uint8_t* p = (c_part ? a.w2 : a.w) + c_panel * panel + (size_t)c_step * F::BYTES + lane * 16;
            const uint32_t dst = ring + c_slot * WARPS * F::BYTES + lane * 16;
#pragma unroll
            for (int i = 0; i < F::PIECES; i++) cp_async16(dst + i * 512, p + i * 512, true);
            if (lane < F::TAIL / 16) cp_async16(dst + F::PIECES * 512, p + F::PIECES * 512, true);
            c_step += WARPS;
            if (++c_slot == STAGES) c_slot = 0;
        }
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy_next();
    if (a.mode != PLAIN)
        for (int i = threadIdx.x * 32; i < a.k; i += THREADS * 32)
            asm volatile("prefetch.global.L1 [%0];" ::"l"(a.norm_weight + i));
    pdl_wait();
    pdl_launch();
    stage<BATCH>(a, xs, sums, squares);

    uint32_t mask[8];
#pragma unroll
    for (int c = 0; c < 8; c++) mask[c] = g == c ? ~0u : 0;
    const uint32_t x_lane = smem_addr(xs) + lane * 8, s_lane = smem_addr(sums) + t * 8;
    int slot = 0, buffer = 0;
    for (int p = blockIdx.x; p < panels; p += gridDim.x) {
        const int my_b = threadIdx.x >> 4, my_n = p * 16 + (threadIdx.x & 15);
        float onto = 0;  // asked for early: its latency is the stream's
        if (threadIdx.x < 16 * BATCH && my_b < a.batch && my_n < a.n && a.residual)
            onto = to_f32(a.residual[(size_t)my_b * a.residual_stride + my_n]);
        for (int part = 0; part < parts; part++) {
            float r[BATCH][2] = {};
            for (int s = warp; s < steps; s += WARPS) {
                cp_async_wait<STAGES - 2>();
                __syncwarp();  // lanes read scales that others copied
                const uint32_t step = ring + slot * WARPS * F::BYTES;
                const Tops top = tops<TYPE>(step, lane);
#pragma unroll
                for (int h = 0; h < F::HALVES; h++) {
                    uint32_t w[8][4];
                    unpack<TYPE>(step, 2 * h, lane, w);
                    unpack<TYPE>(step, 2 * h + 1, lane, w + 4);
                    const Scales f = scales<TYPE>(step, h, lane, top);
                    const int at = s * F::STEP + h * 128;
#pragma unroll
                    for (int b = 0; b < BATCH; b++) {
                        if (b >= a.batch) break;
                        const uint2 x = lds64(x_lane + (b * a.k + at) * 2);
                        float d[4], e[4];
                        mma_first(d, w[0], x.x & mask[0], x.y & mask[0]);
                        mma_first(e, w[1], x.x & mask[1], x.y & mask[1]);
#pragma unroll
                        for (int c = 2; c < 8; c++)
                            mma_bf16(c & 1 ? e : d, w[c][0], w[c][1], w[c][2], w[c][3], x.x & mask[c], x.y & mask[c]);
                        float s0 = 0, s1 = 0;
                        if (F::ZERO != 0) {
                            const uint2 v = lds64(s_lane + (b * (a.k / 16) + at / 16) * 4);
                            s0 = __uint_as_float(v.x), s1 = __uint_as_float(v.y);
                        }
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            const float v0 = fmaf(-F::ZERO, s0, d[2 * i] + e[2 * i]);
                            const float v1 = fmaf(-F::ZERO, s1, d[2 * i + 1] + e[2 * i + 1]);
                            if (TYPE == Q6_K) r[b][i] = fmaf(f.d[i][0], v0, fmaf(f.d[i][1], v1, r[b][i]));
                            else r[b][i] = fmaf(f.d[i][0], v0 + v1, r[b][i]);
                            if (F::MIN) r[b][i] = fmaf(-f.m[i], s0 + s1, r[b][i]);
                        }
                    }
                }
                copy_next();  // into the slot that all lanes read before the last __syncwarp
                if (++slot == STAGES) slot = 0;
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float v = r[b][i];
                    v += __shfl_xor_sync(~0u, v, 1);
                    v += __shfl_xor_sync(~0u, v, 2);
                    if (t == 0) red[buffer][warp][part][b][g + 8 * i] = v;
                }
        }
        __syncthreads();
        if (threadIdx.x < 16 * BATCH) {
            const int b = my_b, row = threadIdx.x & 15, n = my_n;
            if (b < a.batch && n < a.n) {
                float v[2] = {0, 0};
#pragma unroll
                for (int w = 0; w < WARPS; w++) v[0] += red[buffer][w][0][b][row], v[1] += a.swiglu ? red[buffer][w][1][b][row] : 0;
                if (a.mode != PLAIN) {
                    float q = 0;
                    for (int j = 0; j * 8 * THREADS < a.k; j++)
#pragma unroll
                        for (int w = 0; w < WARPS; w++) q += squares[b][j][w];
                    const float rstd = rsqrtf(q / a.k + a.eps);
                    v[0] *= rstd, v[1] *= rstd;
                }
                float s = a.swiglu ? silu(v[0]) * v[1] : v[0];
                if (a.bias) s += a.bias[n];
                if (a.residual) s += onto;
                if (a.out_f32) ((float*)a.out)[(size_t)b * a.out_stride + n] = s;
                else ((bf16*)a.out)[(size_t)b * a.out_stride + n] = __float2bfloat16_rn(s);
            }
        }
        buffer ^= 1;
    }
}

// STAGES: as many as leave room for two blocks a multiprocessor beside one row of 14336 columns; and 2 for
// several rows.
#define BLOCKS(NAME, TYPE, BATCH, STAGES)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ BlocksArgs a) {   \
        blocks_decode<TYPE, BATCH, STAGES>(a);                                                              \
    }
BLOCKS(blocks_decode_q8_0, Q8_0, 1, 4)
BLOCKS(blocks_decode_q4_0, Q4_0, 1, 8)
BLOCKS(blocks_decode_q4_k, Q4_K, 1, 4)
BLOCKS(blocks_decode_q5_k, Q5_K, 1, 3)
BLOCKS(blocks_decode_q6_k, Q6_K, 1, 3)
BLOCKS(blocks_decode_rows_q8_0, Q8_0, 4, 3)
BLOCKS(blocks_decode_rows_q4_0, Q4_0, 4, 4)
BLOCKS(blocks_decode_rows_q4_k, Q4_K, 4, 3)
BLOCKS(blocks_decode_rows_q5_k, Q5_K, 4, 2)
BLOCKS(blocks_decode_rows_q6_k, Q6_K, 4, 2)
