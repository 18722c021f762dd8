// Device helpers of the prefill kernels.
#pragma once

#include "backend/cuda/kern/prefill_ptx.cuh"

namespace prefill {

// Element i of an array of f32, bf16 or f16.
__device__ inline float load_as(int dtype, const void *array, int64_t i) {
    if (dtype == F32) {
        return ((const float *)array)[i];
    }
    uint16_t h = ((const uint16_t *)array)[i];
    return dtype == BF16 ? bf16::load(h) : f16::load(h);
}

__device__ inline void store_as(int dtype, void *array, int64_t i, float x) {
    if (dtype == F32) {
        ((float *)array)[i] = x;
    } else {
        ((uint16_t *)array)[i] = dtype == BF16 ? bf16::store(x) : f16::store(x);
    }
}

__device__ inline const void *array_at(int dtype, const void *array, int64_t i) {
    return (const uint8_t *)array + i * (dtype == F32 ? 4 : dtype == INT8 ? 1 : 2);
}

// An array of the step, from its offset.
template <typename T> __device__ inline const T *of_step(const cuda_step *step, int64_t offset) {
    return (const T *)((const uint8_t *)step + offset);
}

// The token of row m: from the host, or drawn by the step before.
__device__ inline int32_t step_token(const cuda_step *step, int64_t m) {
    int32_t token = of_step<int32_t>(step, step->token)[m];
    return token < CUDA_TOKEN_DRAWN / 2 ? of_step<int32_t>(step, step->drawn)[token - CUDA_TOKEN_DRAWN] : token;
}

// Leaf borders in elements of this rank: ops.h's leaf_border.
__device__ inline int leaf_border(int64_t n, int leaf) {
    int64_t unit = PREFILL_LEAVES * PREFILL_LEAF_ALIGN;
    int64_t border = (n * leaf + unit - 1) / unit * PREFILL_LEAF_ALIGN;
    return (int)(border < n ? border : n);
}
__device__ inline int leaf_end(const prefill_leaves &a, int leaf) {
    return leaf_border(a.k_total, a.first + leaf + 1) - leaf_border(a.k_total, a.first);
}

__device__ inline void note_fault(int32_t *fault, int row, int index) {
    atomicCAS(fault + row, 0, index + 1);
}
__device__ inline bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7f800000) != 0x7f800000;
}

__device__ inline float warp_sum(float x) {
    for (int i = 16; i > 0; i /= 2) {
        x += __shfl_xor_sync(0xffffffff, x, i);
    }
    return x;
}

} // namespace prefill
