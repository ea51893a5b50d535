// linear on Hopper, many rows: out(m,n) = sum_k x(m,k) * W(n,k), with bias, residual or SwiGLU behind.
//
// Contract: x (M,K) and W (N,K) bf16, rows of 16-byte multiples; out (M,N) bf16; f32 sums, k upwards.
//   gemm        out = x W^T (+ bias) (+ residual); residual may be `out`; out f32 where the name says so
//   gemm_swiglu out = silu(x W^T) * (x W2^T)
// A row's bits in one kernel's result depend on nothing but that row and W. N a multiple of 8.
//
// Work: 2 M N K. Bytes: x, W and out once, in the best case.
// Ideas: - 128 x 256 tile a block, two warpgroups of 64 x 256 (wgmma m64n256k16), one copying warp (TMA),
//          four stages of 64 k; registers moved from the copying warpgroup to the others (setmaxnreg);
//        - clusters of two blocks share a weight tile: each copies half of it to both (multicast);
//        - persistent: one block a multiprocessor; copies of the next tile run while a tile ends;
//        - tiles are walked in bands of 2048 rows so that a band's x and the weights in use stay in L2;
//        - SwiGLU: gate and up halves of one tile end in the same thread, the product is never stored wide;
//        - results wait, packed, in registers and are stored, 16 bytes a lane, between the next tile's first products;
//          the next residual is read into their place. H200, 8192 rows at the card's limit of power, in turns with
//          results through shared memory: in_proj 660 -> 677 TFLOP/s, out_proj 614 -> 658, gate_up 664 -> 676, down
//          647 -> 670 (cuBLAS, without residual and SwiGLU: 662, 669, 668, 681); the tensor cores' share of clocks
//          0.911 -> 0.949;
//        - where nothing is added (_bare) no registers wait for a residual: in_proj 668 -> 689 (share 0.958 -> 0.980),
//          logits 658 -> 668;
//        - up to 512 rows, where tiles are too few for the chip: clusters of two share a tile's k in four or two parts
//          (gemm_split), whose sums meet in memory. H200, 256 rows, down 82 -> 54 us (cuBLAS 49), out_proj 46 -> 34
//          (30); 512 rows, in two, down 94.6 -> 86.9 (92). Clusters of four, by shared memory, took two turns: of
//          32 only 30 run at once.
//        - the first stages' weights are copied before the kernel in front is waited for.
//        - from 1024 rows on two launches run side by side (_eight, _beside). Clusters of eight blocks, each of which
//          brings an eighth of W to all, read 5/8 as much of L2 as clusters of two; 15 of them run at once, and the 12
//          multiprocessors that no eight fit take a share of the columns as clusters of two. The latter start when the
//          former have waited and all run, and wait for them at their end, so that what follows waits for both.
//          H200, all of a prompt's kernels in turns, 2048 and 8192 rows, ms: 58.5 -> 56.3, 230.4 -> 224.2; products
//          alone at the limit of power, 1024 / 2048 / 8192 rows, TFLOP/s: 655 -> 674, 667 -> 678, 666 -> 686; in parts
//          591 -> 611, 604 -> 614, 609 -> 632.
//        - k in parts (gemm_parts): the sums of linear_batch_sm90.cu, bit for bit, for any number of rows, which
//          batch_invariant asks for. Two sets of sums leave registers for tiles of 128 columns, or 192 of SwiGLU, which
//          has no residual. H200, 8192 rows at the limit of power, of cuBLAS: in_proj 0.92, out_proj 0.91, gate_up 0.92
//          (0.90 in tiles of 128), down 0.93.
// Launch: 384 threads, cluster 2, grid 2 * min(66, pairs of tiles), dynamic smem GEMM_SMEM = 230656; gemm_split a
//   grid of 2 * parts * pairs, all of which must run at once, and `sums` of 256 KiB a cluster; _eight cluster 8, grid
//   8 * clusters; _beside right behind it, both with overlap.
//   Tensor maps bf16, 128-byte swizzle: x box 64 x 128 rows, W and W2 box 64 x (tile / cluster) rows.
//   The number in a name is the tile's columns: 128 where 256 would leave clusters without work; SwiGLU 224 where its
//   rounds of tiles end sooner: 14336 outputs of 512 rows take four rounds of either (H200: 201 -> 179 us).
// Tried: bench/results/gpu-prompts.md, "What a product's power goes to".
#include "gemm_sm90.cuh"

#if HOPPER
#define GEMM_BODY(...) gemm<Kind<__VA_ARGS__>>(&mx, &mw, &mw2, a)
#else
#define GEMM_BODY(...) asm volatile("trap;")
#endif

#define GEMM(NAME, ...)                                                                                     \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                    \
        NAME(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,                \
             const __grid_constant__ CUtensorMap mw2, const __grid_constant__ GemmArgs a) {                 \
        GEMM_BODY(__VA_ARGS__);                                                                             \
    }
// Columns of a tile, SwiGLU, e4m3, k in parts, clusters that share a tile's k, f32 results, nothing to add.
GEMM(gemm_256_sm90_bf16, 256, false, false)
GEMM(gemm_256_bare_sm90_bf16, 256, false, false, false, 1, false, true)
GEMM(gemm_256_sm90_f32, 256, false, false, false, 1, true)
GEMM(gemm_128_sm90_bf16, 128, false, false)
GEMM(gemm_split_2_sm90_bf16, 256, false, false, false, 2)
GEMM(gemm_split_4_sm90_bf16, 256, false, false, false, 4)
GEMM(gemm_swiglu_256_sm90_bf16, 256, true, false)
GEMM(gemm_swiglu_224_sm90_bf16, 224, true, false)
GEMM(gemm_swiglu_128_sm90_bf16, 128, true, false)
// In two shares, of clusters of eight and, beside them, of two.
#define GEMM_SHARED(NAME, ...)                     \
    GEMM(NAME##_eight_sm90_bf16, __VA_ARGS__, 8)   \
    GEMM(NAME##_beside_sm90_bf16, __VA_ARGS__, 2, true)
GEMM_SHARED(gemm_256, 256, false, false, false, 1, false, false)
GEMM_SHARED(gemm_256_bare, 256, false, false, false, 1, false, true)
GEMM_SHARED(gemm_swiglu_256, 256, true, false, false, 1, false, false)
GEMM_SHARED(gemm_parts, 128, false, false, true, 1, false, false)
GEMM_SHARED(gemm_swiglu_parts_192, 192, true, false, true, 1, false, false)
// The bits of linear_batch_sm90.cu for any number of rows: k in four parts, each added up from zero.
GEMM(gemm_parts_sm90_bf16, 128, false, false, true)
GEMM(gemm_swiglu_parts_192_sm90_bf16, 192, true, false, true)
GEMM(gemm_swiglu_parts_128_sm90_bf16, 128, true, false, true)
