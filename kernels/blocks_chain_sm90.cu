// A chain of `linear`, one row, weights in blocks: products that follow each other, and states (chain.cuh), in one launch.
//
// Contract: `count` products, each as blocks_decode.cu's with its norm in front and bias, residual, SwiGLU behind,
//   each with a type of its own; each may read what the ones before it wrote. States as ssm_update.cu's conv_ssm_update,
//   of one sequence: the same bits.
//
// Bytes moved: the file's (blocks_decode.cu). Floor: those over the read bandwidth.
// Ideas: - as blocks_decode.cu, but in whole numbers (blocks_int8.cuh): half the instructions;
//        - two groups of 8 warps a block share x, which is staged once;
//        - a step of a panel lies in one piece, so it comes by one bulk copy, of which L2 hears that it is read once;
//        - every warp has a ring of its own that runs on across products and types (chain_ring.cuh).
// Reached on an H200, of the read bandwidth, a layer with its state: our q4_k_m 74 %, q4_k 73, q8_0 83; lm_head's shape
//   alone: q8_0 95, q4_k 89, q6_k 91. On an H100 87, 87, 91; 96, 93, 93. What is missing: bench/results/gpu-decode.md.
// Tried: sums of a panel without a barrier of its warps (mbarriers, eight panels deep): q4_k 53.5 -> 54 us; the panels
//   left in the end shared by both groups: q4_k_m's 58 -> 61.7, SwiGLU's two matrices alone no change; x by warps of its
//   own to a second place (q8_0 79.8 -> 76.5, q4_k 50.1 -> 55).
// Launch: 768 threads, grid = multiprocessors; dynamic smem Fixed + 16 * `ring` + 2.5 K for the widest K; `ring` a
//   multiple of 64, two steps of the widest type at least, less than 16384.
#include "chain.cuh"
#include "blocks_int8.cuh"

#if HOPPER
struct alignas(128) Fixed {
    float red[GROUPS][2][WARPS][2][16];
    float squares[SQUARES][WARPS];
    float rstd[GROUPS];
    uint64_t begun;  // products whose x is there
    Bars bars[GROUPS * WARPS];
    alignas(16) uint32_t zeros[ZEROS / 4];
    SsmShared state;
};
static_assert(sizeof(Fixed) == 8448, "as zig/cuda/chain_ring.zig has it");

DEVICE int step_columns(int type) { return type >= Q4_K ? 256 : 128; }
DEVICE int step_bytes(int type) {
    return type == Q8_0 ? Block<Q8_0>::BYTES : type == Q4_0 ? Block<Q4_0>::BYTES : type == Q4_K ? Block<Q4_K>::BYTES
         : type == Q5_K ? Block<Q5_K>::BYTES : Block<Q6_K>::BYTES;
}

DEVICE int panels_of(const Product& p) { return (p.n + 15) / 16; }
DEVICE int panel_at(const Product& p, int panel) { return p.backwards ? panels_of(p) - 1 - panel : panel; }

// Steps of all products that one warp takes, in order.
struct Walk {
    static constexpr bool SHARED = true;
    const ChainArgs* a;
    int warp, me;  // warp of the group; the group's number in the grid
    int of, nth, panel, part, left, mine, panels, bytes, stride;
    size_t panel_bytes;
    const uint8_t* src;

    // Of warp `w` of group `group` of the grid.
    DEVICE_MEMBER void begin(const ChainArgs& args, int w, int group) {
        a = &args, warp = w, me = group, of = nth = 0, left = 0;
        product();
    }
    DEVICE_MEMBER void product() {
        const Product& p = a->of[of];
        const int steps = p.k / step_columns(p.type);
        bytes = step_bytes(p.type), stride = WARPS * bytes, panels = panels_of(p);
        panel_bytes = (size_t)steps * bytes, mine = (steps - warp + WARPS - 1) / WARPS;
        panel = warp < steps ? me : panels, part = 0, nth += (int)blockIdx.x < panels;
        if (panel < panels) panel_begins();
    }
    DEVICE_MEMBER void panel_begins() {
        const Product& p = a->of[of];
        src = (part ? p.w2 : p.w) + panel_at(p, panel) * panel_bytes + (size_t)warp * bytes, left = mine;
    }
    // Whether there is a step; moves on to it.
    DEVICE_MEMBER bool more() {
        while (left == 0) {
            if (panel < panels) {
                if (++part == (a->of[of].swiglu ? 2 : 1)) part = 0, panel += GROUPS * gridDim.x;
                if (panel < panels) panel_begins();
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
        bulk_load_once(to, src, bytes, bar);
    }
};

template <int TYPE> DEVICE void row_sums(Ring& ring, int count, Columns x, uint32_t sums, float* r) {
    for (; count > 0; count--, x.next(), sums += WARPS * Block<TYPE>::STEP / 2) {
        step_sums<TYPE>(ring.wait(Block<TYPE>::BYTES), x, sums, ring.lane, r);
        ring.next(Block<TYPE>::BYTES, r[0]);
    }
}

DEVICE void product(const Product& p, Ring& ring, Fixed* fixed, uint16_t* cells, uint32_t xs, int group) {
    const int lane = ring.lane, warp = threadIdx.x / 32 % WARPS, g = lane >> 2, t = lane & 3;
    const int panels = panels_of(p), columns = step_columns(p.type), steps = p.k / columns, parts = p.swiglu ? 2 : 1;
    const int count = (steps - warp + WARPS - 1) / WARPS;
    const Columns x(xs + warp * columns * 2, smem_addr(fixed->zeros), WARPS * columns, lane);
    const uint32_t sums = xs + 2 * p.k + t * 16 + warp * columns / 2;
    const int me = blockIdx.x + group * gridDim.x;
    int buffer = 0;
    for (int panel = me; panel < panels; panel += GROUPS * gridDim.x) {
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

DEVICE void chain(const ChainArgs& a) {
    DYNAMIC_SHARED(smem);
    const int warp = warp_number(), group = warp / WARPS;
    Fixed& fixed = *(Fixed*)smem;
    const uint32_t rings = smem_addr(smem) + sizeof(Fixed), xs = rings + GROUPS * WARPS * a.ring;
    Ring ring;
    begin_warps(a, ring, fixed, rings, warp);
    if (warp >= SUPPLIER) {
        Walk walk;
        return serve_weights(a, walk, fixed.bars, rings, &fixed.begun);
    }
    if (group == GROUPS) return serve_states(a, fixed.state);
    struct Kernel {
        Ring& ring;
        Fixed& fixed;
        uint32_t xs;
        int group;
        DEVICE_MEMBER int tiles(const Product& p) const { return panels_of(p); }
        DEVICE_MEMBER void store(const Product& p, int c, const float* v, bool there) const {
            store_bytes(xs, xs + 2 * p.k, c, v, there);
        }
        DEVICE_MEMBER void multiply(const Product& p, uint16_t* cells) const {
            if (p.mode != PLAIN && threadIdx.x % GROUP_THREADS < 32) fixed.rstd[group] = row_scale(p, fixed.squares);
            product(p, ring, &fixed, cells, xs, group);
        }
    };
    serve_products(a, fixed.squares, smem_addr(&fixed.begun), Kernel{ring, fixed, xs, group});
}
#define BODY chain(a)
#else
#define BODY asm volatile("trap;")
#endif

extern "C" __global__ void __maxnreg__(80) blocks_chain(const __grid_constant__ ChainArgs a) { BODY; }
