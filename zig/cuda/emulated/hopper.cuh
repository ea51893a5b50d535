// Stands in for kernels/hopper.cuh, as common.cuh says: barriers in shared memory, clusters and tensor copies.
#pragma once
#include "common.cuh"

// ---- clusters ----
DEVICE int cluster_first() { return thread().block / cluster_blocks * cluster_blocks; }
DEVICE uint32_t cluster_rank() { return thread().block % cluster_blocks; }
DEVICE uint8_t* cluster_at(uint32_t address, uint32_t rank) { return teams[cluster_first() + rank].below + address; }
static Meeting clusters[64];
DEVICE void cluster_sync() {
    smem_addr(team().shared);
    meet(clusters[cluster_first()], cluster_blocks * team().n_threads);
}
DEVICE float4 cluster_load4(uint32_t address, uint32_t rank) {
    float4 v;
    memcpy(&v, cluster_at(address, rank), 16);
    return v;
}

// ---- mbarriers: arrivals in all and those still missing, phases gone by, bytes still missing ----
struct Barrier { uint32_t count : 10, missing : 10, phase : 12; int32_t bytes; };
static_assert(sizeof(Barrier) == 8, "as in shared memory");
DEVICE Barrier& barrier_of(int of, uint32_t at) { return *(Barrier*)(teams[of].below + at); }
DEVICE void turn_over(Barrier& b) {
    if (b.missing == 0 && b.bytes == 0) b.phase++, b.missing = b.count;
    idle = 0;
}
DEVICE void arrive(Barrier& b) {
    if (b.missing == 0) fail("more arrivals at a barrier than it counts");
    b.missing--;
    turn_over(b);
}
DEVICE void mbar_init(uint32_t bar, uint32_t count) {
    barrier_of(thread().block, bar) = {count, count, 0, 0};
}
DEVICE void mbar_init_fence() {}
DEVICE void mbar_expect(uint32_t bar, uint32_t bytes) {
    Barrier& b = barrier_of(thread().block, bar);
    b.bytes += bytes;
    arrive(b);
}
DEVICE void mbar_arrive(uint32_t bar) { arrive(barrier_of(thread().block, bar)); }
DEVICE void mbar_arrive_cluster(uint32_t bar, uint32_t rank) { arrive(barrier_of(cluster_first() + rank, bar)); }
DEVICE void land_loads(int of, uint32_t bar);
DEVICE void mbar_wait(uint32_t bar, uint32_t parity) {
    const int of = thread().block;
    until([&] {
        if ((barrier_of(of, bar).phase & 1) != parity) return true;
        land_loads(of, bar);
        return (barrier_of(of, bar).phase & 1) != parity;
    });
}
// Whether it has completed; who looks again and again meets its warp in between.
DEVICE bool mbar_done(uint32_t bar, uint32_t parity) {
    const int of = thread().block;
    land_loads(of, bar);
    return (barrier_of(of, bar).phase & 1) != parity;
}
DEVICE void named_arrive(int id, int of) {
    Meeting& m = team().named[id];
    if (thread().met[id] > m.times) fail("arrives twice at a barrier that others have not come to");
    thread().met[id] = m.times + 1;
    if (++m.came == of) m.came = 0, m.times++;
    idle = 0;
}
DEVICE void named_sync(int id, int of) {
    Meeting& m = team().named[id];
    const int times = m.times;
    named_arrive(id, of);
    until([&] { return m.times != times; });
}
DEVICE void fence_async_smem() {}
DEVICE void store_kept(float4* p, float4 v) { *p = v; }

// ---- tensor copies: matrices of 2-byte or 1-byte elements in boxes, 128-byte swizzle ----
// With another matrix eight rows of each lie in turns.
struct CUtensorMap { uint8_t *base, *other; int64_t rows, cols, stride; int32_t box_cols, box_rows, item, unused; };
DEVICE void tma_prefetch_map(const CUtensorMap*) {}
DEVICE uint32_t swizzled(uint32_t at) { return at ^ (at >> 7 & 7) << 4; }
struct Load { int block; uint32_t to, bar; CUtensorMap map; int x, y; const void* plain; uint32_t bytes; };
static Load loads[4096];
static int n_loads;
DEVICE void load_later(int of, uint32_t to, const CUtensorMap* map, int x, int y, uint32_t bar) {
    if (n_loads == 4096) fail("more copies on their way than expected");
    loads[n_loads++] = {of, to, bar, *map, x, y, nullptr, (uint32_t)map->box_rows * 128};
    spoil(teams[of].below + to, map->box_rows * 128);
}
// Bytes that lie in one piece.
DEVICE void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t bar) {
    if (n_loads == 4096) fail("more copies on their way than expected");
    if ((to | (uintptr_t)from | bytes) % 16) fail("a copy of bytes that are not aligned to 16");
    loads[n_loads++] = {thread().block, to, bar, {}, 0, 0, from, bytes};
    spoil(shared_at(to), bytes);
}
DEVICE void bulk_load_once(uint32_t to, const void* from, uint32_t bytes, uint32_t bar) { bulk_load(to, from, bytes, bar); }
// All that are on their way to one barrier.
DEVICE void land_loads(int of, uint32_t bar) {
    int kept = 0;
    for (int i = 0; i < n_loads; i++) {
        const Load l = loads[i];
        if (l.block != of || l.bar != bar) {
            loads[kept++] = l;
            continue;
        }
        const CUtensorMap& m = l.map;
        for (int r = 0; r < m.box_rows; r++)
            for (int c = 0; c < m.box_cols; c++) {
                const uint8_t* const base = m.other && r / 8 % 2 ? m.other : m.base;
                const int64_t row = l.y + (m.other ? r / 16 * 8 + r % 8 : r), col = (int64_t)l.x + c;
                uint8_t* const to = teams[of].below + swizzled(l.to + r * 128 + c * m.item);
                if (row >= 0 && row < m.rows && col < m.cols) memcpy(to, base + (row * m.stride + col) * m.item, m.item);
                else memset(to, 0, m.item);
            }
        Barrier& b = barrier_of(of, l.bar);
        if (l.plain) memcpy(teams[of].below + l.to, l.plain, l.bytes);
        b.bytes -= l.bytes;
        turn_over(b);
    }
    n_loads = kept;
}
DEVICE void tma_load(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t bar) {
    load_later(thread().block, to, map, x, y, bar);
}
DEVICE void tma_load_once(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t bar) { tma_load(to, map, x, y, bar); }
DEVICE void tma_load_pairs(uint32_t to, const CUtensorMap* map, int x, int eights, uint32_t bar) {
    tma_load(to, map, x, eights * 8, bar);
}
DEVICE void tma_load_pairs_once(uint32_t to, const CUtensorMap* map, int x, int eights, uint32_t bar) {
    tma_load_pairs(to, map, x, eights, bar);
}
DEVICE void tma_load_multi(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t bar, uint16_t mask) {
    for (int rank = 0; rank < cluster_blocks; rank++)
        if (mask >> rank & 1) load_later(cluster_first() + rank, to, map, x, y, bar);
}
// ---- registers ----
template <int N> DEVICE void regs_grow() {}
template <int N> DEVICE void regs_shrink() {}
DEVICE void stmatrix4(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    thread().words[0] = address;
    __syncwarp();
    const uint32_t mine[4] = {a, b, c, d};
    for (int m = 0; m < 4; m++) memcpy(matrix_row(m, lane() / 4) + lane() % 4 * 4, mine + m, 4);
    __syncwarp();
}
DEVICE uint32_t transpose8(uint32_t two) {
    thread().words[0] = two;
    __syncwarp();
    uint32_t both = 0;
    for (int i = 0; i < 2; i++) {
        const uint32_t word = warp()[(lane() % 4 * 2 + i) * 4 + lane() / 8].words[0];
        both |= (word >> lane() / 4 % 2 * 16 & 0xffff) << 16 * i;
    }
    __syncwarp();
    return both;
}
