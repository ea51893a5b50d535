// ssm_scan on Hopper: the chunked SSD scan of Mamba 2, whole, in one kernel. P = 64, N = 128.
//
// Contract, per sequence and head: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T; y_t = h_t C_t + D x_t, with
//   dt = clamp(softplus(dt_raw + dt_bias), dt_min, dt_max) and A = -exp(A_log).
//   x (T, heads*64), B and C (T, groups*128), dt_raw (T, heads), y (T, heads*64): bf16, any row stride;
//   tokens of all sequences packed, sequence s owns rows seq_start[s] .. seq_start[s+1].
//   state f32 [slot][head][64][128]: read when past_len[s] > 0, always written (unless s has no tokens).
//   Chunks of 64 are counted from the sequence's start, past_len included. Rows of other sequences, or
//   of nobody, never reach a result, not even as NaN.
//   Sums, decays and the carried state are f32; products take bf16 (x, B, C, masked scores, the state
//   that a chunk starts from).
//
// Work: 57 kFLOP a token and head; bytes: x and y once, B and C once per cluster through L2
//   (floor at 9B's shape 33.5 KB a token).
// Ideas: - one block walks one head through its sequence, the state stays in registers: no intermediate
//          tensor is written, five kernels of the usual chain become one;
//        - roles: two warpgroups compute outputs of alternate chunks, a third carries the state and
//          publishes it as bf16 in shared memory, one warp copies (TMA, four stages), one warp makes
//          dt, its cumulative sum and the decays;
//        - C B^T, C H, M X and x B all on wgmma; M and the weighted x^T go in from registers;
//        - one smem tile of B serves both as K-major (scores) and MN-major (state) operand;
//        - blocks of a cluster are neighbouring heads: each copies its part of B and C to all of them.
// Launch: 512 threads, grid (heads, sequences), cluster (1, 2 or 4 by name), dynamic smem SSD_SMEM = 219392.
//   Heads of one cluster must share a group. Tensor maps: bf16, box 64 columns x 64 rows, 128-byte swizzle.
#include "hopper.cuh"

struct SsdArgs {
    const bf16* dt;
    const float* a_log;
    const float* d;
    const float* dt_bias;
    float* state;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* slots;
    bf16* y;
    long long slot_stride;  // floats from one slot to the next
    int dt_stride, y_stride, heads, groups;
    float dt_min, dt_max;
};

#if HOPPER
constexpr int Q = 64, STAGES = 4, HALF = 8192, STAGE_BYTES = 5 * HALF;
constexpr int OFF_X = 0, OFF_B = HALF, OFF_C = 3 * HALF;
constexpr int OFF_H = STAGES * STAGE_BYTES, OFF_Y = OFF_H + 4 * HALF, OFF_V = OFF_Y + 2 * HALF;
constexpr int V_BYTES = 4 * Q * 4, OFF_BAR = OFF_V + STAGES * V_BYTES;
constexpr int FULL = 0, EMPTY = 8 * STAGES, HFULL = 16 * STAGES, HEMPTY = HFULL + 16;

// Per token of a chunk, in the shared memory of a stage: four rows of 64 floats.
enum { CUM = 0, DT = 1, EXP_CUM = 2, WEIGHT = 3 };

struct Chunks {
    int start, off, len, n;  // row of position 0 of chunk 0 is start - off
    DEVICE_MEMBER int row(int c) const { return start - off + c * Q; }
    DEVICE_MEMBER int lo(int c) const { return c == 0 ? off : 0; }
    DEVICE_MEMBER int hi(int c) const { return min(Q, off + len - c * Q); }
};

// dt, its running sum (times log2 e), and the decays of one chunk at a time, by one warp.
DEVICE void dt_warp(const SsdArgs& a, const Chunks& ch, uint8_t* smem, uint32_t bars, int head) {
    const int lane = threadIdx.x & 31, i = 2 * lane;
    const float slope = -__expf(a.a_log[head]) * LOG2E, bias = a.dt_bias[head];
    auto fetch = [&](int c, float* v) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            bool valid = i + j >= ch.lo(c) && i + j < ch.hi(c);
            v[j] = valid ? to_f32(a.dt[(size_t)(ch.row(c) + i + j) * a.dt_stride + head]) : 0.0f;
        }
    };
    float raw[2], next[2] = {0, 0};
    fetch(0, raw);
    for (int c = 0; c < ch.n; c++) {
        const int st = c % STAGES;
        if (c + 1 < ch.n) fetch(c + 1, next);
        float d[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            bool valid = i + j >= ch.lo(c) && i + j < ch.hi(c);
            d[j] = valid ? fminf(fmaxf(softplus(raw[j] + bias), a.dt_min), a.dt_max) : 0.0f;
        }
        float first = d[0] * slope, sum = first + d[1] * slope;
        float scan = sum;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            float up = __shfl_up_sync(~0u, scan, o);
            if (lane >= o) scan += up;
        }
        float before = __shfl_up_sync(~0u, scan, 1);
        float c0 = (lane ? before : 0.0f) + first, c1 = scan;
        float last = __shfl_sync(~0u, scan, 31);
        mbar_wait(bars + EMPTY + 8 * st, ((c / STAGES) & 1) ^ 1);
        float* v = (float*)(smem + OFF_V + st * V_BYTES);
        *(float2*)(v + CUM * Q + i) = make_float2(c0, c1);
        *(float2*)(v + DT * Q + i) = make_float2(d[0], d[1]);
        *(float2*)(v + EXP_CUM * Q + i) = make_float2(fast_exp2(fminf(c0, 0)), fast_exp2(fminf(c1, 0)));
        *(float2*)(v + WEIGHT * Q + i) = make_float2(fast_exp2(fminf(last - c0, 0)) * d[0],
                                                     fast_exp2(fminf(last - c1, 0)) * d[1]);
        __syncwarp();
        if (lane == 0) mbar_arrive(bars + FULL + 8 * st);
        raw[0] = next[0], raw[1] = next[1];
    }
}

template <int CL> DEVICE void release(uint32_t bar) {
    __syncwarp();
    if ((threadIdx.x & 31) < CL) {
        if (CL == 1) mbar_arrive(bar);
        else mbar_arrive_cluster(bar, threadIdx.x & 31);
    }
}

// Carries the state: publishes it before each chunk, then state = decay * state + (w x)^T B.
template <int CL>
DEVICE void state_group(const SsdArgs& a, const Chunks& ch, uint32_t smem, uint8_t* generic, uint32_t bars,
                        float* state, bool has_state) {
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
    float acc[64];
    float* mine = state + (16 * warp + g) * 128 + 2 * t;
#pragma unroll
    for (int n = 0; n < 16; n++) {
        float2 u = make_float2(0, 0), v = u;
        if (has_state) u = *(const float2*)(mine + n * 8), v = *(const float2*)(mine + 8 * 128 + n * 8);
        acc[4 * n] = u.x, acc[4 * n + 1] = u.y, acc[4 * n + 2] = v.x, acc[4 * n + 3] = v.y;
    }
    const int mat = lane >> 3, r8 = lane & 7;
    for (int c = 0; c < ch.n; c++) {
        const int st = c % STAGES, b = c & 1;
        const uint32_t stage = smem + st * STAGE_BYTES;
        mbar_wait(bars + FULL + 8 * st, (c / STAGES) & 1);
        const int lo = ch.lo(c), hi = ch.hi(c);
        if (lo > 0 || hi < Q) {  // rows of others become zeros, so that 0 * NaN cannot happen
            for (int i = tid; i < Q * 24; i += 128) {
                int row = i / 24, piece = i % 24;
                if (row < lo || row >= hi)
                    *(uint4*)(generic + st * STAGE_BYTES + (piece >> 3) * HALF + row * 128 + (piece & 7) * 16) =
                        make_uint4(0, 0, 0, 0);
            }
        }
        mbar_wait(bars + HEMPTY + 8 * b, ((c >> 1) & 1) ^ 1);
        const uint32_t h = smem + OFF_H + b * 2 * HALF;
        const int row = 16 * warp + (mat & 1) * 8 + r8;
#pragma unroll
        for (int n = 0; n < 16; n += 2) {
            int piece = n + (mat >> 1);
            uint32_t dst = h + (piece >> 3) * HALF + row * 128 + (((piece & 7) ^ r8) << 4);
            stmatrix4(dst, pack_bf16(acc[4 * n], acc[4 * n + 1]), pack_bf16(acc[4 * n + 2], acc[4 * n + 3]),
                      pack_bf16(acc[4 * n + 4], acc[4 * n + 5]), pack_bf16(acc[4 * n + 6], acc[4 * n + 7]));
        }
        fence_async_smem();
        mbar_arrive(bars + HFULL + 8 * b);
        named_sync(3, 128);  // zeroed rows are everybody's
        const float* v = (const float*)(generic + OFF_V + st * V_BYTES);
        const float decay = v[EXP_CUM * Q + Q - 1];
        uint32_t frag[4][4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int token = 16 * k + r8 + (mat >> 1) * 8, piece = 2 * warp + (mat & 1);
            ldmatrix4_trans(frag[k], stage + OFF_X + token * 128 + ((piece ^ (token & 7)) << 4));
            float2 w0 = *(const float2*)(v + WEIGHT * Q + 16 * k + 2 * t);
            float2 w1 = *(const float2*)(v + WEIGHT * Q + 16 * k + 2 * t + 8);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 w = j < 2 ? w0 : w1;
                frag[k][j] = pack_bf16(bf_lo(frag[k][j]) * w.x, bf_hi(frag[k][j]) * w.y);
            }
        }
#pragma unroll
        for (int i = 0; i < 64; i++) acc[i] *= decay;
        wgmma_touch<64>(acc);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            wgmma_n128_rs<1>(acc, frag[k], wgmma_desc(stage + OFF_B + k * 2048, HALF), 1);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_touch<64>(acc);
        release<CL>(bars + EMPTY + 8 * st);
    }
#pragma unroll
    for (int n = 0; n < 16; n++) {
        *(float2*)(mine + n * 8) = make_float2(acc[4 * n], acc[4 * n + 1]);
        *(float2*)(mine + 8 * 128 + n * 8) = make_float2(acc[4 * n + 2], acc[4 * n + 3]);
    }
}

// Outputs of every second chunk: y = exp(cum) * (C H) + (C B^T * decay * dt) X + D x.
template <int CL>
DEVICE void output_group(const SsdArgs& a, const Chunks& ch, uint32_t smem, uint8_t* generic, uint32_t bars,
                         int head, int which) {
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
    const int mat = lane >> 3, r8 = lane & 7, i0 = 16 * warp + g, i1 = i0 + 8;
    const float skip = a.d[head];
    const uint32_t h = smem + OFF_H + which * 2 * HALF, ybuf = smem + OFF_Y + which * HALF;
    for (int c = which; c < ch.n; c += 2) {
        const int st = c % STAGES;
        const uint32_t stage = smem + st * STAGE_BYTES;
        const int lo = ch.lo(c), hi = ch.hi(c);
        float s[32], y[32];
        mbar_wait(bars + FULL + 8 * st, (c / STAGES) & 1);
        wgmma_touch<32>(s);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 8; k++) {
            uint32_t at = (k >> 2) * HALF + (k & 3) * 32;
            wgmma_n64_ss<0>(s, wgmma_desc(stage + OFF_C + at, 0), wgmma_desc(stage + OFF_B + at, 0), k > 0);
        }
        wgmma_commit();
        mbar_wait(bars + HFULL + 8 * which, (c >> 1) & 1);
        wgmma_touch<32>(y);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 8; k++) {
            uint32_t at = (k >> 2) * HALF + (k & 3) * 32;
            wgmma_n64_ss<0>(y, wgmma_desc(stage + OFF_C + at, 0), wgmma_desc(h + at, 0), k > 0);
        }
        wgmma_commit();
        const float* v = (const float*)(generic + OFF_V + st * V_BYTES);
        const float cum0 = v[CUM * Q + i0], cum1 = v[CUM * Q + i1];
        const float e0 = v[EXP_CUM * Q + i0], e1 = v[EXP_CUM * Q + i1];
        wgmma_wait<1>();
        wgmma_touch<32>(s);
        uint32_t frag[4][4];
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const int j = 8 * n + 2 * t;
            float2 cj = *(const float2*)(v + CUM * Q + j), dj = *(const float2*)(v + DT * Q + j);
            const bool k0 = j >= lo && j < hi, k1 = j + 1 >= lo && j + 1 < hi;
            float m0 = j <= i0 && k0 ? s[4 * n] * fast_exp2(fminf(cum0 - cj.x, 0)) * dj.x : 0.0f;
            float m1 = j + 1 <= i0 && k1 ? s[4 * n + 1] * fast_exp2(fminf(cum0 - cj.y, 0)) * dj.y : 0.0f;
            float m2 = j <= i1 && k0 ? s[4 * n + 2] * fast_exp2(fminf(cum1 - cj.x, 0)) * dj.x : 0.0f;
            float m3 = j + 1 <= i1 && k1 ? s[4 * n + 3] * fast_exp2(fminf(cum1 - cj.y, 0)) * dj.y : 0.0f;
            frag[n >> 1][(n & 1) * 2] = pack_bf16(m0, m1);
            frag[n >> 1][(n & 1) * 2 + 1] = pack_bf16(m2, m3);
        }
        wgmma_wait<0>();
        wgmma_touch<32>(y);
        mbar_arrive(bars + HEMPTY + 8 * which);
#pragma unroll
        for (int n = 0; n < 8; n++) y[4 * n] *= e0, y[4 * n + 1] *= e0, y[4 * n + 2] *= e1, y[4 * n + 3] *= e1;
        wgmma_touch<32>(y);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            wgmma_n64_rs<1>(y, frag[k], wgmma_desc(stage + OFF_X + k * 2048, HALF), 1);
        wgmma_commit();
        uint32_t x0[8], x1[8];
#pragma unroll
        for (int n = 0; n < 8; n++) {
            x0[n] = lds32(stage + OFF_X + i0 * 128 + ((n ^ (i0 & 7)) << 4) + t * 4);
            x1[n] = lds32(stage + OFF_X + i1 * 128 + ((n ^ (i1 & 7)) << 4) + t * 4);
        }
        wgmma_wait<0>();
        wgmma_touch<32>(y);
        release<CL>(bars + EMPTY + 8 * st);
        __syncwarp();  // the warp's last read of ybuf is done
        const int row = 16 * warp + (mat & 1) * 8 + r8;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            y[4 * n] += skip * bf_lo(x0[n]), y[4 * n + 1] += skip * bf_hi(x0[n]);
            y[4 * n + 2] += skip * bf_lo(x1[n]), y[4 * n + 3] += skip * bf_hi(x1[n]);
        }
#pragma unroll
        for (int n = 0; n < 8; n += 2)
            stmatrix4(ybuf + row * 128 + (((n + (mat >> 1)) ^ r8) << 4), pack_bf16(y[4 * n], y[4 * n + 1]),
                      pack_bf16(y[4 * n + 2], y[4 * n + 3]), pack_bf16(y[4 * n + 4], y[4 * n + 5]),
                      pack_bf16(y[4 * n + 6], y[4 * n + 7]));
        __syncwarp();
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int i = 16 * warp + 4 * k + (lane >> 3), piece = lane & 7;
            uint4 out = lds128(ybuf + i * 128 + ((piece ^ (i & 7)) << 4));
            if (i >= lo && i < hi)
                *(uint4*)(a.y + (size_t)(ch.row(c) + i) * a.y_stride + head * 64 + piece * 8) = out;
        }
    }
}

template <int CL>
DEVICE void copy_warp(const CUtensorMap* mx, const CUtensorMap* mb, const CUtensorMap* mc, const Chunks& ch,
                      uint32_t smem, uint32_t bars, int head, int group) {
    const uint32_t rank = CL > 1 ? cluster_rank() : 0;
    for (int c = 0; c < ch.n; c++) {
        const int st = c % STAGES, row = ch.row(c);
        const uint32_t stage = smem + st * STAGE_BYTES, full = bars + FULL + 8 * st;
        mbar_wait(bars + EMPTY + 8 * st, ((c / STAGES) & 1) ^ 1);
        mbar_expect(full, STAGE_BYTES);
        tma_load(stage + OFF_X, mx, head * 64, row, full);
#pragma unroll
        for (int box = 0; box < 4; box++) {
            if (box * CL / 4 != (int)rank) continue;
            const CUtensorMap* map = box < 2 ? mb : mc;
            uint32_t dst = stage + OFF_B + box * HALF;
            int col = group * 128 + (box & 1) * 64;
            if (CL == 1) tma_load(dst, map, col, row, full);
            else tma_load_multi(dst, map, col, row, full, (uint16_t)((1 << CL) - 1));
        }
    }
}

template <int CL>
DEVICE void ssd(const CUtensorMap* mx, const CUtensorMap* mb, const CUtensorMap* mc, const SsdArgs& a) {
    extern __shared__ uint8_t raw[];
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    uint8_t* generic = raw + (smem - smem_addr(raw));
    const int head = blockIdx.x, seq = blockIdx.y;
    pdl_launch();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(bars + FULL + 8 * i, 2);
            mbar_init(bars + EMPTY + 8 * i, 8 * CL);
        }
        for (int i = 0; i < 2; i++) mbar_init(bars + HFULL + 8 * i, 128), mbar_init(bars + HEMPTY + 8 * i, 128);
        mbar_init_fence();
        tma_prefetch_map(mx), tma_prefetch_map(mb), tma_prefetch_map(mc);
    }
    pdl_wait();
    Chunks ch;
    ch.start = a.seq_start[seq];
    ch.len = a.seq_start[seq + 1] - ch.start;
    const uint32_t past = a.past_len[seq];
    ch.off = past % Q;
    ch.n = (ch.off + ch.len + Q - 1) / Q;
    if (ch.len == 0) return;  // every block of the cluster has the same sequence
    if (CL > 1) cluster_sync();
    else __syncthreads();
    const int group = threadIdx.x >> 7, warp = threadIdx.x >> 5;
    if (group < 2) {
        output_group<CL>(a, ch, smem, generic, bars, head, group);
    } else if (group == 2) {
        float* state = a.state + a.slots[seq] * a.slot_stride + (size_t)head * 64 * 128;
        state_group<CL>(a, ch, smem, generic, bars, state, past > 0);
    } else if (warp == 12) {
        if ((threadIdx.x & 31) == 0) copy_warp<CL>(mx, mb, mc, ch, smem, bars, head, head / (a.heads / a.groups));
        __syncwarp();
    } else if (warp == 13) {
        dt_warp(a, ch, generic, bars, head);
    }
    if (CL > 1) cluster_sync();  // nobody leaves while a neighbour may still write here
}
#define SSD_BODY(CL) ssd<CL>(&mx, &mb, &mc, a)
#else
#define SSD_BODY(CL) asm volatile("trap;")
#endif

#define SSD(NAME, CL)                                                                                       \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mb,                \
             const __grid_constant__ CUtensorMap mc, const __grid_constant__ SsdArgs a) {                   \
        SSD_BODY(CL);                                                                                       \
    }
SSD(ssd_sm90_c1_bf16, 1)
SSD(ssd_sm90_c2_bf16, 2)
SSD(ssd_sm90_c4_bf16, 4)
