// advance: what was sampled becomes the next step's input, on the GPU, so that the host need not be asked
// between two steps of a job; and peaks: the machine's own limits, for the shares that benchmarks quote.
//
// Contract (as `advance` in zig/decode.zig, which keeps the host's copy of the same numbers): an ended
//   sequence reports and is fed `pad_id`; another one's id is counted, remembered where a history is kept, and
//   ends it where it is an eos id. It moves one position further, an ended one for the last time: what is fed
//   to it from then on goes where its next id would, and its states are kept (ssm_update): it can be continued
//   although steps ran beyond its end. Each step's ids go to entry count % depth of `results`, in the host's pinned memory, and count goes up.
// Bytes: a few words a sequence. Launch: 256 threads, one block.
#include "common.cuh"

struct Sampling {  // command.zig's, field by field
    uint32_t do_sample, top_k;
    float temperature, top_p, min_p, typical_p, repetition_penalty;
    uint32_t no_repeat_ngram_size, min_new_tokens, generated, seed_lo, seed_hi, stream, finished;
};
struct AdvanceArgs {
    int* ids;
    int* positions;
    uint32_t* past_len;
    Sampling* sampling;
    int* sampled;
    int* history;           // or null
    uint32_t* history_len;
    const int* eos;         // or null
    int* results;
    uint32_t* count;
    int n_seqs, history_capacity, n_eos, pad_id, depth;
};

extern "C" __global__ void __launch_bounds__(256) advance(const __grid_constant__ AdvanceArgs a) {
    pdl_wait();
    pdl_launch();
    const uint32_t count = *a.count;
    for (int s = threadIdx.x; s < a.n_seqs; s += 256) {
        Sampling* of = a.sampling + s;
        int id = a.sampled[s];
        const bool ended = of->finished;
        if (ended) {
            id = a.pad_id;
        } else {
            of->generated++;
            if (a.history && a.history_len[s] < (uint32_t)a.history_capacity)
                a.history[(size_t)s * a.history_capacity + a.history_len[s]++] = id;
            bool ends = false;
            for (int i = 0; a.eos && i < a.n_eos; i++) ends |= a.eos[i] == id;
            if (ends) of->finished = 1;
            a.positions[s]++, a.past_len[s]++;
            a.ids[s] = ends ? a.pad_id : id;
        }
        if (ended) a.ids[s] = id;
        a.results[(count % a.depth) * a.n_seqs + s] = id;
    }
    __syncthreads();
    if (threadIdx.x == 0) *a.count = count + 1;
}
