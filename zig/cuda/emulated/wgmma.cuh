// Stands in for kernels/wgmma.cuh, as common.cuh says. A step is done when its warpgroup waits for it, with what lies in
// shared memory and in the operands' registers then.
#pragma once
#include "hopper.cuh"

DEVICE uint64_t wgmma_desc(uint32_t address, uint32_t lead) { return address >> 4 & 0x3fff | (uint64_t)(lead >> 4) << 16; }
struct Step {
    int columns, trans, keep, group, eights;  // of e4m3, twice as many k
    float* sums;
    const uint32_t* a_registers;
    uint64_t a, b;
};
struct Steps { Step of[64]; int n, group; };
static Steps steps[1 << 13];  // of each thread
DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() { steps[now].group++; }
template <int N> DEVICE void wgmma_touch(float*) {}

DEVICE float bf16_at(uint32_t at) {
    uint16_t bits;
    memcpy(&bits, shared_at(swizzled(at)), 2);
    return bf_lo(bits);
}
DEVICE float e4m3_at(uint32_t at) {
    const uint32_t b = *shared_at(swizzled(at)), bits = (b & 0x80) << 24 | (b & 0x7f) << 20;
    float scaled;
    memcpy(&scaled, &bits, 4);
    return scaled * 0x1p120f;
}
// Step i of this thread's warpgroup, all of whose threads stand still.
static void do_step(int i) {
    Steps* const group = steps + now - thread().number % 128;
    const Step& s = group->of[i];
    static float a[64][32], b[32][256];
    const int ks = s.eights ? 32 : 16;
    const uint32_t b0 = (s.b & 0x3fff) << 4, lead = (s.b >> 16 & 0x3fff) << 4;
    for (int k = 0; k < ks; k++)
        for (int n = 0; n < s.columns; n++)
            b[k][n] = s.eights ? e4m3_at(b0 + n * 128 + k) : s.trans ? bf16_at(b0 + n / 64 * lead + k * 128 + n % 64 * 2) : bf16_at(b0 + n * 128 + k * 2);
    for (int row = 0; row < 64; row++)
        for (int k = 0; k < ks; k++) {
            if (s.eights) {
                a[row][k] = e4m3_at(((s.a & 0x3fff) << 4) + row * 128 + k);
                continue;
            }
            const int t = row / 16 * 32 + row % 8 * 4 + k % 8 / 2, word = row / 8 % 2 + k / 8 * 2;
            const uint32_t* const registers = group[t].of[i].a_registers;
            if (registers) a[row][k] = k & 1 ? bf_hi(registers[word]) : bf_lo(registers[word]);
            else a[row][k] = bf16_at(((s.a & 0x3fff) << 4) + row * 128 + k * 2);
        }
    for (int t = 0; t < 128; t++) {
        float* const d = group[t].of[i].sums;
        for (int j = 0; j < s.columns / 2; j++) {
            const int row = t / 32 * 16 + t % 32 / 4 + j / 2 % 2 * 8, column = j / 4 * 8 + t % 4 * 2 + j % 2;
            float sum = s.keep ? d[j] : 0;
            for (int k = 0; k < ks; k++) sum += a[row][k] * b[k][column];
            d[j] = sum;
        }
    }
}
// Until all but N groups of steps are done.
template <int N> DEVICE void wgmma_wait() {
    meet(team().groups[thread().number / 128], 128, [] {
        const Steps& mine = steps[now];
        int done = 0;
        while (done < mine.n && mine.of[done].group + N < mine.group) do_step(done++);
        Steps* const group = steps + now - thread().number % 128;
        for (int t = 0; t < 128; t++) {
            memmove(group[t].of, group[t].of + done, sizeof(Step) * (group[t].n - done));
            group[t].n -= done;
        }
    });
}
DEVICE void step_later(int columns, int trans, float* sums, const uint32_t* registers, uint64_t a, uint64_t b, int keep,
                       int eights = 0) {
    Steps& s = steps[now];
    if (s.n == 64) fail("more matrix steps on their way than expected");
    s.of[s.n++] = {columns, trans, keep, s.group, eights, sums, registers, a, b};
}
#define WGMMA(N) \
    template <int TRANS_B> DEVICE void wgmma_n##N##_ss(float* d, uint64_t a, uint64_t b, int keep) { \
        step_later(N, TRANS_B, d, nullptr, a, b, keep); \
    } \
    template <int TRANS_B> DEVICE void wgmma_n##N##_rs(float* d, const uint32_t* a, uint64_t b, int keep) { \
        step_later(N, TRANS_B, d, a, 0, b, keep); \
    } \
    DEVICE void wgmma_n##N##_e4m3(float* d, uint64_t a, uint64_t b, int keep) { \
        step_later(N, 0, d, nullptr, a, b, keep, 1); \
    }
WGMMA(8)
WGMMA(16)
WGMMA(32)
WGMMA(64)
WGMMA(128)
WGMMA(192)
WGMMA(224)
WGMMA(256)
