// Weights in blocks times one row of x, in whole numbers: the inner step of blocks_chain_sm90.cu.
//
// A weight's integer is a byte as it lies (q8_0), or one logical operation away from it: a word of eight nibbles
// holds four columns of row g in its low ones, four of row g + 8 in its high ones, and those may stay where they are,
// 16 times too large, which their scale takes back. So mma.m16n8k32 takes 32 columns of 16 rows from four words.
// x becomes 16 bits, each 32 columns by their largest value, and those two bytes, high and low, which are two
// columns of operand B: of four blocks of 32, block b has columns 2b and 2b + 1 alone, so that each lane ends with
// the two sums of the block whose scale it has. Sums are exact; what is lost are 2^-16 of the largest x of 32.
// ldmatrix fetches those columns: lanes whose row is not the block's point at zeros.
//
// The bound this answers: at q4_k's 0.56 bytes a weight an H200 brings a step (16 rows x 256) every 470 cycles of a
// scheduler, and what takes two operands of f16 from a word (five operations for each 16 columns, two to mask x) took
// 266 instructions, of which each cost 1.4 to 1.6 cycles: with no copies and no waiting at all a layer's products
// took 50.6 us where their bytes take 34.7.
#pragma once
#include "blocks.cuh"

constexpr int ZEROS = 288;  // bytes of zeros that ldmatrix needs: a row's, and a half further

// What a lane has of 64 columns (quarter q of a step of 256), as its bits lie.
template <int TYPE> struct Raw {
    uint4 v[TYPE == Q8_0 ? 2 : 1];
    uint2 high;
};
template <int TYPE> DEVICE Raw<TYPE> load_raw(uint32_t step, int q, int lane) {
    Raw<TYPE> r = {};
    const uint32_t at = step + lane * 16;
    if (TYPE == Q8_0) r.v[0] = lds128(at + 2 * q * 512), r.v[TYPE == Q8_0] = lds128(at + (2 * q + 1) * 512);
    else r.v[0] = lds128(at + q * 512);
    if (TYPE == Q5_K) r.high.x = lds32(at + 4 * 512 + 4 * q);
    if (TYPE == Q6_K) r.high = lds64(at + (4 + (q >> 1)) * 512 + 8 * (q & 1));
    return r;
}
DEVICE uint32_t moved(uint32_t w, int from, int to) { return from < to ? w << (to - from) : w >> (from - to); }
// Operand A of the first or second 32 columns of those 64: rows g, g + 8 of 16 columns, then of the other 16.
template <int TYPE> DEVICE void operand(const Raw<TYPE>& raw, int half, uint32_t* a) {
    const uint4 v = raw.v[TYPE == Q8_0 ? half : 0];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int c = 2 * half + i;
        if (TYPE == Q8_0) {
            a[2 * i] = words[2 * i], a[2 * i + 1] = words[2 * i + 1];
            continue;
        }
        const uint32_t w = words[c];
        a[2 * i] = w & 0x0f0f0f0f;
        a[2 * i + 1] = TYPE == Q4_0 || TYPE == Q4_K ? w & 0xf0f0f0f0 : w >> 4 & 0x0f0f0f0f;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (TYPE == Q5_K) a[2 * i + r] = and_or(moved(raw.high.x, 2 * c + r, 4), 0x10101010, a[2 * i + r]);
            if (TYPE == Q6_K)
                a[2 * i + r] = and_or(moved(half ? raw.high.y : raw.high.x, 4 * i + 2 * r, 4), 0x30303030, a[2 * i + r]);
        }
    }
}
// What comes off the integers of rows g and of rows g + 8, and what those of rows g + 8 are multiplied by.
template <int TYPE> struct Zero {
    static constexpr float LOW = TYPE == Q4_0 ? 8 : TYPE == Q6_K ? 32 : 0;
    static constexpr float HIGH = TYPE == Q4_0 ? 128 : LOW;
    static constexpr float UNIT = TYPE == Q4_0 || TYPE == Q4_K ? 0.0625f : 1;
};

// Where this lane's rows of operand B lie, of blocks 0 and 1 and of blocks 2 and 3 of 128 columns: a block has 64
// bytes, high ones of its columns, then low ones; zeros stay where they are.
struct Columns {
    uint32_t at[2], stride[2];
    // Of x at `x`, moving on by `columns`.
    DEVICE_MEMBER Columns(uint32_t x, uint32_t zeros, int columns, int lane) {
        const int n = lane & 7;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int block = 2 * i + (lane >> 4);
            const bool mine = n >> 1 == block;
            at[i] = mine ? x + block * 64 + (n & 1) * 32 + (lane >> 3 & 1) * 16 : zeros;
            stride[i] = mine ? columns * 2 : 0;
        }
    }
    DEVICE_MEMBER void next() { at[0] += stride[0], at[1] += stride[1]; }
};

// x of eight columns, number c of the row, to shared memory: bytes in the order of a lane's four of 16 columns
// ({2t, 2t+8, 2t+1, 2t+9}, t = 0..3), and behind all of them for each 32 columns: sums of its 16s, and what one is.
// All lanes of a warp call it; those with `there`, whole fours, store.
DEVICE void store_bytes(uint32_t xs, uint32_t sums, int c, const float* v, bool there) {
    uint32_t top = 0;  // as bits: what is no number is the largest
#pragma unroll
    for (int i = 0; i < 8; i++) top = max(top, __float_as_uint(v[i]) & 0x7fffffff);
    top = max(top, __shfl_xor_sync(~0u, top, 1));
    top = max(top, __shfl_xor_sync(~0u, top, 2));
    const float most = __uint_as_float(max(top, __float_as_uint(1e-30f))), by = 32512.0f * fast_rcp(most);
    const bool far = c & 1;
    uint32_t high[2], low[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t m[4];  // 1.5 * 2^23 + 128 + number: bytes 1 and 0 are its high one and its low one, less 128
#pragma unroll
        for (int e = 0; e < 4; e++) m[e] = __float_as_uint(fmaf(v[4 * i + e], by, 12583040.0f));
        const uint32_t a = __byte_perm(m[0], m[1], 0x5140), b = __byte_perm(m[2], m[3], 0x5140);
        low[i] = __byte_perm(a, b, 0x5410) ^ 0x80808080, high[i] = __byte_perm(a, b, 0x7632);
    }
    int s = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) s += __dp4a((int)low[i], 0x01010101, __dp4a((int)high[i], 0x01010101, 0) * 256);
    s += __shfl_xor_sync(~0u, s, 1);
    // The lane of the nearer eight columns writes the high bytes of 16, the other the low ones.
    uint32_t near[2], off[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t other = __shfl_xor_sync(~0u, far ? high[i] : low[i], 1);
        near[i] = far ? other : high[i], off[i] = far ? low[i] : other;
    }
    if (!there) return;
    sts128(xs + (c >> 2) * 64 + far * 32 + (c >> 1 & 1) * 16,
           make_uint4(__byte_perm(near[0], off[0], 0x5140), __byte_perm(near[0], off[0], 0x7362),
                      __byte_perm(near[1], off[1], 0x5140), __byte_perm(near[1], off[1], 0x7362)));
    const uint32_t place = sums + (c >> 2) * 16;
    if (!far) sts32(place + (c >> 1 & 1) * 4, __float_as_uint((float)s));
    if ((c & 3) == 1) sts32(place + 8, __float_as_uint(most * (1.0f / 32512.0f)));
}

// One step of 16 rows against x: adds to r, of rows g and g + 8, the part of columns 32 t .. of each 128.
template <int TYPE>
DEVICE void step_sums(uint32_t step, const Columns& x, uint32_t sums, int lane, float* r) {
    typedef Block<TYPE> F;
    typedef Zero<TYPE> Z;
    Raw<TYPE> raw[2 * F::HALVES];
#pragma unroll
    for (int q = 0; q < 2 * F::HALVES; q++) raw[q] = load_raw<TYPE>(step, q, lane);
    Tops top = tops<TYPE>(step, lane);
    top.d[1] *= Z::UNIT;
#pragma unroll
    for (int h = 0; h < F::HALVES; h++) {
        const uint4 of = lds128(sums + h * 64);
        Scales f = scales<TYPE>(step, h, lane, top);
        if (!F::LONG) f.d[1][0] *= Z::UNIT;
        int d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};  // q6_k: of each 32 columns the first 16, and the others
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t b[4];
            ldmatrix4_still(b, x.at[i] + h * 256);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                uint32_t a[4];
                operand<TYPE>(raw[2 * h + i], j, a);
                if (TYPE == Q6_K) mma_u8_16(d, a, b[2 * j]), mma_u8_16(e, a + 2, b[2 * j + 1]);
                else if (TYPE == Q8_0) mma_s8_32(d, a, b[2 * j], b[2 * j + 1]);
                else mma_u8_32(d, a, b[2 * j], b[2 * j + 1]);
            }
        }
        const float s0 = __uint_as_float(of.x), s1 = __uint_as_float(of.y), unit = __uint_as_float(of.z);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float zero = i ? -Z::HIGH : -Z::LOW;
            float v = (float)(d[2 * i] * 256 + d[2 * i + 1]);
            if (TYPE == Q6_K) {
                const float w = (float)(e[2 * i] * 256 + e[2 * i + 1]);
                v = fmaf(f.d[i][1], fmaf(zero, s1, w), f.d[i][0] * fmaf(zero, s0, v));
                r[i] = fmaf(unit, v, r[i]);
                continue;
            }
            if (zero != 0) v = fmaf(zero, s0 + s1, v);
            v *= f.d[i][0];
            if (F::MIN) v = fmaf(-f.m[i], s0 + s1, v);
            r[i] = fmaf(unit, v, r[i]);
        }
    }
}
