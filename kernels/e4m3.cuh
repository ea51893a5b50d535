// e4m3 weights of products of few rows: linear_fp8.cu, rows_chain_sm90.cu.
//
// W (N,K) lies as f32 scales of all rows (N rounded up to 16) and then the rows, K bytes each.
// An e4m3's bits moved four to the right, behind the sign, are a bf16 of 2^-120 its value, subnormals included. x is
// staged UP times as large, so that products lie in the middle of what f32 holds; sums take UP once more.
#pragma once
#include "common.cuh"

constexpr float UP = 0x1p60f;

DEVICE const float* scales_of(const uint8_t* w) { return (const float*)w; }
DEVICE const uint8_t* rows_of(const uint8_t* w, int n) { return w + (size_t)(n + 15) / 16 * 64; }

// Bytes 0 and 2 (1 and 3) of a word as two bf16 of 2^-120 their values.
DEVICE uint32_t even(uint32_t w) { return (w << 8 & 0x80008000u) | (w << 4 & 0x07f007f0u); }
DEVICE uint32_t odd(uint32_t w) { return (w & 0x80008000u) | (w >> 4 & 0x07f007f0u); }
