// linear on Hopper, weights in blocks, from a few rows to many: out(m,n) = sum_k x(m,k) * W(n,k).
//
// Contract: as linear_batch_sm90.cu, but W (and W2 for SwiGLU, of the same type) in panels of blocks (blocks.cuh),
//   16-byte aligned. A weight's exact value is rounded to bf16 once; sums in f32. N a multiple of 8. M beyond the
//   name's number runs in further tiles of the grid. A row's bits depend neither on M nor, up to 128, on the name.
//
// Work: 2 M N K. Bytes: those of the blocks once for each T rows of x.
// Ideas: - the weights are operand A, unpacked from shared memory straight into registers (each of the 8 warps has
//          a panel of 16 rows): dequantized weights exist nowhere else, neither in memory nor in shared memory;
//        - the next 64 columns are unpacked while the tensor cores work on the last: 30 instructions a warp for
//          each of its steps of 128 cycles at T = 256, a quarter of what a scheduler can issue;
//        - a panel's step is contiguous: one plain bulk copy each, no tensor map; x comes through one;
//        - where tiles are few, k is split in 2, 4 or 8 parts that run at once and meet in L2, each finishing some of
//          the tokens; else (SwiGLU, up to 128 rows) a cluster of four blocks splits it.
// Reached on an H100, a layer's four products: q4_k 2048 rows 2.02 ms, 8192 rows 8.3 ms (bf16 by linear_gemm_sm90.cu in
//   the same run 1.71 and 6.8 ms): 460 to 630 TFLOP/s. On an H200,
//   16 / 64 / 128 / 256 rows: q4_k 113 / 137 / 240 / 266 us (clusters of four everywhere 140 / 163 / 279 / 326), q8_0
//   129 / 154 / 257 / 274 (161 / 190 / 308 / 355); their bytes 34 and 65. Unpacking takes 4.7 instructions a weight,
//   where memory leaves time for 3.7 at q4_k; only 30 clusters of four fit the chip with a block a multiprocessor.
// Tried: blocks that go on from tile to tile, weights copied as far ahead as rings allow: gate and up 1.1 to 1.7 x the
//   time of clusters (registers are what 64 rows lack then), the others as now or slower.
// Launch: T = 16, 64: 288 threads, dynamic smem 114688; 128, 256: 384 threads, 231424. Cluster 4
//   (T = 256, or split: 1), grid ((split or cluster) * tiles, ceil(M / T)), tiles = ceil(N / 128), swiglu ceil(N / 64).
//   x map bf16, 128-byte swizzle, box 64 x T rows.
#include "blocks.cuh"
#include "wgmma.cuh"

struct BlocksGemmArgs {
    const uint8_t* w;
    const uint8_t* w2;         // swiglu
    const float* bias;         // (N) or null
    const bf16* residual;      // (M,N) or null; may be `out`
    void* out;                 // (M,N)
    int m, n, k, residual_stride, out_stride, swiglu, out_f32;
    int split;                 // no SwiGLU: parts of k, 2, 4 or 8, of a block each, which all run at once; or 0
    float* sums;               // split: (tiles, split, 128, T), where they meet
};

#if HOPPER
constexpr int PITCH = 132;
// Parts of a tile's half that have come: by 8 each time, for ever.
__device__ uint32_t blocks_met[512];

template <int T> DEVICE void step(float* acc, const uint32_t* a, uint64_t b) {
    if (T == 16) wgmma_n16_rs<0>(acc, a, b, 1);
    else if (T == 64) wgmma_n64_rs<0>(acc, a, b, 1);
    else if (T == 128) wgmma_n128_rs<0>(acc, a, b, 1);
    else wgmma_n256_rs<0>(acc, a, b, 1);
}
template <int RANKS> DEVICE void gather(uint32_t addr, float* v) {
    float4 s = cluster_load4(addr, 0);
#pragma unroll
    for (int r = 1; r < RANKS; r++) {
        const float4 o = cluster_load4(addr, r);
        s.x += o.x, s.y += o.y, s.z += o.z, s.w += o.w;
    }
    v[0] = s.x, v[1] = s.y, v[2] = s.z, v[3] = s.w;
}

// Scale and offset of a lane's own 32 columns: value = raw * d + o, with `raw` as unpacked.
struct Affine {
    float d[2][2], o[2][2];
};
template <int TYPE> DEVICE Affine affine(uint32_t at, int h, int lane, const Tops& top) {
    const Scales s = scales<TYPE>(at, h, lane, top);
    Affine f;
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            f.d[r][i] = s.d[r][i];
            f.o[r][i] = -fmaf(Block<TYPE>::ZERO, s.d[r][i], s.m[r]);
        }
    return f;
}
// The quarter's raw values become bf16 weights: scales come from the lanes that hold them.
template <int TYPE> DEVICE void scale(uint32_t (*a)[4], const Affine& f, int q, int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int from = (lane & ~3) + 2 * (q & 1) + i;
        float d[2][2], o[2][2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            d[r][0] = d[r][1] = __shfl_sync(~0u, f.d[r][0], from);
            if (TYPE == Q6_K) d[r][1] = __shfl_sync(~0u, f.d[r][1], from);
            if (Block<TYPE>::MIN) o[r][0] = o[r][1] = __shfl_sync(~0u, f.o[r][0], from);
            else o[r][0] = -Block<TYPE>::ZERO * d[r][0], o[r][1] = -Block<TYPE>::ZERO * d[r][1];
        }
#pragma unroll
        for (int c = 0; c < 2; c++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t& w = a[2 * i + c][j];
                w = pack_bf16(fmaf(bf_lo(w), d[j & 1][c], o[j & 1][c]), fmaf(bf_hi(w), d[j & 1][c], o[j & 1][c]));
            }
    }
}

// Brings a tile's parts together: each of its blocks gets the sums of tokens 8 `from` to 8 `to`, added in order.
template <int T> DEVICE void meet(const BlocksGemmArgs& a, int tile, int part, int& from, int& to, float* acc) {
    constexpr int FOURS = T / 8;
    const int split = a.split, group = threadIdx.x >> 7, tid = threadIdx.x & 127;
    const int own = max(1, FOURS / split), place = tile * 2 + group;
    from = min(FOURS, part * own), to = min(FOURS, from + own);
    float4* const sums = (float4*)a.sums + (size_t)place * split * FOURS * 128 + tid;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const float4 sum = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
        if (i < from || i >= to) store_kept(sums + (part * FOURS + i) * 128, sum);
    }
    group == 0 ? named_sync(1, 128) : named_sync(2, 128);
    if (tid == 0) {
        const uint32_t all = count_up(blocks_met + place, 8 / split) / 8 * 8 + 8;
        while (from < to && (int)(count_now(blocks_met + place) - all) < 0) {}
    }
    group == 0 ? named_sync(1, 128) : named_sync(2, 128);
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        if (i < from || i >= to) continue;
        float* const mine = acc + 4 * i;
        float4 s = make_float4(0, 0, 0, 0);
        for (int p0 = 0; p0 < split; p0 += 4) {
            float4 v[4];  // all asked for before the first is added
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (p0 + j < split && p0 + j != part) v[j] = __ldcg(sums + ((p0 + j) * FOURS + i) * 128);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float4 u = p0 + j == part ? make_float4(mine[0], mine[1], mine[2], mine[3]) : v[j];
                if (p0 + j == 0) s = u;
                else if (p0 + j < split) s.x += u.x, s.y += u.y, s.z += u.z, s.w += u.w;
            }
        }
        mine[0] = s.x, mine[1] = s.y, mine[2] = s.z, mine[3] = s.w;
    }
}
// Thread g * 4 + t of warp w has the sums of rows 16 w + g and 8 behind it, tokens 8 i + 2 t and the next.
template <int T> DEVICE void finish(const BlocksGemmArgs& a, int token0, int row0, int from, int to, const float* acc) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int i = 0; i < T / 8; i++) {
        if (i < from || i >= to) continue;
        const int token = token0 + 8 * i + g, to_token = token0 + 8 * i + 2 * t;
        uint32_t onto[2] = {0, 0};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = row0 + 8 * h + 2 * t;
            if (a.residual && token < a.m && row < a.n)
                onto[h] = *(const uint32_t*)(a.residual + (size_t)token * a.residual_stride + row);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = row0 + 8 * h + 2 * t, own_row = row0 + 8 * h + g;
            const float bias = a.bias && own_row < a.n ? a.bias[own_row] : 0;
            const uint32_t o = transpose8(onto[h]);
            const float x = acc[4 * i + 2 * h] + bias + bf_lo(o), y = acc[4 * i + 2 * h + 1] + bias + bf_hi(o);
            if (a.out_f32) {
                float* const out = (float*)a.out + (size_t)to_token * a.out_stride + own_row;
                if (to_token < a.m && own_row < a.n) out[0] = x;
                if (to_token + 1 < a.m && own_row < a.n) out[a.out_stride] = y;
                continue;
            }
            const uint32_t two = transpose8(pack_bf16(x, y));
            if (token < a.m && row < a.n) *(uint32_t*)((bf16*)a.out + (size_t)token * a.out_stride + row) = two;
        }
    }
}

template <int TYPE, int T> DEVICE void blocks_gemm(const CUtensorMap* mx, const BlocksGemmArgs& a) {
    typedef Block<TYPE> F;
    constexpr bool BIG = T >= 128;  // one block a multiprocessor, its registers with the computing groups
    constexpr int RANKS = T == 256 ? 1 : 4, X_BYTES = T * 128, W_BYTES = 8 * F::BYTES;
    constexpr int RING = BIG ? 230000 : 113000, XS = T == 16 ? 8 : T == 128 ? 6 : 4;
    constexpr int FIT = (RING - XS * X_BYTES) / W_BYTES, WS = FIT > 6 ? 6 : FIT, QUARTERS = F::STEP / 64;
    static_assert(WS >= 2 && T * PITCH * 4 <= XS * X_BYTES + WS * W_BYTES, "shared memory");
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u, weights = smem + XS * X_BYTES;
    const uint32_t bars = weights + WS * W_BYTES;
    const uint32_t x_full = bars, x_empty = x_full + 8 * XS, w_full = x_empty + 8 * XS, w_empty = w_full + 8 * WS;
    float* sums = (float*)(raw + (smem - smem_addr(raw)));
    const int ranks = a.split ? a.split : RANKS, rank = blockIdx.x % ranks;
    const int tile = blockIdx.x / ranks, token0 = blockIdx.y * T, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int steps = a.k / F::STEP, first = steps * rank / ranks, count = steps * (rank + 1) / ranks - first;
    if (threadIdx.x == 0) {
        for (int i = 0; i < XS; i++) mbar_init(x_full + 8 * i, 1), mbar_init(x_empty + 8 * i, 2);
        for (int i = 0; i < WS; i++) mbar_init(w_full + 8 * i, 1), mbar_init(w_empty + 8 * i, 256);
        mbar_init_fence();
    }
    __syncthreads();
    const int group = warp >> 2, tid = threadIdx.x & 127;
    if (warp >= 8) {
        if (BIG) regs_shrink<40>();
        if (threadIdx.x == 256) {
            const int panels = (a.n + 15) / 16;
            const size_t panel = panel_bytes<TYPE>(a.k);
            auto load_w = [&](int j) {
                const uint32_t bar = w_full + 8 * (j % WS);
                mbar_expect(bar, W_BYTES);
                for (int i = 0; i < 8; i++) {  // panels past the end repeat the last: their sums are not stored
                    const int p = a.swiglu ? tile * 4 + (i & 3) : tile * 8 + i;
                    const uint8_t* from = a.swiglu && i >= 4 ? a.w2 : a.w;
                    bulk_load(weights + (j % WS) * W_BYTES + i * F::BYTES,
                              from + min(p, panels - 1) * panel + (size_t)(first + j) * F::BYTES, F::BYTES, bar);
                }
            };
            const int ahead = min(count, WS);
            for (int j = 0; j < ahead; j++) load_w(j);
            pdl_wait();
            pdl_launch();
            for (int j = 0, x = 0; j < count; j++) {
                if (j >= WS) {
                    mbar_wait(w_empty + 8 * (j % WS), ((j / WS) & 1) ^ 1);
                    load_w(j);
                }
                for (int q = 0; q < QUARTERS; q++, x++) {
                    if (x >= XS) mbar_wait(x_empty + 8 * (x % XS), ((x / XS) & 1) ^ 1);
                    mbar_expect(x_full + 8 * (x % XS), X_BYTES);
                    tma_load(smem + (x % XS) * X_BYTES, mx, (first + j) * F::STEP + q * 64, token0, x_full + 8 * (x % XS));
                }
            }
        }
        __syncwarp();
    } else {
        if (BIG) regs_grow<232>();
        float acc[T / 2];
#pragma unroll
        for (int i = 0; i < T / 2; i++) acc[i] = 0;
        pdl_wait();
        pdl_launch();
        const uint64_t desc = wgmma_desc(smem, 0);
        uint32_t w[2][4][4];
        int x = 0, xs = 0, x_phase = 0, before = -1;
        for (int j = 0; j < count; j++) {
            const uint32_t at = weights + (j % WS) * W_BYTES + warp * F::BYTES;
            mbar_wait(w_full + 8 * (j % WS), (j / WS) & 1);
            const Tops top = tops<TYPE>(at, lane);
            Affine f;
#pragma unroll
            for (int q = 0; q < QUARTERS; q++, x++) {
                if ((q & 1) == 0) f = affine<TYPE>(at, q >> 1, lane, top);
                unpack<TYPE>(at, q, lane, w[q & 1]);
                scale<TYPE>(w[q & 1], f, q, lane);
                if (q == QUARTERS - 1) {
                    mbar_arrive(w_empty + 8 * (j % WS));  // a lane's own reads end there
                }
                mbar_wait(x_full + 8 * xs, x_phase);
                wgmma_touch<T / 2>(acc);
                wgmma_fence();
                const uint64_t b = desc + (uint64_t)(xs * (X_BYTES >> 4));
#pragma unroll
                for (int c = 0; c < 4; c++) step<T>(acc, w[q & 1][c], b + 2 * c);
                wgmma_commit();
                wgmma_wait<1>();  // the quarter before is done: its registers and its x are free
                if (before >= 0 && tid == 0) mbar_arrive(x_empty + 8 * before);
                before = xs;
                if (++xs == XS) xs = 0, x_phase ^= 1;
            }
        }
        wgmma_wait<0>();
        wgmma_touch<T / 2>(acc);
        if (a.split) {
            int from, to;
            meet<T>(a, blockIdx.y * (gridDim.x / ranks) + tile, rank, from, to, acc);
            finish<T>(a, token0, tile * 128 + 16 * warp, from, to, acc);
            return;
        }
        named_sync(3, 256);  // both groups are done with the rings: they become the table of sums
        const int row = group * 64 + 16 * (warp & 3) + (lane >> 2), t = lane & 3;
#pragma unroll
        for (int i = 0; i < T / 2; i++)
            sums[(8 * (i >> 2) + 2 * t + (i & 1)) * PITCH + row + 8 * ((i >> 1) & 1)] = acc[i];
    }
    if (a.split) return;
    if (RANKS > 1) cluster_sync();
    else __syncthreads();
    const int m = a.m, rows = a.swiglu ? 64 : 128, fours = rows / 4;
    for (int i = threadIdx.x; i < (T / RANKS) * fours && warp < 8; i += 256) {
        const int local = rank * (T / RANKS) + i / fours, r = i % fours * 4;
        const int token = token0 + local, n = tile * rows + r;
        if (token >= m || n >= a.n) continue;
        float v[4], u[4];
        gather<RANKS>(smem + (local * PITCH + r) * 4, v);
        if (a.swiglu) {
            gather<RANKS>(smem + (local * PITCH + r + 64) * 4, u);
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] = silu(v[e]) * u[e];
        }
        if (a.bias)
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] += a.bias[n + e];
        if (a.residual) {
            const uint2 o = *(const uint2*)(a.residual + (size_t)token * a.residual_stride + n);
            v[0] += bf_lo(o.x), v[1] += bf_hi(o.x), v[2] += bf_lo(o.y), v[3] += bf_hi(o.y);
        }
        const size_t to = (size_t)token * a.out_stride + n;
        if (a.out_f32) *(float4*)((float*)a.out + to) = make_float4(v[0], v[1], v[2], v[3]);
        else *(uint2*)((bf16*)a.out + to) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    }
    if (RANKS > 1) cluster_sync();  // nobody leaves while a neighbour may still read here
}
#define GEMM_BODY(TYPE, T) blocks_gemm<TYPE, T>(&mx, a)
#else
#define GEMM_BODY(TYPE, T) asm volatile("trap;")
#endif

#define GEMM(NAME, TYPE, T)                                                                                 \
    extern "C" __global__ void __launch_bounds__(T >= 128 ? 384 : 288, T >= 128 ? 1 : 2)                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ BlocksGemmArgs a) {            \
        GEMM_BODY(TYPE, T);                                                                                 \
    }
#define GEMM_TYPE(NAME, TYPE)                                                                               \
    GEMM(blocks_gemm_16_##NAME, TYPE, 16)                                                                   \
    GEMM(blocks_gemm_64_##NAME, TYPE, 64)                                                                   \
    GEMM(blocks_gemm_128_##NAME, TYPE, 128)                                                                 \
    GEMM(blocks_gemm_256_##NAME, TYPE, 256)
GEMM_TYPE(q8_0, Q8_0)
GEMM_TYPE(q4_0, Q4_0)
GEMM_TYPE(q4_k, Q4_K)
GEMM_TYPE(q5_k, Q5_K)
GEMM_TYPE(q6_k, Q6_K)
