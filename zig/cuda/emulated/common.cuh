// Stands in for kernels/common.cuh where kernels are tested on a CPU: threads are coroutines of one thread, and what a
// warp, a cluster or the copy engine does together is done in the same steps here. hopper.cuh and wgmma.cuh beside this
// file do the same for what only Hopper has; who includes this one says by HOPPER which code is meant.
//
// What runs beside a thread lands as late as it may: copies once somebody waits for them, until when their place holds
// numbers that are none. Steps of a warp find all of its threads, or nobody can go on, which ends the test.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define DYNAMIC_SHARED(NAME) uint8_t* const NAME = team().shared
#define LOG2E 1.4426950408889634f
#undef INFINITY
#define INFINITY __builtin_inff()

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct bf16 { uint16_t bits; };
DEVICE uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
DEVICE uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <typename T> DEVICE T min(T a, T b) { return a < b ? a : b; }
template <typename T> DEVICE T max(T a, T b) { return a > b ? a : b; }
template <typename T> DEVICE T __ldg(const T* p) { return *p; }
template <typename T> DEVICE T __ldcg(const T* p) { return *p; }
template <typename T> DEVICE void __stcg(T* p, T v) { *p = v; }

// ---- blocks and their threads ----
struct Index { int x, y, z; };
static constexpr int stack_bytes = 1 << 16, shared_bytes = 232448, most_warps = 24;
struct Meeting { int came, times; };
struct Team {
    Index at;
    int first, n_threads;  // of its threads
    uint8_t* shared;       // what its launch gives it, 1024-byte aligned
    uint8_t* below;        // addresses of shared memory count from here
    Meeting all, warps[most_warps], groups[most_warps / 4], named[16];
};
struct Copy { uint32_t to; uint4 data; };
struct Thread {
    ucontext_t context;
    int block, number;
    bool done;
    int met[16];        // named barriers: how often it has come
    uint32_t words[6];  // what its warp reads of it
    int n_copies, n_groups, group_ends[8];
    Copy copies[128];
};
static Thread* threads;
static Team* teams;
static int n_threads, n_blocks, now, idle;
static ucontext_t outside;
static Index gridDim;
static int cluster_blocks = 1;
static void (*kernel)(const void*);
static const void* arguments;
DEVICE Thread& thread() { return threads[now]; }
DEVICE Team& team() { return teams[threads[now].block]; }
DEVICE Index running() { return {thread().number, 0, 0}; }
#define threadIdx running()
#define blockIdx (team().at)

[[noreturn]] static void fail(const char* why) {
    fprintf(stderr, "block %d, thread %d: %s\n", thread().block, thread().number, why);
    abort();
}
// Another thread goes on; once all are done, the caller of `emulate`. A block's threads have their turn until none of
// them gets further, but for one in eight passes, which goes to any thread: what does not wait for another is found far
// ahead of it or behind.
static void pass() {
    static uint32_t dice = 1;
    static int polls;
    const int from = now, first = team().first, size = team().n_threads;
    polls = idle <= 1 ? 0 : polls + 1;
    dice = dice * 1664525 + 1013904223;
    const bool any = dice >> 29 == 0, leave = any || polls > size;
    const int start = any ? dice % (uint32_t)n_threads : first + size;
    if (leave) polls = 0;
    for (int i = 0; i < size + n_threads; i++) {  // this block's others first, or everybody from `start` on
        const int next = leave || i >= size ? (start + i) % n_threads : first + (from - first + 1 + i) % size;
        if (threads[next].done) continue;
        if (next == from) return;
        now = next;
        swapcontext(&threads[from].context, &threads[next].context);
        return;
    }
    setcontext(&outside);
}
template <typename F> DEVICE void until(F holds) {
    for (; !holds(); pass())
        if (++idle > 100 * n_threads) fail("nobody goes on");
    idle = 0;
}
// The last of `of` threads runs `then` before they go on.
template <typename F> DEVICE void meet(Meeting& m, int of, F then) {
    const int times = m.times;
    idle = 0;
    if (++m.came == of) then(), m.came = 0, m.times++;
    else until([&] { return m.times != times; });
}
DEVICE void meet(Meeting& m, int of) { meet(m, of, [] {}); }
DEVICE void __syncthreads() { meet(team().all, team().n_threads); }
DEVICE void __syncwarp() { meet(team().warps[thread().number / 32], 32); }

static void thread_body() {
    kernel(arguments);
    thread().done = true, idle = 0;
    pass();
}
static void run_blocks(int first, int count, int per_block) {
    n_threads = 0, n_blocks = count, idle = 0;
    for (int b = 0; b < count; b++) {
        Team& of = teams[b];
        uint8_t* const shared = of.shared;
        memset(&of, 0, sizeof(of));
        of.shared = shared, of.first = n_threads, of.n_threads = per_block;
        memset(shared, 0xff, shared_bytes);
        const int i = first + b, plane = gridDim.x * gridDim.y;
        of.at = {i % gridDim.x, i % plane / gridDim.x, i / plane};
        for (int t = 0; t < per_block; t++) {
            Thread& of = threads[n_threads++];
            memset(of.met, 0, sizeof(of.met));
            of.done = false, of.n_copies = of.n_groups = 0, of.block = b, of.number = t;
            void* const stack = of.context.uc_stack.ss_sp;
            getcontext(&of.context);
            of.context.uc_stack.ss_sp = stack;
            of.context.uc_stack.ss_size = stack_bytes;
            makecontext(&of.context, thread_body, 0);
        }
    }
    now = 0;
    swapcontext(&outside, &threads[0].context);
}
// Runs the grid's blocks, `together` at a time, in clusters of `cluster`.
static void emulate(void (*of)(const void*), const void* with, Index grid, int per_block, int together, int cluster) {
    static int have_threads, have_teams;
    for (; have_threads == 0 || have_threads < per_block * together; have_threads++) {
        if (have_threads == 0) threads = (Thread*)calloc(1 << 15, sizeof(Thread)), teams = (Team*)calloc(64, sizeof(Team));
        threads[have_threads].context.uc_stack.ss_sp = malloc(stack_bytes);
    }
    for (; have_teams < together; have_teams++) teams[have_teams].shared = (uint8_t*)aligned_alloc(1024, shared_bytes);
    kernel = of, arguments = with, gridDim = grid, cluster_blocks = cluster;
    const int all = grid.x * grid.y * grid.z;
    for (int b = 0; b < all; b += together) run_blocks(b, min(together, all - b), per_block);
}

// ---- numbers ----
DEVICE float __uint_as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
DEVICE uint32_t __float_as_uint(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
DEVICE float bf_lo(uint32_t v) { return __uint_as_float(v << 16); }
DEVICE float bf_hi(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }
DEVICE uint32_t to_bf16(float f) {
    const uint32_t u = __float_as_uint(f);
    return f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
DEVICE uint32_t pack_bf16(float lo, float hi) { return to_bf16(lo) | to_bf16(hi) << 16; }
DEVICE uint4 pack8(const float* v) {
    return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}
DEVICE uint32_t add_bf16(uint32_t a, uint32_t b) { return pack_bf16(bf_lo(a) + bf_lo(b), bf_hi(a) + bf_hi(b)); }
DEVICE int __ffs(uint32_t v) { return __builtin_ffs((int)v); }
DEVICE void unpack8(uint4 w, float* v) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    for (int i = 0; i < 4; i++) v[2 * i] = bf_lo(words[i]), v[2 * i + 1] = bf_hi(words[i]);
}
DEVICE uint4 load_cg(const void* p) {
    uint4 v;
    memcpy(&v, p, 16);
    return v;
}
DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float __fmul_rn(float a, float b) { return a * b; }
DEVICE float __fsub_rn(float a, float b) { return a - b; }
struct __half { _Float16 number; };
DEVICE __half __ushort_as_half(unsigned short bits) {
    __half h;
    memcpy(&h, &bits, 2);
    return h;
}
DEVICE float __half2float(__half h) { return (float)h.number; }
DEVICE float to_f32(float v) { return v; }
DEVICE float to_f32(bf16 v) { return bf_lo(v.bits); }
DEVICE float to_f32(__half v) { return (float)v.number; }
template <typename T> static inline T from_f32(float v);
template <> inline float from_f32<float>(float v) { return v; }
template <> inline bf16 from_f32<bf16>(float v) { return {(uint16_t)to_bf16(v)}; }
template <> inline __half from_f32<__half>(float v) { return {(_Float16)fminf(fmaxf(v, -65504.0f), 65504.0f)}; }
DEVICE uint16_t __bfloat16_as_ushort(bf16 v) { return v.bits; }
DEVICE bf16 __float2bfloat16_rn(float f) { return {(uint16_t)to_bf16(f)}; }
template <typename S> DEVICE float4 load_state4(const S* p) { return {to_f32(p[0]), to_f32(p[1]), to_f32(p[2]), to_f32(p[3])}; }
template <typename S> DEVICE void store_state4(S* p, float4 v) {
    p[0] = from_f32<S>(v.x), p[1] = from_f32<S>(v.y), p[2] = from_f32<S>(v.z), p[3] = from_f32<S>(v.w);
}
template <typename S> DEVICE float2 load_state2(const S* p) { return {to_f32(p[0]), to_f32(p[1])}; }
template <typename S> DEVICE void store_state2(S* p, float x, float y) { p[0] = from_f32<S>(x), p[1] = from_f32<S>(y); }
#define __expf(v) expf(v)  // the C library has a function of that name
DEVICE float softplus(float v) { return v > 20.0f ? v : log1pf(expf(v)); }
DEVICE float fast_exp2(float v) {
    const float r = exp2f(v);
    return r < 1.17549435e-38f ? 0.0f : r;
}
DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

DEVICE void gate8(float* v, uint4 gate) {
    float g[8];
    unpack8(gate, g);
    for (int i = 0; i < 8; i++) v[i] *= silu(g[i]);
}
DEVICE float fast_rcp(float v) { return 1.0f / v; }
#define rsqrtf(v) (1.0f / sqrtf(v))  // as above
DEVICE uint32_t and_or(uint32_t a, uint32_t mask, uint32_t c) { return a & mask | c; }
DEVICE uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t which) {
    const uint64_t both = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) r |= (uint32_t)(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return r;
}
DEVICE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}

// ---- shared memory ----
DEVICE uint32_t smem_addr(const void* p) {
    Team& b = team();
    if (!b.below) {
        const bool given = (uint8_t*)p >= b.shared && (uint8_t*)p < b.shared + shared_bytes;
        b.below = given ? b.shared : (uint8_t*)p - 0x10000000;
    }
    return (uint32_t)((uint8_t*)p - b.below);
}
DEVICE uint8_t* shared_at(uint32_t address) { return team().below + address; }
DEVICE uint4 lds128(uint32_t at) {
    uint4 v;
    memcpy(&v, shared_at(at), 16);
    return v;
}
DEVICE uint32_t lds32(uint32_t at) {
    uint32_t v;
    memcpy(&v, shared_at(at), 4);
    return v;
}
DEVICE uint2 lds64(uint32_t at) {
    uint2 v;
    memcpy(&v, shared_at(at), 8);
    return v;
}
DEVICE void sts128(uint32_t at, uint4 v) { memcpy(shared_at(at), &v, 16); }
DEVICE void sts32(uint32_t at, uint32_t v) { memcpy(shared_at(at), &v, 4); }
DEVICE void pdl_wait() {}
DEVICE void pdl_launch() {}
DEVICE void spoil(void* at, size_t bytes) { memset(at, 0xff, bytes); }
DEVICE void cp_async16(uint32_t to, const void* from, bool valid) {
    Thread& t = thread();
    if (t.n_copies == sizeof(t.copies) / sizeof(Copy)) fail("more copies at a time than expected");
    Copy& copy = t.copies[t.n_copies++];
    copy = {to, {0, 0, 0, 0}};
    if (valid) memcpy(&copy.data, from, 16);
    spoil(shared_at(to), 16);
}
DEVICE void cp_async_commit() { thread().group_ends[thread().n_groups++] = thread().n_copies; }
template <int N> DEVICE void cp_async_wait() {
    Thread& t = thread();
    const int ended = t.n_groups > N ? t.n_groups - N : 0, n = ended ? t.group_ends[ended - 1] : 0;
    for (int i = 0; i < n; i++) sts128(t.copies[i].to, t.copies[i].data);
    memmove(t.copies, t.copies + n, sizeof(Copy) * (t.n_copies - n));
    for (int i = ended; i < t.n_groups; i++) t.group_ends[i - ended] = t.group_ends[i] - n;
    t.n_copies -= n, t.n_groups -= ended;
}

// ---- memory ----
DEVICE uint16_t load_cg16(const void* p) { return *(const uint16_t*)p; }
DEVICE void prefetch_l1(const void*) {}
#define __nanosleep(ns) (void)0
// Who looks again and again lets others go on.
template <typename T> DEVICE T load_relaxed(const void* p) {
    if (++idle > 100 * n_threads) fail("what is looked for does not come");
    pass();
    return *(const T*)p;
}
DEVICE uint4 load_relaxed128(const void* p) { return load_relaxed<uint4>(p); }
DEVICE uint32_t load_relaxed32(const void* p) { return load_relaxed<uint32_t>(p); }
DEVICE uint16_t load_relaxed16(const void* p) { return load_relaxed<uint16_t>(p); }
DEVICE void store_relaxed16(void* p, uint16_t v) { *(uint16_t*)p = v, idle = 0; }
DEVICE uint32_t atomicInc(uint32_t* p, uint32_t last) {
    const uint32_t before = *p;
    *p = before >= last ? 0 : before + 1, idle = 0;
    return before;
}

// ---- counters in memory that blocks meet at ----
DEVICE uint32_t count_up(uint32_t* counter, uint32_t by) {
    const uint32_t before = *counter;
    *counter += by, idle = 0;
    return before;
}
DEVICE void count_release(uint32_t* counter, uint32_t by) { count_up(counter, by); }
DEVICE uint32_t count_now(const uint32_t* counter) {
    if (++idle > 100 * n_threads) fail("a counter stays");
    pass();
    return *counter;
}

#include "steps.cuh"
