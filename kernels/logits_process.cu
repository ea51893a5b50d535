// logits_process: scores with HF's penalties and bans, in HF's order: repetition penalty, no-repeat n-grams,
// bad words, minimum length. Banned ids get -inf. Row r belongs to sequence r.
//
// Contract (as zig/cpu/logits_process.zig): the penalty of an id is taken from the input, so that an id which
//   occurs twice is changed once; `out` must not be `x`. Ids outside the vocabulary name no score. A banned
//   word longer than the history is left alone, and so is one that is nothing but an eos id.
// Bytes: 8 a score; the history once for each rule.
// Launch: 256 threads, grid (rows).
#include "common.cuh"

struct Sampling {  // command.zig's, field by field
    uint32_t do_sample, top_k;
    float temperature, top_p, min_p, typical_p, repetition_penalty;
    uint32_t no_repeat_ngram_size, min_new_tokens, generated, seed_lo, seed_hi, stream, finished;
};
struct ProcessArgs {
    const float* x;
    float* out;
    const Sampling* sampling;
    const int* history;            // (sequences, history_capacity) or null
    const uint32_t* history_len;
    const int* eos;
    const int* bad;                // ids, each word ended by -1
    int cols, stride, out_stride, history_capacity, n_eos, n_bad;
};

DEVICE bool is_eos(const ProcessArgs& a, int id) {
    for (int i = 0; i < a.n_eos; i++)
        if (a.eos[i] == id) return true;
    return false;
}
// Whether `words[0 .. n)` are the last n ids of the history.
DEVICE bool ends_with(const int* history, int used, const int* words, int n) {
    if (n > used) return false;
    for (int k = 0; k < n; k++)
        if (history[used - n + k] != words[k]) return false;
    return true;
}

extern "C" __global__ void __launch_bounds__(256) logits_process_f32(const __grid_constant__ ProcessArgs a) {
    pdl_wait();
    pdl_launch();
    const int r = blockIdx.x;
    const float* x = a.x + (size_t)r * a.stride;
    float* out = a.out + (size_t)r * a.out_stride;
    const Sampling s = a.sampling[r];
    const int* history = a.history ? a.history + (size_t)r * a.history_capacity : nullptr;
    const int used = history && a.history_len ? min((int)a.history_len[r], a.history_capacity) : 0;
    auto ban = [&](int id) {
        if (id >= 0 && id < a.cols) out[id] = -INFINITY;
    };
    for (int i = threadIdx.x; i < a.cols; i += 256) out[i] = x[i];
    __syncthreads();
    if (s.repetition_penalty != 1.0f)
        for (int i = threadIdx.x; i < used; i += 256) {
            const int id = history[i];
            if (id < 0 || id >= a.cols) continue;
            out[id] = x[id] < 0 ? x[id] * s.repetition_penalty : x[id] / s.repetition_penalty;
        }
    __syncthreads();
    const int n = s.no_repeat_ngram_size;
    if (n > 0 && used + 1 >= n)
        for (int i = threadIdx.x; i + n <= used; i += 256)
            if (ends_with(history, used, history + i, n - 1)) ban(history[i + n - 1]);
    if (threadIdx.x) return;
    for (int i = 0, begin = 0; i < a.n_bad; i++) {
        if (a.bad[i] != -1) continue;
        const int length = i - begin, last = length ? a.bad[i - 1] : -1;
        if (length == 1 ? !is_eos(a, last) : length > 1 && length <= used && ends_with(history, used, a.bad + begin, length - 1))
            ban(last);
        begin = i + 1;
    }
    if (s.generated < s.min_new_tokens)
        for (int i = 0; i < a.n_eos; i++) ban(a.eos[i]);
}
