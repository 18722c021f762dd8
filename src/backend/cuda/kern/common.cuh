/*
 * What kernels share: reading the step, loads, conversions, reductions in a fixed order.
 */
#ifndef LS_BACKEND_CUDA_COMMON_CUH
#define LS_BACKEND_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/kern/decode_args.h"
#include "backend/cuda/kern/ptx.cuh"

/* An array of the step, by its offset. */
template <typename T> DEVICE const T *step_array(const cuda_step *step, int64_t offset) {
    return reinterpret_cast<const T *>(reinterpret_cast<const char *>(step) + offset);
}

/* The token of row m: from the host, or drawn by the step before. */
DEVICE int32_t step_token(const cuda_step *step, int m) {
    const int32_t token = step_array<int32_t>(step, step->token)[m];
    return token < CUDA_TOKEN_DRAWN / 2 ? step_array<int32_t>(step, step->drawn)[token - CUDA_TOKEN_DRAWN] : token;
}

/* ---- Loads of any alignment ---- */

/* Elements [k, k + 16 / BYTES) of a row of any alignment; zeros from `end` on. */
template <int BYTES> DEVICE uint4 load_elements(const void *row, int k, int end) {
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 16 / BYTES; i++) {
        if (k + i < end) {
            uint32_t value = BYTES == 1   ? static_cast<const uint8_t *>(row)[k + i]
                             : BYTES == 2 ? static_cast<const uint16_t *>(row)[k + i]
                                          : static_cast<const uint32_t *>(row)[k + i];
            word[i * BYTES / 4] |= value << i * BYTES % 4 * 8;
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* ---- Conversions ---- */

template <int DTYPE> DEVICE float load_as(const void *array, int64_t i) {
    if (DTYPE == KERN_F32) {
        return static_cast<const float *>(array)[i];
    }
    return DTYPE == KERN_BF16 ? __bfloat162float(static_cast<const __nv_bfloat16 *>(array)[i])
                              : __half2float(static_cast<const __half *>(array)[i]);
}

/* To nearest even; what is too large becomes infinity. */
DEVICE void store_as(int dtype, void *array, int64_t i, float value) {
    if (dtype == KERN_F32) {
        static_cast<float *>(array)[i] = value;
    } else if (dtype == KERN_BF16) {
        static_cast<__nv_bfloat16 *>(array)[i] = __float2bfloat16_rn(value);
    } else {
        static_cast<__half *>(array)[i] = __float2half_rn(value);
    }
}

DEVICE float round_to(int dtype, float value) {
    return dtype == KERN_BF16  ? __bfloat162float(__float2bfloat16_rn(value))
           : dtype == KERN_F16 ? __half2float(__float2half_rn(value))
                               : value;
}

/* Two elements in one word, the first in its low half. bf16 or f16. */
DEVICE uint32_t pair_of(int dtype, float first, float second) {
    if (dtype == KERN_BF16) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
        return *reinterpret_cast<uint32_t *>(&pair);
    }
    __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<uint32_t *>(&pair);
}

template <int DTYPE> DEVICE float2 widen(uint32_t pair) {
    if (DTYPE == KERN_BF16) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }
    return __half22float2(*reinterpret_cast<const __half2 *>(&pair));
}

/* Byte i of a word of int8, to f32, exact: 2^23 + 128 + q is a float whose low bits are q + 128. */
template <int I> DEVICE float widen_int8(uint32_t word) {
    return __uint_as_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7650 + I)) - 8388736.0F;
}

/* Bytes (0, 1) and (2, 3) of a word of int8 as pairs, exact. */
template <int DTYPE> DEVICE void pairs_of_int8(uint32_t word, uint32_t *first, uint32_t *second) {
    if (DTYPE == KERN_BF16) { /* (128 + the low seven bits) - (128, or 256 where the sign is set) */
        uint32_t low = __byte_perm(word, 0x43434343u, 0x4140), high = __byte_perm(word, 0x43434343u, 0x4342);
        uint32_t low_offset = low & 0x43804380u, high_offset = high & 0x43804380u;
        low &= 0x437f437fu;
        high &= 0x437f437fu;
        __nv_bfloat162 a =
            __hsub2(*reinterpret_cast<__nv_bfloat162 *>(&low), *reinterpret_cast<__nv_bfloat162 *>(&low_offset));
        __nv_bfloat162 b =
            __hsub2(*reinterpret_cast<__nv_bfloat162 *>(&high), *reinterpret_cast<__nv_bfloat162 *>(&high_offset));
        *first = *reinterpret_cast<uint32_t *>(&a);
        *second = *reinterpret_cast<uint32_t *>(&b);
    } else { /* 1024 + 128 + q */
        const uint32_t biased = word ^ 0x80808080u, offset = 0x64806480u;
        const __half2 middle = *reinterpret_cast<const __half2 *>(&offset);
        uint32_t low = __byte_perm(biased, 0x64646464u, 0x4140), high = __byte_perm(biased, 0x64646464u, 0x4342);
        __half2 a = __hsub2(*reinterpret_cast<__half2 *>(&low), middle);
        __half2 b = __hsub2(*reinterpret_cast<__half2 *>(&high), middle);
        *first = *reinterpret_cast<uint32_t *>(&a);
        *second = *reinterpret_cast<uint32_t *>(&b);
    }
}

/* ---- embed ---- */

/* Row m of embed, an element at a time. */
struct embed_row {
    const float *input; /* in place of the table's */
    int64_t row;        /* of the table */
    bool here;

    DEVICE_MEMBER embed_row(const decode_embed_args &a, int m) {
        const int32_t token = step_token(a.step, m);
        row = (int64_t)token - a.vocab_first;
        input = NULL;
        if (token < 0 && a.takes_input_rows && a.step->input_rows != 0) {
            input = step_array<float>(a.step, a.step->input_rows) + (-1 - (int64_t)token) * a.d;
        }
        here = token >= 0 && row >= 0 && row < a.vocab_count;
    }

    DEVICE_MEMBER float value(const decode_embed_args &a, int i) const {
        if (input != NULL) {
            return input[i];
        }
        if (!here) {
            return 0.0F;
        }
        if (a.format == KERN_INT8) {
            int leaf = 0;
#pragma unroll
            for (int j = 1; j < DECODE_LEAVES; j++) {
                leaf += i >= a.border[j];
            }
            return (float)static_cast<const int8_t *>(a.table)[row * a.d + i] * a.scale[row * DECODE_LEAVES + leaf];
        }
        return a.format == KERN_F32    ? load_as<KERN_F32>(a.table, row * a.d + i)
               : a.format == KERN_BF16 ? load_as<KERN_BF16>(a.table, row * a.d + i)
                                       : load_as<KERN_F16>(a.table, row * a.d + i);
    }
};

/* ---- Reductions: every lane gets the same bits ---- */

DEVICE float warp_sum(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lanes);
    }
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    }
    return value;
}

/* Notes that a row went bad in an op, unless it was bad before. */
DEVICE void note_fault(int32_t *fault, int row, int op_index) {
    atomicCAS(&fault[row], 0, op_index + 1);
}

/* The upper part of the leaf tree: n is 1, 2, 4 or 8; value[] is overwritten. */
DEVICE float leaf_tree(float (&value)[DECODE_LEAVES], int n) {
    if (n > 4) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            value[i] = value[2 * i] + value[2 * i + 1];
        }
    }
    if (n > 2) {
        value[0] = value[0] + value[1];
        value[1] = value[2] + value[3];
    }
    return n > 1 ? value[0] + value[1] : value[0];
}

#endif
