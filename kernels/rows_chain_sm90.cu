// A chain of `linear`, one row, weights in rows (bf16 or e4m3): products that follow each other, and states (chain.cuh),
// in one launch.
//
// Contract: `count` products, each as linear_decode.cu's (bf16) or linear_fp8.cu's fp8_decode (e4m3) with its norm in front
//   and bias, residual, SwiGLU behind: the same bits as theirs; all of one type; each may read what the ones before it
//   wrote. With SwiGLU N is a multiple of 8. States as ssm_update.cu's conv_ssm_update, of one sequence: the same bits.
//
// Bytes moved: the weights once. Floor: those over the read bandwidth.
// Ideas: - as blocks_chain_sm90.cu: two groups of 8 warps a block share x; every warp has a ring of its own that runs on
//          across products;
//        - a step of a warp, 16 rows x 128 bytes, is one tensor copy (with SwiGLU eight rows of each matrix), so nothing is
//          copied by threads, and what lies beyond N or K comes as zeros;
//        - of the 8 rows that a load of 16 bytes a lane meets, rows r and r + 4 come together: their pieces lie in other
//          banks once the copy has swizzled them. Which lanes have which rows does not matter to a row's bits.
// Reached on an H200, a layer with its state: e4m3 72.7 us, 0.85 of the floor, where single launches take 84.1; bf16 131.8,
//   0.92, for 139.3. On an H100: e4m3 98.2 for 109.4, bf16 190.2 for 199.1.
// Tried: bench/results/gpu-decode.md. bf16 breaks down where much is under way: lm_head's shape took 254 us with rings of
//   four steps that were filled at once and 339 with five, 233 with two steps under way.
// Launch: 768 threads, grid = multiprocessors; dynamic smem 16 * `ring` + Fixed + 2 bytes for each column of x, of the
//   widest product, K rounded up to 2048; `ring` a multiple of 1024, 4096 at least, less than 16384. Tensor maps with
//   128-byte swizzle, boxes of 128 bytes x 16 rows, with SwiGLU `mapPairs` (stream.zig) of 8 rows each.
#include "chain.cuh"
#include "e4m3.cuh"

struct ChainMaps {
    CUtensorMap of[CHAIN_MAX];
};

#if HOPPER
enum RowsType { BF16, E4M3 };

struct alignas(128) Fixed {
    float red[GROUPS][2][WARPS][16];
    float squares[SQUARES][WARPS];
    float rstd[GROUPS];
    uint64_t begun;  // products whose x is there
    Bars bars[GROUPS * WARPS];
    alignas(16) uint32_t zeros[16];
    SsmShared state;
};
static_assert(sizeof(Fixed) == 6144, "as zig/cuda/chain_ring.zig has it");

// Columns of a warp's step, and of a group's.
template <int TYPE> constexpr int COLUMNS = TYPE == BF16 ? 64 : 128;
template <int TYPE> constexpr int STRIDE = WARPS * COLUMNS<TYPE>;
constexpr int STEP_BYTES = 2048;

DEVICE int tiles_of(const Product& p) { return p.swiglu ? p.n / 8 : (p.n + 15) / 16; }
DEVICE int tile_at(const Product& p, int tiles, int tile) { return p.backwards ? tiles - 1 - tile : tile; }
template <int TYPE> DEVICE int steps_of(const Product& p) { return (p.k + STRIDE<TYPE> - 1) / STRIDE<TYPE>; }
// A tile starts its walk over k at its own place, as in linear_decode.cu.
template <int TYPE> DEVICE int first_column(int tile, int steps, int warp) {
    return tile * 5 % steps * STRIDE<TYPE> + warp * COLUMNS<TYPE>;
}

// Steps of all products that one warp takes, in order.
template <int TYPE> struct Walk {
    static constexpr bool SHARED = false;
    static constexpr int bytes = STEP_BYTES;
    const ChainArgs* a;
    const ChainMaps* maps;
    int warp, me;  // warp of the group; the group's number in the grid
    int of, nth, tile, left, tiles, steps, column, end, row;
    bool pairs;

    // Of warp `w` of group `group` of the grid.
    DEVICE_MEMBER void begin(const ChainArgs& args, int w, int group) {
        a = &args, warp = w, me = group, of = nth = 0, left = 0;
        product();
    }
    DEVICE_MEMBER void product() {
        const Product& p = a->of[of];
        tiles = tiles_of(p), steps = steps_of<TYPE>(p), end = steps * STRIDE<TYPE>, pairs = p.swiglu;
        tile = me, nth += (int)blockIdx.x < tiles;
        if (tile < tiles) tile_begins();
    }
    DEVICE_MEMBER void tile_begins() {
        const int at = tile_at(a->of[of], tiles, tile);
        column = first_column<TYPE>(at, steps, warp), left = steps, row = pairs ? at : at * 16;
    }
    // Whether there is a step; moves on to it.
    DEVICE_MEMBER bool more() {
        while (left == 0) {
            if (tile < tiles) {
                tile += GROUPS * gridDim.x;
                if (tile < tiles) tile_begins();
            } else {
                if (of + 1 >= a->count) return false;
                of++, product();
            }
        }
        return true;
    }
    DEVICE_MEMBER void next() {
        left--, column += STRIDE<TYPE>;
        if (column >= end) column -= end;
    }
    DEVICE_MEMBER void copy(uint32_t to, uint32_t bar) {
        mbar_expect(bar, STEP_BYTES);
        if (pairs) tma_load_pairs(to, &maps->of[of], column, row, bar);
        else tma_load(to, &maps->of[of], column, row, bar);
    }
};

// Sixteen columns of 16 rows: four matrix steps.
DEVICE void e4m3_steps(float* acc, const uint4& p, const uint4& q, const uint4& u, const uint4& v) {
    const uint32_t a[4] = {p.x, p.y, p.z, p.w}, b[4] = {q.x, q.y, q.z, q.w};
    const uint32_t x[8] = {u.x, u.y, u.z, u.w, v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) mma_bf16(acc, even(a[i]), even(b[i]), odd(a[i]), odd(b[i]), x[2 * i], x[2 * i + 1]);
}
// A slot times x: `at` is where this lane's pieces of rows g and g + 8 begin, `x` its columns of x; `half` bytes further
// lie those of the other half.
template <int TYPE> DEVICE void step_sums(uint32_t at, uint32_t x, int half, float* acc, float* far) {
    const uint4 p0 = lds128(at), q0 = lds128(at + 1024), p1 = lds128(at ^ 64), q1 = lds128((at ^ 64) + 1024);
    if constexpr (TYPE == E4M3) {
        const uint4 u0 = lds128(x), v0 = lds128(x + 16);
        e4m3_steps(acc, p0, q0, u0, v0);
        const uint4 u1 = lds128(x + half), v1 = lds128(x + half + 16);
        e4m3_steps(far, p1, q1, u1, v1);
    } else {
        const uint4 x0 = lds128(x), x1 = lds128(x + half);
        mma_bf16(acc, p0.x, q0.x, p0.y, q0.y, x0.x, x0.y);
        mma_bf16(acc, p0.z, q0.z, p0.w, q0.w, x0.z, x0.w);
        mma_bf16(acc, p1.x, q1.x, p1.y, q1.y, x1.x, x1.y);
        mma_bf16(acc, p1.z, q1.z, p1.w, q1.w, x1.z, x1.w);
    }
}

template <int TYPE>
DEVICE void product(const Product& p, Ring& ring, Fixed* fixed, uint16_t* cells, uint32_t xs, int group) {
    const int lane = ring.lane, warp = threadIdx.x / 32 % WARPS, g = lane >> 2, t = lane & 3, r = lane & 15;
    const int tiles = tiles_of(p), steps = steps_of<TYPE>(p), end = steps * STRIDE<TYPE>;
    const int row = g >> 1 | (g & 1) << 2;
    const uint32_t piece = row * 128 + ((t ^ row) << 4);
    // Column 0 of operand B is x, the others are zeros.
    const uint32_t x = g == 0 ? xs : smem_addr(fixed->zeros);
    const int bytes = g == 0 ? 2 : 0;
    const int me = blockIdx.x + group * gridDim.x;
    int buffer = 0, round = 0;
    for (int i = me; i < tiles; i += GROUPS * gridDim.x, round++) {
        const int tile = tile_at(p, tiles, i), n = p.swiglu ? tile * 8 + (r & 7) : tile * 16 + r;
        const bool adds = warp == (round & (WARPS - 1)), writes = adds && lane < (p.swiglu ? 8 : 16) && n < p.n;
        float onto = 0, scale = 0;  // asked for early: their latency is the stream's
        if (TYPE == E4M3 && adds && n < p.n) scale = __ldg(scales_of(p.swiglu && r >= 8 ? p.w2 : p.w) + n);
        if (writes && p.residual) onto = load_residual(p, cells, n);
        float acc[4] = {0, 0, 0, 0}, far[4] = {0, 0, 0, 0};
        int column = first_column<TYPE>(tile, steps, warp) + t * (COLUMNS<TYPE> / 8);
        for (int step = 0; step < steps; step++) {
            step_sums<TYPE>(ring.wait(STEP_BYTES) + piece, x + column * bytes, COLUMNS<TYPE> / 2 * bytes, acc, far);
            column += STRIDE<TYPE>;
            if (column >= end) column -= end;
            ring.next(STEP_BYTES, acc[0] + far[0]);
        }
        if (t == 0) {
            float* red = fixed->red[group][buffer][warp];
            red[row] = acc[0] + far[0], red[row + 8] = acc[2] + far[2];
        }
        group_sync(group);
        if (adds) {
            // Rows of the matrix that lies first in memory are the first eight.
            const int from = p.swiglu && p.up_first ? r ^ 8 : r;
            float s = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) s += fixed->red[group][buffer][w][from];
            if (TYPE == E4M3) s = s * UP * scale;
            if (p.mode != PLAIN) s *= fixed->rstd[group];
            const float up = __shfl_xor_sync(~0u, s, 8);
            if (p.swiglu) s = silu(s) * up;
            if (writes) {
                if (p.bias) s += p.bias[n];
                if (p.residual) s += onto;
                store_result(p, cells, n, s);
            }
        }
        buffer ^= 1;
    }
    meet_as_often(group, tiles);
}

// Eight columns of x to shared memory; of e4m3's each four in the order 0, 2, 1, 3.
template <int TYPE> DEVICE void store_x(uint32_t to, const float* v) {
    if constexpr (TYPE == E4M3) {
        float u[8];
#pragma unroll
        for (int i = 0; i < 8; i++) u[i] = v[i] * UP;
        sts128(to, make_uint4(pack_bf16(u[0], u[2]), pack_bf16(u[1], u[3]), pack_bf16(u[4], u[6]), pack_bf16(u[5], u[7])));
    } else {
        sts128(to, pack8(v));
    }
}
// 1 / rms of x, by one thread, in the order of linear_decode.cu.
DEVICE float row_scale_in_order(const Product& p, const float (*squares)[WARPS]) {
    const int parts = (p.k / 8 + GROUP_THREADS - 1) / GROUP_THREADS;
    float s = 0;
    for (int j = 0; j < parts; j++)
#pragma unroll
        for (int w = 0; w < WARPS; w++) s += squares[j][w];
    return rsqrtf(s / p.k + p.eps);
}

template <int TYPE> DEVICE void chain(const ChainMaps& maps, const ChainArgs& a) {
    DYNAMIC_SHARED(smem);
    const int warp = warp_number(), group = warp / WARPS;
    Fixed& fixed = *(Fixed*)(smem + GROUPS * WARPS * a.ring);
    const uint32_t rings = smem_addr(smem), xs = rings + GROUPS * WARPS * a.ring + sizeof(Fixed);
    Ring ring;
    begin_warps(a, ring, fixed, rings, warp);
    if (warp >= SUPPLIER) {
        Walk<TYPE> walk;
        walk.maps = &maps;
        return serve_weights(a, walk, fixed.bars, rings, &fixed.begun);
    }
    if (group == GROUPS) return serve_states(a, fixed.state);
    struct Kernel {
        Ring& ring;
        Fixed& fixed;
        uint32_t xs;
        int group;
        DEVICE_MEMBER int tiles(const Product& p) const { return tiles_of(p); }
        DEVICE_MEMBER void store(const Product& p, int c, const float* v, bool) const {
            if (c < steps_of<TYPE>(p) * STRIDE<TYPE> / 8) store_x<TYPE>(xs + c * 16, v);
        }
        DEVICE_MEMBER void multiply(const Product& p, uint16_t* cells) const {
            if (p.mode != PLAIN && threadIdx.x % GROUP_THREADS == 0)
                fixed.rstd[group] = row_scale_in_order(p, fixed.squares);
            product<TYPE>(p, ring, &fixed, cells, xs, group);
        }
    };
    serve_products(a, fixed.squares, smem_addr(&fixed.begun), Kernel{ring, fixed, xs, group});
}
#define BODY(TYPE) chain<TYPE>(maps, a)
#else
#define BODY(TYPE) asm volatile("trap;")
#endif

#define ROWS_CHAIN(NAME, TYPE)                                                                              \
    extern "C" __global__ void __maxnreg__(80)                                                              \
        NAME(const __grid_constant__ ChainMaps maps, const __grid_constant__ ChainArgs a) {                 \
        BODY(TYPE);                                                                                         \
    }
ROWS_CHAIN(rows_chain_bf16, BF16)
ROWS_CHAIN(rows_chain_e4m3, E4M3)
