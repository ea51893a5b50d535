// Kernels of cards that are no Hopper, which mma_test.zig starts on the CPU. The build lays this file, those beside it and
// the kernels' sources into one folder.
#define HOPPER 0
#include "common.cuh"
#include "attention_decode.cuh"
namespace combine_file {
#include "attention_combine.cu"
}
namespace decode_file {
#include "attention_decode.cu"
using ::DecodeAttentionArgs;
}
namespace embedding_file {
#include "embedding.cu"
}
namespace update_file {
#include "ssm_update.cu"
}
#include "attention_mma.cu"
#include "blocks_mma.cu"
#include "linear_fp8_mma.cu"
#include "linear_mma.cu"

#define START(NAME, ARGS) \
    if (!strcmp(name, #NAME)) return emulate([](const void* p) { NAME(*(const ARGS*)p); }, args, {x, y, z}, threads, 1, 1)
#define START_IN(FILE, NAME, ARGS) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { FILE::NAME(*(const FILE::ARGS*)p); }, args, {x, y, z}, threads, 1, 1)
#define START_MMA(NAME) \
    START(NAME##_128, MmaArgs); \
    START(NAME##_128_swiglu, MmaArgs); \
    START(NAME##_64, MmaArgs); \
    START(NAME##_64_swiglu, MmaArgs)

// Runs kernel `name` on a grid of blocks; a name that is not here is a mistake in the test.
extern "C" void bamba_emulate(const char* name, const void* args, int x, int y, int z, int threads) {
    START_IN(combine_file, attention_combine_bf16, CombineArgs);
    START_IN(combine_file, attention_combine_groups_bf16, CombineArgs);
    START_IN(combine_file, attention_combine_many_bf16, CombineArgs);
    START_IN(decode_file, attention_decode_1_bf16, DecodeAttentionArgs);
    START_IN(decode_file, attention_decode_4_bf16, DecodeAttentionArgs);
    START_IN(decode_file, attention_decode_8_bf16, DecodeAttentionArgs);
    START_IN(embedding_file, rows_bf16_bf16, RowsArgs);
    START_IN(embedding_file, rows_f32_bf16, RowsArgs);
    START_IN(update_file, conv_ssm_update_bf16, SsmUpdateArgs);
    START_IN(update_file, ssm_update_bf16, SsmUpdateArgs);
    START_IN(update_file, ssm_update_bf16_bf16, SsmUpdateArgs);
    START(attention_mma_bf16, AttentionArgs);
    START_MMA(linear_mma);
    START_MMA(fp8_mma);
    START_MMA(blocks_mma_q8_0);
    START_MMA(blocks_mma_q4_0);
    START_MMA(blocks_mma_q4_k);
    START_MMA(blocks_mma_q5_k);
    START_MMA(blocks_mma_q6_k);
    abort();
}
