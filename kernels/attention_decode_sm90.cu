// attention of one query a sequence on Hopper: attention_decode.cu with one ring a multiprocessor.
//
// Contract: that of attention_decode.cu; heads / kv_heads is 1, 2, 4 or 8, which the kernel's name says. A sequence's
//   keys are cut into groups of whole pages by its length only: a row's bits depend on nothing but its sequence.
//
// Bytes: kv_heads * 512 a key. Floor: that over the read bandwidth.
// Ideas: - one block a multiprocessor goes through its share of all groups, and one warp asks for their pages, so that
//          the ring never runs dry between groups. A page's 16 KB of keys (or values) come in one piece, read once:
//          asked for by halves of 64 channels, or with 256 bytes at a time for L2, they take a tenth longer;
//        - four warps take 16 keys each of every second page, so that a page is done soon after it has come; their sums
//          stay in registers until the group ends (attention_pages.cuh);
//        - groups are added up by a launch of their own: a fence in the block that ends one makes the copies on their
//          way wait, 1 to 2 us a group, whoever does it;
//        - pages before the last are asked for before the kernel in front is waited for: it (rope_append)
//          writes only the last position, and must not write past_len or pages.
// Reached on an H200, with attention_combine, of the read bandwidth: one sequence of 32,768 keys 0.81 (35.7 us), of
//   131,072 0.92, 16 of 4,096 0.84, 64 of 4,096 0.90, 256 of 1,024 0.88. Groups alone: 0.90, 0.94, 0.90, 0.92, 0.91.
//   What is missing, and what was tried: bench/results/gpu-decode.md.
// Launch: 288 threads, grid min(multiprocessors, groups of all), dynamic smem Layout::END + 1024. Tensor maps of k and
//   v as rows of 64 channels, two a key: 128-byte swizzle, box 64 x 128. Then attention_combine_groups where a sequence
//   may have more than one group.
#include "attention_decode.cuh"
#include "attention_pages.cuh"

#if HOPPER
// A group of one sequence's keys, of one key head.
struct Item {
    int seq, kv, split, keys;  // keys of the sequence; END: nothing follows
    uint32_t first;            // pages that the ring has had before
};
constexpr int END = -1;
DEVICE int pages_of(const Item& item) {
    const int of = group_pages(item.keys);
    return min(of, pages_in(item.keys) - item.split * of);
}

// The groups of all sequences in order, key heads of a group beside each other; a warp keeps 32 sequences at hand.
struct Deal {
    int base, total, chunk, upto, keys;  // groups before these sequences, of them; lane's: up to its own, its keys
    DEVICE_MEMBER void fill(const DecodeAttentionArgs& a, int lane) {
        const int seq = chunk + lane;
        keys = seq < a.seqs ? (int)a.past_len[seq] + 1 : 0;
        upto = groups_of(keys);
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
        item.split = span - (base + end - groups_of(item.keys));
        return true;
    }
};

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
        const int pages = pages_of(item), page = item.split * group_pages(item.keys);
        const uint32_t* const ids = a.pages + (size_t)item.seq * a.max_pages + page;
        uint32_t id = 0;  // of 32 pages
        note(item);
        if (waited) ask(n + 1);
        for (int p = 0; p < pages; p++, count++) {
            if (p % 32 == 0) id = p + lane < pages ? ids[p + lane] : 0;
            const int room = count % L::ROOMS, phase = ((count / L::ROOMS) & 1) ^ 1;
            const int row = (int)__shfl_sync(~0u, id, p % 32) * page_rows + item.kv * PAGE * 2;
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

// A group's sum, in the order of its warps.
template <int REP> DEVICE void add_up(const DecodeAttentionArgs& a, const Item& item, const float* all) {
    const int channel = threadIdx.x & 127;
    const float scale = a.scale * LOG2E;
    for (int r = threadIdx.x >> 7; r < REP; r += 2) {
        const int head = item.kv * REP + r;
        const float* const sums = all + r * RECORD;  // [warp][head][record]
        float top = sums[HD], sum = 0, den = 0;
#pragma unroll
        for (int w = 1; w < WARPS; w++) top = fmaxf(top, sums[w * REP * RECORD + HD]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float f = fast_exp2((sums[w * REP * RECORD + HD] - top) * scale);
            sum += f * sums[w * REP * RECORD + channel], den += f * sums[w * REP * RECORD + HD + 1];
        }
        if (groups_of(item.keys) > 1) leave_span<REP>(a, item.seq, item.kv, r, item.split, channel, sum, top, den);
        else a.out[(size_t)item.seq * a.out_stride + head * HD + channel] = from_f32<bf16>(sum / den);
    }
}

template <int REP> DEVICE void attend(const DecodeAttentionArgs& a, uint32_t smem, uint8_t* shared, const Item* infos) {
    typedef Layout<REP> L;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const float scale = a.scale * LOG2E;
    const uint32_t zero = (uint32_t)a.seqs >> 31;  // which no compiler knows
    float* const all = (float*)(shared + L::SUMS);
    for (int n = 0;; n++) {
        const int slot = n % ITEMS;
        mbar_wait(smem + L::Q_FULL + 8 * slot, (n / ITEMS) & 1);
        const Item item = infos[slot];
        if (item.keys == END) return;
        const int pages = pages_of(item);
        const uint32_t row = smem + L::Q + (slot * REP + (lane & 7) % REP) * HD * 2;  // columns beyond repeat heads
        uint32_t q[16];
#pragma unroll
        for (int i = 0; i < 4; i++) ldmatrix4(q + 4 * i, row + (4 * i + (lane >> 3)) * 16);
        Sums w;
        w.clear();
        const int left = item.keys - item.split * group_pages(item.keys) * PAGE - (warp & 3) * 16;
        for (int p = warp >> 2; p < pages; p += 2)
            page_sums<REP>(smem, item.first + p, q, left - p * PAGE, scale, zero, w);
        keep<REP>(w, all + warp * REP * RECORD);
        mbar_arrive(smem + L::Q_EMPTY + 8 * slot);
        named_sync(1, 32 * WARPS);
        add_up<REP>(a, item, all);
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
        for (int i = 0; i < L::ROOMS; i++)
            mbar_init(smem + L::K_EMPTY + 8 * i, WARPS / 2), mbar_init(smem + L::V_EMPTY + 8 * i, WARPS / 2);
        for (int i = 0; i < ITEMS; i++)
            mbar_init(smem + L::Q_FULL + 8 * i, 1), mbar_init(smem + L::Q_EMPTY + 8 * i, 32 * WARPS);
        mbar_init_fence();
        tma_prefetch_map(mk), tma_prefetch_map(mv);
    }
    __syncthreads();
    Item* const infos = (Item*)(shared + L::INFO);
    if (threadIdx.x >= 32 * WARPS) return bring<REP>(mk, mv, a, smem, infos);
    pdl_wait();
    pdl_launch();
    attend<REP>(a, smem, shared, infos);
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
