// Weights in blocks (GGUF's q8_0, q4_0, q4_k, q5_k, q6_k) as they lie on a GPU, and how a warp unpacks them.
//
// A matrix (N,K) is cut into panels of 16 rows, a panel into steps of 128 columns (q8_0, q4_0) or 256 (the K
// types); K is a multiple of 128 or 256. The bytes are those of the file, only reordered (zig/cuda/blocks.zig),
// so that lane 4g + t of a warp finds what it needs of a step in 16-byte pieces: of each 16 columns c, the
// columns {2t, 2t+1, 2t+8, 2t+9} of rows g and g + 8, which is operand A of mma.m16n8k16 (and of wgmma).
//   pieces   [piece][lane] of 16 bytes: quants; then, of q5_k and q6_k, their high bits
//   q8_0     piece p: 16 columns 2p and 2p+1; a word of row g, a word of row g+8: bytes of columns 0, 8, 1, 9
//   others   piece p: word c of 16 columns 4p + c: register j of operand A at bits 4j (first) and 16 + 4j
//   high     a byte of a word has those of one column, in the order 2t, 2t+8, 2t+1, 2t+9 of each 16 columns c:
//            q5_k: one piece, word w of columns 64 w ..: bit 2c of row g, 2c + 1 of row g + 8
//            q6_k: two pieces, word w of columns 32 w ..: bits 4c, 4c + 1 of row g, 4c + 2, 4c + 3 of row g + 8
//   scales   q8_0, q4_0: a lane's 4 bytes: d of rows g and g + 8, 32 columns number t
//            q4_k, q5_k: a lane's two words, of 128 columns each: scale and min of row g, of row g + 8, six
//            bits each, 32 columns number t; the top bytes hold d, dmin (t = 0, 1: row g; t = 2, 3: row g + 8)
//            q6_k: a lane's two words, of 128 columns each: scales of row g, 16 columns 2t and 2t+1, of row g+8;
//            then d of all 16 rows
#pragma once
#include "common.cuh"

enum BlockType { Q8_0, Q4_0, Q4_K, Q5_K, Q6_K };

template <int TYPE> struct Block {
    static constexpr bool LONG = TYPE >= Q4_K;
    static constexpr int STEP = LONG ? 256 : 128, HALVES = STEP / 128;
    static constexpr int PIECES = TYPE == Q4_0 ? 2 : TYPE == Q5_K ? 5 : TYPE == Q6_K ? 6 : 4;
    static constexpr int TAIL = TYPE == Q6_K ? 288 : LONG ? 256 : 128;  // bytes of scales
    static constexpr int BYTES = PIECES * 512 + TAIL;
    static constexpr float ZERO = TYPE == Q8_0 ? 0 : TYPE == Q4_0 ? 136 : TYPE == Q6_K ? 160 : 128;  // see unpack
    static constexpr bool MIN = TYPE == Q4_K || TYPE == Q5_K;
};
// Bytes of a panel of K columns.
template <int TYPE> DEVICE size_t panel_bytes(int k) { return (size_t)(k / Block<TYPE>::STEP) * Block<TYPE>::BYTES; }

DEVICE float half_lo(uint32_t w) { return __half2float(__ushort_as_half((unsigned short)w)); }
DEVICE float half_hi(uint32_t w) { return __half2float(__ushort_as_half((unsigned short)(w >> 16))); }

// 64 columns (quarter q of a step of 256) as operand A of four matrix steps, in bf16: q8_0's integers themselves,
// of the others 128 + q (8 bits of bf16 hold 128 + 6 bits exactly, and AND-OR builds two).
template <int TYPE> DEVICE void unpack(uint32_t step, int q, int lane, uint32_t (*a)[4]) {
    constexpr uint32_t BASE = 0x43004300;
    const uint32_t at = step + lane * 16;
    if (TYPE == Q8_0) {
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const uint4 v = lds128(at + (2 * q + p) * 512);
            const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 2; j++) {  // (128 + low 7 bits) - (128, or 256 where the sign is set)
                    const uint32_t u = j ? w[i] >> 8 : w[i];
                    const uint32_t less = and_or(u, 0x00800080, 0xc300c300);
                    a[2 * p + (i >> 1)][2 * j + (i & 1)] = add_bf16(and_or(u, 0x007f007f, BASE), less);
                }
        }
        return;
    }
    const uint4 v = lds128(at + q * 512);
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    uint2 high = {};
    if (TYPE == Q5_K) high.x = lds32(at + 4 * 512 + 4 * q);
    if (TYPE == Q6_K) high = lds64(at + (4 + (q >> 1)) * 512 + 8 * (q & 1));
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t r = and_or(w[c] >> (4 * j), 0x000f000f, BASE);
            if (TYPE == Q5_K) {
                const int bit = 8 * (j >> 1) + 2 * c + (j & 1);
                r = and_or(bit < 4 ? high.x << (4 - bit) : high.x >> (bit - 4), 0x00100010, r);
            }
            if (TYPE == Q6_K) {
                const int i = 8 * (j >> 1) + 4 * (c & 1) + 2 * (j & 1);
                const uint32_t u = c < 2 ? high.x : high.y;
                r = and_or(i < 4 ? u << (4 - i) : u >> (i - 4), 0x00300030, r);
            }
            a[c][j] = r;
        }
}

// Scales of rows g and g + 8 for columns [32 t, 32 t + 32) of 128; of q6_k for its two halves of 16 columns.
struct Scales {
    float d[2][2];  // [row g, row g + 8][half]; halves alike but for q6_k
    float m[2];     // minimum, q4_k and q5_k
};
// What a step has once for both its halves.
struct Tops {
    float d[2], m[2];
};
template <int TYPE> DEVICE Tops tops(uint32_t step, int lane) {
    Tops o = {};
    const uint32_t tail = step + Block<TYPE>::PIECES * 512;
    if (Block<TYPE>::MIN) {
        const uint2 w = lds64(tail + lane * 8);
        const float mine = half_lo(__byte_perm(w.x, w.y, 0x0073));
        const int quad = lane & ~3;
        o.d[0] = __shfl_sync(~0u, mine, quad), o.m[0] = __shfl_sync(~0u, mine, quad + 1);
        o.d[1] = __shfl_sync(~0u, mine, quad + 2), o.m[1] = __shfl_sync(~0u, mine, quad + 3);
    }
    if (TYPE == Q6_K) {
        const int g = lane >> 2;
        const uint32_t w0 = lds32(tail + 256 + (g >> 1) * 4), w1 = lds32(tail + 272 + (g >> 1) * 4);
        o.d[0] = g & 1 ? half_hi(w0) : half_lo(w0), o.d[1] = g & 1 ? half_hi(w1) : half_lo(w1);
    }
    return o;
}
template <int TYPE> DEVICE Scales scales(uint32_t step, int h, int lane, const Tops& o) {
    Scales s = {};
    const uint32_t tail = step + Block<TYPE>::PIECES * 512;
    if (!Block<TYPE>::LONG) {
        const uint32_t w = lds32(tail + lane * 4);
        s.d[0][0] = s.d[0][1] = half_lo(w), s.d[1][0] = s.d[1][1] = half_hi(w);
        return s;
    }
    const uint32_t w = lds32(tail + lane * 8 + h * 4);
#pragma unroll
    for (int r = 0; r < 2; r++)
        if (TYPE == Q6_K) {
            s.d[r][0] = o.d[r] * (float)(int8_t)(w >> (16 * r)), s.d[r][1] = o.d[r] * (float)(int8_t)(w >> (16 * r + 8));
        } else {
            s.d[r][0] = s.d[r][1] = o.d[r] * (float)(w >> (12 * r) & 63);
            s.m[r] = o.m[r] * (float)(w >> (12 * r + 6) & 63);
        }
    return s;
}

// One value, read where it lies in memory: for shapes and cards without a faster way. Exactly the definition's:
// one product (and one difference), each rounded.
template <int TYPE> DEVICE float block_value(const uint8_t* w, int n, int k, int cols) {
    const int step = k / Block<TYPE>::STEP, in = k % Block<TYPE>::STEP, h = in / 128, c = in % 128 / 16, e = in & 15;
    const uint8_t* at = w + (n >> 4) * panel_bytes<TYPE>(cols) + (size_t)step * Block<TYPE>::BYTES;
    const int t = (e & 7) >> 1, g = n & 7, r = n >> 3 & 1, lane = 4 * g + t, reg = 2 * (e >> 3) + r, odd = e & 1;
    const uint8_t* tail = at + Block<TYPE>::PIECES * 512;
    if (TYPE == Q8_0) {
        const int8_t q = at[(c >> 1) * 512 + lane * 16 + (c & 1) * 8 + r * 4 + odd * 2 + (e >> 3)];
        const uint32_t d = *(const uint32_t*)(tail + (4 * g + (c >> 1)) * 4);
        return (r ? half_hi(d) : half_lo(d)) * (float)q;
    }
    const int m = 8 * h + c;
    int q = *(const uint32_t*)(at + (m >> 2) * 512 + lane * 16 + (m & 3) * 4) >> (4 * reg + 16 * odd) & 15;
    if (TYPE == Q4_0) {
        const uint32_t d = *(const uint32_t*)(tail + (4 * g + (c >> 1)) * 4);
        return (r ? half_hi(d) : half_lo(d)) * (float)(q - 8);
    }
    if (TYPE == Q6_K) {
        const uint32_t u = *(const uint32_t*)(at + (4 + h) * 512 + lane * 16 + (c >> 1) * 4);
        q |= (u >> (8 * (e >> 3) + 4 * (c & 1) + 2 * r + 16 * odd) & 3) << 4;
        const int8_t sc = tail[(4 * g + (c >> 1)) * 8 + 4 * h + 2 * r + (c & 1)];
        const float d = half_lo(*(const uint16_t*)(tail + 256 + 2 * (n & 15))) * (float)sc;
        return d * (float)(q - 32);
    }
    if (TYPE == Q5_K) q |= (*(const uint32_t*)(at + 2048 + lane * 16 + (m >> 2) * 4) >> (8 * (e >> 3) + 2 * (m & 3) + r + 16 * odd) & 1) << 4;
    const uint32_t w0 = *(const uint32_t*)(tail + (4 * g + (c >> 1)) * 8 + 4 * h);
    const uint8_t* top = tail + (4 * g + 2 * r) * 8;
    const float d = half_lo(top[3] | top[7] << 8) * (float)(w0 >> (12 * r) & 63);
    const float low = half_lo(top[11] | top[15] << 8) * (float)(w0 >> (12 * r + 6) & 63);
    return __fsub_rn(__fmul_rn(d, (float)q), low);
}
