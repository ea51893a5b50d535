// sample: the next id of every row of scores; logits_warp: temperature, top-k, top-p, min-p and typical-p, in HF's
// order.
//
// Contract (as zig/cpu/sample.zig and logits_warp.zig): greedy takes the largest score, the smallest id on a
//   tie. A draw inverts the cumulative softmax in the order of ids at Philox4x32-10's number for (generated,
//   stream) under the seed. NaN counts as -inf; where nothing is above -inf the id is -1; a finished sequence
//   gets pad_id. top-k keeps everything not below the k-th score; top-p the best ids until their mass reaches
//   p, of equal scores the larger id first; min-p what has at least min_p of the best probability; typical-p, of
//   what is left, the ids whose surprise is nearest to the entropy until their mass reaches p. Removed ids get -inf.
//   out may be the scores.
//   scores f32 (rows, vocab), vocab at most 524288. History rules (logits_process) come before, elsewhere.
//
// Bytes: each pass reads a row once, from L2: 2 passes for a draw, up to 13 for a warp.
// Ideas: - nothing is sorted: three passes put masses into 2048 buckets by some bits of the score's order;
//        - masses are added as whole numbers (2^-40 steps), so that the order of atomics does not matter;
//        - sums of 1024 ids by one warp in a fixed tree, in f64 over the row: same bits every time;
//        - on Hopper a cluster may search a row's largest score in parts. H200, 128,256 scores, clusters of 1, 2, 4 and 8:
//          8 rows 11.6, 8.0, 6.0, 5.5 us; 16 rows 11.6, 8.2, 6.2, 10.1; 64 rows 14.5, 10.2, 17.8, 25.0; 128 rows 20.8
//          and 25.2.
// Launch: 1024 threads, grid (rows); sample_f32 on Hopper may have clusters, grid (rows * their size).
#include "hopper.cuh"

struct Sampling {  // command.zig's, field by field
    uint32_t do_sample, top_k;
    float temperature, top_p, min_p, typical_p, repetition_penalty;
    uint32_t no_repeat_ngram_size, min_new_tokens, generated, seed_lo, seed_hi, stream, finished;
};
struct SampleArgs {
    const float* scores;
    float* out;  // logits_warp
    const Sampling* sampling;  // null: greedy
    int* sampled;              // sample
    int vocab, stride, out_stride, pad_id;
};

constexpr int THREADS = 1024, WARPS = 32, TILE = 1024, TILES = 512;

DEVICE float clean(float v) { return v == v ? v : -INFINITY; }

// f(value, id) for a row's ids, thread by thread; eight loads at a time, or their latencies would add up.
template <typename F> DEVICE void each(const float* x, int n, F f) {
    for (int base = threadIdx.x; base < n; base += 8 * THREADS) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = base + i * THREADS < n ? x[base + i * THREADS] : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (base + i * THREADS < n) f(clean(v[i]), base + i * THREADS);
    }
}

// The largest value of a row and its smallest id; every thread gets both.
DEVICE void best_of(const float* x, int n, float* best, int* id) {
    __shared__ float tops[WARPS];
    __shared__ int ids[WARPS];
    float top = -INFINITY;
    int at = n;
    each(x, n, [&](float v, int i) {
        if (v > top) top = v, at = i;
    });
    auto merge = [&](float v, int i) {
        if (v > top || (v == top && i < at)) top = v, at = i;
    };
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        const float v = __shfl_xor_sync(~0u, top, o);
        const int i = __shfl_xor_sync(~0u, at, o);
        merge(v, i);
    }
    if ((threadIdx.x & 31) == 0) tops[threadIdx.x >> 5] = top, ids[threadIdx.x >> 5] = at;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) merge(tops[w], ids[w]);
    *best = top, *id = at;
}

// The same of a row that a cluster's blocks have searched in parts, on every thread of the first one.
DEVICE void best_of_cluster(const float* x, int n, float* best, int* id) {
#if HOPPER
    const int size = cluster_size(), part = (n + size - 1) / size, begin = min(n, (int)cluster_rank() * part);
    __shared__ float mine;
    __shared__ int at;
    float top;
    int where;
    best_of(x + begin, min(part, n - begin), &top, &where);
    if (threadIdx.x == 0) mine = top, at = begin + where;
    cluster_sync();
    *best = -INFINITY, *id = n;
    if (cluster_rank() == 0)
        for (int r = 0; r < size; r++) {
            const float v = cluster_load(smem_addr(&mine), r);
            if (v > *best) *best = v, *id = __float_as_int(cluster_load(smem_addr(&at), r));
        }
    cluster_sync();  // nobody leaves while the first may still read here
#else
    best_of(x, n, best, id);
#endif
}

DEVICE double philox_uniform(const Sampling& s) {
    uint32_t c0 = s.generated, c1 = s.stream, c2 = 0, c3 = 0, k0 = s.seed_lo, k1 = s.seed_hi;
    for (int i = 0; i < 10; i++) {
        const uint32_t ah = __umulhi(c0, 0xd2511f53u), al = c0 * 0xd2511f53u;
        const uint32_t bh = __umulhi(c2, 0xcd9e8d57u), bl = c2 * 0xcd9e8d57u;
        c0 = bh ^ c1 ^ k0, c1 = bl, c2 = ah ^ c3 ^ k1, c3 = al;
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
    return (double)((uint64_t)(c0 >> 5) << 26 | c1 >> 6) * 0x1p-53;
}

DEVICE float weight(float v, float top) {
    v = clean(v);
    return v == top ? 1.0f : expf(v - top);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample_f32(const __grid_constant__ SampleArgs a) {
    __shared__ double sums[TILES];
    __shared__ int found;
    __shared__ double target;
    pdl_wait();
    pdl_launch();
#if HOPPER
    const int row = blockIdx.x / cluster_size();
    const bool first = cluster_rank() == 0;
#else
    const int row = blockIdx.x;
    const bool first = true;
#endif
    const int n = a.vocab, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const float* x = a.scores + (size_t)row * a.stride;
    const bool draw = a.sampling && a.sampling[row].do_sample;
    if (a.sampling && a.sampling[row].finished) {
        if (first && threadIdx.x == 0) a.sampled[row] = a.pad_id;
        return;
    }
    float top;
    int id;
    best_of_cluster(x, n, &top, &id);
    if (!first) return;
    if (top == -INFINITY || !draw) {
        if (threadIdx.x == 0) a.sampled[row] = top == -INFINITY ? -1 : id;
        return;
    }
    const int tiles = (n + TILE - 1) / TILE;
    for (int tile = warp; tile < tiles; tile += WARPS) {
        double s = 0;
        for (int i = lane; i < TILE; i += 256) {
            float v[8];
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = tile * TILE + i + 32 * j < n ? x[tile * TILE + i + 32 * j] : -INFINITY;
#pragma unroll
            for (int j = 0; j < 8; j++) s += weight(v[j], top);
        }
#pragma unroll
        for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
        if (lane == 0) sums[tile] = s;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (int i = 0; i < tiles; i++) total += sums[i];
        double left = philox_uniform(a.sampling[row]) * total;
        int last = 0;
        for (int i = 0; i < tiles; i++) {
            if (sums[i] > 0) last = i;
            if (left < sums[i]) break;
            left -= sums[i];
        }
        found = last, target = left;
    }
    __syncthreads();
    if (warp) return;
    double before = 0;
    int last = -1;  // the last id of any weight, should rounding let none pass the target
    for (int i = 0; i < TILE; i += 32) {
        const int at = found * TILE + i + lane;
        const float w = at < n ? weight(x[at], top) : 0.0f;
        double s = w;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            const double up = __shfl_up_sync(~0u, s, o);
            if (lane >= o) s += up;
        }
        const uint32_t over = __ballot_sync(~0u, w > 0 && before + s > target), any = __ballot_sync(~0u, w > 0);
        if (over) {
            if (lane == 0) a.sampled[row] = found * TILE + i + __ffs(over) - 1;
            return;
        }
        if (any) last = found * TILE + i + 31 - __clz(any);
        before += __shfl_sync(~0u, s, 31);
    }
    if (lane == 0) a.sampled[row] = last;
}

// An order of floats as unsigned numbers; 0 and -0 are the same.
DEVICE uint32_t ordered(float v) {
    const uint32_t u = __float_as_uint(v + 0.0f);
    return u >> 31 ? ~u : u | 0x80000000u;
}

// The largest key `edge` such that what lies at or above it has at least the wanted mass; `above` is the
// mass strictly above it. `mass` gives an id's mass (0: not in the race).
template <typename KEY, typename MASS>
DEVICE void reach(const float* x, int n, uint64_t want, uint64_t* buckets, KEY key_of, MASS mass, uint32_t* edge,
                  uint64_t* above) {
    __shared__ uint32_t prefix;
    __shared__ uint64_t so_far;
    if (threadIdx.x == 0) prefix = 0, so_far = 0;
    for (int pass = 0; pass < 3; pass++) {
        const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, bits = pass == 2 ? 10 : 11, count = 1 << bits;
        for (int i = threadIdx.x; i < count; i += THREADS) buckets[i] = 0;
        __syncthreads();
        const uint32_t high = prefix;
        each(x, n, [&](float v, int i) {
            const uint32_t key = key_of(v);
            if (pass && key >> (shift + bits) != high) return;
            const uint64_t m = mass(v, i);
            if (!m) return;
            // Lanes that share a bucket add up among themselves first: scores crowd into few buckets.
            const uint32_t bucket = key >> shift & (count - 1), peers = __match_any_sync(__activemask(), bucket);
            const uint64_t low = __reduce_add_sync(peers, (uint32_t)m & 0xfffffu);
            const uint64_t sum = ((uint64_t)__reduce_add_sync(peers, (uint32_t)(m >> 20)) << 20) + low;
            if ((threadIdx.x & 31) == __ffs(peers) - 1)
                atomicAdd((unsigned long long*)&buckets[bucket], (unsigned long long)sum);
        });
        __syncthreads();
        if (threadIdx.x < 32) {  // one warp walks from the top, 32 buckets at a time
            uint64_t sum = so_far;
            for (int b = count - 32; b >= 0; b -= 32) {
                uint64_t s = buckets[b + 31 - threadIdx.x];
                const uint64_t own = s;
#pragma unroll
                for (int o = 1; o < 32; o <<= 1) {
                    const uint64_t up = __shfl_up_sync(~0u, s, o);
                    if (threadIdx.x >= o) s += up;
                }
                // lane 31 of the lowest group takes whatever rounding has left over
                const uint32_t hit = __ballot_sync(~0u, own && (sum + s >= want));
                if (hit) {
                    const int l = __ffs(hit) - 1;
                    if ((int)threadIdx.x == l) prefix = high << bits | (b + 31 - l), so_far = sum + s - own;
                    break;
                }
                sum += __shfl_sync(~0u, s, 31);
            }
        }
        __syncthreads();
    }
    *edge = prefix, *above = so_far;
    __syncthreads();
}

// The sum over all threads, in a fixed order; every thread gets it.
template <typename T> DEVICE T sum_of_all(T v, T* parts) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < WARPS; w++) v += parts[w];
    __syncthreads();
    return v;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) logits_warp_f32(const __grid_constant__ SampleArgs a) {
    __shared__ uint64_t buckets[2048];
    __shared__ uint64_t parts[WARPS];
    __shared__ double products[WARPS];
    __shared__ float bests[THREADS];
    __shared__ int cut;
    pdl_wait();
    pdl_launch();
    const int row = blockIdx.x, n = a.vocab, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const float* x = a.scores + (size_t)row * a.stride;
    float* out = a.out + (size_t)row * a.out_stride;
    const Sampling s = a.sampling[row];
    float top;
    int id;
    best_of(x, n, &top, &id);
    uint32_t edge_k = 0, edge_p = 0;
    int cut_id = 0;  // of scores at the top-p edge, ids below it go
    const float inv = 1.0f / s.temperature;
    auto below = [&](float c) { return c == top ? 0.0f : (c - top) * inv; };  // how far from the best
    auto mass = [&](float v, int) -> uint64_t {  // of an id that top-k left
        const float c = clean(v);
        if (c == -INFINITY || ordered(c) < edge_k) return 0;
        return max(1ull, (unsigned long long)__double2ull_rn((double)expf(below(c)) * 0x1p40));
    };
    if (top > -INFINITY) {
        uint64_t above;
        if (s.top_k && s.top_k < (uint32_t)n) {
            // The k-th of the threads' best scores bounds the k-th score from below: few ids are left to count.
            uint32_t bound = 0;
            if (s.top_k <= THREADS) {
                float mine = -INFINITY;
                each(x, n, [&](float v, int) { mine = fmaxf(mine, v); });
                bests[threadIdx.x] = mine;
                __syncthreads();
                reach(bests, THREADS, s.top_k, buckets, ordered,
                      [&](float v, int) -> uint64_t { return v > -INFINITY; }, &bound, &above);
            }
            reach(x, n, s.top_k, buckets, ordered,
                  [&](float v, int) -> uint64_t { return v > -INFINITY && ordered(v) >= bound; }, &edge_k, &above);
        }
        // fewer than k ids above -inf: nothing is reached, the edge stays at the bottom
        if (s.top_p < 1.0f) {
            uint64_t total = 0;
            each(x, n, [&](float v, int i) { total += mass(v, i); });
            total = sum_of_all(total, parts);
            const uint64_t want = max(1ull, (unsigned long long)__double2ull_ru((double)s.top_p * (double)total));
            reach(x, n, min(want, total), buckets, ordered, mass, &edge_p, &above);
            // Ids at the edge are equals: the largest ids that still belong, counted from the end.
            if (threadIdx.x == 0) cut = 0;
            uint64_t sum = above;
            const uint64_t m = mass(__uint_as_float(edge_p >> 31 ? edge_p & 0x7fffffffu : ~edge_p), 0);
            int equals = 0;
            each(x, n, [&](float v, int) { equals += ordered(v) == edge_p; });
            const int holders = __syncthreads_count(equals);
            if (!__syncthreads_or(equals > 1 || holders > 1)) sum = want;  // one alone stays
            for (int base = (n - 1) / THREADS * THREADS; base >= 0 && sum < want; base -= THREADS) {
                const int i = base + THREADS - 1 - threadIdx.x;
                const bool equal = i < n && ordered(clean(x[i])) == edge_p;
                const uint32_t votes = __ballot_sync(~0u, equal);
                if (lane == 0) parts[warp] = __popc(votes);
                __syncthreads();
                uint64_t rank = __popc(votes & ((1u << lane) - 1)), all = 0;
                for (int w = 0; w < WARPS; w++) rank += w < warp ? parts[w] : 0, all += parts[w];
                // this id brings the mass to what is wanted: equals before it go
                if (equal && sum + rank * m < want && sum + (rank + 1) * m >= want) cut = i;
                sum += all * m;
                __syncthreads();
            }
            __syncthreads();
            cut_id = cut;
        }
    }
    auto left = [&](float c, int i) {
        const uint32_t key = ordered(c);
        const bool keep = c > -INFINITY && key >= edge_k && (key > edge_p || (key == edge_p && i >= cut_id));
        return keep && (s.min_p <= 0.0f || expf(below(c)) >= fminf(s.min_p, 1.0f));
    };
    // Of ids that are nearest to the entropy the key is largest. -log p - entropy = mean - below.
    uint32_t edge_typical = 0;
    float mean = 0;
    auto nearness = [&](float v) { return ~__float_as_uint(fabsf(mean - below(clean(v)))); };
    if (s.typical_p < 1.0f && top > -INFINITY) {
        uint64_t total = 0, above;
        double product = 0;
        each(x, n, [&](float c, int i) {
            if (!left(c, i)) return;
            const uint64_t m = mass(c, i);
            total += m, product += (double)m * below(c);
        });
        total = sum_of_all(total, parts), product = sum_of_all(product, products);
        mean = (float)(product / (double)total);
        const uint64_t want = max(1ull, (unsigned long long)__double2ull_ru((double)s.typical_p * (double)total));
        reach(x, n, min(want, total), buckets, nearness,
              [&](float v, int i) -> uint64_t { return left(clean(v), i) ? mass(v, i) : 0; }, &edge_typical, &above);
    }
    each(x, n, [&](float c, int i) {
        out[i] = left(c, i) && nearness(c) >= edge_typical ? c / s.temperature : -INFINITY;
    });
}
