// attention of one query a sequence on Hopper: attention_decode.cu with one ring a multiprocessor.
//
// Contract: that of attention_decode.cu; heads / kv_heads is 1, 2, 4 or 8, which the kernel's name says. Spans of 512
//   keys from position 0, a page a warp: a row's bits depend on nothing but its sequence.
//
// Bytes: kv_heads * 512 a key. Floor: that over the read bandwidth.
// Ideas: - one block a multiprocessor goes through its share of all spans, and one warp asks for their pages, so that the
//          ring never runs dry between spans. A page's 16 KB of keys (or values) come in one piece, read once: asked
//          for by halves of 64 channels, or with 256 bytes at a time for L2, they take a tenth longer;
//        - eight warps take a page each and add up through shared memory;
//        - both products on tensor cores. Rows 0 to 7 of a step hold the heads' probabilities as bf16 and rows 8 to 15
//          what that rounding left, so that values meet probabilities of 16 bits at no cost;
//        - pages before the last are asked for before the kernel in front is waited for: it (rope_append)
//          writes only the last position, and must not write past_len or pages.
// Reached on an H200, with attention_combine, of the read bandwidth: one sequence of 32,768 keys 0.77 (38.4 us), of
//   131,072 0.89, 16 of 4,096 0.84, 64 of 4,096 0.92, 256 of 1,024 0.90.
//   What is missing: bench/results/gpu-decode.md.
// Launch: 288 threads, grid min(multiprocessors, spans of all), dynamic smem Layout::END + 1024. Tensor maps of k and
//   v as rows of 64 channels, two a key: 128-byte swizzle, box 64 x 128. Then attention_combine if max_splits > 1.
#include "attention_decode.cuh"
#include "hopper.cuh"

#if HOPPER
constexpr int HD = 128, PAGE = 64, WARPS = 8, SPAN = WARPS * PAGE, RECORD = HD + 4;
constexpr int SIDE = 16384, ROOM = 2 * SIDE;  // a page's keys or values; both
constexpr int ITEMS = 4;
// Barriers of pages that have come. More than rooms: warps wait for pages in any order, a barrier tells two phases apart
// only, and the page that used it before must have come for sure.
constexpr int CAME = 16;

// A span of one sequence's keys, of one key head.
struct Item {
    int seq, kv, split, keys;  // keys of the sequence; END: nothing follows
    uint32_t first;            // pages that the ring has had before
};
constexpr int END = -1;

template <int REP> struct Layout {
    static constexpr int ROOMS = 5;
    static constexpr int Q = ROOMS * ROOM, SUMS = Q + ITEMS * REP * HD * 2;
    static constexpr int BARS = SUMS + WARPS * REP * RECORD * 4;
    static constexpr int K_FULL = BARS, V_FULL = K_FULL + 8 * CAME, K_EMPTY = V_FULL + 8 * CAME;
    static constexpr int V_EMPTY = K_EMPTY + 8 * ROOMS, Q_FULL = V_EMPTY + 8 * ROOMS, Q_EMPTY = Q_FULL + 8 * ITEMS;
    static constexpr int INFO = Q_EMPTY + 8 * ITEMS, END = INFO + ITEMS * 32;
    static_assert(END + 1024 <= 232448, "shared memory");
};

// The spans of all sequences in order, key heads of a span beside each other; a warp keeps 32 sequences at hand.
struct Deal {
    int base, total, chunk, upto, keys;  // spans before these sequences, of them; lane's: up to its own, its keys
    DEVICE_MEMBER void fill(const DecodeAttentionArgs& a, int lane) {
        const int seq = chunk + lane;
        keys = seq < a.seqs ? (int)a.past_len[seq] + 1 : 0;
        upto = (keys + SPAN - 1) / SPAN;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            const int below = __shfl_up_sync(~0u, upto, o);
            if (lane >= o) upto += below;
        }
        total = __shfl_sync(~0u, upto, 31);
    }
    // Item i, which is never below the one before.
    DEVICE_MEMBER bool find(const DecodeAttentionArgs& a, int i, int lane, Item& item) {
        const int span = i / a.kv_heads;
        while (span >= base + total) {
            base += total, chunk += 32;
            if (chunk >= a.seqs) return false;
            fill(a, lane);
        }
        const int owner = __ffs(__ballot_sync(~0u, span < base + upto)) - 1;
        item.seq = chunk + owner, item.kv = i - span * a.kv_heads;
        item.keys = __shfl_sync(~0u, keys, owner);
        const int end = __shfl_sync(~0u, upto, owner);
        item.split = span - (base + end - (item.keys + SPAN - 1) / SPAN);
        return true;
    }
};
DEVICE int pages_of(const Item& item) { return min(WARPS, (item.keys - item.split * SPAN + PAGE - 1) / PAGE); }

// The warp that asks for pages and queries.
template <int REP> DEVICE void bring(const CUtensorMap* mk, const CUtensorMap* mv, const DecodeAttentionArgs& a,
                                     uint32_t smem, Item* infos) {
    typedef Layout<REP> L;
    const int lane = threadIdx.x & 31, page_rows = (int)(a.page_stride / HD) * 2;
    Deal deal = {0, 0, -32, 0, 0};
    bool waited = false;
    uint32_t count = 0;  // pages asked for
    int n = 0, asked = 0;  // items found; those whose queries are on their way
    auto note = [&](const Item& item) {
        mbar_wait(smem + L::Q_EMPTY + 8 * (n % ITEMS), ((n / ITEMS) & 1) ^ 1);
        if (lane == 0) infos[n % ITEMS] = item;
        __syncwarp();
    };
    auto ask = [&](int upto) {  // for the queries of items
        for (; asked < upto; asked++) {
            const int slot = asked % ITEMS;
            const uint32_t bar = smem + L::Q_FULL + 8 * slot;
            if (lane > 0) continue;
            mbar_expect(bar, REP * HD * 2);
            bulk_load(smem + L::Q + slot * REP * HD * 2,
                      a.q + (size_t)infos[slot].seq * a.q_stride + infos[slot].kv * REP * HD, REP * HD * 2, bar);
        }
    };
    auto wait_front = [&] {
        if (waited) return;
        pdl_wait();
        pdl_launch();
        waited = true;
    };
    for (int i = blockIdx.x;; i += gridDim.x, n++) {
        Item item;
        if (!deal.find(a, i, lane, item)) break;
        item.first = count;
        const int pages = pages_of(item), page = item.split * WARPS;
        const uint32_t id = lane < pages ? a.pages[(size_t)item.seq * a.max_pages + page + lane] : 0;
        note(item);
        if (waited) ask(n + 1);
        for (int p = 0; p < pages; p++, count++) {
            const int room = count % L::ROOMS, phase = ((count / L::ROOMS) & 1) ^ 1;
            const int row = (int)__shfl_sync(~0u, id, p) * page_rows + item.kv * PAGE * 2;
            if (!waited && (count >= L::ROOMS || (page + p + 1) * PAGE >= item.keys)) wait_front(), ask(n + 1);
#pragma unroll
            for (int v = 0; v < 2; v++) {
                mbar_wait(smem + (v ? L::V_EMPTY : L::K_EMPTY) + 8 * room, phase);
                if (lane == 0) {
                    const uint32_t full = smem + (v ? L::V_FULL : L::K_FULL) + 8 * (count % CAME);
                    mbar_expect(full, SIDE);
                    tma_load_once(smem + room * ROOM + v * SIDE, v ? mv : mk, 0, row, full);
                }
            }
            __syncwarp();
        }
    }
    wait_front();
    ask(n);
    note({0, 0, 0, END, 0});
    if (lane == 0) mbar_arrive(smem + L::Q_FULL + 8 * (n % ITEMS));
}

// Piece of 8 channels of a key.
DEVICE uint32_t swizzled(uint32_t side, int key, int piece) {
    const int row = 2 * key + (piece >> 3);
    return side + row * 128 + (((piece & 7) ^ (row & 7)) << 4);
}

// One page of a warp: its sums to `sums` (REP, 128), its largest score and denominator of row g behind them.
template <int REP>
DEVICE void page_sums(uint32_t smem, uint32_t at, const uint32_t* q, int left, float scale, float* sums) {
    typedef Layout<REP> L;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, mat = lane >> 3, r8 = lane & 7;
    const uint32_t room = at % L::ROOMS, came = at % CAME, phase = (at / CAME) & 1;
    const uint32_t keys = smem + room * ROOM, values = keys + SIDE;
    float s[8][4];
#pragma unroll
    for (int j = 0; j < 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
    mbar_wait(smem + L::K_FULL + 8 * came, phase);
#pragma unroll
    for (int i = 0; i < 4; i++) {  // 32 channels; steps that wait for each other stand apart
        uint32_t k[8][4];
#pragma unroll
        for (int j = 0; j < 8; j++) ldmatrix4(k[j], swizzled(keys, 8 * j + r8, 4 * i + mat));
#pragma unroll
        for (int j = 0; j < 8; j++) mma_bf16(s[j], q[4 * i], 0, q[4 * i + 1], 0, k[j][0], k[j][1]);
#pragma unroll
        for (int j = 0; j < 8; j++) mma_bf16(s[j], q[4 * i + 2], 0, q[4 * i + 3], 0, k[j][2], k[j][3]);
    }
    mbar_arrive(smem + L::K_EMPTY + 8 * room);
    float top = -INFINITY, l = 0;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (8 * j + 2 * t + e >= left) s[j][e] = -INFINITY;
            top = fmaxf(top, s[j][e]);
        }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    uint32_t p[4][4];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; e++) x[e] = fast_exp2((s[j][e] - top) * scale), l += x[e];
        const uint32_t high = pack_bf16(x[0], x[1]);
        p[j >> 1][2 * (j & 1)] = high;
        p[j >> 1][2 * (j & 1) + 1] = pack_bf16(x[0] - bf_lo(high), x[1] - bf_hi(high));
    }
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    mbar_wait(smem + L::V_FULL + 8 * came, phase);
    float o[16][4];
#pragma unroll
    for (int c = 0; c < 16; c++) o[c][0] = o[c][1] = o[c][2] = o[c][3] = 0;
#pragma unroll
    for (int k = 0; k < 4; k++)  // 16 keys
#pragma unroll
        for (int h = 0; h < 2; h++) {  // 64 channels
            uint32_t v[4][4];
#pragma unroll
            for (int c = 0; c < 4; c++)
                ldmatrix4_trans(v[c], swizzled(values, 16 * k + (mat & 1) * 8 + r8, 8 * h + 2 * c + (mat >> 1)));
#pragma unroll
            for (int c = 0; c < 8; c++)
                mma_bf16(o[8 * h + c], p[k][0], p[k][1], p[k][2], p[k][3], v[c >> 1][2 * (c & 1)],
                         v[c >> 1][2 * (c & 1) + 1]);
        }
    mbar_arrive(smem + L::V_EMPTY + 8 * room);
    if (g >= REP) return;
#pragma unroll
    for (int c = 0; c < 16; c++)
        *(float2*)(sums + g * RECORD + 8 * c + 2 * t) = make_float2(o[c][0] + o[c][2], o[c][1] + o[c][3]);
    if (t == 0) sums[g * RECORD + HD] = top, sums[g * RECORD + HD + 1] = l;
}

template <int REP> DEVICE void attend(const DecodeAttentionArgs& a, uint32_t smem, uint8_t* shared, Item* infos) {
    typedef Layout<REP> L;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, channel = threadIdx.x & 127;
    const float scale = a.scale * LOG2E;
    float* const all = (float*)(shared + L::SUMS);  // [warp][head][record]
    for (int n = 0;; n++) {
        const int slot = n % ITEMS;
        mbar_wait(smem + L::Q_FULL + 8 * slot, (n / ITEMS) & 1);
        const Item item = infos[slot];
        if (item.keys == END) return;
        const int pages = pages_of(item);
        const uint32_t row = smem + L::Q + (slot * REP + (lane & 7) % REP) * HD * 2;  // rows without a head repeat others
        uint32_t q[16];
#pragma unroll
        for (int i = 0; i < 4; i++) ldmatrix4(q + 4 * i, row + (4 * i + (lane >> 3)) * 16);
        mbar_arrive(smem + L::Q_EMPTY + 8 * slot);
        const int left = item.keys - item.split * SPAN - warp * PAGE;
        if (left > 0) page_sums<REP>(smem, item.first + warp, q, left, scale, all + warp * REP * RECORD);
        named_sync(1, 32 * WARPS);
        // The span's sum, in the order of its pages.
        for (int r = threadIdx.x >> 7; r < REP; r += 2) {
            const int head = item.kv * REP + r;
            const float* sums = all + r * RECORD;
            float top = sums[HD], sum = 0, den = 0;
#pragma unroll
            for (int w = 1; w < WARPS; w++)
                if (w < pages) top = fmaxf(top, sums[w * REP * RECORD + HD]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                if (w >= pages) continue;
                const float f = fast_exp2((sums[w * REP * RECORD + HD] - top) * scale);
                sum += f * sums[w * REP * RECORD + channel], den += f * sums[w * REP * RECORD + HD + 1];
            }
            if (item.keys <= SPAN) {
                a.out[(size_t)item.seq * a.out_stride + head * HD + channel] = from_f32<bf16>(sum / den);
            } else {
                leave_span<REP>(a, item.seq, item.kv, r, item.split, channel, sum, top, den);
            }
        }
        named_sync(1, 32 * WARPS);  // the sums' room is free
    }
}

template <int REP>
DEVICE void decode_attention(const CUtensorMap* mk, const CUtensorMap* mv, const DecodeAttentionArgs& a) {
    typedef Layout<REP> L;
    DYNAMIC_SHARED(raw);
    const uint32_t smem = (smem_addr(raw) + 1023) & ~1023u;
    uint8_t* const shared = raw + (smem - smem_addr(raw));
    if (threadIdx.x == 0) {
        for (int i = 0; i < CAME; i++)
            mbar_init(smem + L::K_FULL + 8 * i, 1), mbar_init(smem + L::V_FULL + 8 * i, 1);
        for (int i = 0; i < L::ROOMS; i++)  // every lane's own reads end at its arrival
            mbar_init(smem + L::K_EMPTY + 8 * i, 32), mbar_init(smem + L::V_EMPTY + 8 * i, 32);
        for (int i = 0; i < ITEMS; i++)
            mbar_init(smem + L::Q_FULL + 8 * i, 1), mbar_init(smem + L::Q_EMPTY + 8 * i, 32 * WARPS);
        mbar_init_fence();
        tma_prefetch_map(mk), tma_prefetch_map(mv);
    }
    __syncthreads();
    Item* const infos = (Item*)(shared + L::INFO);
    if (threadIdx.x >= 256) {
        bring<REP>(mk, mv, a, smem, infos);
    } else {
        pdl_wait();
        pdl_launch();
        attend<REP>(a, smem, shared, infos);
    }
}
#define DECODE_BODY(REP) decode_attention<REP>(&mk, &mv, a)
#else
#define DECODE_BODY(REP) asm volatile("trap;")
#endif

#define DECODE(REP)                                                                                         \
    extern "C" __global__ void __launch_bounds__(288, 1) attention_decode_sm90_##REP##_bf16(                \
        const __grid_constant__ CUtensorMap mk, const __grid_constant__ CUtensorMap mv,                     \
        const __grid_constant__ DecodeAttentionArgs a) {                                                    \
        DECODE_BODY(REP);                                                                                   \
    }
DECODE(1)
DECODE(2)
DECODE(4)
DECODE(8)
