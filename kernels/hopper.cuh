// Hopper only (sm_90a): barriers in shared memory, the bulk tensor copy engine; wgmma.cuh has its matrix steps.
// Every function here exists only in the sm_90a pass; kernels that call it are empty elsewhere.
#pragma once
#include "common.cuh"
#include <cuda.h>
#if HOPPER

// ---- mbarrier ----
DEVICE void mbar_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
DEVICE void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbar_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
DEVICE void mbar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Arrives at the same barrier of block `rank` of the cluster. Block scope on purpose: with cluster scope
// each arrival costs a full memory barrier (MEMBAR.GPU) and each wait an L1 flush: a third of a GEMM's time.
DEVICE void mbar_arrive_cluster(uint32_t bar, uint32_t rank) {
    asm volatile("{\n.reg .b32 r;\nmapa.shared::cluster.u32 r, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [r];\n}\n" ::"r"(bar), "r"(rank)
                 : "memory");
}
// Waits until the phase of that parity has completed.
DEVICE void mbar_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\nwait_again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra.uni done;\nbra.uni wait_again;\ndone:\n}\n" ::"r"(bar), "r"(parity)
                 : "memory");
}
// Whether it has completed.
DEVICE bool mbar_done(uint32_t bar, uint32_t parity) {
    uint32_t passed;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(passed) : "r"(bar), "r"(parity) : "memory");
    return passed;
}
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
DEVICE uint32_t cluster_rank() {
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
// A float of block `rank` of the cluster, at the address it has here.
DEVICE float cluster_load(uint32_t addr, uint32_t rank) {
    float v;
    asm volatile("{\n.reg .b32 r;\nmapa.shared::cluster.u32 r, %1, %2;\nld.shared::cluster.f32 %0, [r];\n}\n"
                 : "=f"(v) : "r"(addr), "r"(rank) : "memory");
    return v;
}
DEVICE float4 cluster_load4(uint32_t addr, uint32_t rank) {
    float4 v;
    asm volatile("{\n.reg .b32 r;\nmapa.shared::cluster.u32 r, %4, %5;\n"
                 "ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [r];\n}\n"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(addr), "r"(rank) : "memory");
    return v;
}
DEVICE uint32_t cluster_size() {
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
    return r;
}
DEVICE void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// The same without waiting for the others.
DEVICE void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Ordinary shared-memory writes before this are seen by tensor cores and copies after the next barrier.
DEVICE void fence_async_smem() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk tensor copies; x counts columns, y rows ----
DEVICE void tma_load(uint32_t dst, const CUtensorMap* map, int x, int y, uint32_t bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(dst), "l"(map), "r"(x), "r"(y), "r"(bar)
                 : "memory");
}
// A tile that nobody reads again soon: L2 gives its place to others first.
constexpr uint64_t EVICT_FIRST = 0x12F0000000000000;
DEVICE void tma_load_once(uint32_t dst, const CUtensorMap* map, int x, int y, uint32_t bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst), "l"(map), "r"(x), "r"(y), "r"(bar), "l"(EVICT_FIRST)
                 : "memory");
}
// Of two matrices, eight rows of each in turns: `eights` counts those.
DEVICE void tma_load_pairs(uint32_t dst, const CUtensorMap* map, int x, int eights, uint32_t bar) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %3, %4}], [%5];" ::"r"(dst), "l"(map), "r"(x), "r"(0), "r"(eights), "r"(bar)
                 : "memory");
}
DEVICE void tma_load_pairs_once(uint32_t dst, const CUtensorMap* map, int x, int eights, uint32_t bar) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(dst), "l"(map), "r"(x), "r"(0), "r"(eights), "r"(bar),
                 "l"(EVICT_FIRST) : "memory");
}
// The same tile to the same address of every block in `mask`; each block's own barrier counts the bytes.
DEVICE void tma_load_multi(uint32_t dst, const CUtensorMap* map, int x, int y, uint32_t bar, uint16_t mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst), "l"(map), "r"(x),
                 "r"(y), "r"(bar), "h"(mask) : "memory");
}
// Bytes (a multiple of 16) that lie in one piece.
DEVICE void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar) : "memory");
}
// The same of what nobody reads again soon: L2 gives its place to others first.
DEVICE void bulk_load_once(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                 ::"r"(dst), "l"(src), "r"(bytes), "r"(bar), "l"(EVICT_FIRST) : "memory");
}
// What another block reads soon and the next launches write again: L2 gives its place to others last, so that memory
// hardly sees it.
DEVICE void store_kept(float4* p, float4 v) {
    constexpr uint64_t EVICT_LAST = 0x14F0000000000000;
    asm volatile("st.global.L2::cache_hint.v4.f32 [%0], {%1,%2,%3,%4}, %5;" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z),
                 "f"(v.w), "l"(EVICT_LAST) : "memory");
}
DEVICE void tma_prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// ---- registers ----
template <int N> DEVICE void regs_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void regs_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
DEVICE void stmatrix4(uint32_t addr, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(a),
                 "r"(b), "r"(c), "r"(d) : "memory");
}
// Of an 8 x 8 matrix of 16-bit numbers, two neighbours a lane, row by row: the same of its transpose.
DEVICE uint32_t transpose8(uint32_t two) {
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(two));
    return r;
}
#endif  // HOPPER
