// What every kernel file shares: number conversions, memory access, reductions, warp-wide matrix steps.
// Rules: no atomics on floats; every reduction has a fixed order that depends on one row's shape only.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#else
#define HOPPER 0
#endif

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define LOG2E 1.4426950408889634f
// What a launch gives a block of shared memory.
#define DYNAMIC_SHARED(NAME) extern __shared__ uint8_t NAME[]

// Programmatic dependent launch: a kernel may start while the one before it still runs. Nothing that a kernel
// before may write (or still reads) is touched before `pdl_wait`, behind which everything older is complete: each
// kernel waits, so the one in front has not ended before all in front of it have. `pdl_launch` comes after it, but
// in kernels that follow each other within a step and gain by overlapping deeper (norm.cu, fp8_rows, batch_sm90.cuh,
// ssm_update.cu): what starts behind them may read early only what no kernel of its step writes, since a step begins
// with a kernel that launches late. No-ops when the launch did not ask for it, and on older chips.
DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- numbers ----
DEVICE float bf_lo(uint32_t v) { return __uint_as_float(v << 16); }
DEVICE float bf_hi(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }
DEVICE uint32_t and_or(uint32_t a, uint32_t mask, uint32_t c) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(mask), "r"(c));
    return r;
}
// Two floats to one word of bf16, `lo` in the low half; round to nearest even.
DEVICE uint32_t pack_bf16(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
// Two bf16 a word.
DEVICE uint32_t add_bf16(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80), "r"(b));
    return r;
}
DEVICE float to_f32(float v) { return v; }
DEVICE float to_f32(bf16 v) { return __bfloat162float(v); }
DEVICE float to_f32(__half v) { return __half2float(v); }
template <typename T> DEVICE T from_f32(float v);
template <> __device__ __forceinline__ float from_f32<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float v) { return __float2bfloat16_rn(v); }
// What f16 cannot hold stays its largest number.
template <> __device__ __forceinline__ __half from_f32<__half>(float v) {
    return __float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f));
}
DEVICE float fast_exp2(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
DEVICE float fast_rcp(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
DEVICE float silu(float v) { return v * fast_rcp(1.0f + fast_exp2(-LOG2E * v)); }
DEVICE float softplus(float v) { return v > 20.0f ? v : log1pf(__expf(v)); }

// ---- memory ----
// Activations are read past L1 (`cg`): with overlapping launches L1 may hold an older kernel's bytes.
DEVICE uint4 load_cg(const void* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
DEVICE uint16_t load_cg16(const void* p) {
    uint16_t v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}
// What other blocks write meanwhile.
DEVICE uint4 load_relaxed128(const void* p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE uint32_t load_relaxed32(const void* p) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE uint16_t load_relaxed16(const void* p) {
    uint16_t v;
    asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}
DEVICE void store_relaxed16(void* p, uint16_t v) {
    asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(p), "h"(v) : "memory");
}
DEVICE void prefetch_l1(const void* p) { asm volatile("prefetch.global.L1 [%0];" ::"l"(p)); }
// Weights and caches that one kernel reads once: streamed, not kept in L1.
DEVICE uint4 load_stream(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
// Eight elements as floats, 16-byte (bf16) or 32-byte (f32) aligned.
DEVICE void unpack8(uint4 w, float* v) {
    v[0] = bf_lo(w.x), v[1] = bf_hi(w.x), v[2] = bf_lo(w.y), v[3] = bf_hi(w.y);
    v[4] = bf_lo(w.z), v[5] = bf_hi(w.z), v[6] = bf_lo(w.w), v[7] = bf_hi(w.w);
}
// v *= silu(gate), of 8 bf16 gates.
DEVICE void gate8(float* v, uint4 gate) {
    float g[8];
    unpack8(gate, g);
#pragma unroll
    for (int e = 0; e < 8; e++) v[e] *= silu(g[e]);
}
DEVICE void load8(const bf16* p, float* v) { unpack8(load_cg(p), v); }
DEVICE void load8(const float* p, float* v) {
    uint4 a = load_cg(p), b = load_cg(p + 4);
    v[0] = __uint_as_float(a.x), v[1] = __uint_as_float(a.y), v[2] = __uint_as_float(a.z);
    v[3] = __uint_as_float(a.w), v[4] = __uint_as_float(b.x), v[5] = __uint_as_float(b.y);
    v[6] = __uint_as_float(b.z), v[7] = __uint_as_float(b.w);
}
DEVICE uint4 pack8(const float* v) {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                      pack_bf16(v[6], v[7]));
}
DEVICE void store8(bf16* p, const float* v) { *(uint4*)p = pack8(v); }
DEVICE void store8(float* p, const float* v) {
    *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
    *(float4*)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}
// Two and four neighbouring numbers of a state kept as f32, bf16 or f16; the latter streamed, not kept in L1.
DEVICE float2 load_state2(const float* p) { return *(const float2*)p; }
DEVICE float2 load_state2(const bf16* p) {
    const uint32_t u = *(const uint32_t*)p;
    return make_float2(bf_lo(u), bf_hi(u));
}
DEVICE float2 load_state2(const __half* p) { return __half22float2(*(const __half2*)p); }
DEVICE void store_state2(float* p, float x, float y) { *(float2*)p = make_float2(x, y); }
DEVICE void store_state2(bf16* p, float x, float y) { *(uint32_t*)p = pack_bf16(x, y); }
DEVICE void store_state2(__half* p, float x, float y) {
    *(__half2*)p = __halves2half2(from_f32<__half>(x), from_f32<__half>(y));
}
DEVICE float4 load_state4(const float* p) { return __ldcs((const float4*)p); }
template <typename S> DEVICE float4 load_state4(const S* p) {
    const uint2 u = __ldcs((const uint2*)p);
    const float2 a = load_state2((const S*)&u.x), b = load_state2((const S*)&u.y);
    return make_float4(a.x, a.y, b.x, b.y);
}
DEVICE void store_state4(float* p, float4 v) { __stcs((float4*)p, v); }
template <typename S> DEVICE void store_state4(S* p, float4 v) {
    uint2 u;
    store_state2((S*)&u.x, v.x, v.y), store_state2((S*)&u.y, v.z, v.w);
    __stcs((uint2*)p, u);
}
DEVICE uint32_t smem_addr(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
// Asks L2 for bytes (a multiple of 16) that lie in one piece. Nothing on older chips.
DEVICE void prefetch_l2(const void* p, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}
// 16 bytes, global to shared, asynchronously; zeros where `valid` is false.
DEVICE void cp_async16(uint32_t dst, const void* src, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(valid ? 16 : 0) : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
DEVICE uint4 lds128(uint32_t addr) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(addr) : "memory");
    return v;
}
DEVICE uint2 lds64(uint32_t addr) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(addr) : "memory");
    return v;
}
DEVICE void sts128(uint32_t addr, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEVICE void sts32(uint32_t addr, uint32_t v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(addr), "r"(v) : "memory"); }
DEVICE uint32_t lds32(uint32_t addr) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");
    return v;
}

// ---- counters in memory that blocks meet at ----
DEVICE uint32_t count_up(uint32_t* counter, uint32_t by) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(by) : "memory");
    return before;
}
// The same for who needs no answer.
DEVICE void count_release(uint32_t* counter, uint32_t by) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(by) : "memory");
}
DEVICE uint32_t count_now(const uint32_t* counter) {
    uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    return now;
}

// ---- reductions over a warp, in one fixed order; every lane gets the result ----
DEVICE float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}
// Sum over a block of WARPS warps; `scratch` holds WARPS floats and may be reused after the next barrier.
template <int WARPS> DEVICE float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
    __syncthreads();
    float s = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) s += scratch[i];
    return s;
}

// ---- warp-wide matrix steps: D(16x8) += A(16x16, rows) * B(16x8, columns), bf16 in, f32 sums ----
DEVICE void mma_bf16(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                     uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE void ldmatrix4(uint32_t* r, uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}
// Of what nobody writes meanwhile: not ordered with other memory.
DEVICE void ldmatrix4_still(uint32_t* r, uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr));
}
DEVICE void ldmatrix4_trans(uint32_t* r, uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}
// The same of bytes, sums in s32: A unsigned or signed (16 rows x 32 or 16), B signed (x 8 columns).
DEVICE void mma_u8_32(int* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_s8_32(int* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_u8_16(int* d, const uint32_t* a, uint32_t b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}
