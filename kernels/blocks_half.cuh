// Weights in blocks times one row of x, in f16: the inner step of blocks_chain_sm90.cu.
//
// f16 holds 1024 + 10 bits exactly: one AND-OR makes two values of a field that stands at bits 0 or 4, where bf16
// (8 bits) needs a shift in front of most. Rows g and g + 8 of a lane lie in fields 0 and 4 of the same word, so the
// sums of rows g + 8 come out 16 times too large, which their scale takes back. Sums of x take the 1024 off.
// x is bf16: 16 columns share a power of two that brings the largest into [2^14, 2^15). Bits are lost only where a
// column is less than 2^-32 of that: nothing that an f32 sum would show.
//
// The bound this answers: at q4_k's 0.56 bytes a weight an H200 brings a step (16 rows x 256) every 468 cycles of a
// scheduler. The step of blocks_decode.cu has 359 instructions, some 220 of them on the integer pipe, which takes
// two cycles for each: 94 % of its time, and 0.69 of the read bandwidth were reached. Here the integer pipe has
// about 120 of them; columns are set to zero by products, on the pipe that has room.
#pragma once
#include "blocks.cuh"

DEVICE void mma_half(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE uint32_t mul_half2(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DEVICE uint32_t pack_half2(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
DEVICE void sts32(uint32_t addr, uint32_t v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(addr), "r"(v) : "memory"); }

// What comes off the sums of rows g and of rows g + 8: 1024, and what the type's integers have on top.
template <int TYPE> struct Zero {
    static constexpr float LOW = TYPE == Q8_0 ? 1152 : TYPE == Q4_0 ? 1032 : TYPE == Q6_K ? 1056 : 1024;
    static constexpr float HIGH = TYPE == Q8_0 ? 1152 : TYPE == Q4_0 ? 1152 : TYPE == Q6_K ? 1536 : 1024;
    static constexpr float UNIT = TYPE == Q8_0 ? 1 : 0.0625f;  // of rows g + 8
};

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

// 16 columns (step c of those 64) as operand A.
template <int TYPE> DEVICE void operand(const Raw<TYPE>& raw, int c, uint32_t* a) {
    constexpr uint32_t BASE = 0x64006400;
    const uint4 v = raw.v[TYPE == Q8_0 ? c >> 1 : 0];
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (TYPE == Q8_0) {  // sign turned: 1152 + q
            const uint32_t u = w[2 * (c & 1) + (j & 1)] >> (j < 2 ? 0 : 8);
            asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(a[j]) : "r"(u), "r"(0x00ff00ffu), "r"(BASE ^ 0x00800080));
            continue;
        }
        uint32_t r = and_or(j < 2 ? w[c] : w[c] >> 8, j & 1 ? 0x00f000f0 : 0x000f000f, BASE);
        const int top = j & 1 ? 8 : 4;  // where high bits go
        if (TYPE == Q5_K) r = and_or(moved(raw.high.x, 4 * c + j, top), 0x00010001u << top, r);
        if (TYPE == Q6_K) r = and_or(moved(c < 2 ? raw.high.x : raw.high.y, 2 * (4 * (c & 1) + j), top), 0x00030003u << top, r);
        a[j] = r;
    }
}

// x of eight columns, number c of the row, to shared memory: as f16 in the order of a lane's four of 16 columns
// ({2t, 2t+1, 2t+8, 2t+9}, t = 0..3), and behind all of them for each 32 columns sum, sum, unit, unit of its 16.
DEVICE void store_half(uint32_t xs, uint32_t sums, int c, const float* v) {
    const uint4 w = pack8(v);
    float e[8], top = 0;
    unpack8(w, e);
#pragma unroll
    for (int i = 0; i < 8; i++) top = fmaxf(top, fabsf(e[i]));
    const uint32_t pair = __activemask();  // whole pairs of lanes: columns come in 16s
    top = fmaxf(top, __shfl_xor_sync(pair, top, 1));
    const int power = min(127 + 14 - (int)(__float_as_uint(top) >> 23), 120);
    const float by = __uint_as_float((127 + power) << 23), unit = __uint_as_float((127 - power) << 23);
    float s = 0;
    uint32_t h[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        h[i] = pack_half2(e[2 * i] * by, e[2 * i + 1] * by);
        s += half_lo(h[i]) + half_hi(h[i]);
    }
    s += __shfl_xor_sync(pair, s, 1);
    const uint32_t to = xs + (c >> 1) * 32 + (c & 1) * 4;
    sts32(to, h[0]), sts32(to + 8, h[1]), sts32(to + 16, h[2]), sts32(to + 24, h[3]);
    const uint32_t place = sums + (c >> 2) * 16 + (c >> 1 & 1) * 4;
    if (c & 1) sts32(place + 8, __float_as_uint(unit));
    else sts32(place, __float_as_uint(s));
}

// One step of 16 rows against x: adds to r, of rows g and g + 8, the part of columns 32 t .. of each 128. `only`
// is one for the lanes of one column of operand B in each, else zero.
template <int TYPE>
DEVICE void step_sums(uint32_t step, uint32_t x, uint32_t sums, int lane, const uint32_t* only, float* r) {
    typedef Block<TYPE> F;
    typedef Zero<TYPE> Z;
    Raw<TYPE> raw[2 * F::HALVES];
#pragma unroll
    for (int q = 0; q < 2 * F::HALVES; q++) raw[q] = load_raw<TYPE>(step, q, lane);
    Tops top = tops<TYPE>(step, lane);
    top.d[1] *= Z::UNIT;
#pragma unroll
    for (int h = 0; h < F::HALVES; h++) {
        const uint2 b = lds64(x + h * 256);
        const uint4 of = lds128(sums + h * 64);
        Scales f = scales<TYPE>(step, h, lane, top);
        if (!F::LONG) f.d[1][0] *= Z::UNIT;
        float d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
#pragma unroll
        for (int c = 0; c < 8; c++) {
            uint32_t a[4];
            operand<TYPE>(raw[2 * h + (c >> 2)], c & 3, a);
            mma_half(c & 1 ? e : d, a, mul_half2(b.x, only[c]), mul_half2(b.y, only[c]));
        }
        const float s0 = __uint_as_float(of.x), s1 = __uint_as_float(of.y);
        const float u0 = __uint_as_float(of.z), u1 = __uint_as_float(of.w);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float zero = i ? -Z::HIGH : -Z::LOW;
            const float v0 = u0 * fmaf(zero, s0, d[2 * i] + e[2 * i]);
            const float v1 = fmaf(zero, s1, d[2 * i + 1] + e[2 * i + 1]);
            if (TYPE == Q6_K) r[i] = fmaf(f.d[i][0], v0, fmaf(f.d[i][1], u1 * v1, r[i]));
            else r[i] = fmaf(f.d[i][0], fmaf(u1, v1, v0), r[i]);
            if (F::MIN) r[i] = fmaf(-f.m[i], fmaf(u1, s1, u0 * s0), r[i]);
        }
    }
}
