// How weights come to the warps of a chain (chain.cuh): a ring of shared memory each, and warps that ask for what fills
// them, in the order in which it is read.
//
// What a multiprocessor loads comes behind what all of them have asked for before. Rings as deep as shared memory lets
// them be are 4 us of memory's time: where they were filled at once, or as fast as their readers went on, x took 3 us to
// come, though it lay in L2, and all wait for x five times a layer. Memory has enough to do with some 30 KB under way to
// each multiprocessor, or twice that while they read. So those who ask watch what comes, and let no more than `budget`
// bytes be under way for a product that is read, and `ahead` for those whose x is not there: rings are full all the same
// when it comes, and it comes in less than 1 us.
//
// A layer of our q4_k_m with its state took 58.1 us where readers asked, 53.3 now; q4_k 51.0 and 48.5, q8_0 79.3 and 79.0,
// e4m3 75.3 and 72.7, bf16 134.4 and 131.8 (H200). bench/results/gpu-decode.md has other ways and bounds.
#pragma once
#include "hopper.cuh"

#if HOPPER
constexpr int STEPS_MAX = 8;  // that a ring has at a time
constexpr int UNIT = 64;      // steps begin at multiples of so many bytes, less than 256 of them
DEVICE int room(int bytes) { return bytes + UNIT - 1 & -UNIT; }
// Of one ring: steps that have come, and that have been read.
struct alignas(128) Bars {
    uint64_t full[STEPS_MAX], empty[STEPS_MAX];
};
constexpr int EMPTY = 8 * STEPS_MAX;  // bytes to the second

// What one warp reads: a step lies behind the one before, or at the beginning where it would not fit.
struct Ring {
    uint32_t base, end, from, bars, bar, parity;
    uint32_t zero;  // which no compiler knows
    int lane;

    DEVICE_MEMBER void begin(uint32_t ring, int bytes, const Bars* of, uint32_t unknown_zero) {
        lane = threadIdx.x & 31, bar = parity = 0, base = from = ring, end = ring + bytes, bars = smem_addr(of);
        zero = unknown_zero;
        if (lane < 2 * STEPS_MAX) mbar_init(bars + 8 * lane, lane < STEPS_MAX ? 1 : 32);
        mbar_init_fence();
    }
    // Where the next step lies, of `bytes`, once it has come.
    DEVICE_MEMBER uint32_t wait(int bytes) {
        if (from + room(bytes) > end) from = base;
        mbar_wait(bars + bar, parity);
        return from;
    }
    // It has been read. `made` is of all its bytes: else the compiler may say so before they have come to registers. Every
    // lane arrives: racecheck does not follow one lane's arrival for its warp.
    DEVICE_MEMBER void next(int bytes, float made) {
        mbar_arrive(bars + EMPTY + bar + (__float_as_uint(made) & zero));
        from += room(bytes), bar += 8;
        if (bar == EMPTY) bar = 0, parity ^= 1;
    }
};

// What may be under way to a multiprocessor, bytes.
struct Way {
    int budget, ahead;  // for steps of products that are read, and of those behind
};
// Warps that ask for the steps of RINGS rings, a lane a ring. A `Walk` has the steps that a ring's warp reads: whether
// there is one more, its bytes, its copy, and how many products its block has had a part in by then. What has been read is
// asked for again a turn of the loop later, so that has to be short: one warp for all rings was too slow, and so were four
// that ask for one step a turn.
// Where bounds are of a warp's rings together (Walk::SHARED), those go first that have least, and what is read before what
// is not: finer than a bound of each, which is faster to tell and does where steps are small.
template <int WARPS, int RINGS> struct Suppliers {
    static constexpr int EACH = RINGS / WARPS;
    static DEVICE_MEMBER int ring() { return (threadIdx.x >> 5) % WARPS + WARPS * (threadIdx.x % EACH); }

    // `begun`: a barrier whose phases are such products that begin to be read.
    template <typename Walk>
    static DEVICE_MEMBER void run(Walk& walk, const Bars* of, uint32_t base, int bytes, uint32_t begun, Way most) {
        const uint32_t end = base + bytes, bars = smem_addr(of), lane = threadIdx.x % EACH;
        const bool own = (threadIdx.x & 31) < EACH;
        uint32_t to = base;                      // where the next step goes
        uint32_t asked = 0, come = 0, read = 0;  // steps, times 8
        uint64_t starts = 0;                     // of the last ones asked for, in UNITs, the last lowest
        uint32_t place = lane;                   // among a warp's rings, each turn another
        int now = 0;                             // products that are read or have been, but for those without a part
        bool more = own && walk.more();
        while (__any_sync(~0u, more)) {
            now += mbar_done(begun, now & 1);
            const bool comes = mbar_done((come & EMPTY - 8) | bars, come / EMPTY & 1);
            const bool leaves = mbar_done((read & EMPTY - 8 | EMPTY) | bars, read / EMPTY & 1);
            come += comes * 8, read += leaves * 8;
            const int has = asked - read, step = room(walk.bytes), way = (int)(asked - come) * step;  // way: times 8
            const uint32_t oldest = base + (uint32_t)(starts >> (has - 8 & 63) & 0xff) * UNIT;
            const uint32_t at = to + step <= end ? to : base;
            const bool below = at + step <= oldest;
            const bool fits = (has == 0) | (to > oldest ? (at == to) | below : (at == to) & below);
            const bool early = walk.nth > now;
            const int limit = early ? most.ahead : most.budget;
            bool goes = more & fits & (has < EMPTY);
            if constexpr (Walk::SHARED) {
                const int rank = goes ? has + early * EMPTY : 4 * EMPTY, all_way = __reduce_add_sync(~0u, own ? way : 0);
                goes = goes & (rank <= __reduce_min_sync(~0u, rank) + 8);
                const uint32_t all = __ballot_sync(~0u, goes);
                place = (place + 1) % EACH;
                const int before = __popc(all * ((1 << EACH) + 1) >> (lane + EACH - place) & ((1 << place) - 1));
                goes = goes & (all_way + before * 8 * step < limit * (8 / WARPS));
            } else {
                goes = goes & (way < limit / (RINGS / 8));
            }
            if (goes) {
                walk.copy(at, (asked & EMPTY - 8) | bars);
                asked += 8, starts = starts << 8 | (at - base) / UNIT;
                to = at + step, walk.next();
                more = walk.more();
            }
            __syncwarp();
        }
    }
};
#endif  // HOPPER
