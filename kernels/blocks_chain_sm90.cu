// A chain of `linear`, one row, weights in blocks: products that follow each other, and states (chain.cuh), in one launch.
//
// Contract: `count` products, each as blocks_decode.cu's with its norm in front and bias, residual, SwiGLU behind,
//   each with a type of its own; each may read what the ones before it wrote. States as ssm_update.cu's conv_ssm_update,
//   of one sequence: the same bits.
//
// Bytes moved: the file's (blocks_decode.cu). Floor: those over the read bandwidth.
// Ideas: - as blocks_decode.cu, but in whole numbers (blocks_int8.cuh): half the instructions;
//        - two groups of 8 warps a block share x, which is staged once;
//        - a step of a panel lies in one piece, so one lane asks for all of it by one bulk copy;
//        - every warp has a ring of its own that runs on across products and types, at the pace at which x is asked for.
// Reached on an H200 (read 4.5 TB/s), a layer's products, its state left out: q8_0 80, q4_k 68, q6_k 73, our q4_k_m 67 %
//   where f16 reached 81, 63, 68, 61 in the same run and single launches of blocks_decode.cu 75, 53, -, 55; lm_head's
//   shape alone 91, 86 and q6_k 82 % (f16 91, 79, 87). What is missing: bench/results/gpu-decode.md.
// blocks_chain_once tells L2 that weights are read once: q4_k and our q4_k_m 1.5 to 2 % faster, q8_0 with its states 0.8 %
//   slower, hence both.
// Tried: sums of a panel without a barrier of its warps (mbarriers, eight panels deep): q4_k 53.5 -> 54 us; the panels
//   left in the end shared by both groups: q4_k_m's 58 -> 61.7, SwiGLU's two matrices alone no change; x by warps of its
//   own to a second place (q8_0 79.8 -> 76.5, q4_k 50.1 -> 55); fewer slots on their way; eight warps for states, for which
//   products had 88 registers a thread (a layer without states 52.4 -> 54.8).
// Launch: 640 threads, grid = multiprocessors; dynamic smem Fixed + 16 * `ring` + 2.5 K for the widest K; `ring` a
//   multiple of `slot`, which is the largest step of the types; at most 8 slots.
#include "chain.cuh"
#include "blocks_int8.cuh"

#if HOPPER
struct alignas(128) Fixed {
    float red[GROUPS][2][WARPS][2][16];
    float squares[SQUARES][WARPS];
    float rstd[GROUPS];
    uint64_t full[GROUPS * WARPS][SLOTS_MAX];
    alignas(16) uint32_t zeros[ZEROS / 4];
    SsmShared state;
};
static_assert(sizeof(Fixed) == 7296, "as zig/cuda/chain_wire.zig has it");

DEVICE int step_columns(int type) { return type >= Q4_K ? 256 : 128; }
DEVICE int step_bytes(int type) {
    return type == Q8_0 ? Block<Q8_0>::BYTES : type == Q4_0 ? Block<Q4_0>::BYTES : type == Q4_K ? Block<Q4_K>::BYTES
         : type == Q5_K ? Block<Q5_K>::BYTES : Block<Q6_K>::BYTES;
}

DEVICE int panel_at(const Product& p, int panel) { return p.backwards ? (p.n + 15) / 16 - 1 - panel : panel; }

// Steps of all products that one warp takes, in order. ONCE: L2 hears that weights are read once.
template <bool ONCE> struct Walk {
    static constexpr int AHEAD = 2, LIMIT = 0;
    const ChainArgs* a;
    int warp, me;  // warp of the group; the group's number in the grid
    int of, panel, part, left, mine, panels, bytes, stride;
    size_t panel_bytes;
    const uint8_t* src;

    DEVICE_MEMBER void product() {
        const Product& p = a->of[of];
        const int steps = p.k / step_columns(p.type);
        bytes = step_bytes(p.type), stride = WARPS * bytes, panels = (p.n + 15) / 16;
        panel_bytes = (size_t)steps * bytes, mine = (steps - warp + WARPS - 1) / WARPS;
        panel = warp < steps ? me : panels, part = 0;
        if (panel < panels) begin();
    }
    DEVICE_MEMBER void begin() {
        const Product& p = a->of[of];
        src = (part ? p.w2 : p.w) + panel_at(p, panel) * panel_bytes + (size_t)warp * bytes, left = mine;
    }
    // Where `left` is zero: moves on to a step that there is.
    DEVICE_MEMBER bool seek() {
        while (left == 0) {
            if (panel < panels) {
                if (++part == (a->of[of].swiglu ? 2 : 1)) part = 0, panel += GROUPS * gridDim.x;
                if (panel < panels) begin();
            } else {
                if (of + 1 >= a->count) return false;
                of++, product();
            }
        }
        return true;
    }
    DEVICE_MEMBER void next() { src += stride, left--; }
    DEVICE_MEMBER void copy(uint32_t to, uint32_t bar) {
        mbar_expect(bar, bytes);
        if (ONCE) bulk_load_once(to, src, bytes, bar);
        else bulk_load(to, src, bytes, bar);
    }
};

template <int TYPE, typename Ring> DEVICE void row_sums(Ring& ring, int count, Columns x, uint32_t sums, float* r) {
    for (; count > 0; count--, x.next(), sums += WARPS * Block<TYPE>::STEP / 2) {
        mbar_wait(ring.from_bar, ring.parity);
        step_sums<TYPE>(ring.from, x, sums, ring.lane, r);
        ring.next();
    }
}

template <typename Ring>
DEVICE void product(const Product& p, Ring& ring, Fixed* fixed, uint16_t* cells, uint32_t xs, int group) {
    const int lane = ring.lane, warp = ring.walk.warp, g = lane >> 2, t = lane & 3;
    const int panels = (p.n + 15) / 16, columns = step_columns(p.type), steps = p.k / columns, parts = p.swiglu ? 2 : 1;
    const int count = (steps - warp + WARPS - 1) / WARPS;
    const Columns x(xs + warp * columns * 2, smem_addr(fixed->zeros), WARPS * columns, lane);
    const uint32_t sums = xs + 2 * p.k + t * 16 + warp * columns / 2;
    int buffer = 0;
    for (int panel = ring.walk.me; panel < panels; panel += GROUPS * gridDim.x) {
        const int n = panel_at(p, panel) * 16 + lane;
        const bool adds = warp == (panel & (WARPS - 1)), writes = adds && lane < 16 && n < p.n;
        float onto = 0;  // asked for early: its latency is the stream's
        if (writes && p.residual) onto = load_residual(p, cells, n);
        for (int part = 0; part < parts; part++) {
            float r[2] = {0, 0};
            switch (p.type) {
                case Q8_0: row_sums<Q8_0>(ring, count, x, sums, r); break;
                case Q4_0: row_sums<Q4_0>(ring, count, x, sums, r); break;
                case Q4_K: row_sums<Q4_K>(ring, count, x, sums, r); break;
                case Q5_K: row_sums<Q5_K>(ring, count, x, sums, r); break;
                default: row_sums<Q6_K>(ring, count, x, sums, r);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float v = r[i];
                v += __shfl_xor_sync(~0u, v, 1);
                v += __shfl_xor_sync(~0u, v, 2);
                if (t == 0) fixed->red[group][buffer][warp][part][g + 8 * i] = v;
            }
        }
        group_sync(group);
        if (writes) {
            float v[2] = {0, 0};
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                v[0] += fixed->red[group][buffer][w][0][lane];
                if (p.swiglu) v[1] += fixed->red[group][buffer][w][1][lane];
            }
            if (p.mode != PLAIN) v[0] *= fixed->rstd[group], v[1] *= fixed->rstd[group];
            float s = p.swiglu ? silu(v[0]) * v[1] : v[0];
            if (p.bias) s += p.bias[n];
            if (p.residual) s += onto;
            store_result(p, cells, n, s);
        }
        buffer ^= 1;
    }
    meet_as_often(group, panels);
}

template <bool ONCE> DEVICE void chain(const ChainArgs& a) {
    DYNAMIC_SHARED(smem);
    Fixed& fixed = *(Fixed*)smem;
    const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), group = warp / WARPS;
    if (group == GROUPS) {
        if (a.count == 1) return;
        pdl_wait();
        update_states(a, own_cells(a, load_turn(a)), fixed.state);
        return;
    }
    const int tid = threadIdx.x % GROUP_THREADS;
    const uint32_t rings = smem_addr(smem) + sizeof(Fixed), xs = rings + GROUPS * WARPS * a.ring;
    Ring<Walk<ONCE>> ring;
    ring.begin(rings + warp * a.ring, a.ring, a.slot, fixed.full[warp]);
    Walk<ONCE>& walk = ring.walk;
    walk.a = &a, walk.warp = warp % WARPS, walk.me = blockIdx.x + group * gridDim.x, walk.of = 0, walk.left = 0;
    walk.product();
    prefetch_norm(a.of[0]);
    ring.fill();
    if (threadIdx.x < ZEROS / 4) fixed.zeros[threadIdx.x] = 0;  // seen by all behind the barrier of `stage_any`
    pdl_wait();
    pdl_launch();
    const uint32_t turn = load_turn(a);
    uint16_t* cells = nullptr;
    for (int of = 0; of < a.count; of++) {
        const Product& p = a.of[of];
        ring.at = of, ring.ahead = Walk<ONCE>::AHEAD;
        // What a state waits for comes sooner where less is under way, but if L2 is told that weights are read once.
        ring.held = !ONCE && p.state >= 0;
        const bool idle = blockIdx.x >= (p.n + 15) / 16;  // nothing to do, so nothing to wait for
        if (of > 0 && !idle) prefetch_norm(p);
        if (p.state >= 0 && group == 0) named_arrive(STATES_BEGIN, GROUP_THREADS + STATE_THREADS);
        if (!idle)
            stage_any(p, cells, fixed.squares, group, tid,
                      [&](int c, const float* v, bool there) { store_bytes(xs, xs + 2 * p.k, c, v, there); },
                      [&]() { ring.pay(); });
        ring.pay_all();
        if (of == 0) cells = own_cells(a, turn), empty_cells(a, turn);
        if (idle) continue;
        if (p.mode != PLAIN && tid < 32) fixed.rstd[group] = row_scale(p, fixed.squares);
        product(p, ring, &fixed, cells, xs, group);
    }
    end_cells(a);
}
#define BODY(ONCE) chain<ONCE>(a)
#else
#define BODY(ONCE) asm volatile("trap;")
#endif

extern "C" __global__ void __maxnreg__(96)
    blocks_chain(const __grid_constant__ ChainArgs a) {
    BODY(false);
}
extern "C" __global__ void __maxnreg__(96)
    blocks_chain_once(const __grid_constant__ ChainArgs a) {
    BODY(true);
}
