// Steps of a whole warp: common.cuh's, beside which the build lays this file.
#pragma once
DEVICE Thread* warp() { return threads + now - thread().number % 32; }
DEVICE int lane() { return thread().number % 32; }
template <typename T> DEVICE T __shfl_sync(uint32_t, T v, int from) {
    memcpy(thread().words, &v, 4);
    __syncwarp();
    T other;
    memcpy(&other, warp()[from & 31].words, 4);
    __syncwarp();
    return other;
}
template <typename T> DEVICE T __shfl_up_sync(uint32_t all, T v, int lanes) {
    return __shfl_sync(all, v, lane() < lanes ? lane() : lane() - lanes);
}
template <typename T> DEVICE T __shfl_xor_sync(uint32_t all, T v, int lanes) { return __shfl_sync(all, v, lane() ^ lanes); }
DEVICE float warp_sum(float v) {
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
DEVICE float warp_max(float v) {
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}
DEVICE bool __any_sync(uint32_t, bool v) {
    thread().words[0] = v;
    __syncwarp();
    bool any = false;
    for (int i = 0; i < 32; i++) any |= warp()[i].words[0] != 0;
    __syncwarp();
    return any;
}
DEVICE uint32_t __ballot_sync(uint32_t, bool v) {
    thread().words[0] = v;
    __syncwarp();
    uint32_t set = 0;
    for (int i = 0; i < 32; i++) set |= warp()[i].words[0] << i;
    __syncwarp();
    return set;
}
template <typename F> DEVICE int reduce_sync(int v, F f) {
    thread().words[0] = v;
    __syncwarp();
    int all = warp()[0].words[0];
    for (int i = 1; i < 32; i++) all = f(all, (int)warp()[i].words[0]);
    __syncwarp();
    return all;
}
DEVICE int __reduce_min_sync(uint32_t, int v) { return reduce_sync(v, [](int a, int b) { return min(a, b); }); }
DEVICE int __reduce_add_sync(uint32_t, int v) { return reduce_sync(v, [](int a, int b) { return a + b; }); }
DEVICE int __popc(uint32_t v) { return __builtin_popcount(v); }
// Row `row` of matrix m, as the lane that gave its address has it.
DEVICE uint8_t* matrix_row(int m, int row) { return shared_at(warp()[8 * m + row].words[0]); }
DEVICE void ldmatrix4(uint32_t* r, uint32_t address) {
    thread().words[0] = address;
    __syncwarp();
    for (int m = 0; m < 4; m++) memcpy(r + m, matrix_row(m, lane() / 4) + lane() % 4 * 4, 4);
    __syncwarp();
}
DEVICE void ldmatrix4_still(uint32_t* r, uint32_t address) { ldmatrix4(r, address); }
DEVICE void ldmatrix4_trans(uint32_t* r, uint32_t address) {
    thread().words[0] = address;
    __syncwarp();
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) memcpy(pair + i, matrix_row(m, lane() % 4 * 2 + i) + lane() / 4 * 2, 2);
        memcpy(r + m, pair, 4);
    }
    __syncwarp();
}
// D(16x8) += A(16x16, rows) * B(16x8, columns): lane 4g + t holds columns 2t, 2t + 1 and 8 + 2t, 9 + 2t of rows g and
// g + 8 of A, and the same of column g of B.
DEVICE void mma_bf16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1};
    memcpy(thread().words, mine, sizeof(mine));
    __syncwarp();
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 16; k++) {
            const int row = lane() / 4 + 8 * (e >> 1), column = lane() % 4 * 2 + (e & 1), t = k % 8 / 2;
            const uint32_t a = warp()[row % 8 * 4 + t].words[row / 8 + 2 * (k / 8)];
            const uint32_t b = warp()[column * 4 + t].words[4 + k / 8];
            d[e] += k & 1 ? bf_hi(a) * bf_hi(b) : bf_lo(a) * bf_lo(b);
        }
    __syncwarp();
}
// The same of bytes, four columns a word: words of rows g and g + 8 by turns, `wide` for 32 columns, else 16.
template <typename A> DEVICE void mma_bytes(int* d, const uint32_t* a, uint32_t b0, uint32_t b1, bool wide) {
    const uint32_t mine[6] = {a[0], a[1], wide ? a[2] : 0, wide ? a[3] : 0, b0, b1};
    memcpy(thread().words, mine, sizeof(mine));
    __syncwarp();
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < (wide ? 32 : 16); k++) {
            const int row = lane() / 4 + 8 * (e >> 1), column = lane() % 4 * 2 + (e & 1), t = k % 16 / 4, at = k % 4 * 8;
            const uint32_t x = warp()[row % 8 * 4 + t].words[row / 8 + 2 * (k / 16)] >> at;
            const uint32_t y = warp()[column * 4 + t].words[4 + k / 16] >> at;
            d[e] += (A)x * (int8_t)y;
        }
    __syncwarp();
}
DEVICE void mma_u8_32(int* d, const uint32_t* a, uint32_t b0, uint32_t b1) { mma_bytes<uint8_t>(d, a, b0, b1, true); }
DEVICE void mma_s8_32(int* d, const uint32_t* a, uint32_t b0, uint32_t b1) { mma_bytes<int8_t>(d, a, b0, b1, true); }
DEVICE void mma_u8_16(int* d, const uint32_t* a, uint32_t b) { mma_bytes<uint8_t>(d, a, b, 0, false); }
