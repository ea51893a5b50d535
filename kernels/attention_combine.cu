// The sums that attention_decode left of each span of keys, to one result a head.
//
// Contract: `partial` f32 (batch, heads, max_splits, 128), a span's probabilities times values; behind it (batch,
//   kv_heads, max_splits, heads / kv_heads, 2), its largest score and denominator: whole sectors of 32 bytes.
//   out (batch, heads*128) bf16. Where a sequence has one span only its result is there already.
//   Sums are those of 32 chains (spans s, s + 32, ...) added in their order: both kernels give the same bits.
//
// Ideas: - up to 32 spans take a warp a head, which keeps nothing in shared memory: a batch has thousands of heads;
//        - more take four blocks a head, so that all that has to be read is on its way at once.
// Launch: attention_combine_bf16, max_splits <= 32: 256 threads, grid ceil(heads * batch / 8).
//   attention_combine_groups_bf16 the same of the groups that Hopper's kernel leaves.
//   attention_combine_many_bf16, max_splits <= 2048: 256 threads, grid (heads * 4, batch).
#include "attention_decode.cuh"

struct CombineArgs {
    const float* partial;
    bf16* out;
    const uint32_t* past_len;
    int heads, kv_heads, out_stride, max_splits, seqs;
    float scale;
};

constexpr int HD = 128, SPAN = 512, MAX_SPLITS = 2048, CHAINS = 32, THREADS = 256, AHEAD = 4;

DEVICE int splits_of(const CombineArgs& a, int b) { return (int)(a.past_len[b] + SPAN) / SPAN; }
// What a head's spans left.
struct Spans {
    const float* values;
    const float2* tops;
    int apart;  // of the tops of two spans
    DEVICE_MEMBER Spans(const CombineArgs& a, int b, int head) {
        const size_t spans = (size_t)a.heads * a.max_splits;
        apart = a.heads / a.kv_heads;
        values = a.partial + (b * spans + (size_t)head * a.max_splits) * HD;
        tops = (const float2*)(a.partial + a.seqs * spans * HD) + b * spans +
               (size_t)(head / apart) * a.max_splits * apart + head % apart;
    }
    DEVICE_MEMBER float2 top(int s) const { return __ldcg(tops + (size_t)s * apart); }
    DEVICE_MEMBER float4 value(int s, int channel) const {
        return __ldcg((const float4*)(values + (size_t)s * HD + channel));
    }
};
DEVICE void result(const CombineArgs& a, int b, int head, int channel, float4 sum, float den) {
    const float by = 1.0f / den;
    *(uint2*)(a.out + (size_t)b * a.out_stride + head * HD + channel) =
        make_uint2(pack_bf16(sum.x * by, sum.y * by), pack_bf16(sum.z * by, sum.w * by));
}
DEVICE void add(float4& sum, float4 v) { sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w; }

// A warp a head.
template <bool GROUPS> DEVICE void combine(const CombineArgs& a) {
    const int row = blockIdx.x * (THREADS / 32) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const int b = row / a.heads, head = row % a.heads;
    const bool exists = b < a.seqs;
    const int splits = !exists ? 1 : GROUPS ? groups_of((int)a.past_len[b] + 1) : splits_of(a, b);
    pdl_wait();
    pdl_launch();
    if (splits == 1) return;
    const Spans spans(a, b, head);
    float2 own = make_float2(-INFINITY, 0);
    if (lane < splits) own = spans.top(lane);
    float4 sum = make_float4(0, 0, 0, 0);
    float den = 0, factor = 0;
    for (int s = 0; s < splits; s += AHEAD) {
        float4 v[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            v[i] = s + i < splits ? spans.value(s + i, lane * 4) : make_float4(0, 0, 0, 0);
        if (s == 0) factor = fast_exp2((own.x - warp_max(own.x)) * (a.scale * LOG2E)), own.y *= factor;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const float f = __shfl_sync(~0u, factor, s + i);
            const float more = __shfl_sync(~0u, own.y, s + i);
            if (s + i >= splits) continue;
            add(sum, make_float4(__fmaf_rn(f, v[i].x, 0), __fmaf_rn(f, v[i].y, 0), __fmaf_rn(f, v[i].z, 0),
                                 __fmaf_rn(f, v[i].w, 0)));
            den += more;
        }
    }
    result(a, b, head, lane * 4, sum, den);
}
extern "C" __global__ void __launch_bounds__(THREADS) attention_combine_bf16(const __grid_constant__ CombineArgs a) {
    combine<false>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_combine_groups_bf16(const __grid_constant__ CombineArgs a) {
    combine<true>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_combine_many_bf16(const __grid_constant__ CombineArgs a) {
    constexpr int PARTS = 4, LANES = 32 / PARTS;  // blocks a head; threads a chain, four channels each
    __shared__ float2 factors[MAX_SPLITS];
    __shared__ float tops[THREADS / 32], dens[CHAINS];
    __shared__ float4 sums[CHAINS][LANES];
    const int head = blockIdx.x / PARTS, b = blockIdx.y, chain = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int channel = (blockIdx.x % PARTS) * (HD / PARTS) + lane * 4, splits = splits_of(a, b);
    pdl_wait();
    pdl_launch();
    if (splits == 1) return;
    const Spans spans(a, b, head);
    auto get = [&](int s) {
        return s < splits ? spans.value(s, channel) : make_float4(0, 0, 0, 0);
    };
    float4 ahead[AHEAD];  // in flight while the factors are made
#pragma unroll
    for (int i = 0; i < AHEAD; i++) ahead[i] = get(chain + i * CHAINS);
    float top = -INFINITY;
    for (int s = threadIdx.x; s < splits; s += THREADS) {
        factors[s] = spans.top(s);
        top = fmaxf(top, factors[s].x);
    }
    top = warp_max(top);
    if ((threadIdx.x & 31) == 0) tops[threadIdx.x >> 5] = top;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) top = fmaxf(top, tops[w]);
    for (int s = threadIdx.x; s < splits; s += THREADS) {
        const float f = fast_exp2((factors[s].x - top) * (a.scale * LOG2E));
        factors[s] = make_float2(f, f * factors[s].y);
    }
    __syncthreads();
    float4 x = make_float4(0, 0, 0, 0);
    float den = 0;
    for (int s = chain; s < splits; s += AHEAD * CHAINS) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = s + i * CHAINS;
            const float4 v = ahead[i];
            ahead[i] = get(at + AHEAD * CHAINS);
            if (at >= splits) continue;
            const float2 f = factors[at];
            x.x += f.x * v.x, x.y += f.x * v.y, x.z += f.x * v.z, x.w += f.x * v.w;
            den += f.y;
        }
    }
    sums[chain][lane] = x;
    if (lane == 0) dens[chain] = den;
    __syncthreads();
    if (threadIdx.x >= LANES) return;
    float4 sum = make_float4(0, 0, 0, 0);
    den = 0;
#pragma unroll
    for (int c = 0; c < CHAINS; c++) add(sum, sums[c][lane]), den += dens[c];  // chains without a span are zero
    result(a, b, head, channel, sum, den);
}
