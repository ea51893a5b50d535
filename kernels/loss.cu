// log_softmax: out = x - logsumexp(x) over each row. cross_entropy: for each row the negative log likelihood
// of its label (0 where the label is -100) and logsumexp.
//
// Contract (as zig/cpu/loss.zig): f32 in and out; the largest score is subtracted first, exponentials are
//   summed in f64 in one fixed order; NaN in a row makes its whole result NaN. `out` may be `x`.
// Bytes: 2 passes over the row for the sum (the second from L2), one more for log_softmax.
// Launch: 256 threads, grid (rows).
#include "common.cuh"

struct LossArgs {
    const float* x;
    const int* labels;  // cross_entropy
    float* out;
    int cols, stride, out_stride;
};

// max and log(sum of e^(x - max)); every thread gets both.
DEVICE void log_sum(const float* x, int n, float* max, double* log_of) {
    __shared__ float tops[8];
    __shared__ double sums[8];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    float top = -INFINITY;
    for (int i = threadIdx.x; i < n; i += 256) top = fmaxf(top, x[i]);
    top = warp_max(top);
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    for (int w = 0; w < 8; w++) top = fmaxf(top, tops[w]);
    double s = 0;
    for (int i = threadIdx.x; i < n; i += 256) s += expf(x[i] - top);
#pragma unroll
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (lane == 0) sums[warp] = s;
    __syncthreads();
    s = 0;
    for (int w = 0; w < 8; w++) s += sums[w];
    *max = top, *log_of = log(s);
}

extern "C" __global__ void __launch_bounds__(256) log_softmax_f32(const __grid_constant__ LossArgs a) {
    pdl_wait();
    pdl_launch();
    const float* x = a.x + (size_t)blockIdx.x * a.stride;
    float* out = a.out + (size_t)blockIdx.x * a.out_stride;
    float max;
    double log_of;
    log_sum(x, a.cols, &max, &log_of);
    for (int i = threadIdx.x; i < a.cols; i += 256) out[i] = (x[i] - max) - (float)log_of;
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_f32(const __grid_constant__ LossArgs a) {
    pdl_wait();
    pdl_launch();
    const float* x = a.x + (size_t)blockIdx.x * a.stride;
    float* out = a.out + (size_t)blockIdx.x * a.out_stride;
    float max;
    double log_of;
    log_sum(x, a.cols, &max, &log_of);
    if (threadIdx.x) return;
    const int label = a.labels[blockIdx.x];
    out[1] = (float)(log_of + max);
    out[0] = label < 0 ? 0.0f : (float)(log_of + ((double)max - x[min(label, a.cols - 1)]));
}
