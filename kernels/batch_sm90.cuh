// A product of some rows on Hopper, memory-bound: linear_batch_sm90.cu (bf16) and linear_fp8_batch_sm90.cu (e4m3) say what.
//
// Ideas: - the weights are operand A (128 rows a tile, wgmma m64nTk16), the tokens operand B: no row of the
//          tensor cores' tile is wasted on absent tokens beyond the next 8, 16, 32, 64 or 128;
//        - a block has a multiprocessor and a share of all parts of all tiles, one behind the other, so that its ring of
//          stages, all of shared memory, never runs dry between tiles. What a block has of a tile whose first part is
//          another's goes to L2; that other, which comes to it at its end, waits for it and adds it up. Where a block
//          has one part only, four of them meet and each finishes a quarter of the tokens;
//        - whole tiles leave nothing in memory but results: every write costs the stream of weights several times its
//          bytes (a tile's four parts in blocks of a cluster, or all of them through L2, take 15 to 20 % more). So the
//          grid is such that parts come out even, and L2 keeps what passes between blocks (`store_kept`);
//        - with SwiGLU eight rows of W and eight of W2 lie in turns, so that one thread has both of a result;
//        - weights give their places in L2 to others first, but where states have been updated in front (`pushes`): with
//          that hint what those left stays, and reaches memory bit by bit among the reads of all that follows. Without,
//          the first weights drive it out. H200, a Mamba layer with its MLP: 16 / 32 / 64 sequences 186 -> 180,
//          223.6 -> 218, 296.3 -> 292.8 us, although products alone lose 2 %;
//        - a warp copies weights and waits for nobody, another copies tokens behind the kernel in front;
//        - what follows may start at once (norm.cu does so, too): its blocks take places that are free, with their
//          first weights under way while this kernel and a norm between still run; see `pdl_launch`.
// Launch: 320 threads (T = 128: 384; registers as of 512 below, which leaves norms' blocks some), at most a block a
//   multiprocessor (132), all of which must run at once; dynamic smem BATCH_BESIDE + stages * (16384 +
//   128 T), as many as 219 KB hold, and in e4m3 8 T for scales: the rest is for kernels with little. Tensor maps with 128-byte swizzle,
//   boxes of 128 bytes: x T rows, W 128 rows, with SwiGLU the pairs of W and W2 (`mapPairs` in stream.zig), 64 rows each.
#pragma once
#include "wgmma.cuh"

struct BatchArgs {
    const float* bias;     // (N) or null
    const bf16* residual;  // (M,N) or null
    void* out;             // (M,N)
    float* sums;           // (blocks, 4, 128, T): what tiles of several blocks are added up from
    int m, n, k, residual_stride, out_stride;
    int up_first;          // W2 is the first of each pair of rows
    int pushes;            // weights take the places in L2 of what came before
};
struct Fp8BatchArgs {
    BatchArgs of;
    const float* x_scale;   // (M)
    const float* w_scale;   // (N)
    const float* w2_scale;  // (N), SwiGLU
};
DEVICE const BatchArgs& batch_args(const BatchArgs& a) { return a; }
DEVICE const BatchArgs& batch_args(const Fp8BatchArgs& a) { return a.of; }

#if HOPPER
// 128 bytes of k a stage.
constexpr int PARTS = 4, A_BYTES = 128 * 128, BATCH_BESIDE = 1536, MOST_SHARED = 224256;

template <int T, bool FP8> DEVICE void step(float* acc, uint64_t a, uint64_t b) {
    if (FP8 && T == 8) wgmma_n8_e4m3(acc, a, b, 1);
    else if (FP8 && T == 16) wgmma_n16_e4m3(acc, a, b, 1);
    else if (FP8 && T == 32) wgmma_n32_e4m3(acc, a, b, 1);
    else if (FP8 && T == 64) wgmma_n64_e4m3(acc, a, b, 1);
    else if (FP8) wgmma_n128_e4m3(acc, a, b, 1);
    else if (T == 8) wgmma_n8_ss<0>(acc, a, b, 1);
    else if (T == 16) wgmma_n16_ss<0>(acc, a, b, 1);
    else if (T == 32) wgmma_n32_ss<0>(acc, a, b, 1);
    else if (T == 64) wgmma_n64_ss<0>(acc, a, b, 1);
    else wgmma_n128_ss<0>(acc, a, b, 1);
}

// Units are parts of tiles, in order; a block has those from `first` to `end`.
struct Share {
    int units, tiles, blocks_k, per;  // stages of k in all and in a part
    int first, end;
    DEVICE_MEMBER Share(const BatchArgs& a, int tile_rows, int tokens, int stage_columns) {
        tiles = (a.n + tile_rows - 1) / tile_rows;
        units = PARTS * tiles * ((a.m + tokens - 1) / tokens);
        blocks_k = (a.k + stage_columns - 1) / stage_columns, per = (blocks_k + PARTS - 1) / PARTS;
        const int block = gridDim.x - 1 - blockIdx.x;  // a tile's first block waits for those that started before it
        first = start(block), end = start(block + 1);
    }
    DEVICE_MEMBER int start(int block) const { return (int)((int64_t)units * block / gridDim.x); }
    // The block that has a tile's first part.
    DEVICE_MEMBER int owner(int tile) const { return (int)(((int64_t)(PARTS * tile + 1) * gridDim.x - 1) / units); }
    // `f(tile of weights, tile of tokens, k)` for each stage, in order.
    template <typename F> DEVICE_MEMBER void each(F f) const {
        for (int unit = first; unit < end; unit++) {
            const int tile = unit / PARTS % tiles, turn = unit / PARTS / tiles, from = unit % PARTS * per;
            for (int k = from; k < min(blocks_k, from + per); k++) f(tile, turn, k);
        }
    }
};
// Stages go round; a barrier's phase turns with each round.
template <int STAGES> struct Place {
    int at = 0, phase = 0;
    DEVICE_MEMBER void next() {
        if (++at == STAGES) at = 0, phase ^= 1;
    }
};

// A warpgroup's results of a tile: thread g * 4 + t of warp w has the sums of rows 16 w + g and 8 behind it (with SwiGLU
// of row 8 w + g of both matrices), tokens 8 i + 2 t and the next.
template <int T, bool SWIGLU, typename OUT> struct Results {
    static constexpr int ROWS = SWIGLU ? 64 : 128, HALVES = SWIGLU ? 1 : 2;
    int token0, row0;
    int from = 0, to = T / 8;      // of i: what this block finishes
    uint32_t onto[HALVES][T / 8];  // of the residual, two rows of token 8 i + g

    DEVICE_MEMBER Results(const Share& share, int tile)
        : token0(tile / share.tiles * T), row0(tile % share.tiles * ROWS + (threadIdx.x >> 5) * (ROWS / 8)) {}
    // Asks for what the sums are added to.
    DEVICE_MEMBER void ask(const BatchArgs& a) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int i = 0; i < T / 8; i++) {
                const int token = token0 + 8 * i + (lane >> 2), row = row0 + 8 * h + 2 * (lane & 3);
                onto[h][i] = 0;
                if (a.residual && token < a.m && row < a.n && i >= from && i < to)
                    onto[h][i] = __ldcg((const uint32_t*)(a.residual + (size_t)token * a.residual_stride + row));
            }
    }
    DEVICE_MEMBER void store(const BatchArgs& a, const float* sums) const;
};
template <int T, bool SWIGLU, typename OUT>
DEVICE_MEMBER void Results<T, SWIGLU, OUT>::store(const BatchArgs& a, const float* sums) const {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        const float bias = a.bias && row0 + 8 * h + g < a.n ? a.bias[row0 + 8 * h + g] : 0;
#pragma unroll
        for (int i = 0; i < T / 8; i++) {
            if (i < from || i >= to) continue;
            float v[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float s = sums[4 * i + 2 * h + e], other = sums[4 * i + 2 + e];
                if (SWIGLU) v[e] = a.up_first ? silu(other) * s : silu(s) * other;
                else v[e] = s + bias;
            }
            if (a.residual) {
                const uint32_t r = transpose8(onto[h][i]);
                v[0] += bf_lo(r), v[1] += bf_hi(r);
            }
            if (sizeof(OUT) == 4) {
                const int token = token0 + 8 * i + 2 * t, row = row0 + 8 * h + g;
                float* const out = (float*)a.out + (size_t)token * a.out_stride + row;
                if (token < a.m && row < a.n) out[0] = v[0];
                if (token + 1 < a.m && row < a.n) out[a.out_stride] = v[1];
            } else {
                const int token = token0 + 8 * i + g, row = row0 + 8 * h + 2 * t;
                const uint32_t words = transpose8(pack_bf16(v[0], v[1]));
                if (token < a.m && row < a.n) *(uint32_t*)((bf16*)a.out + (size_t)token * a.out_stride + row) = words;
            }
        }
    }
}

// What sums are multiplied by: nothing, and in e4m3 scales (linear_fp8_batch_sm90.cu).
template <int T, bool SWIGLU, typename ARGS> struct Scales {
    DEVICE_MEMBER explicit Scales(float*) {}
    DEVICE_MEMBER void ask(const ARGS&, const Share&, int) {}
    DEVICE_MEMBER void apply(float*, int, int) const {}
};

// A tile's rows of a warpgroup, where several blocks have parts of it; `met` counts those, by 4 each time, for ever.
__device__ uint32_t batch_met[512];
template <int T> struct Meeting {
    static constexpr int FOURS = T / 8;
    uint32_t* const met;
    float4* const sums;
    DEVICE_MEMBER Meeting(const BatchArgs& a, int place)
        : met(batch_met + place), sums((float4*)a.sums + (size_t)place * PARTS * FOURS * 128 + (threadIdx.x & 127)) {}
    DEVICE_MEMBER void sync() const { (threadIdx.x >> 7) == 0 ? named_sync(1, 128) : named_sync(2, 128); }
    // Leaves a part, but for what this block finishes.
    DEVICE_MEMBER void leave(int part, const float* v, int from, int to) const {
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            const float4 sum = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
            if (i < from || i >= to) store_kept(sums + (part * FOURS + i) * 128, sum);
        }
    }
    DEVICE_MEMBER void tell(int parts) const {
        sync();
        if ((threadIdx.x & 127) == 0) count_release(met, parts);
    }
    // Waits until `parts` of others have come, and counts its own.
    DEVICE_MEMBER void wait(int parts) const {
        if ((threadIdx.x & 127) == 0) {
            while (count_now(met) % PARTS != (uint32_t)parts) {}
            count_release(met, PARTS - parts);
        }
        sync();
    }
    // Each of four says that its part has come, and waits for all.
    DEVICE_MEMBER void all() const {
        sync();
        if ((threadIdx.x & 127) == 0) {
            const uint32_t end = count_up(met, 1) / PARTS * PARTS + PARTS;
            while ((int)(count_now(met) - end) < 0) {}
        }
        sync();
    }
    // Adds parts in order; those from `begin` to `end` lie added up in `total`.
    DEVICE_MEMBER void add(float* total, int begin, int end, int from, int to) const {
        constexpr int AT_ONCE = T <= 16 ? FOURS : 2;
#pragma unroll
        for (int i = 0; i < FOURS; i += AT_ONCE) {
            float4 v[AT_ONCE][PARTS];  // all asked for before the first is added
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
                for (int p = 0; p < PARTS; p++)
                    if (i + j >= from && i + j < to && (p < begin || p >= end))
                        v[j][p] = __ldcg(sums + (p * FOURS + i + j) * 128);
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                if (i + j < from || i + j >= to) continue;
                float* const own = total + 4 * (i + j);
                float4 s = make_float4(0, 0, 0, 0);
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    if (p > begin && p < end) continue;
                    const float4 u = p == begin ? make_float4(own[0], own[1], own[2], own[3]) : v[j][p];
                    if (p == 0) s = u;
                    else s.x += u.x, s.y += u.y, s.z += u.z, s.w += u.w;
                }
                own[0] = s.x, own[1] = s.y, own[2] = s.z, own[3] = s.w;
            }
        }
    }
};

template <int T, bool SWIGLU, typename OUT, typename ARGS>
DEVICE void linear_batch(const CUtensorMap* mx, const CUtensorMap* mw, const ARGS& args) {
    const BatchArgs& a = batch_args(args);
    constexpr bool FP8 = sizeof(ARGS) > sizeof(BatchArgs);
    constexpr int BK = FP8 ? 128 : 64, X_BYTES = T * 128, STAGE_BYTES = A_BYTES + X_BYTES;
    constexpr int STAGES = (MOST_SHARED - BATCH_BESIDE) / STAGE_BYTES, RING = STAGES * STAGE_BYTES;
    static_assert(STAGES * 24 + 8 <= 512, "shared memory");
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u;
    const uint32_t full_w = smem + RING, full_x = full_w + 8 * STAGES, empty = full_x + 8 * STAGES;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const Share share(a, SWIGLU ? 64 : 128, T, BK);
    pdl_launch();  // early: see above
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            mbar_init(full_w + 8 * i, 1), mbar_init(full_x + 8 * i, 1), mbar_init(empty + 8 * i, 2);
        mbar_init_fence();
    }
    __syncthreads();
    if (warp >= 8) {
        if (T == 128) regs_shrink<40>();
        Place<STAGES> to;
        if (warp == 8 && lane == 0) {
            const bool pushes = !FP8 && T <= 64 && a.pushes;
            share.each([&](int tile, int, int k) {
                const uint32_t dst = smem + to.at * STAGE_BYTES, bar = full_w + 8 * to.at;
                mbar_wait(empty + 8 * to.at, to.phase ^ 1);
                mbar_expect(bar, A_BYTES);
                if (SWIGLU && pushes) tma_load_pairs(dst, mw, k * BK, tile * 8, bar);
                else if (SWIGLU) tma_load_pairs_once(dst, mw, k * BK, tile * 8, bar);
                else if (pushes) tma_load(dst, mw, k * BK, tile * 128, bar);
                else tma_load_once(dst, mw, k * BK, tile * 128, bar);
                to.next();
            });
        }
        if (warp == 9 && lane == 0) {
            pdl_wait();
            share.each([&](int, int turn, int k) {
                const uint32_t dst = smem + to.at * STAGE_BYTES + A_BYTES, bar = full_x + 8 * to.at;
                mbar_wait(empty + 8 * to.at, to.phase ^ 1);
                mbar_expect(bar, X_BYTES);
                tma_load(dst, mx, k * BK, turn * T, bar);
                to.next();
            });
        }
        return;
    }
    if (T == 128) regs_grow<232>();
    pdl_wait();
    const int group = threadIdx.x >> 7, tid = threadIdx.x & 127;
    const uint64_t desc_a = wgmma_desc(smem + group * (A_BYTES / 2), 0), desc_b = wgmma_desc(smem + A_BYTES, 0);
    Scales<T, SWIGLU, ARGS> scales((float*)(raw + (full_w + 512 - smem_addr(raw))) + group * T);
    Place<STAGES> from;
    float acc[T / 2], total[T / 2];
    for (int unit = share.first; unit < share.end; unit++) {
        const int part = unit % PARTS, tile = unit / PARTS, begin = part * share.per;
        const int count = min(share.blocks_k, begin + share.per) - begin;
        scales.ask(args, share, unit);
#pragma unroll
        for (int i = 0; i < T / 2; i++) acc[i] = 0;
        int before = -1;
        for (int j = 0; j < count; j++) {
            mbar_wait(full_x + 8 * from.at, from.phase);
            mbar_wait(full_w + 8 * from.at, from.phase);
            const uint32_t stage = (from.at * STAGE_BYTES) >> 4;
            wgmma_touch<T / 2>(acc);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) step<T, FP8>(acc, desc_a + stage + 2 * i, desc_b + stage + 2 * i);
            wgmma_commit();
            wgmma_wait<1>();
            if (before >= 0 && tid == 0) mbar_arrive(empty + 8 * before);
            before = from.at;
            from.next();
        }
        wgmma_wait<0>();
        wgmma_touch<T / 2>(acc);
        if (before >= 0 && tid == 0) mbar_arrive(empty + 8 * before);
        // A tile's parts are added in order: here, if its first is here, else by the block that has it.
        const bool begun = share.first <= tile * PARTS;
#pragma unroll
        for (int i = 0; i < T / 2; i++) total[i] = begun && part > 0 ? total[i] + acc[i] : acc[i];
        const bool last = part == PARTS - 1 || unit + 1 == share.end;
        if (begun && !last) continue;
        Results<T, SWIGLU, OUT> results(share, tile);
        const Meeting<T> meeting(a, share.owner(tile) * 2 + group);
        if (T >= 32 && share.units <= (int)gridDim.x) {  // a part a block: each finishes a quarter of the tokens
            results.from = part * (T / 32), results.to = results.from + T / 32;
            meeting.leave(part, total, results.from, results.to);
            results.ask(a);
            meeting.all();
            meeting.add(total, part, part + 1, results.from, results.to);
        } else if (!begun) {
            meeting.leave(part, total, 0, 0);
            if (last) meeting.tell(unit + 1 - max(share.first, tile * PARTS));
            continue;
        } else {
            results.ask(a);
            if (part < PARTS - 1) {
                meeting.wait(PARTS - 1 - part);
                meeting.add(total, 0, part + 1, 0, T / 8);
            }
        }
        scales.apply(total, results.from, results.to);
        results.store(a, total);
    }
}
#endif  // HOPPER
