// ssm_scan on Hopper: the chunked SSD scan of Mamba 2, whole, in one kernel. P = 64, N = 128.
//
// Contract, per sequence and head: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T; y_t = h_t C_t + D x_t, with
//   dt = clamp(softplus(dt_raw + dt_bias), dt_min, dt_max) and A = -exp(A_log).
//   x (T, heads*64), B and C (T, groups*128), dt_raw (T, heads), y (T, heads*64): bf16, any row stride;
//   tokens of all sequences packed, sequence s owns rows seq_start[s] .. seq_start[s+1].
//   state f32 (bf16 or f16, by name) [slot][head][64][128]: read when past_len[s] > 0, always written (unless s has
//   no tokens); rounded behind every chunk, where a run may end.
//   Chunks of 64 are counted from the sequence's start, past_len included. Rows of other sequences, or
//   of nobody, never reach a result, not even as NaN.
//   Sums, decays and the carried state are f32; products take bf16 (x, B, C, masked scores, the state
//   that a chunk starts from).
//
// Work: 57 kFLOP a token and head; bytes: x and y once, B and C once a head through L2
//   (floor at 9B's shape 33.5 KB a token).
// Ideas: - one block walks one head through its sequence, the state stays in registers: no intermediate
//          tensor is written, five kernels of the usual chain become one;
//        - roles: two warpgroups compute outputs of alternate chunks, a third carries the state and
//          publishes it as bf16 in shared memory, four warps bring a stage each: they copy (TMA) and
//          make dt, its cumulative sum and the decays;
//        - C B^T, C H, M X and x B all on wgmma; M (D on its diagonal) and the weighted x^T go in
//          from registers; an exponential per element only in the 16 x 16 blocks on the diagonal;
//        - one smem tile of B serves both as K-major (scores) and MN-major (state) operand;
// Tried: clusters of 2 and 4 heads that share copies of B and C, no faster and twice as slow; the gate and the squares
//   of the norm behind the scan in here: bench/results/gpu-prompts.md.
// All 32 lanes arrive at FULL and EMPTY, though one behind a __syncwarp would do: compute-sanitizer's racecheck counts
//   as ordered only what the arriving lane did.
// Launch: 512 threads, grid (heads, sequences), dynamic smem SSD_SMEM = 220416.
//   Tensor maps: bf16, box 64 columns x 64 rows, 128-byte swizzle.
#include "wgmma.cuh"

struct SsdArgs {
    const bf16* dt;
    const float* a_log;
    const float* d;
    const float* dt_bias;
    void* state;
    const uint32_t* seq_start;
    const uint32_t* past_len;
    const uint32_t* slots;
    bf16* y;
    long long slot_stride;  // numbers from one slot to the next
    int dt_stride, y_stride, heads, groups;
    float dt_min, dt_max;
};

#if HOPPER
constexpr int Q = 64, STAGES = 4, HALF = 8192, STAGE_BYTES = 5 * HALF;
constexpr int OFF_X = 0, OFF_B = HALF, OFF_C = 3 * HALF;
constexpr int OFF_H = STAGES * STAGE_BYTES, OFF_Y = OFF_H + 4 * HALF, OFF_V = OFF_Y + 2 * HALF;
constexpr int V_BYTES = 6 * Q * 4, OFF_BAR = OFF_V + STAGES * V_BYTES;
constexpr int FULL = 0, EMPTY = 8 * STAGES, HFULL = 16 * STAGES, HEMPTY = HFULL + 16;

// Per token of a chunk, in the shared memory of a stage, rows of 64 floats. CUM: running sum of dt A log2 e;
// EXP_CUM: 2^CUM; WEIGHT: dt times the decay to the chunk's end; LEFT (96 floats): for the warp of rows
// 16w.. (w = 1, 2, 3), at 8 w (w - 1), dt of token j < 16 w times its decay to row 16 w.
enum { CUM = 0, DT = 1, EXP_CUM = 2, WEIGHT = 3, LEFT = 4 };

struct Chunks {
    int start, off, len, n;  // row of position 0 of chunk 0 is start - off
    DEVICE_MEMBER int row(int c) const { return start - off + c * Q; }
    DEVICE_MEMBER int lo(int c) const { return c == 0 ? off : 0; }
    DEVICE_MEMBER int hi(int c) const { return min(Q, off + len - c * Q); }
};

// One warp brings a stage's chunks: copies x, B and C, and makes dt, its running sum (times log2 e) and the decays. The
// chain of one chunk is long (softplus, a scan of shuffles), chunks are independent: a warp for each stage. It must be
// the stage's own: a warp that met a stage only now and then would take the phase before last for the last.
DEVICE void stage_warp(const CUtensorMap* mx, const CUtensorMap* mb, const CUtensorMap* mc, const SsdArgs& a,
                       const Chunks& ch, uint32_t smem, uint8_t* generic, uint32_t bars, int head, int st) {
    const int lane = threadIdx.x & 31, i = 2 * lane, group = head / (a.heads / a.groups);
    const float slope = -__expf(a.a_log[head]) * LOG2E, bias = a.dt_bias[head];
    const uint16_t* dt = (const uint16_t*)a.dt + head;
    const uint32_t stage = smem + st * STAGE_BYTES, full = bars + FULL + 8 * st;
    auto copy = [&](int c) {
        if (lane > 0) return;
        const int row = ch.row(c);
        mbar_expect(full, STAGE_BYTES);
        tma_load(stage + OFF_X, mx, head * 64, row, full);
#pragma unroll
        for (int box = 0; box < 4; box++)
            tma_load(stage + OFF_B + box * HALF, box < 2 ? mb : mc, group * 128 + (box & 1) * 64, row, full);
    };
    auto fetch = [&](int c, uint32_t* v) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            bool valid = i + j >= ch.lo(c) && i + j < ch.hi(c);
            v[j] = valid ? __ldg(dt + (ptrdiff_t)(ch.row(c) + i + j) * a.dt_stride) : 0;
        }
    };
    uint32_t ahead[2] = {0, 0};  // raw dt of the next turn: converted only when it is due
    if (st < ch.n) copy(st), fetch(st, ahead);
    for (int c = st; c < ch.n; c += STAGES) {
        const float raw[2] = {__uint_as_float(ahead[0] << 16), __uint_as_float(ahead[1] << 16)};
        if (c + STAGES < ch.n) fetch(c + STAGES, ahead);
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
        if (c >= STAGES) mbar_wait(bars + EMPTY + 8 * st, ((c / STAGES) & 1) ^ 1), copy(c);
        float* v = (float*)(generic + OFF_V + st * V_BYTES);
        *(float2*)(v + CUM * Q + i) = make_float2(c0, c1);
        *(float2*)(v + DT * Q + i) = make_float2(d[0], d[1]);
        *(float2*)(v + EXP_CUM * Q + i) = make_float2(fast_exp2(fminf(c0, 0)), fast_exp2(fminf(c1, 0)));
        *(float2*)(v + WEIGHT * Q + i) = make_float2(fast_exp2(fminf(last - c0, 0)) * d[0],
                                                     fast_exp2(fminf(last - c1, 0)) * d[1]);
        __syncwarp();
#pragma unroll
        for (int w = 1; w < 4; w++) {
            const float ref = v[CUM * Q + 16 * w];
            if (i < 16 * w)
                *(float2*)(v + LEFT * Q + 8 * w * (w - 1) + i) = make_float2(
                    fast_exp2(fminf(ref - c0, 0)) * d[0], fast_exp2(fminf(ref - c1, 0)) * d[1]);
        }
        mbar_arrive(full);
    }
}

// One arrival a warp, of what only tensor cores read or write.
DEVICE void release_warp(uint32_t bar) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) mbar_arrive(bar);
}
// Every lane's own reads end at its arrival.
DEVICE void release(uint32_t bar) {
    __syncwarp();
    mbar_arrive(bar);
}

// Carries the state: publishes it before each chunk, then state = decay * state + (w x)^T B.
template <typename S>
DEVICE void state_group(const SsdArgs& a, const Chunks& ch, uint32_t smem, uint8_t* generic, uint32_t bars,
                        S* state, bool has_state) {
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
    float acc[64];
    S* mine = state + (16 * warp + g) * 128 + 2 * t;
#pragma unroll
    for (int n = 0; n < 16; n++) {
        float2 u = make_float2(0, 0), v = u;
        if (has_state) u = load_state2(mine + n * 8), v = load_state2(mine + 8 * 128 + n * 8);
        acc[4 * n] = u.x, acc[4 * n + 1] = u.y, acc[4 * n + 2] = v.x, acc[4 * n + 3] = v.y;
    }
    const int mat = lane >> 3, r8 = lane & 7;
    const int row = 16 * warp + (mat & 1) * 8 + r8;
    float decay = 0;
    // x^T of a chunk, weighted, as operand A; made while the step before is on the tensor cores.
    auto prepare = [&](int c, uint32_t (&frag)[4][4]) {
        const int st = c % STAGES, lo = ch.lo(c), hi = ch.hi(c);
        const uint32_t stage = smem + st * STAGE_BYTES;
        mbar_wait(bars + FULL + 8 * st, (c / STAGES) & 1);
        if (lo > 0 || hi < Q) {  // rows of others become zeros, so that 0 * NaN cannot happen
            for (int i = tid; i < Q * 24; i += 128) {
                int r = i / 24, piece = i % 24;
                if (r < lo || r >= hi)
                    *(uint4*)(generic + st * STAGE_BYTES + (piece >> 3) * HALF + r * 128 + (piece & 7) * 16) =
                        make_uint4(0, 0, 0, 0);
            }
            fence_async_smem();
            named_sync(3, 128);
        }
        const float* v = (const float*)(generic + OFF_V + st * V_BYTES);
        decay = v[EXP_CUM * Q + Q - 1];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int token = 16 * k + r8 + (mat >> 1) * 8, piece = 2 * warp + (mat & 1);
            ldmatrix4_trans(frag[k], stage + OFF_X + token * 128 + ((piece ^ r8) << 4));
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float2 w0 = *(const float2*)(v + WEIGHT * Q + 16 * k + 2 * t);
            float2 w1 = *(const float2*)(v + WEIGHT * Q + 16 * k + 2 * t + 8);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 w = j < 2 ? w0 : w1;
                frag[k][j] = pack_bf16(bf_lo(frag[k][j]) * w.x, bf_hi(frag[k][j]) * w.y);
            }
        }
    };
    auto publish = [&](int c) {
        const int b = c & 1;
        mbar_wait(bars + HEMPTY + 8 * b, ((c >> 1) & 1) ^ 1);
        const uint32_t h = smem + OFF_H + b * 2 * HALF + row * 128;
#pragma unroll
        for (int n = 0; n < 16; n += 2) {
            const int piece = n + (mat >> 1);
            stmatrix4(h + (n >> 3) * HALF + (((piece & 7) ^ r8) << 4), pack_bf16(acc[4 * n], acc[4 * n + 1]),
                      pack_bf16(acc[4 * n + 2], acc[4 * n + 3]), pack_bf16(acc[4 * n + 4], acc[4 * n + 5]),
                      pack_bf16(acc[4 * n + 6], acc[4 * n + 7]));
        }
        fence_async_smem();
        release_warp(bars + HFULL + 8 * b);
    };
    auto step = [&](int c, uint32_t (&now)[4][4], uint32_t (&next)[4][4]) {
        const int st = c % STAGES;
        const uint64_t desc = wgmma_desc(smem + st * STAGE_BYTES + OFF_B, HALF);
#pragma unroll
        for (int i = 0; i < 64; i++) acc[i] *= decay;
        wgmma_touch<64>(acc);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) wgmma_n128_rs<1>(acc, now[k], desc + k * 128, 1);
        wgmma_commit();
        if (c + 1 < ch.n) prepare(c + 1, next);
        wgmma_wait<0>();
        wgmma_touch<64>(acc);
        if (sizeof(S) == 2)
#pragma unroll
            for (int i = 0; i < 64; i++) acc[i] = to_f32(from_f32<S>(acc[i]));
        release(bars + EMPTY + 8 * st);
        if (c + 1 < ch.n) publish(c + 1);
    };
    uint32_t even[4][4], odd[4][4];
    prepare(0, even);
    publish(0);
    for (int c = 0; c < ch.n; c += 2) {
        step(c, even, odd);
        if (c + 1 < ch.n) step(c + 1, odd, even);
    }
#pragma unroll
    for (int n = 0; n < 16; n++) {
        store_state2(mine + n * 8, acc[4 * n], acc[4 * n + 1]);
        store_state2(mine + 8 * 128 + n * 8, acc[4 * n + 2], acc[4 * n + 3]);
    }
}

// Outputs of every second chunk: y = exp(cum) * (C H) + (C B^T * decay * dt) X + D x.
DEVICE void output_group(const SsdArgs& a, const Chunks& ch, uint32_t smem, uint8_t* generic, uint32_t bars,
                         int head, int which) {
    const int tid = threadIdx.x & 127, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
    const int mat = lane >> 3, r8 = lane & 7, i0 = 16 * warp + g, i1 = i0 + 8;
    const float skip = a.d[head];
    const uint32_t h = smem + OFF_H + which * 2 * HALF, ybuf = smem + OFF_Y + which * HALF;
    const uint64_t desc_h = wgmma_desc(h, 0);
    const int row = 16 * warp + (mat & 1) * 8 + r8, column = head * 64 + r8 * 8;
    for (int c = which; c < ch.n; c += 2) {
        const int st = c % STAGES, phase = (c >> 1) & 1;
        const uint32_t stage = smem + st * STAGE_BYTES;
        const int lo = ch.lo(c), hi = ch.hi(c);
        const uint64_t desc_c = wgmma_desc(stage + OFF_C, 0), desc_b = wgmma_desc(stage + OFF_B, 0);
        float s[32], y[32];
        mbar_wait(bars + FULL + 8 * st, (c / STAGES) & 1);
        if (lo > 0 || hi < Q) mbar_wait(bars + HFULL + 8 * which, phase);  // rows of others are zeros by then
        wgmma_touch<32>(s);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int at = ((k >> 2) * HALF + (k & 3) * 32) >> 4;
            wgmma_n64_ss<0>(s, desc_c + at, desc_b + at, k > 0);
        }
        wgmma_commit();
        mbar_wait(bars + HFULL + 8 * which, phase);
        wgmma_touch<32>(y);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int at = ((k >> 2) * HALF + (k & 3) * 32) >> 4;
            wgmma_n64_ss<0>(y, desc_c + at, desc_h + at, k > 0);
        }
        wgmma_commit();
        const float* v = (const float*)(generic + OFF_V + st * V_BYTES);
        const float cum0 = v[CUM * Q + i0], cum1 = v[CUM * Q + i1], ref = v[CUM * Q + 16 * warp];
        const float e0 = v[EXP_CUM * Q + i0], e1 = v[EXP_CUM * Q + i1];
        const float g0 = fast_exp2(fminf(cum0 - ref, 0)), g1 = fast_exp2(fminf(cum1 - ref, 0));
        const float* left = v + LEFT * Q + 8 * warp * (warp - 1) + 2 * t;
        wgmma_wait<1>();
        wgmma_touch<32>(s);
        uint32_t frag[4][4];
        // Left of the diagonal block the decay is a product of a row's and a column's factor, both at most 1;
        // in the block it is taken whole. D joins the diagonal.
#pragma unroll
        for (int n = 0; n < 8; n++) {
            uint32_t f0 = 0, f1 = 0;
            if (n < 2 * warp) {
                const float2 l = *(const float2*)(left + 8 * n);
                f0 = pack_bf16(s[4 * n] * (l.x * g0), s[4 * n + 1] * (l.y * g0));
                f1 = pack_bf16(s[4 * n + 2] * (l.x * g1), s[4 * n + 3] * (l.y * g1));
            } else if (n < 2 * warp + 2) {
                const int j = 8 * n + 2 * t;
                const float2 cj = *(const float2*)(v + CUM * Q + j), dj = *(const float2*)(v + DT * Q + j);
                float m0 = j <= i0 ? s[4 * n] * fast_exp2(fminf(cum0 - cj.x, 0)) * dj.x : 0.0f;
                float m1 = j + 1 <= i0 ? s[4 * n + 1] * fast_exp2(fminf(cum0 - cj.y, 0)) * dj.y : 0.0f;
                float m2 = j <= i1 ? s[4 * n + 2] * fast_exp2(fminf(cum1 - cj.x, 0)) * dj.x : 0.0f;
                float m3 = j + 1 <= i1 ? s[4 * n + 3] * fast_exp2(fminf(cum1 - cj.y, 0)) * dj.y : 0.0f;
                m0 += j == i0 ? skip : 0.0f, m1 += j + 1 == i0 ? skip : 0.0f;
                m2 += j == i1 ? skip : 0.0f, m3 += j + 1 == i1 ? skip : 0.0f;
                f0 = pack_bf16(m0, m1), f1 = pack_bf16(m2, m3);
            }
            frag[n >> 1][(n & 1) * 2] = f0, frag[n >> 1][(n & 1) * 2 + 1] = f1;
        }
        wgmma_wait<0>();
        wgmma_touch<32>(y);
        release_warp(bars + HEMPTY + 8 * which);
#pragma unroll
        for (int n = 0; n < 8; n++) y[4 * n] *= e0, y[4 * n + 1] *= e0, y[4 * n + 2] *= e1, y[4 * n + 3] *= e1;
        const uint64_t desc_x = wgmma_desc(stage + OFF_X, HALF);
        wgmma_touch<32>(y);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) wgmma_n64_rs<1>(y, frag[k], desc_x + k * 128, 1);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_touch<32>(y);
        release(bars + EMPTY + 8 * st);  // also: the warp's last read of ybuf is done
#pragma unroll
        for (int n = 0; n < 8; n += 2)
            stmatrix4(ybuf + row * 128 + (((n + (mat >> 1)) ^ r8) << 4), pack_bf16(y[4 * n], y[4 * n + 1]),
                      pack_bf16(y[4 * n + 2], y[4 * n + 3]), pack_bf16(y[4 * n + 4], y[4 * n + 5]),
                      pack_bf16(y[4 * n + 6], y[4 * n + 7]));
        __syncwarp();
        bf16* out = a.y + (ptrdiff_t)ch.row(c) * a.y_stride + column;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int i = 16 * warp + 4 * k + mat;
            uint4 o = lds128(ybuf + i * 128 + ((r8 ^ (i & 7)) << 4));
            if (i >= lo && i < hi) *(uint4*)(out + (ptrdiff_t)i * a.y_stride) = o;
        }
    }
}

template <typename S>
DEVICE void ssd(const CUtensorMap* mx, const CUtensorMap* mb, const CUtensorMap* mc, const SsdArgs& a) {
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, bars = smem + OFF_BAR;
    uint8_t* generic = raw + (smem - smem_addr(raw));
    const int head = blockIdx.x, seq = blockIdx.y;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(bars + FULL + 8 * i, 1 + 32);
            mbar_init(bars + EMPTY + 8 * i, 8 * 32);
        }
        for (int i = 0; i < 2; i++) mbar_init(bars + HFULL + 8 * i, 4), mbar_init(bars + HEMPTY + 8 * i, 4);
        mbar_init_fence();
        tma_prefetch_map(mx), tma_prefetch_map(mb), tma_prefetch_map(mc);
    }
    pdl_wait();
    pdl_launch();
    Chunks ch;
    ch.start = a.seq_start[seq];
    ch.len = a.seq_start[seq + 1] - ch.start;
    const uint32_t past = a.past_len[seq];
    ch.off = past % Q;
    ch.n = (ch.off + ch.len + Q - 1) / Q;
    if (ch.len == 0) return;
    __syncthreads();
    const int group = threadIdx.x >> 7, warp = threadIdx.x >> 5;
    if (group < 2) {
        regs_grow<152>();
        output_group(a, ch, smem, generic, bars, head, group);
    } else if (group == 2) {
        regs_grow<152>();
        S* state = (S*)a.state + a.slots[seq] * a.slot_stride + (size_t)head * 64 * 128;
        state_group(a, ch, smem, generic, bars, state, past > 0);
    } else {
        regs_shrink<56>();
        stage_warp(mx, mb, mc, a, ch, smem, generic, bars, head, warp - 12);
    }
}
#define SSD_BODY(S) ssd<S>(&mx, &mb, &mc, a)
#else
#define SSD_BODY(S) asm volatile("trap;")
#endif

#define SSD(NAME, S)                                                                                        \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mb,                \
             const __grid_constant__ CUtensorMap mc, const __grid_constant__ SsdArgs a) {                   \
        SSD_BODY(S);                                                                                        \
    }
SSD(ssd_sm90_bf16, float)
SSD(ssd_sm90_bf16_bf16, bf16)
SSD(ssd_sm90_bf16_f16, __half)
