// Stands in for kernels/common.cuh where kernels for every card since Ampere are tested on a CPU: a block's threads are
// coroutines of one thread, and what a warp or the copy engine does together is done in the same steps here.
//
// Copies land when they are waited for, not before: until then their place holds numbers that are none. Steps of a warp
// find all of its threads, or the test does not end.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define HOPPER 0
#define __global__
#define __device__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define LOG2E 1.4426950408889634f

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
struct bf16 { uint16_t bits; };
DEVICE uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
template <typename T> DEVICE T min(T a, T b) { return a < b ? a : b; }
template <typename T> DEVICE T __ldg(const T* p) { return *p; }

// ---- a block ----
struct Index { int x, y, z; };
static constexpr int most_threads = 128, stack_bytes = 1 << 17;
struct Thread {
    ucontext_t context;
    bool done;
    uint32_t words[6];  // what its warp reads of it
    float value;
    int n_copies, n_groups, group_ends[8];
    struct { uint32_t to; uint4 data; } copies[512];
};
struct Meeting { int came, times; };
static Thread threads[most_threads];
static char (*stacks)[stack_bytes];
static Meeting all, warps[most_threads / 32];
static ucontext_t outside;
static int n_threads, now;
static Index blockIdx, gridDim;
static void (*kernel)(const void*);
static const void* arguments;
DEVICE Index running() { return {now, 0, 0}; }
#define threadIdx running()

// The next thread that is not done goes on; once all are, the caller of `emulate`.
static void pass() {
    Thread& from = threads[now];
    for (int i = 1; i <= n_threads; i++) {
        const int next = (now + i) % n_threads;
        if (threads[next].done) continue;
        if (next == now) return;
        now = next;
        swapcontext(&from.context, &threads[next].context);
        return;
    }
    setcontext(&outside);
}
static void meet(Meeting& m, int of) {
    const int times = m.times;
    if (++m.came == of) m.came = 0, m.times++;
    else while (m.times == times) pass();
}
DEVICE void __syncthreads() { meet(all, n_threads); }
DEVICE void warp_meet() { meet(warps[now / 32], 32); }
static void thread_body() {
    kernel(arguments);
    threads[now].done = true;
    pass();
}
static void emulate(void (*of)(const void*), const void* with, Index grid, int block) {
    if (!stacks) stacks = (char(*)[stack_bytes])malloc(sizeof(*stacks) * most_threads);
    kernel = of, arguments = with, gridDim = grid, n_threads = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
                for (int i = 0; i < block; i++) {
                    Thread& t = threads[i];
                    t.done = false, t.n_copies = t.n_groups = 0;
                    getcontext(&t.context);
                    t.context.uc_stack.ss_sp = stacks[i];
                    t.context.uc_stack.ss_size = stack_bytes;
                    makecontext(&t.context, thread_body, 0);
                }
                now = 0;
                swapcontext(&outside, &threads[0].context);
            }
}

// ---- numbers ----
DEVICE float __uint_as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
DEVICE float bf_lo(uint32_t v) { return __uint_as_float(v << 16); }
DEVICE float bf_hi(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }
DEVICE uint32_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
DEVICE uint32_t pack_bf16(float lo, float hi) { return to_bf16(lo) | to_bf16(hi) << 16; }
DEVICE uint4 pack8(const float* v) {
    return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}
DEVICE float __fmul_rn(float a, float b) { return a * b; }
DEVICE float __fsub_rn(float a, float b) { return a - b; }
struct Half { _Float16 number; };
DEVICE Half __ushort_as_half(unsigned short bits) {
    Half h;
    memcpy(&h, &bits, 2);
    return h;
}
DEVICE float __half2float(Half h) { return (float)h.number; }
DEVICE float fast_exp2(float v) { return exp2f(v); }
DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

// ---- shared memory, whose addresses count from a place far below ----
static uint8_t* below;
DEVICE uint32_t smem_addr(const void* p) {
    if (!below) below = (uint8_t*)p - 0x10000000;
    return (uint32_t)((uint8_t*)p - below);
}
DEVICE void sts128(uint32_t at, uint4 v) { memcpy(below + at, &v, 16); }
// Named by functions of blocks.cuh that no kernel here calls.
uint4 lds128(uint32_t);
uint32_t lds32(uint32_t), __byte_perm(uint32_t, uint32_t, uint32_t);
float __shfl_sync(uint32_t, float, int);
DEVICE void pdl_wait() {}
DEVICE void pdl_launch() {}
DEVICE void cp_async16(uint32_t to, const void* from, bool valid) {
    Thread& t = threads[now];
    auto& copy = t.copies[t.n_copies++];
    copy.to = to, copy.data = {0, 0, 0, 0};
    if (valid) memcpy(&copy.data, from, 16);
    sts128(to, {0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0});
}
DEVICE void cp_async_commit() {
    Thread& t = threads[now];
    t.group_ends[t.n_groups++] = t.n_copies;
}
template <int N> DEVICE void cp_async_wait() {
    Thread& t = threads[now];
    const int ended = t.n_groups > N ? t.n_groups - N : 0, n = ended ? t.group_ends[ended - 1] : 0;
    for (int i = 0; i < n; i++) sts128(t.copies[i].to, t.copies[i].data);
    memmove(t.copies, t.copies + n, sizeof(t.copies[0]) * (t.n_copies - n));
    for (int i = ended; i < t.n_groups; i++) t.group_ends[i - ended] = t.group_ends[i] - n;
    t.n_copies -= n, t.n_groups -= ended;
}

// ---- steps of a warp ----
DEVICE float __shfl_xor_sync(uint32_t, float v, int lanes) {
    threads[now].value = v;
    warp_meet();
    const float other = threads[now ^ lanes].value;
    warp_meet();
    return other;
}
// Row `row` of matrix m, as the lane that gave its address has it.
DEVICE const uint8_t* matrix_row(int m, int row) { return below + threads[(now & ~31) + 8 * m + row].words[0]; }
DEVICE void ldmatrix4(uint32_t* r, uint32_t address) {
    threads[now].words[0] = address;
    warp_meet();
    for (int m = 0; m < 4; m++) memcpy(r + m, matrix_row(m, now % 32 / 4) + now % 4 * 4, 4);
    warp_meet();
}
DEVICE void ldmatrix4_trans(uint32_t* r, uint32_t address) {
    threads[now].words[0] = address;
    warp_meet();
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) memcpy(pair + i, matrix_row(m, now % 4 * 2 + i) + now % 32 / 4 * 2, 2);
        memcpy(r + m, pair, 4);
    }
    warp_meet();
}
// D(16x8) += A(16x16, rows) * B(16x8, columns): lane 4g + t holds columns 2t, 2t + 1 and 8 + 2t, 9 + 2t of rows g and
// g + 8 of A, and the same of column g of B.
DEVICE void mma_bf16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1};
    memcpy(threads[now].words, mine, sizeof(mine));
    warp_meet();
    const Thread* warp = threads + (now & ~31);
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 16; k++) {
            const int row = now % 32 / 4 + 8 * (e >> 1), column = now % 4 * 2 + (e & 1), t = k % 8 / 2;
            const uint32_t a = warp[row % 8 * 4 + t].words[row / 8 + 2 * (k / 8)], b = warp[column * 4 + t].words[4 + k / 8];
            d[e] += k & 1 ? bf_hi(a) * bf_hi(b) : bf_lo(a) * bf_lo(b);
        }
    warp_meet();
}
