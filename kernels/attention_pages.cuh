// Pages of keys and values in shared memory, and what a warp adds up of them: attention_decode_sm90.cu.
#pragma once
#include "attention_decode.cuh"
#include "hopper.cuh"

#if HOPPER
constexpr int HD = 128, PAGE = DECODE_PAGE, WARPS = 8, RECORD = HD + 4;
constexpr int SIDE = 16384, ROOM = 2 * SIDE;  // a page's keys or values; both
constexpr int ITEMS = 4;
// Barriers of pages that have come. More than rooms: warps wait for pages in any order, a barrier tells two phases
// apart only, and the page that used it before must have come for sure.
constexpr int CAME = 16;

template <int REP> struct Layout {
    static constexpr int ROOMS = 5;
    static constexpr int Q = ROOMS * ROOM, SUMS = Q + ITEMS * REP * HD * 2;
    static constexpr int BARS = SUMS + WARPS * REP * RECORD * 4;
    static constexpr int K_FULL = BARS, V_FULL = K_FULL + 8 * CAME, K_EMPTY = V_FULL + 8 * CAME;
    static constexpr int V_EMPTY = K_EMPTY + 8 * ROOMS, Q_FULL = V_EMPTY + 8 * ROOMS, Q_EMPTY = Q_FULL + 8 * ITEMS;
    static constexpr int INFO = Q_EMPTY + 8 * ITEMS, END = INFO + ITEMS * 32;
    static_assert(END + 1024 <= 232448, "shared memory");
};

// Piece of 8 channels of a key.
DEVICE uint32_t swizzled(uint32_t side, int key, int piece) {
    const int row = 2 * key + (piece >> 3);
    return side + row * 128 + (((piece & 7) ^ (row & 7)) << 4);
}

// Below any score.
constexpr float LOWEST = -1e30f;
// What a warp has of a group: 16 keys of each of its pages. Channels 16 c + g and 8 behind it of columns 2 t, 2 t + 1.
struct Sums {
    float o[8][4], top[2], den[2];
    DEVICE_MEMBER void clear() {
#pragma unroll
        for (int c = 0; c < 8; c++) o[c][0] = o[c][1] = o[c][2] = o[c][3] = 0;
        top[0] = top[1] = LOWEST, den[0] = den[1] = 0;
    }
};

// One page: `left` of the keys from this warp's first on are there. `zero` is that.
template <int REP>
DEVICE void page_sums(uint32_t smem, uint32_t at, const uint32_t* q, int left, float scale, uint32_t zero, Sums& w) {
    typedef Layout<REP> L;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, mat = lane >> 3, r8 = lane & 7;
    const int slice = (threadIdx.x >> 5 & 3) * 16;
    const uint32_t room = at % L::ROOMS, came = at % CAME, phase = (at / CAME) & 1;
    const uint32_t keys = smem + room * ROOM, values = keys + SIDE;
    float s[2][4];
#pragma unroll
    for (int j = 0; j < 2; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
    mbar_wait(smem + L::K_FULL + 8 * came, phase);
    uint32_t k[8][4];
#pragma unroll
    for (int i = 0; i < 8; i++) ldmatrix4(k[i], swizzled(keys, slice + (mat & 1) * 8 + r8, 2 * i + (mat >> 1)));
#pragma unroll
    for (int i = 0; i < 8; i++) mma_bf16(s[i & 1], k[i][0], k[i][1], k[i][2], k[i][3], q[2 * i], q[2 * i + 1]);
    // Behind the last keys' coming: else the compiler may arrive before, and now and then the next page comes first.
    __syncwarp();
    if (lane == 0) mbar_arrive(smem + L::K_EMPTY + 8 * room + (k[7][3] & zero));
    float x[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        x[e] = s[0][e] + s[1][e];
        if (g + (e >> 1) * 8 >= left) x[e] = -INFINITY;
    }
    float top[2] = {fmaxf(x[0], x[2]), fmaxf(x[1], x[3])};
#pragma unroll
    for (int e = 0; e < 2; e++) {
#pragma unroll
        for (int o = 4; o < 32; o <<= 1) top[e] = fmaxf(top[e], __shfl_xor_sync(~0u, top[e], o));
        top[e] = fmaxf(top[e], w.top[e]);
    }
    if (__any_sync(~0u, top[0] > w.top[0] || top[1] > w.top[1])) {
        float f[2];
#pragma unroll
        for (int e = 0; e < 2; e++) f[e] = fast_exp2((w.top[e] - top[e]) * scale), w.den[e] *= f[e], w.top[e] = top[e];
#pragma unroll
        for (int c = 0; c < 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.o[c][e] *= f[e & 1];
    }
#pragma unroll
    for (int e = 0; e < 4; e++) x[e] = fast_exp2((x[e] - w.top[e & 1]) * scale);
    w.den[0] += x[0] + x[2], w.den[1] += x[1] + x[3];
    uint32_t p[2], low[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        p[h] = pack_bf16(x[2 * h], x[2 * h + 1]);
        low[h] = pack_bf16(x[2 * h] - bf_lo(p[h]), x[2 * h + 1] - bf_hi(p[h]));
        if (REP < 8 && t >= 2) p[h] = low[h];
        p[h] = transpose8(p[h]);
        if (REP == 8) low[h] = transpose8(low[h]);
    }
    mbar_wait(smem + L::V_FULL + 8 * came, phase);
    uint32_t v[8][4];
#pragma unroll
    for (int c = 0; c < 8; c++) ldmatrix4_trans(v[c], swizzled(values, slice + (mat >> 1) * 8 + r8, 2 * c + (mat & 1)));
#pragma unroll
    for (int c = 0; c < 8; c++) mma_bf16(w.o[c], v[c][0], v[c][1], v[c][2], v[c][3], p[0], p[1]);
    if (REP == 8)
#pragma unroll
        for (int c = 0; c < 8; c++) mma_bf16(w.o[c], v[c][0], v[c][1], v[c][2], v[c][3], low[0], low[1]);
    __syncwarp();
    if (lane == 0) mbar_arrive(smem + L::V_EMPTY + 8 * room + (v[7][3] & zero));
}

// A warp's sums to `sums` (REP, RECORD).
template <int REP> DEVICE void keep(Sums& w, float* sums) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int e = 0; e < 2; e++)
#pragma unroll
        for (int o = 4; o < 32; o <<= 1) w.den[e] += __shfl_xor_sync(~0u, w.den[e], o);
#pragma unroll
    for (int c = 0; c < 8; c++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float v = w.o[c][e];
            if (REP < 8) v += __shfl_xor_sync(~0u, v, 2);
            const int head = 2 * t + (e & 1);
            if (head < REP) sums[head * RECORD + 16 * c + g + (e >> 1) * 8] = v;
        }
    if (g == 0)
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (2 * t + e < REP) {
                float* const end = sums + (2 * t + e) * RECORD + HD;
                end[0] = w.top[e], end[1] = w.den[e];
            }
}
#endif  // HOPPER
