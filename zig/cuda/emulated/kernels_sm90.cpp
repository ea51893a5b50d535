// Kernels of Hopper, which the tests beside it start on the CPU, as kernels.cpp.
#define HOPPER 1
#include "blocks.cuh"
#include "wgmma.cuh"
#include "chain.cuh"
namespace attention_file {
#include "attention_sm90.cu"
}
namespace decode_file {
#include "attention_decode_sm90.cu"
}
namespace gemm_file {
#include "linear_gemm_sm90.cu"
}
namespace batch_file {
#include "linear_batch_sm90.cu"
#undef BATCH_BODY
#undef BATCH
#undef BATCH_T
#include "linear_fp8_batch_sm90.cu"
}
namespace chain_file {
#include "blocks_chain_sm90.cu"
}
namespace rows_file {
#include "rows_chain_sm90.cu"
}
namespace blocks_file {
#include "blocks_gemm_sm90.cu"
}
namespace scan_file {
#include "ssm_scan_sm90.cu"
}

// Tensor maps stand in front of a kernel's arguments.
struct AttentionCall { CUtensorMap q, k, v; attention_file::AttentionArgs args; };
struct DecodeCall { CUtensorMap k, v; decode_file::DecodeAttentionArgs args; };
struct GemmCall { CUtensorMap x, w, w2; gemm_file::GemmArgs args; };
struct ScanCall { CUtensorMap x, b, c; scan_file::SsdArgs args; };
struct BlocksCall { CUtensorMap x; blocks_file::BlocksGemmArgs args; };
struct RowsCall { rows_file::ChainMaps maps; ChainArgs args; };
struct BatchCall { CUtensorMap x, w; batch_file::BatchArgs args; };
struct Fp8BatchCall { CUtensorMap x, w; batch_file::Fp8BatchArgs args; };
#define ATTENTION(NAME) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const AttentionCall& c = *(const AttentionCall*)p; \
        attention_file::NAME(c.q, c.k, c.v, c.args); \
    }, call, {x, 1, 1}, 384, 1, 1)
#define DECODE_CALL(NAME) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const DecodeCall& c = *(const DecodeCall*)p; \
        decode_file::NAME(c.k, c.v, c.args); \
    }, call, {x, 1, 1}, 288, 1, 1)
#define SCAN(NAME) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const ScanCall& c = *(const ScanCall*)p; \
        scan_file::NAME(c.x, c.b, c.c, c.args); \
    }, call, {x, y, 1}, 512, 1, 1)
#define GEMM_CALL(NAME) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const GemmCall& c = *(const GemmCall*)p; \
        gemm_file::NAME(c.x, c.w, c.w2, c.args); \
    }, call, {x, 1, 1}, 384, x, strstr(name, "_eight_") ? 8 : 2)
#define BATCH_CALL(NAME, THREADS) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const BatchCall& c = *(const BatchCall*)p; \
        batch_file::NAME(c.x, c.w, c.args); \
    }, call, {x, 1, 1}, THREADS, x, 1)
#define FP8_BATCH_CALL(NAME, THREADS) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const Fp8BatchCall& c = *(const Fp8BatchCall*)p; \
        batch_file::NAME(c.x, c.w, c.args); \
    }, call, {x, 1, 1}, THREADS, x, 1)
#define BLOCKS_CALL(NAME) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const BlocksCall& c = *(const BlocksCall*)p; \
        blocks_file::NAME(c.x, c.args); \
    }, call, {x, 1, 1}, strstr(name, "_128_") || strstr(name, "_256_") ? 384 : 288, x, y)

#define ROWS_CALL(NAME) \
    if (!strcmp(name, #NAME)) \
    return emulate([](const void* p) { \
        const RowsCall& c = *(const RowsCall*)p; \
        rows_file::NAME(c.maps, c.args); \
    }, call, {x, 1, 1}, 768, x, 1)

// Runs kernel `name` on a grid of blocks; a name that is not here is a mistake in the test.
extern "C" void bamba_emulate_sm90(const char* name, const void* call, int x, int y) {
    ATTENTION(attention_sm90_bf16);
    DECODE_CALL(attention_decode_sm90_1_bf16);
    DECODE_CALL(attention_decode_sm90_4_bf16);
    DECODE_CALL(attention_decode_sm90_8_bf16);
    SCAN(ssd_sm90_bf16);
    SCAN(ssd_sm90_bf16_bf16);
    BLOCKS_CALL(blocks_gemm_16_q8_0);
    BLOCKS_CALL(blocks_gemm_16_q4_k);
    BLOCKS_CALL(blocks_gemm_16_q6_k);
    BLOCKS_CALL(blocks_gemm_64_q4_k);
    BLOCKS_CALL(blocks_gemm_128_q8_0);
    BLOCKS_CALL(blocks_gemm_256_q6_k);
    GEMM_CALL(gemm_256_sm90_bf16);
    GEMM_CALL(gemm_256_bare_sm90_bf16);
    GEMM_CALL(gemm_256_sm90_f32);
    GEMM_CALL(gemm_128_sm90_bf16);
    GEMM_CALL(gemm_split_2_sm90_bf16);
    GEMM_CALL(gemm_split_4_sm90_bf16);
    GEMM_CALL(gemm_swiglu_256_sm90_bf16);
    GEMM_CALL(gemm_swiglu_224_sm90_bf16);
    GEMM_CALL(gemm_swiglu_128_sm90_bf16);
    GEMM_CALL(gemm_256_eight_sm90_bf16);
    GEMM_CALL(gemm_256_beside_sm90_bf16);
    GEMM_CALL(gemm_swiglu_256_eight_sm90_bf16);
    GEMM_CALL(gemm_swiglu_parts_192_eight_sm90_bf16);
    GEMM_CALL(gemm_parts_sm90_bf16);
    GEMM_CALL(gemm_swiglu_parts_192_sm90_bf16);
    GEMM_CALL(gemm_swiglu_parts_128_sm90_bf16);
    BATCH_CALL(linear_batch_8_bf16, 320);
    BATCH_CALL(linear_batch_64_bf16, 320);
    BATCH_CALL(linear_batch_128_bf16, 384);
    BATCH_CALL(linear_batch_128_f32, 384);
    BATCH_CALL(linear_batch_swiglu_16_bf16, 320);
    FP8_BATCH_CALL(fp8_batch_8, 320);
    FP8_BATCH_CALL(fp8_batch_64, 320);
    FP8_BATCH_CALL(fp8_batch_128, 384);
    FP8_BATCH_CALL(fp8_batch_swiglu_16, 320);
    if (!strcmp(name, "blocks_chain"))
        return emulate([](const void* p) { chain_file::blocks_chain(*(const ChainArgs*)p); }, call, {x, 1, 1}, 768, x, 1);
    ROWS_CALL(rows_chain_bf16);
    ROWS_CALL(rows_chain_e4m3);
    abort();
}
